"""Blocking twins: what of httpx is not the same in both halves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Final, TypeAlias

import httpx

if TYPE_CHECKING:
    from .tls import Certificates

AuthFlow: TypeAlias = Generator[httpx.Request, httpx.Response, None]

NETWORK_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError)
"""What httpx and the system raise when there is no reply."""


def http_transport(proxy: httpx.URL | None, certificates: Certificates) -> httpx.BaseTransport:
    """Blocking twin, which keeps the deadline."""
    from .deadline_network import http_transport  # noqa: PLC0415 - imports httpcore, for its first use

    return http_transport(proxy, certificates)


def tls_ready(certificates: Certificates) -> None:  # noqa: ARG001 - it waits when it is asked
    """Blocking twin: import what the connection needs."""
    # The thread goes on meanwhile.
    import httpcore  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport]


def advance(flow: AuthFlow, response: httpx.Response | None) -> httpx.Request | None:
    """Blocking twin."""
    try:
        return next(flow) if response is None else flow.send(response)
    except StopIteration:
        return None


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
