"""Blocking twins: what of httpx is not the same in both halves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from importlib import import_module
from typing import Final, TypeAlias

import httpx

AuthFlow: TypeAlias = Generator[httpx.Request, httpx.Response, None]

NETWORK_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError)
"""What httpx and the system raise when there is no reply."""


def http_transport(proxy: str | None) -> httpx.BaseTransport:
    """Blocking twin, which keeps the deadline."""
    from .._network import http_transport  # noqa: PLC0415 - imports httpcore, for its first use

    return http_transport(proxy)


def tls_ready() -> None:
    """Blocking twin: import what the connection needs; `tls.tls_context` waits by itself."""
    import_module("httpcore")


def read_reply(response: httpx.Response) -> None:
    """Blocking twin."""
    response.read()


class AuthBase(httpx.Auth):
    """Blocking twin: refuses ``httpx.AsyncClient``."""

    def async_auth_flow(
        self,
        request: httpx.Request,  # noqa: ARG002 - httpx's signature
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.Client; "
            "for an httpx.AsyncClient use the auth of an AsyncSessionClient"
        )
        raise TypeError(message)
