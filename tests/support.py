"""Common helpers: the account that signs in, and the requests that the fake service has seen."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
)
from koyeb_session.testing import FakeClock, FakeKoyeb

ME: Final = "me@example.com"
PASSWORD: Final = "correct horse"
PASSWORDS: Final = PasswordCredentials(ME, PASSWORD)
DAY: Final = timedelta(hours=24)
"""How long a token of the fake service lives."""


def log(fake: FakeKoyeb) -> list[tuple[str | None, int | None]]:
    """List the operations and the statuses of the replies, in order."""
    return [(request.operation, request.status) for request in fake.requests]


def operations(fake: FakeKoyeb) -> list[str | None]:
    """List the operations, in order."""
    return [request.operation for request in fake.requests]


def count(fake: FakeKoyeb, operation: str) -> int:
    """Count the requests for an operation."""
    return operations(fake).count(operation)


def held(session: AsyncSessionClient | SessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


@asynccontextmanager
async def connected(fake: FakeKoyeb, clock: FakeClock, **arguments: Any) -> AsyncGenerator[Any]:
    """Make a client of the service, and close it."""
    async with AsyncSessionClient(
        transport=fake.transport,
        clock=clock,
        refresh_policy=RefreshPolicy(jitter=0),
        retry_policy=RetryPolicy(delay=0),
        **arguments,
    ) as session:
        yield session


def names(folder: Path) -> set[str]:
    """List the files of a folder."""
    return {path.name for path in folder.iterdir()}


def raising(error: BaseException) -> Callable[..., NoReturn]:
    """Make a function that raises an error, to stand for one of a library."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def replace_network(monkeypatch: pytest.MonkeyPatch, fake: FakeKoyeb) -> None:
    """Have httpx reach a fake service, with any URL."""

    def send(_: object, request: httpx.Request) -> httpx.Response:
        return fake.transport.handle_request(request)

    async def send_async(_: object, request: httpx.Request) -> httpx.Response:
        return await fake.transport.handle_async_request(request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", send)
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", send_async)


def connect_once(fake: FakeKoyeb, clock: FakeClock, **arguments: Any) -> SessionClient:
    """Make a client of the service that tries everything once, and again after ten seconds."""
    arguments.setdefault("refresh_policy", RefreshPolicy(jitter=0, backoff=20))
    return SessionClient(
        transport=fake.transport, clock=clock, retry_policy=RetryPolicy(attempts=1), **arguments
    )


class Inside:
    """The parts of a session that have no public name. Only this class knows where they are."""

    def __init__(self, session: Any) -> None:
        self.state: Any = session._state
        self.keeper: Any = session._keeper
        self.sender: Any = session._resources.sender
        self.connections: Any = session._resources.connections
        self.operation_connections: Any = session._resources.operation_connections
        self.listeners: Any = self.keeper.listeners
        self.persistence: Any = self.keeper.persistence
        self.renewal: Any = self.keeper.renewal
        self.source: Any = self.keeper.source
        self.change: Any = session._change

    @property
    def opened(self) -> Any:
        """The transports of the requests, by the place that they were opened in."""
        return self.connections._opened

    @opened.setter
    def opened(self, transports: Any) -> None:
        self.connections._opened = transports

    @property
    def operations_opened(self) -> Any:
        """The transports of the operations, by the place that they were opened in."""
        return self.operation_connections._opened

    @operations_opened.setter
    def operations_opened(self, transports: Any) -> None:
        self.operation_connections._opened = transports

    @property
    def task(self) -> Any:
        """The renewal that runs, or ran last."""
        return self.keeper.task

    @property
    def wakeups(self) -> Any:
        """The wakeup of each `keep_current()`."""
        return self.keeper._wakeups


def inside(session: object) -> Inside:
    """Look inside a session, where a test has no other way to arrange or to see something."""
    return Inside(session)
