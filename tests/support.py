"""What many tests need: who signs in, and what the fake service has seen."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient
from koyeb_session.testing import FakeKoyeb

ME: Final = "me@example.com"
PASSWORD: Final = "correct horse"
PASSWORDS: Final = PasswordCredentials(ME, PASSWORD)
DAY: Final = timedelta(hours=24)
"""How long a token of the fake service lives."""


def log(fake: FakeKoyeb) -> list[tuple[str | None, int | None]]:
    """List what was asked for and how that was answered, in order."""
    return [(request.operation, request.status) for request in fake.requests]


def operations(fake: FakeKoyeb) -> list[str | None]:
    """List what was asked for, in order."""
    return [request.operation for request in fake.requests]


def count(fake: FakeKoyeb, operation: str) -> int:
    """Count the requests for an operation."""
    return operations(fake).count(operation)


def held(session: AsyncSessionClient | SessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


class Inside:
    """The parts of a session that have no public name. Only this class knows where they are."""

    def __init__(self, session: Any) -> None:
        self.state: Any = session._state
        self.keeper: Any = session._keeper
        self.sender: Any = session._sender
        self.connections: Any = session._connections
        self.operation_connections: Any = session._operation_connections
        self.listeners: Any = self.keeper.listeners
        self.persistence: Any = self.keeper.persistence
        self.renewal: Any = self.keeper._renewal
        self.source: Any = self.keeper.source
        self.change: Any = session._change

    @property
    def opened(self) -> Any:
        """The transports of the session, by the place that they were opened in."""
        return self.connections._opened

    @property
    def task(self) -> Any:
        """The renewal that runs, or ran last."""
        return self.keeper.task

    @property
    def wakeups(self) -> Any:
        """What wakes each `keep_current()`."""
        return self.keeper._wakeups


def inside(session: object) -> Inside:
    """Look inside a session, where a test has no other way to arrange or to see something."""
    return Inside(session)
