"""
A server on loopback that follows a script for each request, down to single bytes and resets.

A thread accepts, and each connection has a thread of its own; nothing here sleeps. Leaving the
server's block ends all of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Final, Self, TypeAlias

import attrs

HOST: Final = "127.0.0.1"
SERVER_THREAD: Final = "fault server"
PATIENCE: Final = 30.0
"""Seconds after which a thread that should have ended will not any more."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # l_onoff, l_linger
_PACE: Final = 0.01
"""Seconds between the bytes of a reply that drips: far below any timeout for one read."""


class GoneError(Exception):
    """The connection has ended, as it was told to or because the client has left."""


@attrs.frozen
class Request:
    """A request that has arrived in full."""

    method: str
    path: str
    head: str
    body: bytes


class Exchange:
    """One request on its connection, and everything that can be done to it."""

    def __init__(self, connection: socket.socket, server: Server, request: Request) -> None:
        self._connection = connection
        self.server = server
        self.request = request

    def send(self, data: bytes) -> None:
        """Send bytes, and count them."""
        self._connection.sendall(data)
        self.server.sent += len(data)

    def drip(self, data: bytes) -> None:
        """Send the same few bytes for ever, slowly, one by one, until the client leaves."""
        while not self._client_left(_PACE):
            for byte in data:
                self.send(bytes([byte]))
                if self._client_left(_PACE):
                    break
        raise GoneError

    def hang(self) -> None:
        """Do nothing until the client leaves."""
        while self._connection.recv(1024):
            pass
        raise GoneError

    def close(self) -> None:
        """End the connection in order."""
        raise GoneError

    def half_close(self) -> None:
        """Send no more, but leave the connection standing."""
        socket.socket.shutdown(self._connection, socket.SHUT_WR)
        self.server.half_closed.set()
        self.hang()

    def reset(self) -> None:
        """End the connection with a reset."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        raise GoneError

    def _client_left(self, seconds: float) -> bool:
        readable, _, _ = select.select([self._connection], [], [], seconds)
        return bool(readable) and not self._connection.recv(1024)


Behavior: TypeAlias = Callable[[Exchange], None]
Speaker: TypeAlias = "Callable[[socket.socket, Server], None]"


class Server:
    """
    Serves on a free port while its block lasts.

    Args:
        behaviors: The reaction to the first request, the second one, and so on; the last one is
            for all that follow.
        tls: Makes it speak TLS.
        elsewhere: The origin of another server, for redirects.
        speak: Serves a connection in another protocol than HTTP/1.1.

    Attributes:
        requests: Those that have arrived; complete once the block has been left.
        sent: How many bytes have been sent.
        half_closed: Set once a connection is half closed.
    """

    def __init__(
        self,
        behaviors: Sequence[Behavior],
        *,
        tls: ssl.SSLContext | None = None,
        elsewhere: str = "",
        speak: Speaker | None = None,
    ) -> None:
        self._speak = speak or _http1
        self._behaviors = behaviors
        self._tls = tls
        self._listener = socket.create_server((HOST, 0), backlog=64)
        self._stopping = False
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name=SERVER_THREAD, daemon=True)]
        self.elsewhere = elsewhere
        self.requests: list[Request] = []
        self.sent = 0
        self.half_closed = threading.Event()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Its origin."""
        return f"http{'s' if self._tls else ''}://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            socket.create_connection((HOST, self.port), timeout=PATIENCE).close()
        self._threads[0].join(PATIENCE)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it has ended
                # Not the TLS socket's own: that is not for two threads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._stopping:
                connection.close()
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
            self._connections.append(connection)
            thread = threading.Thread(
                target=self._serve, args=(connection,), name=SERVER_THREAD, daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(GoneError, OSError):
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            self._speak(connection, self)

    def answer(self, connection: socket.socket, request: Request) -> None:
        """Follow the script for one request."""
        self.requests.append(request)
        turn = min(len(self.requests), len(self._behaviors)) - 1
        self._behaviors[turn](Exchange(connection, self, request))


def _http1(connection: socket.socket, server: Server) -> None:
    while True:
        server.answer(connection, _read_request(connection))


def _read_request(connection: socket.socket) -> Request:
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _received(connection)
    head = data[:end].decode("ascii")
    method, path, _ = head.split("\r\n", 1)[0].split(" ")
    lengths = [
        int(line.partition(":")[2])
        for line in head.split("\r\n")
        if line.lower().startswith("content-length:")
    ]
    body = data[end + 4 :]
    while len(body) < sum(lengths):
        body += _received(connection)
    return Request(method, path, head, bytes(body))


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise GoneError
    return data


@contextlib.contextmanager
def nobody() -> Generator[str]:
    """Yield an origin that refuses connections; its port stays taken while the block lasts."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        yield f"http://{HOST}:{taken.getsockname()[1]}"
