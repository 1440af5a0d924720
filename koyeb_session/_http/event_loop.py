"""What of httpx is not the same in both halves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio
import httpx

if TYPE_CHECKING:
    from .tls import Certificates

AsyncAuthFlow: TypeAlias = AsyncGenerator[httpx.Request, httpx.Response]

_ONE: Final = httpx.Limits(max_connections=1, keepalive_expiry=5.0)
ASYNC_NETWORK_ERRORS: Final = (
    *(httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
)
"""What httpx, anyio and the system raise when there is no reply."""
_PAUSE: Final = 0.001
"""Seconds between two looks at a thread that takes twenty times as long, once in a process."""


def async_http_transport(
    proxy: httpx.URL | None, certificates: Certificates
) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport, for one connection."""
    return httpx.AsyncHTTPTransport(verify=certificates.context(), proxy=proxy, limits=_ONE)


async def async_tls_ready(certificates: Certificates) -> None:
    """Wait for the certificates, without keeping the event loop from others."""
    # The connection needs it; the thread goes on meanwhile.
    import httpcore  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport]

    while certificates.is_loading:  # noqa: ASYNC110 - a thread is no event
        await anyio.sleep(_PAUSE)


async def async_advance(
    flow: AsyncAuthFlow, response: httpx.Response | None
) -> httpx.Request | None:
    """Take an auth flow to its next request; `None` when it has ended."""
    try:
        return await (anext(flow) if response is None else flow.asend(response))
    except StopAsyncIteration:
        return None


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
