"""What many tests need: who signs in, and what the fake service has seen."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

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
