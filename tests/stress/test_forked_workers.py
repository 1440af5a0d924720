"""Workers that are forked with a session: they heal, end in silence, and hold no socket open."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from koyeb_session._concurrency.forks import close_in_children
from koyeb_session.testing import FakeKoyeb

from ..support import count
from .programs import run_python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def test_a_connection_without_a_socket_is_no_childs_affair() -> None:
    """A stream of a test's own may be none of the system's."""
    close_in_children(None)


WORKERS = """
import os, sys
from koyeb_session import PasswordCredentials, SessionClient
from koyeb_session.stores import FileTokenStore
url, path = sys.argv[1:]
store = FileTokenStore(path) if path else None
who = PasswordCredentials("me@example.com", "correct horse")
session = SessionClient(base_url=url, credentials=who, store=store)
assert session.http.get("/v1/apps").status_code == 200
children = []
for number in range(3):
    child = os.fork()
    if not child:
        for _ in range(2):
            session.refresh() if number < 2 else None
            # Two refreshes by others cost one request, and there are no more than four.
            assert 200 in [session.http.get("/v1/apps").status_code for _ in range(3)]
        sys.exit(7)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert session.http.get("/v1/apps").status_code == 200
session.close()
"""


ASYNC_WORKERS = """
import asyncio, gc, os, sys
from koyeb_session import AsyncSessionClient, PasswordCredentials
from koyeb_session.stores import AsyncFileTokenStore
url, path = sys.argv[1:]
store = AsyncFileTokenStore(path) if path else None
who = PasswordCredentials("me@example.com", "correct horse")
session = AsyncSessionClient(base_url=url, credentials=who, store=store)
async def use(refresh=False):
    for _ in range(2):
        await session.refresh() if refresh else None
        await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(3)))
        # Two refreshes by others cost one request, and there are no more than four.
        assert 200 in [(await session.http.get("/v1/apps")).status_code for _ in range(3)]
def leave():
    gc.collect()
    os._exit(7)  # to close the parent's loop would be the end of it for both
async def use_and_fork():
    await use()
    child = os.fork()
    if not child:
        leave()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    await use()
with asyncio.Runner() as runner:
    runner.run(use_and_fork())
    children = []
    for number in range(3):
        child = os.fork()
        if not child:
            asyncio.run(use(refresh=number < 2))
            leave()
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    runner.run(use())
    runner.run(session.aclose())
"""


@pytest.mark.parametrize("program", [WORKERS, ASYNC_WORKERS], ids=["blocking", "asynchronous"])
@pytest.mark.parametrize("with_store", [False, True])
@pytest.mark.parametrize("refresh", ["revokes", "keeps"])
def test_workers_heal_and_are_silent_when_the_session_was_made_before_the_fork(
    tmp_path: Path, refresh: Literal["revokes", "keeps"], program: str, *, with_store: bool
) -> None:
    """Without a store each may have to sign in again; with one they share the session."""
    fake = FakeKoyeb(refresh=refresh)
    with fake.serve() as url:
        path = str(tmp_path / "session.json") if with_store else ""
        filters = ["-Wdefault", "-Wignore:This process:DeprecationWarning"]
        done = run_python(*filters, "-c", program, url, path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert 1 <= count(fake, "login") <= (1 if with_store or refresh == "keeps" else 5)


CHILD = """
import asyncio, os, sys
from koyeb_session import AsyncSessionClient
session = AsyncSessionClient(base_url=sys.argv[1], token=sys.argv[2])
async def use():
    await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(3)))
asyncio.run(use())
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))  # its loop has left some open
asyncio.run(use())
sys.exit(7)
"""


def test_normal_end_of_a_child_is_silent() -> None:
    """Transports of event loops, its own and its parent's, are dropped without a warning."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        done = run_python("-Wdefault", "-c", CHILD, url, fake.issue_token())
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")


PARENT = """
import asyncio, os, sys
from koyeb_session import AsyncSessionClient
async def main():
    async with AsyncSessionClient(base_url=sys.argv[1], token="t") as session:
        await session.http.get("/v1/apps")
        reader, writer = os.pipe()
        if not os.fork():
            os.close(writer)
            os.read(reader, 1)  # until the parent has ended
            os._exit(0)
    print(flush=True)
    sys.stdin.read(1)
asyncio.run(main())
"""


def test_connection_is_over_when_its_parent_closes_it() -> None:
    """A child that lives on holds none of the service's sockets open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PARENT, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                assert parent.stdout is not None
                parent.stdout.readline()
                assert connection.recv(1) == b""
            parent.communicate(b"\n", timeout=30)
