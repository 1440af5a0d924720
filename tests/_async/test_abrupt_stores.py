"""Calls of a store that end in no `Exception`, and holds that end with their event loop."""

from __future__ import annotations

import pytest

from koyeb_session import AsyncMemoryTokenStore, StoreError
from koyeb_session._core.deadline import Deadline
from koyeb_session.testing import FakeKoyeb

from ..concurrency import PATIENCE, Halted, async_end_abruptly
from ..support import ME, PASSWORD, held, inside, raising
from .doubles import AsyncUnderWay, Connect, Troubled, saved

REASONS = "what it waited for was cancelled|it raised Halted"


class Abrupt(Troubled):
    """A store of which single calls wait for a cancelled task, or raise no `Exception`."""

    async def intercept(self, call: str) -> None:
        """Note it, and end abruptly, if this is to."""
        self.calls.append(call)
        if self.fails.get(call, 0):
            self.fails[call] -= 1
            await async_end_abruptly()


@pytest.mark.parametrize("fails", [1, 2])
async def test_token_is_renewed_under_the_lock_though_a_read_ends_abruptly(
    fake: FakeKoyeb, connect: Connect, fails: int
) -> None:
    """It is read once more, and nobody renews beside it: catches a refresh without the lock."""
    store = Abrupt()
    session = connect(store=store, token=fake.issue_token())
    store.fails["load"] = fails
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        assert store.calls == ["lock", "load", "load"]
        other = background.start(connect(store=store).current_token)
        await background.settled()
        background.gate.open()
        assert await other.result() == await background.job.result()
    assert await saved(store) == held(session)


async def test_newer_token_is_taken_over_though_its_read_ends_abruptly(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Another process has renewed the session: a refresh of the older token would end both."""
    store = Abrupt()
    first = connect(store=store)
    await first.login(ME, PASSWORD)
    second = connect(store=store)
    await second.current_token()
    await second.refresh()
    store.fails["load"] = 1
    assert await first.refresh() == second.token
    assert fake.exchanges() == 1


async def test_logout_tells_of_a_deletion_that_ends_abruptly(connect: Connect) -> None:
    """The store still has the token; the closing deletes it."""
    store = Abrupt()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.fails["delete"] = 1
    with pytest.raises(StoreError, match=f"could not be emptied: RuntimeError: ({REASONS})$"):
        await session.logout()
    assert await saved(store) is not None
    await session.aclose()
    assert await saved(store) is None


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ({"save": 1}, "what it held is deleted"),
        ({"save": 1, "delete": 1}, "what it holds could not be deleted"),
        ({"lock": 1}, "what it held is deleted"),
    ],
)
async def test_save_that_ends_abruptly_is_made_up_for(
    connect: Connect, caplog: pytest.LogCaptureFixture, fails: dict[str, int], left: str
) -> None:
    """The log tells of it, and the closing saves the token."""
    store = Abrupt()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.fails |= fails
    await session.use_token("t" * 64)
    assert len(caplog.messages) == 1
    assert "the new token is kept in memory only: the token store could not be " in caplog.text
    assert caplog.text.rstrip().endswith(left)
    await session.aclose()
    assert await saved(store) == held(session)


async def test_store_without_a_lock_is_used_though_it_ends_abruptly(connect: Connect) -> None:
    """A logout deletes without the lock, and the caller is told why that may have failed."""
    store = Abrupt()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.fails |= {"lock": 1, "load": 1, "delete": 1}
    with pytest.raises(StoreError, match=f"could not be locked: RuntimeError: ({REASONS})$"):
        await session.logout()


async def test_work_that_ends_a_hold_is_not_done(connect: Connect) -> None:
    """No later caller takes the store for locked, or for one that another process holds."""
    hold = inside(connect(store=AsyncMemoryTokenStore())).persistence.hold()
    await hold.ready(PATIENCE)
    assert hold.not_ready is None
    assert await hold.do(raising(Halted()), PATIENCE) is False
    assert not hold.is_held_elsewhere
    assert "it raised Halted" in str(hold.not_ready)
    assert await hold.do(raising(AssertionError()), PATIENCE) is False
    await hold.leave(Deadline(PATIENCE))
