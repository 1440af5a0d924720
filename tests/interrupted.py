"""The fake's transport, on which something happens at one point of each request."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import httpx

from koyeb_session.testing import FakeKoyeb

Point: TypeAlias = Literal["request", "reply", "body", "close"]
"""Where in a request something happens: before it, before its reply, in the body, at the end."""
POINTS: Final[tuple[Point, ...]] = get_args(Point)


class Interrupting(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The fake's transport, on which something happens at one point of each request."""

    def __init__(self, fake: FakeKoyeb, point: Point, event: Callable[[], Any]) -> None:
        self._inner = fake.transport
        self._point = point
        self._event = event

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        self.at("request")
        response = self._inner.handle_request(request)
        self.at("reply")
        response.stream = Body(response.stream, self)
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        await self.async_at("request")
        response = await self._inner.handle_async_request(request)
        await self.async_at("reply")
        response.stream = Body(response.stream, self)
        return response

    def at(self, point: Point) -> None:
        """Let it happen, if this is where."""
        if self._point == point:
            self._event()

    async def async_at(self, point: Point) -> None:
        """Let it happen, if this is where; it may have to be awaited."""
        if self._point == point and inspect.isawaitable(happening := self._event()):
            await happening


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body, of which all has arrived but its end."""

    def __init__(self, inner: Any, transport: Interrupting) -> None:
        self._inner = inner
        self._transport = transport

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner
        self._transport.at("body")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk
        await self._transport.async_at("body")

    def close(self) -> None:
        """End it."""
        self._inner.close()
        self._transport.at("close")

    async def aclose(self) -> None:
        """End it."""
        await self._inner.aclose()
        await self._transport.async_at("close")


def interrupt() -> None:
    """Interrupt, like Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    raise RuntimeError  # a thread of the client's is not interrupted


def fail() -> None:
    """Fail, like a broken transport."""
    raise RuntimeError


def time_out() -> None:
    """Time out, like httpx when nothing comes."""
    message = "timed out"
    raise httpx.ReadTimeout(message)


EVENTS: Final[Mapping[str, Callable[[], None]]] = {
    "success": lambda: None,
    "interruption": interrupt,
    "error": fail,
    "timeout": time_out,
}
