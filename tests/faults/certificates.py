"""Certificates for loopback, made when first needed."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from functools import cache

import trustme

from .server import HOST


@cache
def issuer() -> trustme.CA:
    """Make the issuer that the tests' own clients trust."""
    return trustme.CA()


@cache
def server_context(
    name: str = HOST, *, http2: bool = False, year: int | None = None
) -> ssl.SSLContext:
    """Make a server's context, with a certificate for ``name``, which may be good in one year."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    begin = None if year is None else datetime(year, 1, 1, tzinfo=UTC)
    end = begin and begin + timedelta(days=365)
    certificate = issuer().issue_cert(name, not_before=begin, not_after=end)
    with certificate.private_key_and_cert_chain_pem.tempfile() as path:
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
