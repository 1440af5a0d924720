"""httpx's own transport with a single connection; imported with the first, as httpcore is."""

from __future__ import annotations

from contextlib import nullcontext
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final

import httpcore

from ..._http.event_loop import async_http_transport

if TYPE_CHECKING:
    import httpx

    from ..._http.tls import Certificates

_SCHEMES: Final = {b"http", b"https", b"ws", b"wss"}


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
    inside: Any = transport
    if type(pool := getattr(inside, "_pool", None)) is httpcore.AsyncConnectionPool:
        inside._pool = AsyncSingleConnection(pool)  # noqa: SLF001
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
        if _is_hooked() or request.url.scheme not in _SCHEMES:
            # A mock has to see each request; for another scheme, the pool raises its error.
            return await self._pool.handle_async_request(request)
        while True:
            connection = self.connection
            if connection is None or not connection.is_available() or connection.has_expired():
                await self.aclose()
                connection = self.connection = self._pool.create_connection(request.url.origin)
            try:
                response = await connection.handle_async_request(request)
            except httpcore.ConnectionNotAvailable:
                continue  # it was closed after the check; nothing has been sent
            self.connection = _without_locks(connection)
            return response

    async def aclose(self) -> None:
        """Close the connection; one that is just being opened needs another call later."""
        try:
            if self.connection is not None:
                await self.connection.aclose()
        finally:
            await self._pool.aclose()  # it has a connection if a mock has let a request through


def _without_locks(
    connection: httpcore.AsyncConnectionInterface,
) -> httpcore.AsyncConnectionInterface:
    """
    Return the open connection inside, without the locks that keep requests apart.

    Here, requests come one at a time. In an event loop, even a free lock costs a turn of the loop.
    """
    inside = getattr(connection, "_connection", None)
    if type(inside) is not httpcore.AsyncHTTP11Connection:
        return connection
    vars(inside)["_state_lock"] = nullcontext()
    return inside


def _is_hooked() -> bool:
    """Return whether a mock or a recorder, such as respx, has replaced methods of httpcore."""
    return not (
        _is_of_httpcore(httpcore.AsyncHTTPConnection.handle_async_request)
        and _is_of_httpcore(httpcore.AsyncConnectionPool.handle_async_request)
    )


def _is_of_httpcore(method: object) -> bool:
    # Not by its `__module__`, which wrappers copy.
    return type(method) is FunctionType and method.__globals__["__name__"].startswith("httpcore.")
