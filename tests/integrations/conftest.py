"""Common fixtures of the integrations: a real server, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import pytest
import uvicorn

from koyeb_session.testing import FakeKoyeb

Serve = Callable[..., AbstractContextManager[str]]
NEARLY: Final = timedelta(hours=23, minutes=59, seconds=30)
"""The age at which all callers wait for the renewal of a token."""
SANSIO: Final = "websockets-sansio"


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: the frameworks here know no other loop."""
    return "asyncio"


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


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request as a proxy does; its target is an absolute URL."""
    head = await reader.readuntil(b"\r\n\r\n")
    line, _, rest = head.partition(b"\r\n")
    method, target, version = line.split()
    url = httpx.URL(target.decode())
    upstream, out = await asyncio.open_connection(url.host, url.port)
    out.write(b" ".join([method, url.raw_path, version]) + b"\r\nConnection: close\r\n")
    out.write(rest.replace(b"Connection: keep-alive\r\n", b""))
    length = [n for n in rest.lower().split(b"\r\n") if n.startswith(b"content-length:")]
    if length:
        out.write(await reader.readexactly(int(length[0].partition(b":")[2])))
    writer.write(await upstream.read())
    for stream in (out, writer):
        stream.close()
        await stream.wait_closed()


@pytest.fixture
async def proxy() -> AsyncIterator[str]:
    """Run a proxy in this loop."""
    server = await asyncio.start_server(_forward, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()
