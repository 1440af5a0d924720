"""What of httpx is not the same in both halves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from importlib import import_module
from typing import Final, TypeAlias

import anyio
import httpx

from .tls import is_loading, tls_context

AsyncAuthFlow: TypeAlias = AsyncGenerator[httpx.Request, httpx.Response]

ASYNC_NETWORK_ERRORS: Final = (
    *(httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
)
"""What httpx, anyio and the system raise when there is no reply."""
_PAUSE: Final = 0.001
"""Seconds between two looks at a thread that takes twenty times as long, once in a process."""


def async_http_transport(proxy: str | None) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport."""
    return httpx.AsyncHTTPTransport(verify=tls_context(), proxy=proxy)


async def async_tls_ready() -> None:
    """Wait for what `tls.prepare_tls` has begun, without keeping the event loop from others."""
    import_module("httpcore")  # which the connection needs, too: the thread goes on meanwhile
    while is_loading():  # noqa: ASYNC110 - a thread is no event
        await anyio.sleep(_PAUSE)


async def async_read_reply(response: httpx.Response) -> None:
    """Read what is left of a reply, which releases its connection; httpx does before a replay."""
    await response.aread()


class AsyncAuthBase(httpx.Auth):
    """Refuses ``httpx.Client``, which would send unauthenticated requests."""

    def sync_auth_flow(
        self,
        request: httpx.Request,  # noqa: ARG002 - httpx's signature
    ) -> Generator[httpx.Request, httpx.Response, None]:
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.AsyncClient; "
            "for an httpx.Client use the auth of a SessionClient"
        )
        raise TypeError(message)
