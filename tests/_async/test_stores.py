"""The stores that need nothing but memory."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncTokenStore,
    PasswordCredentials,
    StoreError,
    Token,
)
from koyeb_session._core.timestamps import from_epoch
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate, async_check_store

from ..concurrency import AsyncBackground, async_arrived, async_pass_through, async_until
from ..support import inside
from .doubles import Connect


async def test_memory_store_does_what_a_store_has_to_do() -> None:
    """It passes the conformance suite."""
    store = AsyncMemoryTokenStore()
    await async_check_store(lambda: store)


async def test_memory_keeps_what_was_saved_last() -> None:
    """A token is there from save to delete; deleting nothing is fine."""
    store: AsyncTokenStore = AsyncMemoryTokenStore()
    assert await store.load() is None
    await store.delete()
    first, second = Token("first"), Token("second")
    await store.save(first)
    await store.save(second)
    assert await store.load() is second
    await store.delete()
    assert await store.load() is None


async def test_memory_is_locked_for_one_at_a_time() -> None:
    """The holder of the lock keeps all others out until the block ends."""
    store = AsyncMemoryTokenStore()
    gate = Gate()
    order: list[str] = []

    async def first() -> None:
        async with store.lock():
            await async_pass_through(gate)
            order.append("first")

    async def second() -> None:
        async with store.lock():
            order.append("second")

    async with AsyncBackground() as background:
        background.start(first)
        await async_arrived(gate)
        background.start(second)
        await background.settled()
        assert order == []
        gate.open()
    assert order == ["first", "second"]


async def test_memory_is_free_again_when_the_block_raises() -> None:
    """An error in the block does not leave the lock behind."""
    store = AsyncMemoryTokenStore()
    with pytest.raises(KeyError):
        async with store.lock():
            raise KeyError
    async with store.lock():
        assert await store.load() is None


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
async def test_memory_store_cannot_be_copied(copy_of: Callable[[object], object]) -> None:
    """A copy would be another session's: the error says what to do."""
    with pytest.raises(TypeError, match="give the same object to each client"):
        copy_of(AsyncMemoryTokenStore())


class AsyncAway(AsyncMemoryTokenStore):
    """A store that is away for the caller that comes through its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Fail once the gate is open, if there is one."""
        if self.gate is not None:
            await async_pass_through(self.gate)
            raise StoreError("away")
        async with super().lock():
            yield


@pytest.mark.parametrize("fails_first", [False, True])
async def test_store_that_is_away_keeps_no_refused_request_from_signing_in(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, fails_first: bool
) -> None:
    """A renewal ahead of need that its store has stopped is neither joined nor waited out."""
    store = AsyncAway()
    session = connect(
        store=store, credentials=PasswordCredentials("me@example.com", "correct horse")
    )
    assert (await session.http.get("/v1/apps")).status_code == 200
    store.gate = gate = Gate()
    clock.advance(timedelta(hours=13))
    assert (await session.http.get("/v1/apps")).status_code == 200  # and begins a renewal
    await async_arrived(gate)
    fake.revoke_all()  # another process has renewed the session
    async with AsyncBackground() as background:
        if fails_first:
            gate.open()
            await async_until(lambda: inside(session).state.failure is not None)
        request = background.start(lambda: session.http.get("/v1/apps"))
        if not fails_first:
            await async_until(lambda: fake.requests[-1].status == 401)
            gate.open()
        assert (await request.result()).status_code == 200
    operations = [request.operation for request in fake.requests]
    assert operations == ["login", "apps", "apps", "apps", "refresh", "login", "apps"]


async def test_token_that_was_dead_when_it_was_taken_over_is_given_up(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A session whose store held a token that others had revoked signs in at the next request."""
    store = AsyncMemoryTokenStore()
    session = connect(
        store=store, credentials=PasswordCredentials("me@example.com", "correct horse")
    )
    assert (await session.http.get("/v1/apps")).status_code == 200
    clock.advance(60)
    await store.save(Token(fake.issue_token(), issued_at=from_epoch(clock.time())))
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests].count("login") == 2
