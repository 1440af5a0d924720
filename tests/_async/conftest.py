"""A service on a clock that the test moves, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, RefreshPolicy, RetryPolicy
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import ME, PASSWORD
from .doubles import BrokenStore, Connect, Grants


@pytest.fixture
def url(fake: FakeKoyeb) -> Iterator[str]:
    """Serve on a real socket."""
    with fake.serve() as url:
        yield url


@pytest.fixture
async def connect(fake: FakeKoyeb, clock: FakeClock) -> AsyncIterator[Connect]:
    """Make clients of the service that wait for nothing in vain, and close them after the test."""
    made: list[AsyncSessionClient] = []

    def connect(**arguments: Any) -> AsyncSessionClient:
        arguments.setdefault("retry_policy", RetryPolicy(delay=0))
        arguments.setdefault("refresh_policy", RefreshPolicy(jitter=0))
        if "http_client" not in arguments and "base_url" not in arguments:
            arguments.setdefault("transport", fake.transport)
        arguments.setdefault("clock", clock)
        session = AsyncSessionClient(**arguments)
        made.append(session)
        return session

    yield connect
    for session in made:
        await session.aclose()


@pytest.fixture
def session(fake: FakeKoyeb, connect: Connect) -> AsyncSessionClient:
    """Make a session with a token of the service, which it renews."""
    return connect(token=fake.issue_token())


@pytest.fixture
async def signed_in(connect: Connect) -> AsyncSessionClient:
    """Make a session, and sign in with the password."""
    session = connect()
    await session.login(ME, PASSWORD)
    return session


@pytest.fixture
def store() -> BrokenStore:
    """Make a store in memory that works until the test breaks it."""
    return BrokenStore()


@pytest.fixture
async def stored(store: BrokenStore, connect: Connect) -> AsyncSessionClient:
    """Make a session, and sign in with the password; ``store`` has its token."""
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    return session


@pytest.fixture
async def second(
    store: BrokenStore, stored: AsyncSessionClient, connect: Connect
) -> AsyncSessionClient:
    """Make another session on ``store``, which has taken over the token of ``stored``."""
    session = connect(store=store)
    await session.current_token()
    return session


@pytest.fixture
def grants(fake: FakeKoyeb) -> Grants:
    """Make credentials whose secret can be used once."""
    return Grants(fake)


@pytest.fixture
async def client(fake: FakeKoyeb) -> AsyncIterator[httpx.AsyncClient]:
    """Make a user's own client of the service, without any auth."""
    async with httpx.AsyncClient(transport=fake.transport, base_url=fake.base_url) as client:
        yield client
