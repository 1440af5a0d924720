"""One exchange at a time, which all callers share and none owns."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportTimeoutError,
)
from koyeb_session._api import operations
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.snapshot import FailedAttempt, Need, NewToken, Urgency
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived
from ..support import DAY, ME, PASSWORD, count, held, inside, log
from .doubles import AsyncUnderWay, Connect

# One exchange at a time


async def test_refresh_joins_the_exchange_under_way(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A caller that asks for a renewal while one runs gets that one's token."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        others = [background.start(session.refresh) for _ in range(5)]
        await background.settled()
        background.gate.open()
        tokens = {(await job.result()).id for job in (background.job, *others)}
    assert tokens == {held(session)}
    assert fake.exchanges() == 1


async def test_refresh_joins_a_renewal_that_nobody_waits_for(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A renewal in the soft window is everybody's, too."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await background.settled()
        assert not job.done
        gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


async def test_refresh_twice_is_two_exchanges(fake: FakeKoyeb, session: AsyncSessionClient) -> None:
    """A refresh that is asked for after another has ended is one of its own."""
    first, second = await session.refresh(), await session.refresh()
    assert first.id != second.id
    assert fake.exchanges() == 2
    assert fake.requests[1].bearer == first.id


@pytest.mark.pitfall(1)
async def test_a_token_is_never_exchanged_twice(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """Catches a caller that exchanges the snapshot it has seen, though the session has moved on."""
    seen = inside(session).state.snapshot
    assert seen is not None
    new = await session.refresh()
    outcome = await inside(session).keeper.renew(seen)
    assert outcome is inside(session).state.snapshot
    assert count(fake, "refresh") == 1
    assert fake.live_tokens() == [new.id]


async def test_followers_of_a_failed_exchange_fail_with_it(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """All who waited get the error, each a copy of its own; nobody tries again at once."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, status=500))
    async with AsyncBackground() as background:
        jobs = [background.start(session.refresh) for _ in range(3)]
        await async_arrived(gate)
        await background.settled()
        gate.open()
        errors: list[KoyebSessionError] = []
        for job in jobs:
            with pytest.raises(ServerError) as caught:
                await job.result()
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3
    assert log(fake) == [("refresh", 500)]


async def test_a_follower_of_an_older_exchange_runs_one_of_its_own(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A refresh of a session that began during the exchange of another one is not lost."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        adopted = await session.use_token(fake.issue_token())
        second = background.start(session.refresh)
        await background.settled()
        background.gate.open()
        new = await second.result()
        await background.job.result()
    assert [request.bearer for request in fake.requests if request.operation == "refresh"][1:] == [
        adopted.id
    ]
    assert new.id == held(session)
    assert fake.exchanges() == 2
    assert fake.live_tokens() == [new.id]


async def test_the_caller_of_an_overtaken_exchange_gets_the_sessions_token(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A refresh that a new session has overtaken brings that session's token."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        adopted = await session.use_token(fake.issue_token())
        background.gate.open()
        assert (await background.job.result()).id == adopted.id
    assert held(session) == adopted.id
    assert fake.live_tokens() == [adopted.id]


async def test_waiting_for_another_callers_exchange_ends_with_the_own_timeout(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A follower gives up after its own time; the exchange goes on."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        with pytest.raises(TransportTimeoutError, match=r"within 0\.01 s") as caught:
            await session.refresh(timeout=0.01)
        assert caught.value.retryable
        background.gate.open()
        assert (await background.job.result()).id == held(session)
    assert fake.exchanges() == 1


async def test_an_exchange_ends_with_its_deadline(fake: FakeKoyeb, connect: Connect) -> None:
    """A service that never answers costs the client's timeout, and the token stays."""
    session = connect(token=fake.issue_token(), timeout=0.02)
    old = held(session)
    fake.fail("refresh", Fault(gate=Gate()))
    with pytest.raises(TransportTimeoutError):
        await session.refresh()
    assert held(session) == old


async def test_refresh_honors_a_timeout_of_its_own(fake: FakeKoyeb, connect: Connect) -> None:
    """A shorter timeout than the client's ends this call, and not the exchange: others wait."""
    session = connect(token=fake.issue_token(), timeout=60)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with pytest.raises(TransportTimeoutError, match=r"within 0\.02 s"):
        await session.refresh(timeout=0.02)
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await background.settled()
        gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


@pytest.mark.parametrize("age", [timedelta(hours=13), DAY - timedelta(seconds=30)])
@pytest.mark.parametrize("operation", ["new_session", "switch_organization"])
async def test_a_timeout_is_for_the_renewal_too(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, operation: str, age: timedelta
) -> None:
    """A caller with little time does not wait for a renewal that comes first; that goes on."""
    session = connect(token=fake.issue_token(), timeout=60)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(age)
    arguments = {"new_session": (), "switch_organization": (fake.organizations[ME][1],)}[operation]
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)  # the service has revoked the old token
        with pytest.raises(TransportTimeoutError):
            await getattr(session, operation)(*arguments, timeout=0.02)
        gate.open()
        assert (await renewal.result()).id == held(session)
    assert fake.exchanges() == 1


async def test_refresh_may_take_longer_than_other_operations(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A longer timeout than the client's is granted, too."""
    session = connect(token=fake.issue_token(), timeout=0.02)
    fake.fail("refresh", Fault(latency=0.06))
    assert (await session.refresh(timeout=PATIENCE)).id == held(session)


async def test_all_say_so_where_waiting_would_never_end(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that this thread must not wait for is refused to each operation."""

    def refusal(_: object) -> StoreError:
        return StoreError("not here")

    monkeypatch.setattr(inside(session).renewal.__class__, "refusal", refusal)
    for call in (session.refresh, partial(session.login, ME, PASSWORD), session.logout):
        with pytest.raises(StoreError, match="not here"):
            await call()


async def test_a_stronger_caller_asks_no_more_once_the_session_has_ended(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weaker exchange gave up at the store, and a logout came meanwhile."""

    async def join(_: float) -> KoyebSessionError:
        inside(session).state.clear()
        return StoreError("away")

    need = Need(inside(session).state.snapshot, 0, Urgency.AHEAD, 5)
    shared = SimpleNamespace(join=join, need=need)

    def begin(*_: object) -> Any:
        return shared

    monkeypatch.setattr(inside(session).keeper.__class__, "_join_or_start", begin)
    with pytest.raises(KoyebSessionError, match="meanwhile"):
        await session.refresh()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_caller_whose_time_ends_in_a_second_round_gets_no_result_of_another_renewal(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """A failure in the first round says more than the timeout; a token there is an older one."""
    state = inside(session).state
    need = Need(None, 0, Urgency.AHEAD, 5)  # of an earlier token
    rounds = [ServerError("down") if fails else state.snapshot, None]

    async def join(_: float) -> object:
        return rounds.pop(0)

    def begin(*_: object) -> Any:
        return SimpleNamespace(join=join, need=need, alive=True)

    monkeypatch.setattr(inside(session).keeper.__class__, "_join_or_start", begin)
    with pytest.raises(ServerError if fails else TransportTimeoutError):
        await session.refresh()
    assert rounds == []


async def test_a_caller_without_time_starts_no_second_attempt(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure came at the very end of its time, and the service may be asked at once."""
    keeper, error = inside(session).keeper, ServerError("busy")
    keeper._retry_at = error, 0.0
    old = inside(session).state.snapshot
    rounds = [error, None]

    async def join(_: float) -> object:
        return rounds.pop(0)

    def begin(*_: object) -> Any:
        return SimpleNamespace(join=join, need=Need(old, 0, Urgency.REQUESTED, 5), alive=True)

    monkeypatch.setattr(keeper.__class__, "_join_or_start", begin)
    assert await keeper.renew(old, 0.0) is error
    assert rounds == [None]


@pytest.mark.parametrize("expired", [True, False])
async def test_a_token_that_is_replaced_or_expires_at_once_is_not_handed_out(
    fake: FakeKoyeb,
    clock: FakeClock,
    session: AsyncSessionClient,
    monkeypatch: pytest.MonkeyPatch,
    *,
    expired: bool,
) -> None:
    """Others may sign in, or close the session, before a waiter for the renewal goes on."""
    keeper, state = inside(session).keeper.__class__, inside(session).state
    renew = keeper.renew

    async def overtaken(*args: Any) -> Any:
        outcome = await renew(*args)
        if expired:
            clock.advance(DAY)
            state.close()
        else:
            await session.use_token(fake.issue_token())
        return outcome

    monkeypatch.setattr(keeper, "renew", overtaken)
    clock.advance(DAY - timedelta(seconds=30))
    if expired:
        with pytest.raises(SessionExpiredError):
            await session.current_token()
    else:
        assert await session.current_token() == session.token


async def test_a_renewal_that_is_cut_off_is_told(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline that foreign code meets is the renewal's."""

    async def late(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(inside(session).renewal.__class__, "run", late)
    with pytest.raises(TransportTimeoutError, match="not renewed"):
        await session.refresh()


async def test_a_renewal_that_fails_after_its_exchange_has_succeeded(
    fake: FakeKoyeb, session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new token is there, even if the step after it fails."""
    newer = Token(fake.issue_token())

    async def run(*_: object) -> None:
        inside(session).state.commit(NewToken(newer, just_issued=False))
        raise LookupError

    monkeypatch.setattr(inside(session).renewal.__class__, "run", run)
    assert (await session.refresh()).id == newer.id


async def test_nothing_is_sent_when_no_time_is_left(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A reply that nobody waits for may be the session."""
    over = Deadline(0)
    need = Need(None, 0, Urgency.NEEDED, 5)
    renewed = await inside(session).renewal._request_new_token(need, over)
    assert isinstance(renewed, FailedAttempt)
    assert str(renewed.error) == "the token was not renewed within 0 s"
    held = session.token
    assert held is not None
    sent = await inside(session).sender.send_once(operations.refresh(held), over)
    assert isinstance(sent, TransportTimeoutError)
    # A caller whose time went into waiting for a renewal: the reply would be a token, too.
    switch = operations.switch_organization(held, fake.organizations[ME][0], None)
    late = await inside(session).sender.send(switch, timeout=0.0)
    assert isinstance(late, TransportTimeoutError)
    assert fake.requests == []


async def test_a_token_that_was_replaced_meanwhile_is_not_replaced_again(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A renewal that hung comes back when others have gone on without it."""
    late = NewToken(Token(fake.issue_token()), just_issued=False)
    assert isinstance(inside(session).state.commit(late, replaces=None), KoyebSessionError)
