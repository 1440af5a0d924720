"""Beginning and ending a session, also in the middle of a renewal."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    NotSignedInError,
    RetryPolicy,
    ServerError,
    StoreError,
    Token,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.snapshot import NewToken
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    PATIENCE,
    AsyncBackground,
    async_arrived,
    async_idle,
    async_until,
    deadlines,
)
from ..support import DAY, ME, PASSWORD, PASSWORDS, held, inside, log, operations
from .doubles import AsyncUnderWay, BrokenStore, Connect, Held, Troubled, UnspeakableError, saved

STILL_THERE = (
    "the token may still be in the store: the token store could not be emptied: OSError: disk full"
)


async def test_use_token_takes_the_place_of_the_session(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """The new token is used from then on, and the old one is left alone."""
    old = held(session)
    new = await session.use_token(fake.issue_token())
    await session.http.get("/v1/apps")
    assert fake.requests[-1].bearer == new.id == held(session)
    assert set(fake.live_tokens()) == {old, new.id}


async def test_use_token_takes_the_same_token_with_less_time_left(
    store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """A JWT says the whole seconds of its expiry only; that is for the user to decide."""
    token = stored.token
    again = await stored.use_token(held(stored))
    assert stored.token == await store.load() == again
    assert token is not None
    assert again.id == token.id
    assert again.expires_at is not None
    assert token.expires_at is not None
    assert again.expires_at <= token.expires_at


async def test_use_token_refuses_an_expired_token_and_keeps_the_old_one(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A token that is dead on arrival is the caller's mistake."""
    old = session.token
    with pytest.raises(ValueError, match="expired"):
        await session.use_token(fake.issue_token(lifetime=timedelta(0)))
    assert session.token is old


@pytest.mark.pitfall(17)
@pytest.mark.parametrize("hold", ["request", "reply"])
@pytest.mark.parametrize("broken", ["", "load"])
async def test_a_logout_during_a_renewal_is_final(
    fake: FakeKoyeb, connect: Connect, hold: str, broken: str
) -> None:
    """The token that the exchange still brings is revoked, and nothing brings the session back."""
    store = BrokenStore(broken)
    session = connect(token=fake.issue_token(), store=store)
    async with AsyncUnderWay(fake, "refresh", session.refresh, hold=hold) as background:
        leaving = background.start(session.logout)
        await background.settled()
        assert session.token is None
        assert not leaving.done  # it returns when nothing is left
        background.gate.open()
        with contextlib.suppress(StoreError):
            await leaving.result()
        assert fake.live_tokens() == []
        with pytest.raises(NotSignedInError, match="signed out"):
            await background.job.result()
    assert session.token is None
    assert await saved(store) is None
    with pytest.raises(NotSignedInError):
        await session.current_token()


@pytest.mark.parametrize("broken", ["", "lock"])
async def test_a_logout_revokes_the_stores_token_too(
    fake: FakeKoyeb, store: BrokenStore, connect: Connect, broken: str
) -> None:
    """The token that another process has renewed meanwhile is revoked as well."""
    session = connect(token=fake.issue_token(), store=store)
    await store.save(Token(fake.issue_token()))
    store.broken.add(broken)
    await session.logout()
    assert fake.live_tokens() == []
    assert await store.load() is None
    assert operations(fake) == ["logout", "logout"]


async def test_a_logout_revokes_although_the_wall_clock_is_ahead(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The age of the token decides whether it is good, and not this machine's clock."""
    ahead = FakeClock(datetime.fromtimestamp(clock.time(), UTC) + 2 * DAY)
    store = AsyncMemoryTokenStore()
    session = connect(clock=ahead)
    await session.login(ME, PASSWORD)
    await connect(clock=ahead, store=store).login(ME, PASSWORD)
    await session.logout()
    await connect(clock=ahead, store=store).logout()
    assert fake.live_tokens() == []


@pytest.mark.parametrize(("broken", "told"), [("", []), ("lock", []), ("delete", [STILL_THERE])])
async def test_a_logout_leaves_a_service_that_fails_behind(
    fake: FakeKoyeb,
    store: BrokenStore,
    stored: AsyncSessionClient,
    caplog: pytest.LogCaptureFixture,
    *,
    broken: str,
    told: list[str],
) -> None:
    """The session ends here; the service's error is raised, and the store's is in the log."""
    store.broken.add(broken)
    fake.fail("logout", Fault(status=500))
    with pytest.raises(ServerError):
        await stored.logout()
    assert stored.token is None
    assert (await store.load() is None) is (broken != "delete")
    assert log(fake) == [("login", 200), ("logout", 500)]
    assert caplog.messages == told


@pytest.mark.parametrize("status", [200, 401])
async def test_a_logout_is_tried_again_and_may_be_refused(
    fake: FakeKoyeb, session: AsyncSessionClient, status: int
) -> None:
    """To sign out twice does no harm; a token that the service does not know is no error."""
    if status == 401:
        fake.revoke_all()
    fake.fail("logout", Fault(status=503), times=2)
    await session.logout()
    assert log(fake) == [("logout", 503), ("logout", 503), ("logout", status)]
    assert session.token is None


@pytest.mark.parametrize("broken", ["", "delete"])
async def test_a_logout_ends_with_its_timeout_and_clears_the_store(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    """A service that hangs keeps neither the caller nor the token, nor hides that it is kept."""
    ended: list[bool] = []
    for seconds in deadlines(lambda: ended[-1]):
        store = BrokenStore()
        session = connect(store=store)
        await session.login(ME, PASSWORD)
        store.broken.add(broken)
        fake.fail("logout", Fault(gate=Gate()), times=2)
        with pytest.raises(TransportTimeoutError):
            await session.logout(timeout=seconds)
        assert session.token is None
        ended.append(STILL_THERE in caplog.messages if broken else await store.load() is None)


async def test_a_refresh_after_a_logout_does_not_join_the_old_sign_in(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The sign-in under way at the logout is revoked; a later caller signs in anew."""
    session = connect(credentials=PASSWORDS)
    async with AsyncUnderWay(fake, "login", session.current_token) as background:
        leaving = background.start(session.logout)
        await background.settled()
        late = background.start(session.refresh)
        await background.settled()
        token = await late.result()
        background.gate.open()
        assert await background.job.result() == token
        await leaving.result()
    assert fake.live_tokens() == [token.id] == [held(session)]


async def test_a_logout_is_not_undone_by_a_waiter_for_a_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A caller that asked for a renewal before the logout does not sign in after it."""
    session = connect(credentials=PASSWORDS)
    async with AsyncUnderWay(fake, "login", session.current_token) as background:
        second = background.start(session.refresh)
        await background.settled()
        leaving = background.start(session.logout)
        await background.settled()
        background.gate.open()
        for job in (background.job, second):
            with pytest.raises(NotSignedInError):
                await job.result()
        await leaving.result()
    assert session.token is None
    assert fake.live_tokens() == []


async def test_a_login_during_a_renewal_wins(fake: FakeKoyeb, session: AsyncSessionClient) -> None:
    """The renewal of the old session does not replace the new one's token."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        token = await session.login(ME, PASSWORD)
        background.gate.open()
        assert (await background.job.result()).id == token.id
    assert fake.live_tokens() == [held(session)] == [token.id]


@pytest.mark.pitfall(23)
async def test_trouble_of_the_old_session_does_not_bother_the_new_one(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A back-off ends with the session that it was for."""
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "3000"}))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    await session.logout()
    await session.login(ME, PASSWORD)
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 1


@pytest.mark.parametrize("kept", ["bäd", "a\nb", ""])
async def test_a_logout_does_not_send_what_a_store_made_up(
    fake: FakeKoyeb, connect: Connect, kept: str
) -> None:
    """The session's own token is revoked, with any record in the store."""
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    await store.save(Token(kept))
    await session.logout()
    assert fake.live_tokens() == []
    assert operations(fake) == ["logout"]


@pytest.mark.parametrize("broken", [("load",), ("lock",), ("load", "lock")])
async def test_a_logout_empties_a_store_that_cannot_be_read(
    fake: FakeKoyeb,
    store: BrokenStore,
    stored: AsyncSessionClient,
    caplog: pytest.LogCaptureFixture,
    broken: tuple[str, ...],
) -> None:
    """Deleting without the lock is better than not at all; it is not tried again, nor told of."""
    store.broken.update(broken)
    await stored.logout()
    await stored.aclose()
    assert caplog.messages == []
    store.broken.clear()
    assert await store.load() is None
    assert fake.live_tokens() == []


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError("disk full"), "OSError: disk full"), (UnspeakableError(TimeoutError), "Unspeakable")],
)
async def test_a_logout_tells_when_the_store_still_holds_the_token(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient, error: OSError, said: str
) -> None:
    """
    A token that nobody can delete is worth an error; the service has forgotten it.

    Catches a sign-out that is cut off by an error whose text cannot be had.
    """
    store.broken.add("delete")
    store.error = error
    with pytest.raises(StoreError, match=f"the token store could not be emptied: {said}") as caught:
        await stored.logout()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__ is not store.error
    assert caught.value.__cause__.__traceback__ is None
    assert stored.token is None
    assert fake.live_tokens() == []


async def test_a_token_that_is_no_good_begins_no_session(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Nothing is revoked, as nothing is good."""
    session = connect()
    expired = Token("t", expires_at=datetime.fromtimestamp(clock.time() - 1, UTC))
    outcome = await inside(session).change(None).begin(NewToken(expired, just_issued=True))
    assert isinstance(outcome, WireError)
    assert fake.requests == []


async def test_a_logout_that_runs_out_of_time_is_told(
    fake: FakeKoyeb,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A store has half of the time; one that meets the deadline is as good as one that hangs."""
    session = connect(store=AsyncMemoryTokenStore(), token=fake.issue_token())
    given: list[float] = []

    def whole(deadline: Deadline) -> float:
        return deadline.seconds

    async def late(*arguments: Any) -> None:
        given.append(arguments[-1].seconds)
        raise TimeoutError

    monkeypatch.setattr(inside(session).persistence.__class__, "sign_out", late)
    monkeypatch.setattr(Deadline, "left", whole)
    with pytest.raises(TransportTimeoutError, match="logout: not done within 60 s"):
        await session.logout(timeout=60)
    assert given == [30]
    assert caplog.messages == []


async def test_a_logout_that_starts_too_late_ends_the_session_all_the_same(
    fake: FakeKoyeb, session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was busy: nothing is sent any more, and the caller is told."""

    def passed(_: object) -> float:
        return -PATIENCE

    monkeypatch.setattr(Deadline, "left", passed)
    with pytest.raises(TransportTimeoutError):
        await session.logout(timeout=60)
    assert session.token is None
    assert fake.requests == []


async def test_a_logout_ends_no_session_that_has_begun_since(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A signal handler may sign in before a logout goes on; catches the end of its session."""
    leaving = inside(session).change(None)
    token = await session.login(ME, PASSWORD)
    assert await leaving.end() is None
    assert session.token is token
    assert token.id in fake.live_tokens()


async def test_a_login_replaces_a_session_that_has_begun_meanwhile(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """The last sign-in to end is the one that holds."""
    async with AsyncUnderWay(fake, "login", lambda: session.login(ME, PASSWORD)) as background:
        await session.use_token(fake.issue_token())
        background.gate.open()
        assert await background.job.result() is session.token


@pytest.mark.pitfall(17)
async def test_a_login_that_is_on_its_way_does_not_undo_a_logout(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Its token is revoked; the next login begins a session again."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    login = partial(session.login, ME, PASSWORD)
    async with AsyncUnderWay(fake, "login", login, hold="reply") as background:
        await session.logout()
        background.gate.open()
        with pytest.raises(NotSignedInError, match="signed out"):
            await background.job.result()
    assert session.token is None
    assert await store.load() is None
    assert fake.live_tokens() == []
    token = await login()
    assert fake.live_tokens() == [token.id]


@pytest.mark.pitfall(28)
async def test_refresh_beside_a_logout_does_not_take_over_what_is_being_deleted(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Catches a session that comes back, on a token that is revoked or in no store."""
    store = Troubled()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    gate = store.gates["delete"] = Gate()
    async with AsyncBackground() as background:
        leaving = background.start(session.logout)
        await async_arrived(gate)
        again = background.start(session.refresh)
        await background.settled()
        gate.open()
        with pytest.raises(NotSignedInError):
            await again.result()
        await leaving.result()
    assert session.token is None
    assert await store.load() is None
    assert fake.live_tokens() == []


async def test_nobody_waits_under_the_lock_to_revoke_a_token_again(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The token of a renewal that was overtaken is revoked once the store is free for others."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store, retry_policy=RetryPolicy(retry_after_max=3600), timeout=3600)
    await session.login(ME, PASSWORD)
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        await session.login(ME, PASSWORD)
        fake.fail("logout", Fault(gate=(revocation := Gate())))
        background.gate.open()
        await async_arrived(revocation)
        async with store.lock():  # so it is free
            revocation.open()
        await background.job.result()


async def test_login_is_saved_again_when_a_logout_deletes_it_late(connect: Connect) -> None:
    """The logout could not have the lock; catches a live session that is in no store."""
    store = Troubled()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.fails["lock"] = 1
    gate = store.gates["delete"] = Gate()
    async with AsyncBackground() as background:
        leaving = background.start(session.logout)
        await async_arrived(gate)
        await session.login(ME, PASSWORD)
        gate.open()
        await leaving.result()
    await session.aclose()
    assert await saved(store) == held(session)


@pytest.mark.parametrize("closes", [False, True])
async def test_login_is_saved_again_when_the_deletion_of_a_logout_hangs(
    connect: Connect, caplog: pytest.LogCaptureFixture, *, closes: bool
) -> None:
    """Nobody waits for it any more, and no request follows: catches a session in no store."""
    store = Troubled()
    session = connect(store=store, timeout=0.2)
    await session.login(ME, PASSWORD)
    store.fails["lock"] = 1
    gate = store.gates["delete"] = Gate()
    with pytest.raises(StoreError):
        await session.logout()
    await session.login(ME, PASSWORD)
    assert await saved(store) == held(session)
    async with AsyncBackground() as background:
        if closes:
            closing = background.start(session.aclose)
            await async_until(lambda: inside(session).state.closed)
            gate.open()
            await closing.result()
        gate.open()
        await async_until(lambda: closes or store.calls.count("save") == 3)
    await session.aclose()
    assert await saved(store) == held(session)
    assert caplog.messages == []


async def test_closing_does_not_tell_of_a_new_token_after_a_logout(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process holds the lock; the warning is of the token that may be left."""
    store = Held()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    caplog.clear()
    await session.logout()
    await session.aclose()
    assert caplog.messages == [
        "the token may still be in the store: the token store could not be locked: TimeoutError"
    ]


async def test_each_step_of_a_logout_leaves_time_for_the_next_one(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is late with each of them: it gets a share of the time, and then the blame."""
    steps: list[tuple[str, float]] = []

    class Standing(Deadline):
        def left(self) -> float:
            return self.seconds

    def note(owner: object, name: str) -> None:
        async def late(_self: object, *arguments: Any, **_: object) -> None:
            steps.append((name, getattr(arguments[-1], "seconds", arguments[-1])))

        monkeypatch.setattr(owner.__class__, name, late)

    persistence = inside(connect(store=AsyncMemoryTokenStore())).persistence
    hold = persistence.hold()
    for name in ("ready", "do", "leave"):
        note(hold, name)
    note(persistence, "_unlocked")
    found, problem = await persistence.sign_out(None, Standing(32))
    monkeypatch.undo()
    for _ in range(2):  # this test, and the logout
        await hold.leave(Deadline(PATIENCE))
    assert steps == [("ready", 16), ("do", 16), ("leave", 16), ("_unlocked", 8), ("_unlocked", 16)]
    assert (found, str(problem)) == (None, "the token store could not be emptied in time")
