"""Other ways to the service, for both halves and both event loops; among them HTTP proxies."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest

from koyeb_session import SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from ..support import ME, PASSWORD, operations
from .conftest import BOTH_LOOPS, HALVES, NEARLY, Proxy, Serve, opened, use

Route = tuple[str, dict[str, Any]]
"""The service's URL, and how a transport of httpx's gets there."""


anyio_backend = BOTH_LOOPS


@pytest.fixture
def secure(fake_koyeb: FakeKoyeb, authority: Any, tmp_path: Path) -> Iterator[str]:
    """Serve the fake Koyeb over TLS, also by HTTP/2."""
    config = hypercorn.config.Config()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"https://localhost:{listener.getsockname()[1]}"
    config.bind = [f"fd://{listener.detach()}"]
    config.certfile = config.keyfile = str(tmp_path / "server.pem")
    config.include_date_header = False  # the fake Koyeb sends one, by the clock of the test
    config.errorlog = None
    serve: Any = vars(hypercorn.asyncio)["serve"]  # knows only types of its own
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    server = serve(fake_koyeb.app, config, shutdown_trigger=stop.wait)
    thread = threading.Thread(target=loop.run_until_complete, args=[server])
    thread.start()
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def http2(secure: str, trust: ssl.SSLContext) -> Route:
    """Go by HTTP/2."""
    return secure, {"http2": True, "http1": False, "verify": trust}


@pytest.fixture
def tunnel(secure: str, trust: ssl.SSLContext, proxy: Proxy) -> Route:
    """Go to https through a proxy, which sees only where it goes."""
    return secure, {"proxy": proxy.url, "verify": trust}


@pytest.fixture
def forward(fake_koyeb: FakeKoyeb, proxy: Proxy) -> Iterator[Route]:
    """Go to http on loopback through a proxy, which sees all."""
    with fake_koyeb.serve() as url:
        yield url, {"proxy": proxy.url}


@pytest.fixture
def unix(fake_koyeb: FakeKoyeb, serve: Serve, tmp_path: Path) -> Iterator[Route]:
    """Go to a Unix socket."""
    path = str(tmp_path / "s")
    with serve(fake_koyeb.app, path) as url:
        yield url, {"uds": path}


@HALVES
@pytest.mark.parametrize("name", ["http2", "tunnel", "forward", "unix"])
async def test_session_goes_this_way(
    name: str,
    half: Any,
    request: pytest.FixtureRequest,
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
) -> None:
    """It signs in, and a request is renewed on the way."""
    url, route = request.getfixturevalue(name)
    kind: Any = httpx.HTTPTransport if half is SessionClient else httpx.AsyncHTTPTransport
    async with opened(half(base_url=url, transport=kind(**route), clock=koyeb_clock)) as session:
        token = await use(session.login(ME, PASSWORD))
        koyeb_clock.advance(NEARLY)
        answer = await use(session.http.get("/v1/apps"))
        assert answer.status_code == 200
        assert (answer.http_version == "HTTP/2") == (name == "http2")
        assert session.token != token
    assert operations(fake_koyeb) == ["login", "refresh", "apps"]


BEHIND_A_PROXY = """
import asyncio, os, threading
from koyeb_session import AsyncSessionClient, SessionClient

async def main(url):
    async with AsyncSessionClient(base_url=url) as session:
        await session.login("me@example.com", "correct horse")
        await session.refresh()
        assert (await session.http.get("/v1/apps")).status_code == 200

url = os.environ["FAKE"]
with SessionClient(base_url=url) as session:
    session.login("me@example.com", "correct horse")
    session.refresh()
    assert session.http.get("/v1/apps").status_code == 200
asyncio.run(main(url))
"""


def test_proxy_of_the_environment_sees_no_secret(
    secure: str, proxy: Proxy, fake_koyeb: FakeKoyeb, tmp_path: Path
) -> None:
    """`HTTPS_PROXY` and `SSL_CERT_FILE` are enough; the proxy learns where it goes, no more."""
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    program = [sys.executable, "-c", BEHIND_A_PROXY]
    certificate = str(tmp_path / "authority.pem")
    settings = {"FAKE": secure, "HTTPS_PROXY": proxy.url, "SSL_CERT_FILE": certificate}
    subprocess.run(program, check=True, timeout=60, env={**clean, **settings})
    where = secure.removeprefix("https://").encode()
    assert {head.split()[1] for head in proxy.heads} == {where}
    assert all(head.startswith(b"CONNECT ") for head in proxy.heads)
    assert fake_koyeb.exchanges() == 2
    sent = [request.headers.get("authorization", "") for request in fake_koyeb.requests]
    tokens = {header.removeprefix("Bearer ") for header in sent} - {""}
    assert len(tokens) == 4
    seen = b"".join([*proxy.heads, proxy.relayed]).decode("latin-1")
    assert_no_secret(["correct horse", *tokens], seen)
