"""Many requests at once, without the one large pool that httpx would search at each of them."""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import httpx

from .._concurrency.async_http import async_http_transport
from .._concurrency.async_waiting import AsyncPulse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .._concurrency.async_flights import AsyncWork

LIMIT: Final = 100
"""Requests at a time: as many as httpx's own pool has connections."""
KEPT: Final = 5.0
"""Seconds for which an idle connection is kept: as httpx's own pool does."""
SIGNER: Final = "koyeb_session.signer"
"""The extension of a request that says whose it is to sign it again, once it has waited."""


class AsyncSlots(httpx.AsyncBaseTransport):
    """
    Up to :data:`LIMIT` of httpx's own transports, each with one request at a time.

    A request takes the transport that was used last, or waits in line for one, for as long as its
    pool timeout says; it gives the transport back when its response is closed.
    """

    def __init__(self, proxy: str | None) -> None:
        self._proxy = proxy
        self._turns = AsyncTurns(LIMIT)
        self._made: set[httpx.AsyncBaseTransport] = set()
        self._idle: deque[tuple[float, httpx.AsyncBaseTransport]] = deque()
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request on a transport of its own.

        Raises:
            httpx.PoolTimeout: It has waited for too long.
        """
        waited = await self._turns.take(request.extensions.get("timeout", {}).get("pool"))
        transport = None
        try:
            if waited and (signer := request.extensions.get(SIGNER)):
                await signer.sign_again(request)
            transport = self._transport()
            response = await transport.handle_async_request(request)
        except BaseException:
            await self._back(transport)
            raise
        stream = cast("httpx.AsyncByteStream", response.stream)
        response.stream = _AsyncHeld(stream, partial(self._back, transport))
        return response

    async def aclose(self) -> None:
        """Close all transports, for good."""
        self._closed = True
        for transport in tuple(self._made):
            self._made.discard(transport)
            await transport.aclose()

    def _transport(self) -> httpx.AsyncBaseTransport:
        if self._closed:
            message = "the session client that owns these connections is closed"
            raise RuntimeError(message)
        try:
            return self._idle.pop()[1]
        except IndexError:
            transport = async_http_transport(self._proxy)
            self._made.add(transport)
            return transport

    async def _back(self, transport: httpx.AsyncBaseTransport | None) -> None:
        """Let another request have its turn, and close what has been idle for long."""
        now = time.monotonic()
        if transport is not None:
            self._idle.append((now, transport))
        self._turns.give()
        while (old := self._old(now - KEPT)) is not None:
            self._made.discard(old)
            await old.aclose()

    def _old(self, before: float) -> httpx.AsyncBaseTransport | None:
        """Take a transport that is not to be kept."""
        try:
            since, transport = self._idle.popleft()
        except IndexError:
            return None
        if self._closed or since < before:
            return transport
        self._idle.appendleft((since, transport))
        return None


class AsyncTurns:
    """
    At most so many at a time; who comes first is served first.

    There is no lock: a turn may be given back by the garbage collector, in the middle of anything.
    """

    def __init__(self, turns: int) -> None:
        self._free = [True] * turns
        self._line: deque[AsyncPulse] = deque()

    async def take(self, seconds: float | None) -> bool:
        """
        Wait for a turn, for at most ``seconds``, and tell whether that was a wait.

        Raises:
            httpx.PoolTimeout: There was none.
        """
        if self._take_free():
            return False
        pulse = AsyncPulse()
        self._line.append(pulse)
        self._serve()
        try:
            await pulse.sleep(seconds)
        except BaseException:
            if not self._leave(pulse):
                self.give()
            raise
        if self._leave(pulse):
            message = "no connection became free in time"
            raise httpx.PoolTimeout(message)
        return True

    def give(self) -> None:
        """Let the next one have its turn."""
        self._free.append(True)
        self._serve()

    def _serve(self) -> None:
        """Call whoever is first, as long as there is a turn."""
        while self._line and self._take_free():
            try:
                self._line.popleft().beat()
            except IndexError:  # another thread was faster
                self._free.append(True)

    def _take_free(self) -> bool:
        try:
            return self._free.pop()
        except IndexError:
            return False

    def _leave(self, pulse: AsyncPulse) -> bool:
        """Leave the line; tell whether it still stood there."""
        try:
            self._line.remove(pulse)
        except ValueError:
            return False
        return True


class _AsyncHeld(httpx.AsyncByteStream):
    """A response's body; ``then`` is done once it is closed, or has failed."""

    def __init__(self, stream: httpx.AsyncByteStream, then: AsyncWork[None]) -> None:
        self._stream = stream
        self._then: AsyncWork[None] | None = then

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        try:
            async for chunk in self._stream:
                yield chunk
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close it, once."""
        then, self._then = self._then, None
        if then is not None:
            try:
                await self._stream.aclose()
            finally:
                await then()
