# Generated from tests/_async/conftest.py by .ci/generate_sync.py: edit that, not this.

"""A service on a clock that the test moves, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from koyeb_session import RefreshPolicy, RetryPolicy, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for a day, and die when they are refreshed."""
    return FakeKoyeb(clock=clock)


@pytest.fixture
def url(fake: FakeKoyeb) -> Iterator[str]:
    """Serve on a real socket."""
    with fake.serve() as url:
        yield url


@pytest.fixture
def connect(fake: FakeKoyeb, clock: FakeClock) -> Iterator[Callable[..., SessionClient]]:
    """Make clients of the service that wait for nothing in vain, and close them after the test."""
    made: list[SessionClient] = []

    def connect(**arguments: Any) -> SessionClient:
        arguments.setdefault("retry_policy", RetryPolicy(delay=0))
        arguments.setdefault("refresh_policy", RefreshPolicy(jitter=0))
        if "http_client" not in arguments and "base_url" not in arguments:
            arguments.setdefault("transport", fake.transport)
        arguments.setdefault("clock", clock)
        session = SessionClient(**arguments)
        made.append(session)
        return session

    yield connect
    for session in made:
        session.close()


@pytest.fixture
def client(fake: FakeKoyeb) -> Iterator[httpx.Client]:
    """Make a user's own client of the service, without any auth."""
    with httpx.Client(transport=fake.transport, base_url=fake.base_url) as client:
        yield client
