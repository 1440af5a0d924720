"""Programs that end without closing their session, in the middle of its work."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from koyeb_session import Token
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, arrived
from ..soak import SOAK
from .programs import run_python

pytestmark = pytest.mark.blocks_loop

HOUR: Final = timedelta(hours=1)
START: Final = """
import sys
from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.stores import AsyncFileTokenStore, FileTokenStore
"""
USE: Final = """
def use():
    global session
    session = SessionClient(base_url=sys.argv[1], store=FileTokenStore(sys.argv[2]))
    print(session.http.get("/v1/apps").status_code)
"""
ENDS: Final = {
    "script": USE + "use()",
    "exit": USE + "use(); sys.exit(3)",
    "error": USE + "use(); 1 / 0",
    # From 3.12 on no thread starts once the main one has ended: nothing is renewed ahead then.
    **(
        {
            "thread": USE + "import threading; threading.Thread(target=use).start()",
            # It runs after the package's own hook, which is registered later.
            "hook": USE + "import atexit; atexit.register(use)",
        }
        if sys.version_info < (3, 12)
        else {}
    ),
    "daemon": USE + "import threading; t = threading.Thread(target=use, daemon=True)\n"
    "t.start(); t.join()",
    "pool": USE + "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor() as pool: pool.submit(use).result()",
    "fork": USE + "import multiprocessing\n"
    "child = multiprocessing.get_context('fork').Process(target=use)\n"
    "child.start(); child.join()",
    "spawn": USE + "import multiprocessing\n"
    "if __name__ == '__main__':\n"
    "    child = multiprocessing.get_context('spawn').Process(target=use)\n"
    "    child.start(); child.join()",
}
"""How a program of the blocking half ends, or a part of it."""
ALIKE: Final = frozenset[str]() if SOAK else {"exit", "daemon", "pool", "spawn"}
"""Ends that another one of them stands for."""
ASYNC: Final = """
import asyncio
async def main():
    session = AsyncSessionClient(base_url=sys.argv[1], store=AsyncFileTokenStore(sys.argv[2]))
    print((await session.http.get("/v1/apps")).status_code)
    await asyncio.to_thread(sys.stdin.read)
    END
asyncio.run(main())
"""


class Program:
    """A program that takes over a token in its soft window, at a service that answers slowly."""

    def __init__(self, folder: Path, source: str) -> None:
        self.fake = FakeKoyeb(token_lifetime=HOUR)
        self._path = str(folder / "session.json")
        self.store = FileTokenStore(self._path)
        now = datetime.now(UTC)
        old = self.fake.issue_token()
        self.store.save(Token(old, issued_at=now - HOUR * 0.7, expires_at=now + HOUR * 0.3))
        self.gate = Gate()
        self.fake.fail("refresh", Fault(gate=self.gate))
        self._file = folder / "program.py"
        self._file.write_text(START + source)

    def run(self, url: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return run_python("-Wignore", str(self._file), url, self._path, stdin=stdin)

    @property
    def is_saved(self) -> bool:
        """Whether the store holds a token that is good."""
        token = self.store.load()
        return token is not None and token.id in self.fake.live_tokens()


@pytest.mark.pitfall(29)
@pytest.mark.parametrize("end", [end for end in ENDS if end not in ALIKE])
def test_renewal_under_way_is_saved_when_the_program_ends(tmp_path: Path, end: str) -> None:
    """A normal end of the interpreter waits for the exchange and its save."""
    program = Program(tmp_path, ENDS[end])
    with program.fake.serve() as url, ThreadPoolExecutor(1) as beside:
        job = beside.submit(program.run, url)
        arrived(program.gate)  # it is about to end, or has told the service so
        program.gate.open()
        ended = job.result(PATIENCE)
    assert "200" in ended.stdout, ended.stderr
    assert program.is_saved
    assert ended.returncode == {"exit": 3, "error": 1}.get(end, 0), ended.stderr


@pytest.mark.parametrize("closed", [True, False])
def test_loop_that_ends_takes_a_renewal_along_unless_the_client_is_closed(
    tmp_path: Path, *, closed: bool
) -> None:
    """Closing waits for the work under way; an event loop that just ends cuts it off."""
    program = Program(tmp_path, ASYNC.replace("END", "await session.aclose()" if closed else ""))
    held, until_it_arrives = os.pipe()
    with program.fake.serve() as url, ThreadPoolExecutor(1) as beside:
        job = beside.submit(program.run, url, held)
        arrived(program.gate)
        os.close(until_it_arrives)  # now its event loop may end
        if closed:
            program.gate.open()
        ended = job.result(PATIENCE)
        os.close(held)
        program.gate.open()
    assert "200" in ended.stdout, ended.stderr
    assert program.is_saved is closed


@pytest.mark.pitfall(39)
def test_program_ends_when_its_store_and_its_vault_hang(tmp_path: Path) -> None:
    """Nothing that hangs keeps the interpreter from its end."""
    source = """
import contextlib, threading
class Hanging:
    def load(self): threading.Event().wait()
    save = delete = load
    def lock(self): return contextlib.nullcontext()
session = SessionClient(store=Hanging(), credentials=lambda: threading.Event().wait(), timeout=0.2)
for act in session.current_token, session.refresh, session.logout:
    try: act()
    except Exception as exc: print(type(exc).__name__)
print("200")
"""
    program = Program(tmp_path, source)
    ended = program.run("")
    assert "200" in ended.stdout, ended.stderr
    assert ended.returncode == 0


def test_nothing_is_printed_when_a_clock_raises_at_the_end(tmp_path: Path) -> None:
    """Neither `repr` nor the finalizer of an unclosed client ever raises."""
    source = """
import time, warnings
warnings.simplefilter("always")
class Clock:
    broken = False
    def time(self):
        if self.broken: raise RuntimeError("no clock")
        return time.time()
    monotonic = time
clock = Clock()
session = SessionClient(base_url=sys.argv[1], token="x" * 64, clock=clock)
print(session.http.get("/v1/apps").status_code)
Clock.broken = True
repr(session)
del session
"""
    program = Program(tmp_path, source)
    with program.fake.serve() as url:
        ended = program.run(url)
    assert "401" in ended.stdout, ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert "unclosed <SessionClient" in ended.stderr
