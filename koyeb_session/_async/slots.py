"""Limit concurrent requests, avoiding httpx's slow pool lookup under load."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import httpx

from .._concurrency.async_http import async_http_transport
from .._concurrency.async_tickets import AsyncTicket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .._concurrency.async_flights import AsyncWork
    from .._concurrency.tls import Certificates
    from .._proxies import Proxies

Route: TypeAlias = tuple[httpx.URL | None, bytes, bytes, int | None]
"""A proxy, and the origin behind it: what a connection can be used again for."""

LIMIT: Final = 100
"""Requests at a time, and sockets for all origins: as many as httpx's own pool has."""
KEPT: Final = 5.0
"""Seconds for which an idle connection is kept: as httpx's own pool does."""


class AsyncSlots(httpx.AsyncBaseTransport):
    """
    Up to :data:`LIMIT` of httpx's own transports, each with one connection and one request.

    A request takes a turn, or queues for one for as long as its pool timeout says. With the turn it
    takes the transport that was used last for its route, or makes one, in the place of the one that
    has been idle for longest where there are too many. Both are given back when its response is
    closed.

    There is no lock: a turn may be given back by the garbage collector or a signal handler, in the
    middle of anything. Each step below is one atomic call of a dict, a set or a list. A transport
    is in ``_made`` from before it connects until after it is closed, and whoever closes an idle one
    has a turn: so there are never more sockets than :data:`LIMIT`.
    """

    def __init__(self, proxies: Proxies, certificates: Certificates) -> None:
        self._proxies = proxies
        self._certificates = certificates
        self._turns = AsyncTurns(LIMIT)
        self._made: set[httpx.AsyncBaseTransport] = set()
        # In the order of their last use, which is told with the route.
        self._idle: dict[httpx.AsyncBaseTransport, tuple[Route, float]] = {}
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request on a transport of its own.

        Raises:
            httpx.PoolTimeout: It has waited for too long.
        """
        url = request.url
        route = (self._proxies.route(url), url.raw_scheme, url.raw_host, url.port)
        await self._turns.take(request.extensions.get("timeout", {}).get("pool"))
        transport = None
        try:
            transport = self._kept(route) or await self._new(route)
            response = await transport.handle_async_request(request)
        except BaseException:
            await self._back(transport, route)
            raise
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.stream = _AsyncHeld(stream, partial(self._back, transport, route))
        return response

    async def aclose(self) -> None:
        """Close all transports, for good."""
        self._closed = True
        for transport in tuple(self._made):
            self._made.discard(transport)
            await transport.aclose()

    def _kept(self, route: Route) -> httpx.AsyncBaseTransport | None:
        """Take the transport that was used last for a route."""
        if self._closed:
            message = "the session client that owns these connections is closed"
            raise RuntimeError(message)
        for transport in reversed(list(self._idle)):
            used = self._idle.get(transport)
            if used and used[0] == route and self._idle.pop(transport, None):
                return transport
        return None

    async def _new(self, route: Route) -> httpx.AsyncBaseTransport:
        """Make a transport, and close idle ones that are then too many."""
        transport = async_http_transport(route[0], self._certificates)
        self._made.add(transport)
        try:
            for oldest in list(self._idle):
                if len(self._made) <= LIMIT:
                    break
                await self._discard(oldest)
        except BaseException:
            self._made.discard(transport)
            raise
        return transport

    async def _back(self, transport: httpx.AsyncBaseTransport | None, route: Route) -> None:
        """Close what has been idle for long, and let another request have its turn."""
        now = time.monotonic()
        try:
            if transport is not None:
                self._idle[transport] = (route, now)
            for oldest in list(self._idle):
                since = self._idle.get(oldest, (route, now))[1]
                if since >= now - KEPT and not self._closed:
                    break
                await self._discard(oldest)
        finally:
            self._turns.give()

    async def _discard(self, transport: httpx.AsyncBaseTransport) -> None:
        """Close an idle transport, unless another request has taken it."""
        if self._idle.pop(transport, None):
            try:
                await transport.aclose()
            finally:
                self._made.discard(transport)


class AsyncTurns:
    """
    At most so many turns at a time, first come, first served.

    No turn is lost between two threads, with or without a GIL. A request enters the queue before it
    looks for a free turn, and a turn becomes free before its giver looks at the queue: one of the
    two sees the other.
    """

    def __init__(self, turns: int) -> None:
        self._free = [True] * turns
        self._queue: deque[AsyncTicket] = deque()

    async def take(self, seconds: float | None) -> None:
        """
        Wait for a turn, for at most ``seconds``.

        Raises:
            httpx.PoolTimeout: There was none.
        """
        if self._take_free():
            return
        ticket = AsyncTicket()
        self._queue.append(ticket)
        self._serve()
        try:
            await ticket.wait(seconds)
        except BaseException:
            if not self._leave(ticket):
                self.give()
            raise
        if self._leave(ticket):
            message = "no connection became free in time"
            raise httpx.PoolTimeout(message)

    def give(self) -> None:
        """Let the next request have its turn."""
        self._free.append(True)
        self._serve()

    def _serve(self) -> None:
        """Call the first in the queue, as long as there is a turn."""
        while self._queue and self._take_free():
            try:
                self._queue.popleft().call()
            except IndexError:  # another thread was faster; look at the queue once more
                self._free.append(True)

    def _take_free(self) -> bool:
        try:
            return self._free.pop()
        except IndexError:
            return False

    def _leave(self, ticket: AsyncTicket) -> bool:
        """Leave the queue; tell whether the ticket was still in it."""
        try:
            self._queue.remove(ticket)
        except ValueError:
            return False
        return True


class _AsyncHeld(httpx.AsyncByteStream):
    """A response's body; ``then`` is done once it is closed, or has failed."""

    def __init__(self, stream: httpx.AsyncByteStream, then: AsyncWork[None]) -> None:
        self._stream = stream
        self._then = [then]

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close it, once: whoever pops what is then to be done does it."""
        try:
            then = self._then.pop()
        except IndexError:
            return
        try:
            await self._stream.aclose()
        finally:
            await then()
