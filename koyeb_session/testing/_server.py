"""
Serve the fake service on a real socket, for tests that need a network.

One thread with its own event loop serves all connections. A thread for each connection would cost
more than the client under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Generator
from typing import cast

from . import _replies
from ._calls import arespond, respond
from ._http1 import Malformed, RequestReader, WireRequest, encode
from ._replies import Reply
from ._service import Call, Service

_BACKLOG = 4096
_STEPS_OF_AN_ACCEPT = 4  # steps of the event loop until an accepted connection is registered
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # l_onoff, l_linger


@contextlib.contextmanager
def serving(service: Service, host: str, port: int) -> Generator[str]:
    """
    Serve on an address, on any free port if the port is 0, and yield the base URL.

    At the end of the block, open connections are aborted, and the thread is joined.
    """
    is_v6 = ":" in host
    listener = socket.create_server(
        (host, port),
        family=socket.AF_INET6 if is_v6 else socket.AF_INET,
        backlog=_BACKLOG,
        dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
    )
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(
        target=_run, args=(loop, _serve(service, listener, stop)), name="FakeKoyeb", daemon=True
    )
    thread.start()
    try:
        yield f"http://{f'[{host}]' if is_v6 else host}:{listener.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _run(loop: asyncio.AbstractEventLoop, main: Coroutine[None, None, None]) -> None:
    with contextlib.closing(loop):
        loop.run_until_complete(main)


async def _serve(service: Service, listener: socket.socket, stop: asyncio.Event) -> None:
    connections: set[_Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(service, connections), sock=listener, backlog=_BACKLOG
    )
    await stop.wait()
    server.close()
    for _ in range(_STEPS_OF_AN_ACCEPT):
        await asyncio.sleep(0)
    for connection in [*connections]:
        await connection.abort()


class _Connection(asyncio.Protocol):
    """One connection, whose requests are answered one after another."""

    _transport: asyncio.Transport

    def __init__(self, service: Service, connections: set[_Connection]) -> None:
        self._service = service
        self._connections = connections
        self._reader = RequestReader()
        self._held: asyncio.Task[None] | None = None
        self._is_deaf = False
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._connections.discard(self)
        self._lost.set()
        if self._held is not None:
            self._held.cancel()

    def data_received(self, data: bytes) -> None:
        if not self._is_deaf:
            self._reader.feed(data)
            self._go_on()

    async def abort(self) -> None:
        """Abort the connection, and wait until it and its held call have ended."""
        self._transport.abort()
        await self._lost.wait()
        if self._held is not None:
            await asyncio.wait([self._held])

    def _go_on(self) -> None:
        try:
            while self._held is None and not self._transport.is_closing():
                request = self._reader.next_request()
                if request is None:
                    break
                self._take(request)
        except Malformed as malformed:
            self._refuse(malformed)
        if self._reader.take_continue():
            self._transport.write(_CONTINUE)

    def _take(self, request: WireRequest) -> None:
        call = self._service.receive(
            request.method, request.target, request.headers, request.body.content
        )
        if call.fault is None:
            self._answer(respond(self._service, call), keep_alive=request.keep_alive)
        else:
            self._held = asyncio.create_task(self._hold(call, keep_alive=request.keep_alive))

    async def _hold(self, call: Call, *, keep_alive: bool) -> None:
        reply = await arespond(self._service, call)
        self._held = None
        self._answer(reply, keep_alive=keep_alive)
        self._go_on()

    def _answer(self, reply: Reply | None, *, keep_alive: bool) -> None:
        if reply is None:
            connection: socket.socket = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
            return
        keep_alive = keep_alive and (b"connection", b"close") not in reply.headers
        self._transport.write(encode(reply, keep_alive=keep_alive))
        if reply.is_truncated or not keep_alive:
            self._transport.close()

    def _refuse(self, malformed: Malformed) -> None:
        # Further bytes of the client are read and dropped. Closing the socket before they are read
        # would send a reset, which could overtake the reply.
        self._is_deaf = True
        reply = self._service.complete(_replies.rpc_status(malformed.status))
        self._transport.write(encode(reply, keep_alive=False))
        self._transport.write_eof()
