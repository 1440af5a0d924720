"""The steps of one renewal: its share of the time, the records it reads, and a late result."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    StoreError,
    Token,
    TransportError,
    WireError,
)
from koyeb_session._concurrency.runtime import state_lock
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.ownership import Ownership
from koyeb_session._core.provenance import read_provenance
from koyeb_session._core.snapshot import FailedAttempt, Need, NewToken, Owner, Urgency
from koyeb_session._core.state import SUPERSEDED
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import async_arrived, async_idle
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, inside, log, raising
from .doubles import BrokenStore, Connect, Grants, Held, Troubled


class Still(Deadline):
    """A deadline that never comes closer."""

    def left(self) -> float:
        """Return all of the time."""
        return self.seconds


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (AsyncMemoryTokenStore, [("ready", 4.0), *[("read_again", 4.0)] * 3, ("ready", 8.0)]),
        (Held, [("ready", 4.0), *[("load_unlocked", 4.0)] * 2, ("ready", 8.0)]),
    ],
)
async def test_each_wait_for_the_store_has_half_of_the_time_that_is_left(
    fake: FakeKoyeb,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[AsyncMemoryTokenStore],
    steps: list[tuple[str, float]],
) -> None:
    """A store that hangs leaves time for the service; only the last step may use all of it."""
    waits: list[tuple[str, float]] = []

    def note(owner: Any, name: str) -> None:
        method = getattr(owner, name)

        async def noting(self: Any, seconds: float) -> Any:
            waits.append((name, seconds))
            return await method(self, seconds)

        monkeypatch.setattr(owner, name, noting)

    store = kind()
    expired = datetime(2020, 1, 1, tzinfo=UTC)
    await store.save(Token("expired", expires_at=expired))  # it is worth a second look
    session = connect(store=store, token=fake.issue_token(), credentials=PASSWORDS)
    fake.revoke_all()
    parts = inside(session)
    module = sys.modules[parts.renewal.__class__.__module__]
    monkeypatch.setattr(module, "Deadline", Still)
    note(parts.persistence.__class__, "load_unlocked")
    for name in ("ready", "read_again"):
        note(sys.modules[parts.persistence.__class__.__module__].AsyncStoreHold, name)
    need = Need(parts.state.snapshot, 0, Urgency.REJECTED, 8.0)
    assert await parts.renewal.run(need) is parts.state.snapshot
    assert waits == steps


async def test_record_that_could_not_be_replaced_is_not_taken_over_beside_a_held_lock(
    store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """It is the token before, which the service has revoked."""
    store.error = TimeoutError("somebody else has it")
    store.broken = {"save", "delete"}
    token = await stored.refresh()
    store.broken = {"lock"}
    with pytest.raises(StoreError, match="somebody else has it"):
        await stored.refresh()
    assert stored.token == token
    assert (await stored.http.get("/v1/apps")).status_code == 200


async def test_record_whose_save_failed_on_its_way_back_is_not_gone_back_to(
    connect: Connect, grants: Grants
) -> None:
    """The store went away with its reply; catches a second use of the secret in the record."""

    class Lossy(BrokenStore):
        async def save(self, token: Token) -> None:
            await super().save(token)
            if "reply" in self.broken:
                self.broken |= {"lock", "load"}
            self.fail("reply")

    store = Lossy()
    session = connect(store=store, credentials=grants)
    for broken in ({"reply"}, {"lock", "load"}, set[str]()):
        await session.refresh()
        store.broken = broken
    await session.refresh()
    assert grants.asked == [None, *(f"secret-grant-{number}" for number in (1, 2, 3))]


async def test_record_that_was_taken_over_without_the_lock_is_not_gone_back_to(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient, second: AsyncSessionClient
) -> None:
    """It was refreshed, but could not be replaced: the service has revoked it."""
    newer = await stored.refresh()
    store.broken = {"lock", "delete"}
    assert await second.refresh() == newer
    await second.refresh()
    store.broken.clear()
    token = await second.refresh()
    assert fake.live_tokens() == [token.id]
    assert fake.exchanges() == 3


async def test_record_that_was_read_too_late_is_taken_over_by_the_next_renewal(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Nobody waited for a slow store any more; catches a record that counts as known from then."""
    store = Troubled()
    first, second = connect(store=store), connect(store=store)
    await first.login(ME, PASSWORD)
    await second.current_token()
    newer = await first.refresh()
    gate = store.gates["load"] = Gate()
    hold = inside(second).persistence.hold()
    await async_arrived(gate)
    await hold.leave(Deadline(0))
    gate.open()
    await async_idle()
    assert (await second.refresh()).id == newer.id
    assert fake.exchanges() == 1


@pytest.mark.parametrize("has_own", [True, False])
async def test_record_that_cannot_be_used_is_read_once_more(
    fake: FakeKoyeb, connect: Connect, *, has_own: bool
) -> None:
    """A store may give a copy at first, and acquire its lock before it reads again."""

    class Cached(Troubled):
        async def load(self) -> Token | None:
            found = await super().load()
            if self.calls.count("load") > 1:
                return found
            return Token("expired", expires_at=datetime(2020, 1, 1, tzinfo=UTC))

    store = Cached()
    newer = Token(fake.issue_token())
    await store.save(newer)
    session = connect(store=store, token=fake.issue_token() if has_own else None)
    assert (await session.refresh()).id == newer.id
    assert store.calls == ["save", "lock", "load", "load"]
    assert fake.requests == []


@pytest.mark.parametrize("ahead", [True, False])
async def test_record_names_the_account_of_its_own_token(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    """A login comes right before the save; catches a token that is saved for another account."""
    saves: list[tuple[str, str]] = []

    class Noting(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            provenance = read_provenance(token)
            assert provenance is not None
            saves.append((token.id, provenance.account))
            await super().save(token)

    def grant() -> Token:
        return Token(fake.issue_token(), renewal="secret-grant")

    session = connect(store=Noting(), credentials=grant if ahead else PASSWORDS)
    bind = Ownership.bind
    other = NewToken(Token("other"), just_issued=False, owner=Owner("another"))

    def bind_late(*arguments: Any) -> Token:
        if session.token != other.token:
            inside(session).state.commit(other, begins=True, unsaved=True)
        return bind(*arguments)

    monkeypatch.setattr(Ownership, "bind", bind_late)
    assert await session.current_token() == other.token
    assert [(its == "other", whose == "another") for its, whose in saves] == [
        (False, False),
        (True, True),
    ]


async def test_save_that_was_interrupted_is_made_up_for_by_a_later_request(
    clock: FakeClock,
    store: BrokenStore,
    stored: AsyncSessionClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One had failed before: catches a token that nothing saves until the next one comes."""
    store.broken = {"save"}
    await stored.refresh()
    store.broken.clear()
    with monkeypatch.context() as patched:
        persistence = inside(stored).persistence.__class__
        patched.setattr(persistence, "synchronize", raising(LookupError()))
        token = await stored.refresh()
    assert await store.load() is None
    clock.advance(6)
    assert (await stored.http.get("/v1/apps")).status_code == 200
    await async_idle()
    assert await store.load() == token


@pytest.mark.parametrize("issued", [True, False], ids=["refreshed", "given"])
async def test_late_token_is_revoked_if_it_was_issued_for_this_session_alone(
    clock: FakeClock, connect: Connect, *, issued: bool
) -> None:
    """A renewal that hung comes back when another one has replaced the token."""
    fake = FakeKoyeb(clock=clock, refresh="keeps")
    credentials = None if issued else fake.issue_token
    session = connect(transport=fake.transport, token=fake.issue_token(), credentials=credentials)
    parts = inside(session)
    need = Need(parts.state.snapshot, 0, Urgency.REQUESTED, 5)
    newer = await session.refresh()
    outcome = await parts.renewal.run(need)
    assert isinstance(outcome, FailedAttempt)
    assert outcome.error is SUPERSEDED
    assert session.token is newer
    assert count(fake, "logout") == (1 if issued else 0)


async def test_renewal_that_begins_too_late_sends_nothing(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Its thread had to be waited for, and others have renewed the token, or have signed out."""
    session = connect(token=fake.issue_token(), store=AsyncMemoryTokenStore())
    parts = inside(session)
    need = Need(parts.state.snapshot, 0, Urgency.REQUESTED, 5)
    await session.refresh()
    assert await parts.keeper._run_renewal(need) is parts.state.snapshot
    await session.logout()
    assert await parts.keeper._run_renewal(need) is SUPERSEDED
    outcome = await parts.renewal.run(need)  # it waited for the store's lock meanwhile
    assert outcome == FailedAttempt(SUPERSEDED)
    assert log(fake) == [("refresh", 200), ("logout", 200)]


async def test_token_that_expires_on_its_way_is_asked_for_once_in_a_back_off(
    clock: FakeClock, connect: Connect, grants: Grants
) -> None:
    """It counts as a failed sign-in: catches credentials that each request asks anew."""
    grants.lifetime = timedelta(minutes=5)

    def grant() -> Token:
        token = grants(None)
        clock.step_wall(301)
        return token

    session = connect(credentials=grant)
    for _ in range(2):
        with pytest.raises(WireError, match="has expired"):
            await session.current_token()
    assert grants.asked == [None]


async def test_refused_token_is_not_used_when_signing_in_fails_too(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The service has said that it is revoked; an outage after that does not unsay it."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.revoke_all()
    fake.fail("login", Fault(status=500))
    clock.advance(DAY / 2)
    await session.current_token()
    await async_idle()
    with pytest.raises(KoyebSessionError, match="login"):
        await session.current_token()
    assert log(fake) == [("refresh", 401), ("login", 500)]


async def test_failure_is_not_kept_for_the_next_session_when_somebody_signs_out_meanwhile(
    fake: FakeKoyeb, session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread, or a signal handler, may do so between any two lines."""
    state = inside(session).state
    fake.fail("refresh", Fault(status=500))

    def random() -> float:
        state.clear()
        return 0.0

    monkeypatch.setattr("random.random", random)
    with pytest.raises(KoyebSessionError):
        await session.refresh()
    assert state.failure is None
    await session.login(ME, PASSWORD)
    assert held(session) in fake.live_tokens()


async def test_refresh_in_the_midst_of_a_change_says_why_it_cannot_wait(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A signal handler that interrupts its own thread there would wait for itself."""
    wanted = (
        r"^try again once this function has returned: it was called in the midst of a change of "
        r"the session, by a signal handler, a finalizer, or the store, credentials or hooks that "
        r"the change uses, and the change is waiting for it$"
    )
    with state_lock, pytest.raises(TransportError, match=wanted):
        await session.refresh()
    assert fake.requests == []
