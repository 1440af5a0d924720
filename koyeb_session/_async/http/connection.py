"""httpx's own transport with a single connection; imported with the first, as httpcore is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpcore

from ..._http.event_loop import async_http_transport

if TYPE_CHECKING:
    import httpx

    from ..._http.tls import Certificates

_SCHEMES: Final = {b"http", b"https", b"ws", b"wss"}
_HANDLE: Final = httpcore.AsyncHTTPConnection.handle_async_request
"""The method of httpcore; respx replaces it while it mocks."""


def async_single_transport(
    proxy: httpx.URL | None, certificates: Certificates
) -> httpx.AsyncBaseTransport:
    """
    Make httpx's own transport, for one request at a time to one origin.

    A transport of our own on httpcore's public classes would need no private name. But
    OpenTelemetry, vcrpy and pytest-httpx hook into httpx's transports, and would not see it. Its
    errors and options would also have to be written again. With a later httpx that has another name
    for its pool, that pool stays, and so it does behind a proxy.
    """
    transport = async_http_transport(proxy, certificates)
    inside = vars(transport)
    if type(pool := inside.get("_pool")) is httpcore.AsyncConnectionPool:
        inside["_pool"] = AsyncSingleConnection(pool)
    return transport


class AsyncSingleConnection:
    """
    A connection in the place of httpcore's pool.

    Before and after each request, the pool searches its connections and its queue, which the slots
    of `AsyncQueuedTransport` have made needless. Hot path: see tests/benchmarks.
    """

    def __init__(self, pool: httpcore.AsyncConnectionPool) -> None:
        self._pool = pool
        self.connection: httpcore.AsyncConnectionInterface | None = None

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request on the open connection, or on a new one."""
        connection = self.connection
        if connection is None or not connection.is_available() or connection.has_expired():
            if request.url.scheme not in _SCHEMES:
                return await self._pool.handle_async_request(request)  # raises the error for it
            await self.aclose()
            connection = self.connection = self._pool.create_connection(request.url.origin)
        elif httpcore.AsyncHTTPConnection.handle_async_request is _HANDLE:
            # It is open: skip the outer object, whose lock is for connecting.
            connection = getattr(connection, "_connection", None) or connection
        return await connection.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the connection; one that is just being opened needs another call later."""
        if self.connection is not None:
            await self.connection.aclose()
