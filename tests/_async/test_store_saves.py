"""The store's record after a save that fails, or comes late."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    ServerError,
    StoreError,
    Token,
    TransportTimeoutError,
)
from koyeb_session._core.snapshot import NewToken
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import AsyncBackground, async_arrived, async_idle, async_until
from ..support import ME, PASSWORD, PASSWORDS, held, inside
from .doubles import BrokenStore, BucketError, Connect, Held, Troubled, UnspeakableError, saved


@pytest.fixture
async def unsaved(fake: FakeKoyeb, store: BrokenStore, connect: Connect) -> AsyncSessionClient:
    """Make a session whose newest token ``store`` has failed to save; it works again."""
    store.broken.add("save")
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    store.broken.clear()
    return session


@pytest.mark.pitfall(4)
async def test_every_new_token_is_saved(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """Login, refresh, switch and use_token reach the store; another session's token does not."""
    for change in (
        stored.refresh,
        partial(stored.switch_organization, fake.organizations[ME][1]),
        partial(stored.use_token, fake.issue_token()),
        stored.new_session,
    ):
        assert await store.load() == stored.token
        await change()
    assert await store.load() == stored.token


@pytest.mark.parametrize("has_lock", [True, False])
async def test_number_that_a_store_returns_from_a_write_is_no_error(
    connect: Connect, caplog: pytest.LogCaptureFixture, *, has_lock: bool
) -> None:
    """Such as the number of rows: the store is neither read nor written a second time."""

    class Counting(Troubled):
        async def save(self, token: Token) -> Any:
            await super().save(token)
            return 1

        async def delete(self) -> Any:
            await super().delete()
            return 1

    store = Counting()
    store.fails["lock"] = 0 if has_lock else 2
    session = connect(store=store)
    token = await session.login(ME, PASSWORD)
    assert store._token == (token if has_lock else None)
    assert all(it.endswith("; what it held is deleted") for it in caplog.messages)
    await session.logout()
    assert store._token is None
    await session.aclose()
    login, logout = ["lock", "load", "save"], ["lock", "load", "delete"]
    if not has_lock:
        login = logout = ["lock", "load", "delete"]
    assert store.calls == login + logout


@pytest.mark.pitfall(5)
@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StoreError("no room"), "no room"),
        (OSError("no room"), "the token store could not be written: OSError: no room"),
        (UnspeakableError(ValueError), "the token store could not be written: UnspeakableError"),
        (UnspeakableError(TimeoutError), "the token store could not be written: UnspeakableError"),
    ],
)
@pytest.mark.parametrize("begins", [True, False])
async def test_a_token_that_cannot_be_saved_stays_in_memory(
    fake: FakeKoyeb,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    error: Exception,
    text: str,
    begins: bool,
) -> None:
    """The session goes on with the new token, the log says so, and a close saves it."""
    store = BrokenStore("save", error=error)
    session = connect(token=None if begins else fake.issue_token(), store=store)
    begin = partial(session.login, ME, PASSWORD) if begins else session.refresh
    token = await begin()
    assert session.token == token
    assert fake.live_tokens() == [token.id]
    assert caplog.messages == [
        f"the new token is kept in memory only: {text}; what it held is deleted"
    ]
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert await saved(store) is None
    store.broken.clear()
    await session.aclose()
    assert await store.load() == token


async def test_a_save_that_failed_is_made_up_for_while_the_session_is_kept_current(
    fake: FakeKoyeb, store: BrokenStore, unsaved: AsyncSessionClient
) -> None:
    """`keep_current` keeps the store current, too."""
    token = unsaved.token
    async with AsyncBackground() as background:
        job = background.start(unsaved.keep_current)
        await async_until(lambda: store._token is not None)
        assert store._token == token
        assert fake.exchanges() == 1
        await unsaved.aclose()
        await job.result()


async def test_token_that_expires_while_it_is_saved_is_not_replaced_without_end(
    clock: FakeClock, connect: Connect
) -> None:
    """All rounds have one time limit together; catches a request that never ends."""
    saved_ones = list[str]()

    class Slow(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            await super().save(token)
            saved_ones.append(token.id)
            if len(saved_ones) < 5_000:
                clock.advance(60)

    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=50))
    given: dict[str, Any] = {"store": Slow(), "credentials": PASSWORDS}
    session = connect(transport=fake.transport, timeout=0.05, **given)
    with contextlib.suppress(TransportTimeoutError):
        await session.http.get("/v1/apps")
    assert len(saved_ones) < 5_000


@pytest.mark.parametrize("begins", [True, False])
async def test_a_save_that_failed_is_made_up_for_by_a_later_request(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    begins: bool,
) -> None:
    """A fleet must not find the revoked token for long: requests have the save tried again."""
    store = BrokenStore("save")
    session = connect(token=None if begins else fake.issue_token(), store=store)
    begin = partial(session.login, ME, PASSWORD) if begins else session.refresh
    token = await begin()

    async def later(seconds: float) -> int:
        clock.advance(seconds)
        for _ in range(3):
            assert (await session.http.get("/v1/apps")).status_code == 200
            await async_idle()
        return caplog.text.count("kept in memory only")

    assert [await later(seconds) for seconds in (4, 2, 4, 4)] == [1, 2, 2, 3]
    store.broken.clear()
    await later(60)
    assert store._token == token
    await store.delete()
    await later(60)
    assert store._token is None  # there was nothing to make up for any more
    assert fake.exchanges() == (0 if begins else 1)


async def test_a_save_that_failed_is_not_forgotten_by_a_renewal_that_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The missed save is still to be made up for when the next exchange fails, too."""
    store = BrokenStore("save", "lock")
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    fake.fail("refresh", Fault(status=500))
    with pytest.raises(ServerError):
        await session.refresh()
    store.broken.clear()
    clock.advance(6)
    assert (await session.http.get("/v1/apps")).status_code == 200
    await async_idle()
    assert store._token == token


@pytest.mark.parametrize("act", ["logout", "use_token"])
async def test_a_save_that_failed_is_forgotten_with_its_token(
    fake: FakeKoyeb, store: BrokenStore, unsaved: AsyncSessionClient, act: str
) -> None:
    """The store is not told of a token that the session does not hold any more."""
    if act == "logout":
        await unsaved.logout()
    else:
        await unsaved.use_token(fake.issue_token())
        await store.delete()
    await unsaved.aclose()
    assert await store.load() is None


async def test_a_token_that_was_overtaken_is_not_saved(fake: FakeKoyeb, connect: Connect) -> None:
    """A save that had to wait for the store saves the token that the session holds by then."""
    store = Troubled()
    session = connect(store=store)
    async with AsyncBackground() as background, AsyncMemoryTokenStore.lock(store):
        for _ in range(2):
            background.start(lambda: session.use_token(fake.issue_token()))
            await background.settled()
    assert store.calls.count("save") == 1
    assert await saved(store) == held(session) == fake.live_tokens()[-1]


@pytest.mark.pitfall(28)
@pytest.mark.parametrize("act", ["login", "logout"])
async def test_store_is_of_the_new_session_when_an_old_save_is_slow(
    fake: FakeKoyeb, connect: Connect, act: str
) -> None:
    """A renewal's save that lands late does not undo the save of a login or a logout."""
    store = Troubled()
    session = connect(store=store, token=fake.issue_token())
    gate = store.gates["save"] = Gate()
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        what = (lambda: session.login(ME, PASSWORD)) if act == "login" else session.logout
        change = background.start(what)
        await background.settled()
        gate.open()
        with contextlib.suppress(KoyebSessionError):
            await renewal.result()
        await change.result()
    await session.aclose()
    assert await saved(store) == (held(session) if act == "login" else None)


@pytest.mark.parametrize("by", ["a request", "keep_current", "closing"])
async def test_newer_login_of_another_process_stays_when_a_save_is_made_up_for(
    clock: FakeClock, connect: Connect, by: str
) -> None:
    """A late save leaves the newer login in the store; the session and its listeners follow."""
    store = Troubled()
    session = connect(store=store, credentials=PASSWORDS)
    await session.current_token()
    store.fails["save"] = 1
    await session.refresh()
    assert await saved(store) is None
    other = connect(store=store, credentials=PASSWORDS)
    await other.login(ME, PASSWORD)
    clock.advance(90)
    told: list[Token | None] = []
    session.on_token_change(told.append)
    async with AsyncBackground() as background:
        if by == "a request":
            await session.http.get("/v1/apps")
        elif by == "keep_current":
            background.start(session.keep_current)
        if by != "closing":
            await async_until(lambda: told != [])
        await session.aclose()
    assert await saved(store) == held(other) == held(session)
    assert told == [session.token]
    assert inside(session).persistence.pending_save() is None


@pytest.mark.pitfall(28)
@pytest.mark.parametrize("act", ["login", "refresh"])
async def test_record_known_to_be_wrong_is_deleted_when_it_cannot_be_replaced(
    connect: Connect, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    """After a failed save the next run finds nothing rather than the one before."""
    store = Troubled()
    ann = connect(store=store)
    await ann.login(ME, PASSWORD)
    store.fails["save"] = 1
    change = partial(ann.login, ME, PASSWORD) if act == "login" else ann.refresh
    await change()
    assert await saved(store) is None
    assert "what it held is deleted" in caplog.text
    await ann.aclose()  # makes up for it
    assert await saved(store) == held(ann)


@pytest.mark.parametrize("error", [StoreError("bucket b: 503"), BucketError("b", 503)], ids=repr)
async def test_record_known_to_be_wrong_is_deleted_after_any_error_of_a_store(
    fake: FakeKoyeb, connect: Connect, error: StoreError
) -> None:
    """Otherwise the next process would use the exchanged token, which ends both sessions."""
    store = BrokenStore(error=error)
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    store.broken.add("save")
    await session.refresh()
    assert await saved(store) is None
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_nothing_is_written_where_there_is_no_session(connect: Connect) -> None:
    """A store is not emptied by a session that never began."""
    store = AsyncMemoryTokenStore()
    await store.save(Token("kept"))
    session = connect(store=store)
    inside(session).state.mark_unsaved()
    await session.aclose()
    assert await store.load() == Token("kept")


class Overtaken(Troubled):
    """A store whose save has failed when something else has been written."""

    written: Token | None = None

    async def save(self, token: Token) -> None:
        """Fail late, if a save is to fail."""
        if self.fails.get("save"):
            await AsyncMemoryTokenStore.save(self, self.written or token)
        await super().save(token)


@pytest.mark.parametrize("theirs", [None, Token("o" * 64)])
async def test_a_save_that_fails_late_deletes_nothing(
    connect: Connect, caplog: pytest.LogCaptureFixture, theirs: Token | None
) -> None:
    """The store holds the token although the save failed, or another process's record."""
    store = Overtaken()
    store.written = theirs
    store.fails["save"] = 1
    token = await connect(store=store).login(ME, PASSWORD)
    assert ("it holds what somebody else has saved since" in caplog.text) is (theirs is not None)
    assert await store.load() == (theirs or token)


async def test_a_session_that_was_replaced_is_not_gone_on_with(
    clock: FakeClock, connect: Connect
) -> None:
    """Another process has renewed the session that a login here has ended: the login counts."""
    fake = FakeKoyeb(users={"ann@example.com": "a", "bob@example.com": "b"}, clock=clock)
    store = Troubled()
    session = connect(store=store, transport=fake.transport)
    await session.login("ann@example.com", "a")
    anns = await store.load()
    assert anns is not None
    store.fails = {"save": 1, "delete": 1}
    bob = await session.login("bob@example.com", "b")
    await store.save(Token(fake.issue_token("ann@example.com"), provenance=anns.provenance))
    await session.aclose()
    assert await store.load() == bob


async def test_a_record_that_says_nothing_of_its_age_is_replaced_by_a_login(
    store: BrokenStore, connect: Connect
) -> None:
    """The store could not be read before: nobody can tell which came first."""
    store.broken = {"lock", "load"}
    session = connect(store=store)
    token = await session.login(ME, PASSWORD)
    await store.save(Token("o" * 64))
    store.broken.clear()
    await session.aclose()
    assert await store.load() == token


@pytest.mark.pitfall(28)
@pytest.mark.parametrize("act", ["login", "refresh"])
async def test_record_known_to_be_wrong_is_deleted_where_there_is_no_lock(
    clock: FakeClock, connect: Connect, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    """The next run would act as the user before, or reuse a token that was exchanged."""
    store = BrokenStore(error=OSError("no locks available"))
    await connect(store=store).login(ME, PASSWORD)
    clock.advance(60)
    store.broken.add("lock")
    session = connect(store=store)
    if act == "login":
        await session.login(ME, PASSWORD)
    else:
        await session.current_token()
        await session.refresh()
    assert await store.load() is None
    assert "no locks available; what it held is deleted" in caplog.text


async def test_nothing_is_deleted_beside_a_lock_that_somebody_holds(connect: Connect) -> None:
    """Its holder is about to save, or has saved: catches a deletion of the winner's token."""
    store = Held()
    before = Token("o" * 64)
    await store.save(before)
    await connect(store=store).login(ME, PASSWORD)
    assert await store.load() == before


@pytest.mark.pitfall(28)
async def test_logout_deletes_what_the_users_before_have_left(
    clock: FakeClock, store: BrokenStore, connect: Connect
) -> None:
    """Their record is this session's own, though it is of another account."""
    fake = FakeKoyeb(users={"ann@example.com": "a", "bob@example.com": "b"}, clock=clock)
    session = connect(store=store, transport=fake.transport)
    await session.login("ann@example.com", "a")
    for store.broken in ({"save", "delete"}, {"load", "save", "delete"}):
        await session.login("bob@example.com", "b")
        assert await saved(store) is not None  # ann's: neither the save nor the deletion worked
    store.broken.clear()
    await session.logout()
    assert await saved(store) is None


async def test_token_that_comes_while_anothers_is_taken_over_stays(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread renews between any two lines: catches a commit that replaces its token."""
    store = Troubled()
    session = connect(store=store)
    store.fails["save"] = 1
    await session.login(ME, PASSWORD)
    persistence: Any = inside(session).persistence.__class__
    newer = persistence.newer
    came: list[Any] = []

    def meanwhile(self: Any, *args: Any) -> Any:
        found = newer(self, *args)
        if found is not None and not came:
            mine = NewToken(Token(fake.issue_token()), just_issued=False)
            came.append(inside(session).state.commit(mine))
        return found

    monkeypatch.setattr(persistence, "newer", meanwhile)
    await store.save(Token(fake.issue_token()))
    await session.aclose()
    assert [its.token for its in came] == [session.token]
