"""Limit concurrent requests, avoiding httpx's slow pool lookup under load."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import httpx

from ..._concurrency.event_loop.deadlines import async_shield
from ..._concurrency.event_loop.tickets import AsyncTicket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ..._concurrency.event_loop.shared_task import AsyncWork
    from ..._http.proxies import Proxies
    from ..._http.tls import Certificates

Route: TypeAlias = tuple[httpx.URL | None, bytes, bytes, int | None]
"""A proxy and the origin behind it: a connection is reused only for the same pair."""

MAX_CONNECTIONS: Final = 100
"""The limit for concurrent requests, and for sockets to all origins; httpx's own default."""
KEEPALIVE_EXPIRY: Final = 5.0
"""Seconds for which an idle connection is kept; httpx's own default."""


class AsyncQueuedTransport(httpx.AsyncBaseTransport):
    """
    Up to :data:`MAX_CONNECTIONS` of httpx's own transports, each with one connection.

    Each request needs a slot, and queues for one up to its pool timeout. It then takes the
    transport that was last used for its route, or makes one. If there are too many, the one that
    has been idle for longest is closed. The slot and the transport are released when the response
    is closed.

    There is no lock: the garbage collector or a signal handler may release a slot at any point.
    Each step below is one atomic call of a dict, a set or a list instead.

    A transport is in ``_made`` from before it connects until after it is closed. Only a request
    with a slot closes an idle one. So there are never more than :data:`MAX_CONNECTIONS` sockets.
    """

    def __init__(self, proxies: Proxies, certificates: Certificates) -> None:
        self._proxies = proxies
        self._certificates = certificates
        self._request_queue = AsyncRequestQueue(MAX_CONNECTIONS)
        self._made: set[httpx.AsyncBaseTransport] = set()
        # In the order of last use; the value is the route and the time of that use.
        self._idle: dict[httpx.AsyncBaseTransport, tuple[Route, float]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request on a transport that no other request uses.

        Raises:
            httpx.PoolTimeout: The request has waited for too long.
        """
        url = request.url
        route = (self._proxies.route(url), url.raw_scheme, url.raw_host, url.port)
        await self._request_queue.acquire(request.extensions.get("timeout", {}).get("pool"))
        transport = None
        # From here on, exactly one `_back` releases the slot: here, or when the stream is closed.
        try:
            transport = self._kept(route) or await self._new(route)
            response = await transport.handle_async_request(request)
        except BaseException as exc:
            await self._back(transport, route)
            if route[0] is not None:
                from ..._http.failures import name_proxy  # noqa: PLC0415 - few have a proxy

                name_proxy(exc, route[0])
            raise
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.stream = _AsyncReleasingStream(stream, partial(self._back, transport, route))
        return response

    async def aclose(self) -> None:
        """Close all transports, for good."""
        self._closed = True
        for transport in tuple(self._made):
            self._made.discard(transport)
            await transport.aclose()

    def _kept(self, route: Route) -> httpx.AsyncBaseTransport | None:
        """Take the transport that was last used for this route, if there is one."""
        if self._closed:
            message = "the session client that owns these connections is closed"
            raise RuntimeError(message)
        for transport in reversed(list(self._idle)):
            used = self._idle.get(transport)
            # The `pop` decides: only one request gets a transport that two have found.
            if used and used[0] == route and self._idle.pop(transport, None):
                return transport
        return None

    async def _new(self, route: Route) -> httpx.AsyncBaseTransport:
        """Make a transport, and close idle ones beyond the limit."""
        from .connection import async_single_transport  # noqa: PLC0415 - imports httpcore, on first use

        transport = async_single_transport(route[0], self._certificates)
        self._made.add(transport)  # counted before it connects
        try:
            for oldest in list(self._idle):
                if len(self._made) <= MAX_CONNECTIONS:
                    break
                await self._discard(oldest)
        except BaseException:
            self._made.discard(transport)
            raise
        return transport

    async def _back(self, transport: httpx.AsyncBaseTransport | None, route: Route) -> None:
        """Put a transport back, close those that have expired, and release the slot."""
        now = time.monotonic()
        try:
            # Idle before the slot is free, so that the next request finds the transport.
            if transport is not None:
                self._idle[transport] = (route, now)
            # In the order of last use: the first fresh one ends the loop.
            for oldest in list(self._idle):
                since = self._idle.get(oldest, (route, now))[1]
                if since >= now - KEEPALIVE_EXPIRY and not self._closed:
                    break
                await self._discard(oldest)
        finally:
            self._request_queue.release()

    async def _discard(self, transport: httpx.AsyncBaseTransport) -> None:
        """Close an idle transport, unless another request has taken it."""
        if self._idle.pop(transport, None):
            # Counted until it is closed, as its socket stays open until then.
            try:
                await transport.aclose()
            finally:
                self._made.discard(transport)


class AsyncRequestQueue:
    """
    A fixed number of slots, given to requests first come, first served.

    No slot is lost between two threads, with or without a GIL. A request enters the queue before it
    checks for a free slot. A released slot becomes free before the queue is checked. So one of the
    two always sees the other.
    """

    def __init__(self, places: int) -> None:
        self._free = [True] * places
        self._queue: deque[AsyncTicket] = deque()

    async def acquire(self, seconds: float | None) -> None:
        """
        Wait for a slot, for at most ``seconds``.

        Raises:
            httpx.PoolTimeout: No slot became free in time.
        """
        if self._take_free():
            return
        # Queue first, then check once more: a slot may have become free in between.
        ticket = AsyncTicket()
        self._queue.append(ticket)
        self._wake_first()
        # A ticket that is no longer queued has been called, so the slot is this request's. That
        # holds even if the request is cancelled, or times out, at the same moment.
        try:
            await ticket.wait(seconds)
        except BaseException:
            if not self._withdraw(ticket):
                self.release()
            raise
        if self._withdraw(ticket):
            message = "no connection became free in time"
            raise httpx.PoolTimeout(message)

    def release(self) -> None:
        """Release a slot to the next request in the queue."""
        self._free.append(True)
        self._wake_first()

    def _wake_first(self) -> None:
        """Give free slots to the first requests in the queue."""
        while self._queue and self._take_free():
            try:
                self._queue.popleft().call()
            except IndexError:  # another thread was faster: put the slot back, and check again
                self._free.append(True)

    def _take_free(self) -> bool:
        try:
            return self._free.pop()
        except IndexError:
            return False

    def _withdraw(self, ticket: AsyncTicket) -> bool:
        """Leave the queue; return whether the ticket was still in it."""
        try:
            self._queue.remove(ticket)
        except ValueError:
            return False
        return True


class _AsyncReleasingStream(httpx.AsyncByteStream):
    """The body of a response, which calls ``then`` once it is closed or has failed."""

    def __init__(self, stream: httpx.AsyncByteStream, then: AsyncWork[None]) -> None:
        self._stream = stream
        self._then = [then]

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        # The end of the body releases the slot, even if the user never closes the response.
        try:
            async for chunk in self._stream:
                yield chunk
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the body, and call ``then`` once."""
        try:
            then = self._then.pop()  # atomic: of two callers, one gets it
        except IndexError:
            return
        try:
            # Also after a body that was read: httpcore may close the connection then, and wait.
            with async_shield():
                await self._stream.aclose()
        finally:
            await then()
