"""Applications in the hands of their servers: reloaded, stopped in mid-refresh, and on trio."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any

import anyio
import httpx
import hypercorn.config
import hypercorn.trio
import pytest

from koyeb_session import SessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..soak import SOAK
from ..support import PASSWORDS
from .application import serve_all

PATIENCE = 30.0
APPLICATION = """
import asyncio, os
from fastapi import FastAPI
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import AsyncFileTokenStore

VERSION = 1
sessions = KoyebSessions(base_url=os.environ["FAKE"], store=AsyncFileTokenStore(os.environ["FILE"]))
app = FastAPI(lifespan=sessions.lifespan)
tasks = set()

@app.get("/")
async def use(session: sessions.Service) -> list[int]:
    return [VERSION, os.getpid(), (await session.http.get("/v1/apps")).status_code]

@app.get("/renew")
async def renew(session: sessions.Service) -> None:
    tasks.add(asyncio.create_task(session.refresh()))
"""


class Server:
    """A uvicorn in a process of its own, with one application on one session, kept in a file."""

    def __init__(self, folder: Path, fake: str, *arguments: str) -> None:
        self.source = folder / "application.py"
        self.source.write_text(APPLICATION, "utf-8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.client = httpx.Client(
            transport=httpx.HTTPTransport(retries=9),  # it starts, and listens a moment later
            base_url=f"http://127.0.0.1:{port}",
            headers={"connection": "close"},
            timeout=PATIENCE,
        )
        command = [sys.executable, "-m", "uvicorn", "application:app", "--no-access-log"]
        # No bytecode: a change within a second that leaves the file's size would not be seen in it.
        environment = {
            **os.environ,
            "FAKE": fake,
            "FILE": str(folder / "session.json"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [*command, "--port", str(port), *arguments],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self._said: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=[self.process.stderr], daemon=True)
        self._reader.start()
        self.wait_said("Application startup complete")

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                with self._more:
                    self._said.append(line)
                    self._more.notify_all()

    @property
    def said(self) -> str:
        """The text that it has written so far."""
        return "".join(self._said)

    def wait_said(self, text: str) -> None:
        """Wait until it has written a text."""
        assert self.says(text, PATIENCE), self.said

    def says(self, text: str, seconds: float) -> bool:
        """Wait for a text for a while, and tell whether it was written."""
        with self._more:
            return self._more.wait_for(lambda: text in self.said, seconds)

    def change(self, application: str) -> None:
        """Write another application, and wait until the server has noticed."""
        self.source.write_text(application, "utf-8")
        seconds = int(self.source.stat().st_mtime)
        # A file that was new when the server first looked has to change again. Once it has noticed
        # it does not look before the old application has ended.
        while not self.says("detected changes", 0.1):
            seconds += 1
            os.utime(self.source, (seconds, seconds))

    def use(self) -> list[int]:
        """Give the version, the process and the status of a request to Koyeb."""
        answer: list[int] = self.client.get("/").json()
        return answer

    def end(self) -> str:
        """Wait until it has ended, and give all that it has written."""
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        self.client.close()
        return self.said


@contextlib.contextmanager
def serving(folder: Path, fake: str, *arguments: str) -> Generator[Server]:
    """Run a server; its end is the test's, or else it is terminated."""
    server = Server(folder, fake, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
        server.end()


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[FakeKoyeb, str]]:
    """Serve a Koyeb whose renewals revoke, and keep a session on it in the file."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        store = FileTokenStore(tmp_path / "session.json")
        with SessionClient(base_url=url, store=store) as session:
            session.login("me@example.com", "correct horse")
        yield fake, url


def test_reloaded_application_goes_on_with_the_session(
    fake: tuple[FakeKoyeb, str], tmp_path: Path
) -> None:
    """Under `--reload` the new version has the session that the old one renewed, and renews it."""
    koyeb, url = fake
    gate = Gate()
    with serving(tmp_path, url, "--reload") as server:
        version, old, status = server.use()
        new = old
        assert (version, status) == (1, 200)
        koyeb.fail("refresh", Fault(gate=gate))
        server.client.get("/renew")
        server.change(APPLICATION.replace("VERSION = 1", "VERSION = 2"))
        gate.open()  # until then the old application cannot have ended
        while version == 1:
            with contextlib.suppress(httpx.TransportError):  # while it is exchanged
                version, new, status = server.use()
                assert status == 200
        assert new != old
        server.client.get("/renew")
        assert server.use()[2] == 200
        server.process.terminate()
        said = server.end()
    assert said.count("Application shutdown complete") == 2
    assert "Traceback" not in said
    assert koyeb.exchanges() == 2
    assert len(koyeb.live_tokens()) == 1
    assert [request.operation for request in koyeb.requests].count("login") == 1


@pytest.mark.parametrize("hold", ["request", "reply"] if SOAK else ["reply"])
def test_workers_stopped_in_mid_refresh_keep_the_session(
    fake: tuple[FakeKoyeb, str], tmp_path: Path, hold: Any
) -> None:
    """Workers that end in mid-refresh save the new token: the next start goes on."""
    koyeb, url = fake
    gate = Gate()
    with serving(tmp_path, url, "--workers", "2") as server:
        seen: set[int] = set()
        while len(seen) < 2:
            seen.add(server.use()[1])
        koyeb.fail("refresh", Fault(gate=gate, hold=hold))
        server.client.get("/renew")
        gate.wait_arrived(timeout=PATIENCE)
        server.process.send_signal(signal.SIGTERM)
        server.wait_said("Waiting for application shutdown")
        gate.open()
        said = server.end()
    assert said.count("Application shutdown complete") == 2
    assert "Traceback" not in said
    assert koyeb.exchanges() == 1
    assert len(koyeb.live_tokens()) == 1
    with serving(tmp_path, url) as server:
        assert server.use()[2] == 200
    assert [request.operation for request in koyeb.requests].count("login") == 1
    assert {request.status for request in koyeb.requests} == {200}


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, anyio_backend: str) -> None:
    """Under hypercorn on trio both kinds of endpoint live on one session, across expiries."""
    with fake_koyeb.serve() as url:
        sessions = KoyebSessions(base_url=url, credentials=PASSWORDS, clock=koyeb_clock)
        app = serve_all(sessions)
        config = hypercorn.config.Config()
        listener = socket.create_server(("127.0.0.1", 0))
        where = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config.bind = [f"fd://{listener.detach()}"]
        config.errorlog = None
        stop = anyio.Event()
        serve: Any = vars(hypercorn.trio)["serve"]  # knows only types of its own
        answers: list[str] = []

        async def ask(client: httpx.AsyncClient, path: str) -> None:
            answers.append((await client.get(path)).text)

        async with anyio.create_task_group() as tasks, httpx.AsyncClient(base_url=where) as client:
            tasks.start_soon(partial(serve, app, config, shutdown_trigger=stop.wait))
            for _ in range(3):
                async with anyio.create_task_group() as callers:
                    for path in ["/service/get", "/sync/get"] * 8:
                        callers.start_soon(ask, client, path)
                koyeb_clock.advance(timedelta(hours=23, minutes=59, seconds=30))
            stop.set()
        assert answers == ["200"] * 48
        assert fake_koyeb.exchanges() == 2
        assert {request.status for request in fake_koyeb.requests} == {200}
