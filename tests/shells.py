"""Run ``python -m koyeb_session`` in this process, in its own process, or on a terminal."""

from __future__ import annotations

import contextlib
import getpass
import io
import logging
import os
import pty
import select
import subprocess
import sys
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest

from koyeb_session import SessionClient, Token
from koyeb_session.__main__ import main
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeKoyeb

EMAIL, PASSWORD = "me@example.com", "correct horse"
Done: TypeAlias = "subprocess.CompletedProcess[str]"
# Makes its standard input the terminal that it is controlled by, and becomes the shell. A test run
# in the background of a script ignores SIGINT, and its children would inherit that.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "koyeb_session", *sys.argv[1:]])
"""


class Keyboard(io.StringIO):
    """A standard input at which somebody sits."""

    def isatty(self) -> bool:
        """Say so."""
        return True


class Shell:
    """Runs commands on one folder and one service."""

    def __init__(self, folder: Path, fake: FakeKoyeb, url: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.fake = fake
        self._patch = patch
        for name in [name for name in os.environ if name[:6] == "KOYEB_"]:
            patch.delenv(name)
        patch.setenv("KOYEB_URL", url)
        patch.setenv("XDG_STATE_HOME", str(folder))

    @property
    def store(self) -> FileTokenStore:
        """The store that the commands use when they are not told of another."""
        return FileTokenStore(self.folder / "koyeb-session" / "session.json")

    @property
    def saved(self) -> Token:
        """The token in that store."""
        saved = self.store.load()
        assert saved is not None
        return saved

    def run(self, *arguments: str, stdin: str = "", typed: str | None = None) -> Done:
        """Run a command in this process, without a terminal, or with an answer to its question."""
        out, err = io.StringIO(), io.StringIO()
        asked: list[str] = []

        def answer(prompt: str) -> str:
            asked.append(prompt)
            assert typed is not None
            return typed

        root = logging.getLogger()
        with (
            self._patch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(root, "handlers", [])  # the command logs to its standard error
            patch.setattr(sys, "stdin", io.StringIO(stdin) if typed is None else Keyboard())
            patch.setattr(getpass, "getpass", answer)
            try:
                status: object = main(arguments)
            except SystemExit as end:
                status = end.code
        assert isinstance(status, int)
        assert bool(asked) is (typed is not None)
        assert "Traceback" not in err.getvalue()
        shown = err.getvalue() + "".join(asked)
        return subprocess.CompletedProcess(arguments, status, out.getvalue(), shown)

    def start(self, *arguments: str, stdout: int = subprocess.PIPE) -> Done:
        """Run a command in a process of its own, without a terminal."""
        return subprocess.run(
            [sys.executable, "-m", "koyeb_session", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # away from the terminal of the person who runs the tests
            check=False,
        )

    def sign_in_with_password(self) -> Token:
        """Save a session as a login with a password does, and return its token."""
        with SessionClient(base_url=os.environ["KOYEB_URL"], store=self.store) as session:
            return session.login(EMAIL, PASSWORD)

    def sign_in(self, token_id: str | None = None, *arguments: str) -> str:
        """Save a session, of a new token if none is given, and return its token."""
        token_id = token_id or self.fake.issue_token()
        done = self.run("login", "--api-token", *arguments, stdin=f"{token_id}\n")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        return token_id


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell whose service is a fake one."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        yield Shell(tmp_path, fake, url, monkeypatch)


class Terminal:
    """A person's end of a terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until something is shown."""
        while text not in self.shown:
            chunk = self._read()
            assert chunk, f"the terminal shows only {self.shown!r}"

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C; once more if it came just before Python began to read, and was not seen."""
        self.type("\x03")
        while not select.select([self._descriptor], [], [], 10)[0]:
            self.type("\x03")

    def end(self) -> int:
        """Read to the end, and return the exit status."""
        while self._read():
            pass
        return self._process.wait()

    def _read(self) -> str:
        try:
            chunk = os.read(self._descriptor, 4096).decode()
        except OSError:  # Linux says so when the other end is closed
            return ""
        self.shown += chunk
        return chunk


@contextlib.contextmanager
def terminal(*arguments: str) -> Generator[Terminal]:
    """Run a command on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *arguments], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def make_older(shell: Shell, left: timedelta) -> None:
    """Make the saved session one of a day, of which only so much is left."""
    expiry = datetime.now(UTC) + left
    old = attrs.evolve(shell.saved, expires_at=expiry, issued_at=expiry - timedelta(days=1))
    shell.store.save(old)


def make_due(shell: Shell) -> Token:
    """Make the saved session one that is to be renewed ahead of need, and return its token."""
    saved, now = shell.saved, datetime.now(UTC)
    due = attrs.evolve(
        saved,
        id=saved.id if saved.renewal else shell.fake.issue_token(lifetime=timedelta(hours=1)),
        expires_at=now + timedelta(hours=1),
        issued_at=now - timedelta(hours=23),
    )
    shell.store.save(due)
    return due
