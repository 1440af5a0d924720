"""The parts of httpx that differ between the halves, for event loops."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio
import httpx

from .._concurrency.forks import keep_in_children

if TYPE_CHECKING:
    from types import ModuleType

    from .tls import Certificates

AsyncAuthFlow: TypeAlias = AsyncGenerator[httpx.Request, httpx.Response]

_ONE: Final = httpx.Limits(max_connections=1)
ASYNC_NETWORK_ERRORS: Final = (
    *(httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError),
    *(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream),
)
"""The exceptions of httpx, anyio and the system for a request without a reply."""
_PAUSE: Final = 0.001
"""Seconds between two checks of the thread that loads the certificates, once in a process."""


def async_http_transport(
    proxy: httpx.URL | None, certificates: Certificates
) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport, for one connection."""
    return _AsyncTransport(verify=certificates.context(), proxy=proxy, limits=_ONE)


class _AsyncTransport(httpx.AsyncHTTPTransport):
    """Reports its connection to the fork hooks, so that children drop their copy of it."""

    _stream: object = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        stream = response.extensions.get("network_stream")
        if stream is not self._stream:
            self._stream = stream
            keep_in_children(self, stream)
        return response


async def async_tls_ready(certificates: Certificates) -> None:
    """Wait for the certificates without blocking the event loop."""
    # The connection needs this module; the thread keeps loading in the meantime.
    import httpcore  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport]

    while certificates.is_loading:  # noqa: ASYNC110 - a thread is no event
        await anyio.sleep(_PAUSE)


async def async_advance(
    flow: AsyncAuthFlow, response: httpx.Response | None
) -> httpx.Request | None:
    """
    Advance an auth flow to its next request; return `None` when it has ended.

    The reply before it is read, as httpx does it.
    """
    try:
        request = await (anext(flow) if response is None else flow.asend(response))
    except StopAsyncIteration:
        return None
    if response is not None:
        await response.aread()
    return request


async def async_read_reply(
    response: httpx.Response, library: ModuleType = httpx
) -> Exception | None:
    """
    Read the rest of a reply to release its connection, and put it back: it may be the answer.

    Return the error if it cannot be read: the status is enough to go on.
    """
    from .bodies import check_encoding, content, put_back  # noqa: PLC0415 - rarely needed

    if content(response) is not None:
        return None
    error: Exception | None = None
    body: bytes | None = None
    try:
        if not (response.is_stream_consumed or response.is_closed):  # by an event hook
            body = b"".join([chunk async for chunk in response.aiter_raw()])
            check_encoding(response, body, library)
    except library.HTTPError as exc:
        error, body = exc, None
    await response.aclose()
    put_back(response, body, library)
    return error


class AsyncAuthBase(httpx.Auth):
    """An `httpx.Auth` that refuses ``httpx.Client``, which would send unsigned requests."""

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
