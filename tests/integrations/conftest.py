"""Common fixtures of the integrations: a real server, on a real socket."""

from __future__ import annotations

import contextlib
import inspect
import socket
import socketserver
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
import trustme
import uvicorn

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.testing import FakeKoyeb

from .. import conftest as root

Serve = Callable[..., AbstractContextManager[str]]
NEARLY: Final = timedelta(hours=23, minutes=59, seconds=30)
"""The age at which all callers wait for the renewal of a token."""
SANSIO: Final = "websockets-sansio"


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: the frameworks here know no other loop."""
    return "asyncio"


BOTH_LOOPS = root.anyio_backend
"""Runs async tests on trio as well; a module takes it over as its own ``anyio_backend``."""
HALVES = pytest.mark.parametrize(
    "half", [pytest.param(SessionClient, marks=pytest.mark.blocks_loop), AsyncSessionClient]
)


async def use(result: Any) -> Any:
    """Await a result, where the half of its client has it awaited."""
    return await result if inspect.isawaitable(result) else result


@contextlib.asynccontextmanager
async def opened(client: Any) -> AsyncGenerator[Any]:
    """Enter a client of either half for the block."""
    if hasattr(client, "__aenter__"):
        async with client:
            yield client
    else:
        with client:
            yield client


@pytest.fixture
def koyeb(fake_koyeb: FakeKoyeb) -> Iterator[str]:
    """Serve the fake Koyeb."""
    with fake_koyeb.serve() as url:
        yield url


@contextlib.contextmanager
def _serving(
    app: Any,
    uds: str | None = None,
    ws: Literal["websockets-sansio", "wsproto"] = SANSIO,
    certificate: Path | None = None,
) -> Generator[str]:
    # No date of uvicorn's own: the fake Koyeb sends one, by the clock of the test.
    config = uvicorn.Config(
        app, log_level="error", ws=ws, date_header=False, ssl_certfile=certificate
    )
    server = uvicorn.Server(config)
    if uds is None:
        listener = socket.create_server(("127.0.0.1", 0))
        origin = "http://127.0.0.1" if certificate is None else "https://localhost"
        url = f"{origin}:{listener.getsockname()[1]}"
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(uds)
        listener.listen()
        url = "http://localhost"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield url  # connections wait in the backlog until the server has started
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def serve() -> Serve:
    """Serve an application with uvicorn, in a thread."""
    return _serving


class Proxy(socketserver.ThreadingTCPServer):
    """An HTTP proxy: it makes tunnels for CONNECT, and forwards other requests, one by one."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.heads: list[bytes] = []
        self.relayed = bytearray()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Relay(socketserver.StreamRequestHandler):
    """One connection of the proxy's."""

    server: Any  # the Proxy

    def handle(self) -> None:
        """Read a request's head, and let both ends talk from then on."""
        head = b"".join(iter(self.rfile.readline, b"\r\n"))
        if not head:
            return
        self.server.heads.append(head)
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.split()
        url = httpx.URL(target.decode() if method != b"CONNECT" else f"//{target.decode()}")
        with socket.create_connection((url.host, url.port or 80)) as upstream:
            if method == b"CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                lines = [b" ".join([method, url.raw_path, version]), b"Connection: close"]
                rest = rest.replace(b"Connection: keep-alive\r\n", b"")
                upstream.sendall(b"\r\n".join([*lines, rest, b""]))
            there = threading.Thread(target=self._copy, args=[self.rfile.read1, upstream])
            there.start()
            self._copy(upstream.recv, self.connection)
            there.join()

    def _copy(self, read: Callable[[int], bytes], to: socket.socket) -> None:
        while data := read(65_536):
            self.server.relayed += data
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Run a proxy."""
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=[0.01])
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    """Make who signs the certificate of `localhost`."""
    authority: Any = trustme.CA()  # partly typed
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return authority


@pytest.fixture
def trust(authority: Any) -> ssl.SSLContext:
    """Trust it."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context
