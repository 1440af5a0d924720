"""The fake service as an ``httpx`` transport: without a network, but with all of its failures."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio.lowlevel
import httpx

from ._bodies import Body
from ._calls import arespond, respond
from ._replies import Reply
from ._service import Call, Service


class FakeTransport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """
    A transport for ``httpx.AsyncClient`` and for ``httpx.Client``, for any number of them.

    It reads the request's stream as a connection does, so that a test sees a body fail that cannot
    be sent twice. The reply is a stream that is not read yet. A held reply ends with
    ``httpx.ReadTimeout`` after the request's read timeout. Closing the transport does nothing, as
    several clients may share it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._open_replies = 0

    def __repr__(self) -> str:
        return f"<FakeTransport, {self._open_replies} replies open>"

    @property
    def open_replies(self) -> int:
        """The number of replies that are not closed yet; 0 after a client that leaks none."""
        return self._open_replies

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request of an ``httpx.Client``."""
        if not isinstance(request.stream, httpx.SyncByteStream):
            raise TypeError("an httpx.Client cannot send a body that has to be awaited")
        body = Body()
        for chunk in request.stream:
            body.add(chunk)
        call = self._admit(request, body)
        try:
            reply = respond(self._service, call, _patience(request))
        except TimeoutError:
            raise httpx.ReadTimeout("timed out") from None
        return self._respond(call, reply)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request of an ``httpx.AsyncClient``."""
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise TypeError("an httpx.AsyncClient cannot send a body that has to block")
        body = Body()
        async for chunk in request.stream:
            body.add(chunk)
        # A connection yields to the event loop twice: when the request leaves, and before the reply
        # arrives. So other tasks run in between, and a cancellation may lose the reply.
        await anyio.lowlevel.checkpoint()
        call = self._admit(request, body)
        try:
            reply = await arespond(self._service, call, _patience(request))
        except TimeoutError:
            raise httpx.ReadTimeout("timed out") from None
        await anyio.lowlevel.checkpoint()
        return self._respond(call, reply)

    def close(self) -> None:
        """Do nothing, as other clients may use the transport."""

    async def aclose(self) -> None:
        """Do nothing, as other clients may use the transport."""

    def _admit(self, request: httpx.Request, body: Body) -> Call:
        target = request.url.raw_path.decode("ascii")
        return self._service.receive(request.method, target, request.headers.raw, body.content)

    def _respond(self, call: Call, reply: Reply | None) -> httpx.Response:
        if call.fault is not None and call.fault.refuse:
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if reply is None:
            raise httpx.ReadError("[Errno 104] Connection reset by peer")
        with self._lock:
            self._open_replies += 1
        return httpx.Response(
            reply.status,
            headers=list(reply.headers),
            stream=_ReplyStream(reply, self._closed),
            extensions={"http_version": b"HTTP/1.1"},
        )

    def _closed(self) -> None:
        with self._lock:
            self._open_replies -= 1


class _ReplyStream(httpx.AsyncByteStream, httpx.SyncByteStream):
    def __init__(self, reply: Reply, on_close: Callable[[], None]) -> None:
        self._reply = reply
        self._on_close = on_close
        self._is_open = True

    def __iter__(self) -> Iterator[bytes]:
        yield self._reply.received_body
        self._end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._reply.received_body
        self._end()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._on_close()

    async def aclose(self) -> None:
        self.close()

    def _end(self) -> None:
        if self._reply.is_truncated:
            raise httpx.RemoteProtocolError(self._reply.cut_short)


def _patience(request: httpx.Request) -> float | None:
    timeouts: dict[str, Any] = request.extensions.get("timeout", {})
    patience: float | None = timeouts.get("read")
    return patience
