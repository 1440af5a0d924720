"""The part of the matrix that both halves share: servers, client arguments, verdict."""

from __future__ import annotations

import contextlib
import logging
import time
import tracemalloc
import warnings
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    SessionClient,
    Token,
    TransportError,
)
from koyeb_session.testing import assert_no_secret

from .certificates import client_context, server_context
from .matrix import EMAIL, PASSWORD, PASSWORD_CORE, RENEWS, RETRY, SHORT, Expected, Fault
from .replies import ISSUED, MIB, reply
from .server import HOST, Server, nobody

HELD: Final = "canary-held-9b07c4"
"""The id of the token that the session and its store hold at first."""
SECRETS: Final = (PASSWORD, PASSWORD_CORE, HELD, ISSUED)
MARGIN: Final = 4.0
"""
Seconds that an operation may end after its deadline, on a machine that is busy.

Below httpx's own timeout, which would be found if an operation had no other.
"""
PATIENCE: Final = 30.0

_CERTIFICATES: Final = {"trusted": HOST, "other name": "elsewhere.example", "other issuer": HOST}


def held_token() -> Token:
    """Make the token that the session starts with."""
    return Token(HELD, "a-user", None, datetime.now(UTC) + timedelta(hours=2))


@contextlib.contextmanager
def bounded_memory(megabytes: int | None) -> Generator[None]:
    """Fail if the block uses more memory at once than that."""
    if megabytes is None:
        yield
        return
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < megabytes * MIB


@attrs.define
class Cell:
    """A cell: a fault, an operation, servers that play the fault, and the facts of one half."""

    fault: Fault
    operation: str
    base_url: str
    servers: tuple[Server, ...]
    records: list[logging.LogRecord]
    warned: list[warnings.WarningMessage]
    error: KoyebSessionError | None = None
    seconds: float = 0.0
    token: Token | None = None
    current: Token | None = None
    stored: Token | None = None
    shown: tuple[str, ...] = ()

    def arguments(self, transport: type[Any]) -> dict[str, Any]:
        """Make the client's arguments; ``transport`` is httpx's class of the half."""
        arguments: dict[str, Any] = {
            "base_url": self.base_url,
            "token": held_token(),
            "credentials": PasswordCredentials(EMAIL, PASSWORD),
            "retry_policy": RETRY,
            "timeout": self.fault.timeout,
        }
        if self.fault.server in {"trusted", "other name"}:
            arguments["transport"] = transport(verify=client_context())
        return arguments

    @contextlib.contextmanager
    def met(self) -> Generator[None]:
        """Wait until the server has done its steps before the fault; measure the block."""
        if "half-closed" in self.fault.name:
            assert self.servers[0].half_closed.wait(PATIENCE)
        begun = time.monotonic()
        with bounded_memory(self.fault.megabytes):
            try:
                yield
            except KoyebSessionError as exc:
                self.error = exc
        self.seconds = time.monotonic() - begun

    def look_at(self, session: AsyncSessionClient | SessionClient) -> None:
        """Keep the token of a session, and its representations."""
        self.token = session.token
        self.shown = (repr(session), str(session), f"{session}")

    @property
    def requests(self) -> int:
        """How many requests have reached a server, the warm-ups left out."""
        return sum(len(server.requests) for server in self.servers) - self.fault.warm_ups

    @property
    def is_played(self) -> bool:
        """Whether the deadline left the time for all that the fault is about."""
        return self.requests >= self.fault.expects(self.operation).requests

    @property
    def connects(self) -> int:
        """How often a connection was tried, as httpcore logs it."""
        return sum("connect_tcp.started" in record.getMessage() for record in self.records)

    @property
    def summary(self) -> str:
        """The outcome in a few characters."""
        kind = "ok" if self.error is None else type(self.error).__name__.removesuffix("Error")
        session = "-"
        if self.token is not None:
            session = "+" if self.token.id == ISSUED else "="
        return f"{kind.removeprefix('Transport') or 'Transport'} {self.requests}{session}"

    def judge(self) -> None:
        """Compare the facts with the expectation."""
        expected = self.fault.expects(self.operation)
        self._judge_error(expected)
        assert self.requests == expected.requests
        if expected.connects is not None:
            assert self.connects == expected.connects
        self._judge_session(expected)
        assert self.seconds < self.fault.timeout + MARGIN
        if self.fault.megabytes is not None:
            assert sum(server.sent for server in self.servers) < (
                expected.requests * self.fault.megabytes * MIB
            )
        assert not self.warned
        assert_no_secret(SECRETS, self.error, self.records, self.warned, self.shown)

    def _judge_error(self, expected: Expected) -> None:
        assert type(self.error) is (expected.error or type(None)), self.error
        for name, value in expected.shows.items():
            assert getattr(self.error, name) == value
        if isinstance(self.error, TransportError):
            assert isinstance(self.error.__cause__, httpx.TransportError | TimeoutError | None)

    def _judge_session(self, expected: Expected) -> None:
        """A renewal that succeeds replaces the token, a logout ends it, and all else keeps it."""
        wanted: str | None = HELD
        if self.operation == "logout":
            wanted = None
        elif self.operation in RENEWS and expected.error is None:
            wanted = ISSUED
        for found in (self.token, self.current, self.stored):
            assert (None if found is None else found.id) == wanted


@contextlib.contextmanager
def played(fault: Fault, operation: str, caplog: pytest.LogCaptureFixture) -> Generator[Cell]:
    """Play a fault for an operation; the log and the warnings are kept."""
    caplog.set_level(logging.DEBUG)
    with contextlib.ExitStack() as stack:
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "Koyeb has withdrawn", DeprecationWarning)
        servers: tuple[Server, ...] = ()
        if fault.server == "nobody":
            base_url = stack.enter_context(nobody())
        else:
            other = stack.enter_context(Server([reply()]))
            name = _CERTIFICATES.get(fault.server)
            server = Server(
                fault.behaviors,
                tls=None if name is None else server_context(name),
                elsewhere=f"http://localhost:{other.port}",
            )
            servers = (stack.enter_context(server), other)
            base_url = server.url
        yield Cell(fault, operation, base_url, servers, caplog.records, warned)


def attempts(fault: Fault, operation: str, caplog: pytest.LogCaptureFixture) -> Iterator[Cell]:
    """Play a fault; where a short deadline came too soon for it, again with longer ones."""
    for seconds in (SHORT, 1.0, 10.0) if fault.timeout == SHORT else (fault.timeout,):
        with played(attrs.evolve(fault, timeout=seconds), operation, caplog) as cell:
            yield cell
        if cell.is_played:
            break
