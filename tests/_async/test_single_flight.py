"""One exchange at a time, which all callers share and none owns."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    RetryPolicy,
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

from ..concurrency import AsyncBackground
from ..support import DAY, ME, PASSWORDS, count, held, inside, log, raising
from .doubles import CALLS, AsyncUnderWay, Connect


async def test_refresh_joins_a_renewal_that_nobody_waits_for(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A renewal in the soft window is everybody's, too."""
    clock.advance(DAY / 2)
    async with AsyncUnderWay(fake, "refresh", session.current_token) as background:
        job = background.start(session.refresh)
        await background.settled()
        assert not job.done
        background.gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


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
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """All who waited get the error, each a copy of its own; nobody tries again at once."""
    async with AsyncUnderWay(fake, "refresh", session.refresh, status=500) as background:
        jobs = [background.job, *(background.start(session.refresh) for _ in range(2))]
        await background.settled()
        background.gate.open()
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
    old = held(session)
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        adopted = await session.use_token(fake.issue_token())
        second = background.start(session.refresh)
        await background.settled()
        background.gate.open()
        new = await second.result()
        await background.job.result()
    refreshed = [it.bearer for it in fake.requests if it.operation == "refresh"]
    assert refreshed == [old, adopted.id]
    assert fake.live_tokens() == [new.id] == [held(session)]
    assert fake.exchanges() == 2


async def test_refresh_honors_a_timeout_of_its_own(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A shorter timeout than the client's ends this call, and not the exchange: others wait."""
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    with pytest.raises(TransportTimeoutError, match=r"within 0\.02 s") as caught:
        await session.refresh(timeout=0.02)
    assert caught.value.retryable
    async with AsyncBackground() as background:
        job = background.start(session.refresh)
        await background.settled()
        gate.open()
        assert (await job.result()).id == held(session)
    assert fake.exchanges() == 1


@pytest.mark.parametrize("age", [timedelta(hours=13), DAY - timedelta(seconds=30)])
@pytest.mark.parametrize("operation", ["new_session", "switch_organization"])
async def test_a_timeout_is_for_the_renewal_too(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient, operation: str, age: timedelta
) -> None:
    """A caller with little time does not wait for a renewal that comes first; that goes on."""
    clock.advance(age)
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        with pytest.raises(TransportTimeoutError):  # the service has revoked the old token
            await getattr(session, operation)(*CALLS[operation], timeout=0.02)
        background.gate.open()
        assert (await background.job.result()).id == held(session)
    assert fake.exchanges() == 1


def join_in_place(
    monkeypatch: pytest.MonkeyPatch, session: AsyncSessionClient, need: Need, rounds: list[Any]
) -> None:
    """Have callers join a renewal for a need, with an outcome for each time that they do."""

    async def join(_: float) -> object:
        outcome = rounds.pop(0)
        return outcome() if callable(outcome) else outcome

    def begin(*_: object) -> Any:
        return SimpleNamespace(join=join, need=need, under_way=True)

    monkeypatch.setattr(inside(session).keeper.__class__, "_join_or_start", begin)


async def test_a_stronger_caller_asks_no_more_once_the_session_has_ended(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weaker exchange gave up at the store, and a logout came meanwhile."""
    state = inside(session).state

    def give_up() -> KoyebSessionError:
        state.clear()
        return StoreError("away")

    join_in_place(monkeypatch, session, Need(state.snapshot, 0, Urgency.AHEAD, 5), [give_up])
    with pytest.raises(KoyebSessionError, match="meanwhile"):
        await session.refresh()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_caller_whose_time_ends_in_a_second_round_gets_no_result_of_another_renewal(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """A failure in the first round says more than the timeout; a token there is an older one."""
    rounds = [ServerError("down") if fails else inside(session).state.snapshot, None]
    need = Need(None, 0, Urgency.AHEAD, 5)  # of an earlier token
    join_in_place(monkeypatch, session, need, rounds)
    with pytest.raises(ServerError if fails else TransportTimeoutError):
        await session.refresh()
    assert rounds == []


@pytest.mark.parametrize("signed_in", [True, False])
async def test_a_caller_that_looked_before_a_failure_begins_no_second_renewal(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, signed_in: bool
) -> None:
    """A thread may be slow between the two; catches a request in the back-off of the first."""
    given: dict[str, Any] = (
        {"token": fake.issue_token()} if signed_in else {"credentials": PASSWORDS}
    )
    session = connect(**given, retry_policy=RetryPolicy(attempts=1))
    operation = "refresh" if signed_in else "login"
    fake.fail(operation, Fault(status=503), times=9)
    clock.advance(DAY - timedelta(seconds=5))
    keeper, state = inside(session).keeper, inside(session).state
    seen = state.observe()
    with contextlib.suppress(ServerError):
        await session.current_token()
    late = await keeper.renew(seen.snapshot, urgency=Urgency.NEEDED, failure=seen.failure)
    assert isinstance(late, ServerError)
    assert count(fake, operation) == 1
    assert state.failure is not None
    await keeper.renew(seen.snapshot, urgency=Urgency.NEEDED, failure=state.failure)
    assert count(fake, operation) == 2


async def test_a_caller_without_time_starts_no_second_attempt(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure came at the very end of its time, and the service may be asked at once."""
    keeper, old = inside(session).keeper, inside(session).state.snapshot
    rounds = [error := ServerError("busy"), None]
    keeper._retry_at = error, 0.0
    join_in_place(monkeypatch, session, Need(old, 0, Urgency.REQUESTED, 5), rounds)
    assert await keeper.renew(old, Deadline(0.0)) is error
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
    monkeypatch.setattr(inside(session).renewal.__class__, "run", raising(TimeoutError()))
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
    assert session.token is not None
    sender = inside(session).sender
    sent = await sender.send_once(operations.refresh(session.token), over)
    assert isinstance(sent, TransportTimeoutError)
    # A caller whose time went into waiting for a renewal: the reply would be a token, too.
    switch = operations.switch_organization(session.token, fake.organizations[ME][0], None)
    assert isinstance(await sender.send(switch, over), TransportTimeoutError)
    assert fake.requests == []


async def test_all_rounds_of_a_call_share_one_deadline(
    clock: FakeClock, session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is taken over may be due as well: its renewal has the rest of the time."""
    keeper, taken_over = inside(session).keeper, inside(session).state.snapshot
    taken_over.from_store = True
    outcomes = [ServerError("down"), taken_over]
    deadlines: list[Deadline] = []

    async def renew(_: object, __: object, deadline: Deadline, *___: object) -> Any:
        deadlines.append(deadline)
        return outcomes.pop()

    monkeypatch.setattr(keeper.__class__, "renew", renew)
    clock.advance(DAY)
    deadline = Deadline(5)
    assert isinstance(await keeper.usable_snapshot(deadline=deadline), KoyebSessionError)
    assert deadlines == [deadline, deadline]
