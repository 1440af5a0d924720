"""Certificates for loopback, made when first needed."""

from __future__ import annotations

import ssl
from functools import cache

import trustme

from .server import HOST


@cache
def issuer() -> trustme.CA:
    """Make the issuer that the tests' own clients trust."""
    return trustme.CA()


@cache
def server_context(name: str = HOST, *, http2: bool = False) -> ssl.SSLContext:
    """Make a server's context, with a certificate for ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with issuer().issue_cert(name).private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    if http2:
        context.set_alpn_protocols(["h2"])
    return context


@cache
def client_context() -> ssl.SSLContext:
    """Make the context of a client that trusts the issuer."""
    context = ssl.create_default_context()
    context.load_verify_locations(cadata=issuer().cert_pem.bytes().decode())
    return context
