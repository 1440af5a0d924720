"""The worst day: what would lose a session, hand out a dead token, hang, or leak."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any

import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    StoreError,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate, assert_no_secret

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    async_pass_through,
)

ME = "me@example.com"
PASSWORD = "correct horse"
PASSWORDS = PasswordCredentials(ME, PASSWORD)
DAY = timedelta(hours=24)
SOON = timedelta(seconds=20)
Connect = Callable[..., AsyncSessionClient]


class Troubled(AsyncMemoryTokenStore):
    """A store of which single calls fail, or stand at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, int] = {}
        self.gates: dict[str, Gate] = {}
        self.calls: list[str] = []

    async def _meet(self, call: str) -> None:
        self.calls.append(call)
        if gate := self.gates.get(call):
            await async_pass_through(gate)
        if self.fails.get(call, 0):
            self.fails[call] -= 1
            raise OSError(f"{call} failed")

    async def load(self) -> Token | None:
        """Load the token."""
        await self._meet("load")
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save a token."""
        await self._meet("save")
        await super().save(token)

    async def delete(self) -> None:
        """Forget the token."""
        await self._meet("delete")
        await super().delete()

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock."""
        return self._lock_troubled()

    @contextlib.asynccontextmanager
    async def _lock_troubled(self) -> AsyncGenerator[None]:
        await self._meet("lock")
        async with super().lock():
            yield


class Held(AsyncMemoryTokenStore):
    """A store whose lock somebody else holds for good."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Give up."""
        raise TimeoutError
        yield


def count(fake: FakeKoyeb, operation: str) -> int:
    """Count the requests for an operation."""
    return sum(request.operation == operation for request in fake.requests)


def held(session: AsyncSessionClient) -> str:
    """Give the id of the token that a session holds."""
    assert session.token is not None
    return session.token.id


async def saved(store: AsyncMemoryTokenStore) -> str | None:
    """Give the id of the token that a store holds."""
    token = await AsyncMemoryTokenStore.load(store)
    return None if token is None else token.id


# An exchange happens inside the lock whenever that can be had


@pytest.mark.parametrize("fails", [1, 2, 3])
async def test_two_sessions_make_one_exchange_when_the_store_fails_under_its_lock(
    fake: FakeKoyeb, connect: Connect, fails: int
) -> None:
    """A load that fails does not let go of the lock for an exchange beside the next holder."""
    store = Troubled()
    token = fake.issue_token()
    first, second = (connect(store=store, token=token) for _ in range(2))
    store.fails["load"] = fails
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        jobs = [background.start(session.refresh) for session in (first, second)]
        await async_arrived(gate)
        await background.settled()
        assert count(fake, "refresh") == 1
        gate.open()
        for job in jobs:
            await job.result()
    assert held(first) == held(second) == await saved(store)
    assert fake.live_tokens() == [held(first)]


# The store follows the session


@pytest.mark.parametrize("act", ["login", "logout"])
async def test_store_is_of_the_new_session_when_an_old_save_is_slow(
    fake: FakeKoyeb, connect: Connect, act: str
) -> None:
    """A renewal's save that lands late does not bring back what login or logout has replaced."""
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


async def test_newer_login_of_another_process_stays_when_a_save_is_made_up_for(
    fake: FakeKoyeb, connect: Connect, clock: FakeClock
) -> None:
    """A late save leaves alone what somebody else has saved since."""
    store = Troubled()
    session = connect(store=store, credentials=PASSWORDS)
    await session.current_token()
    store.fails["save"] = 1
    await session.refresh()
    assert await saved(store) is None
    other = connect(store=store, credentials=PASSWORDS)
    await other.login(ME, PASSWORD)
    clock.advance(90)
    await session.aclose()
    assert await saved(store) == held(other)


@pytest.mark.parametrize("act", ["login", "refresh"])
async def test_record_known_to_be_wrong_is_deleted_when_it_cannot_be_replaced(
    fake: FakeKoyeb,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    act: str,
) -> None:
    """After a failed save the next run finds nothing rather than the one before."""
    store = Troubled()
    ann = connect(store=store)
    await ann.login(ME, PASSWORD)
    store.fails["save"] = 1
    if act == "login":
        await ann.login(ME, PASSWORD)
    else:
        await ann.refresh()
    assert await saved(store) is None
    assert "what it held is deleted" in caplog.text
    await ann.aclose()  # makes up for it
    assert await saved(store) == held(ann)


# What is new, and what is not


async def test_mirrored_sessions_come_to_rest_when_one_is_renewed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The token that a session holds already is no new session, and tells nobody."""
    token = fake.issue_token()
    sessions = [connect(token=token) for _ in range(2)]
    told: list[Token | None] = []
    for session, other in (sessions, sessions[::-1]):

        async def mirror(token: Token | None, other: AsyncSessionClient = other) -> None:
            told.append(token)
            if token is not None:
                await other.use_token(token)

        session.on_token_change(mirror)
    await sessions[0].refresh()
    await async_idle()
    assert len(told) == 2
    assert held(sessions[0]) == held(sessions[1])
    assert fake.live_tokens() == [held(sessions[0])]


async def test_renewal_goes_on_when_the_same_token_is_given_again(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Nothing is revoked that is in use."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        await session.use_token(held(session))
        gate.open()
        assert (await renewal.result()).id == held(session)
    assert fake.live_tokens() == [held(session)]


async def test_refusal_is_not_believed_when_somebody_else_has_renewed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """After a lease that ended, the winner's token lies in the store."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store, token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate, hold="request"))
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        fake.revoke(held(session))
        winner = Token(fake.issue_token())
        await store.save(winner)  # beside the lock
        gate.open()
        assert (await renewal.result()).id == winner.id
    assert held(session) == winner.id


@pytest.mark.parametrize("has_credentials", [False, True])
async def test_retry_after_leaves_time_when_the_token_has_half_an_hour_left(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, has_credentials: bool
) -> None:
    """One maintenance page with an hour's wait does not end the session."""
    given = {"credentials": PASSWORDS} if has_credentials else {}
    session = connect(token=fake.issue_token(), **given)
    clock.advance(DAY - timedelta(minutes=30))
    fake.fail("refresh", Fault(status=503, headers={"retry-after": "3600"}))
    first = held(session)
    for _ in range(29):
        await session.current_token()
        await async_idle()
        clock.advance(60)
    assert held(session) != first
    assert fake.live_tokens() == [held(session)]


@pytest.mark.parametrize("ahead", [-0.4, 0.4, -3600, 3600])
async def test_winner_is_taken_over_when_the_clocks_of_two_machines_differ(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, ahead: float
) -> None:
    """What is newer is decided by what was read or written last, and by no clock."""
    store = AsyncMemoryTokenStore()
    theirs = FakeClock()
    theirs.step_wall(ahead)
    token = fake.issue_token()
    ours, other = connect(store=store, token=token), connect(store=store, token=token, clock=theirs)
    await other.refresh()
    assert (await ours.refresh()).id == held(other)
    await ours.refresh()
    assert (await other.refresh()).id == held(ours)
    assert fake.exchanges() == 2
    assert fake.live_tokens() == [held(ours)] == [await saved(store)]


async def test_renewal_of_a_child_is_waited_for_when_its_parent_closes(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A session of `for_token` does not lose its token to the end of the other one."""
    parent = connect(token=fake.issue_token())
    child = parent.for_token(fake.issue_token(), renew=True)
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with AsyncBackground() as background:
        renewal = background.start(child.refresh)
        await async_arrived(gate)
        closing = background.start(parent.aclose)
        await background.settled()
        assert not closing.done
        gate.open()
        assert (await renewal.result()).id == held(child)
        await closing.result()
    assert held(child) in fake.live_tokens()


# Everything has an end


@pytest.mark.parametrize("call", ["lock", "load", "save", "delete"])
@pytest.mark.parametrize("act", ["login", "refresh", "current_token", "logout", "request"])
async def test_session_goes_on_when_its_store_hangs(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, act: str, call: str
) -> None:
    """Each call ends within its time, and so does the closing."""
    store = Troubled()
    session = connect(store=store, token=fake.issue_token(), credentials=PASSWORDS, timeout=0.1)
    clock.advance(DAY - SOON)
    gate = store.gates[call] = Gate()
    acts: dict[str, Callable[[], Any]] = {
        "login": lambda: session.login(ME, PASSWORD),
        "refresh": session.refresh,
        "current_token": session.current_token,
        "logout": session.logout,
        "request": lambda: session.http.get("/v1/apps"),
    }
    with contextlib.suppress(KoyebSessionError):
        await acts[act]()
    await session.aclose()
    gate.open()
    await async_idle()


async def test_lock_that_is_held_is_no_ended_session_when_a_token_is_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A refused token counts as expired: credentials sign in, and who has none is told of it."""
    signs_in = connect(store=Held(), token=fake.issue_token(), credentials=PASSWORDS)
    has_none = connect(store=Held(), token=fake.issue_token())
    fake.revoke_all()
    assert (await signs_in.http.get("/v1/apps")).status_code == 200
    with pytest.raises(StoreError):
        await has_none.http.get("/v1/apps")


# Access tokens


@pytest.fixture
def api_token(fake: FakeKoyeb) -> str:
    """Give an API access token."""
    return fake.issue_api_token()


def access(fake: FakeKoyeb, api_token: str, minutes: int = 60) -> AccessTokenCredentials:
    """Make credentials of the user's organization."""
    return AccessTokenCredentials(api_token, fake.organizations[ME][0], timedelta(minutes=minutes))


async def test_access_tokens_are_renewed_by_the_api_token_alone(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """Who issued a token renews it: none of them is ever refreshed."""
    session = connect(credentials=access(fake, api_token))
    for _ in range(25):
        await session.refresh()
        clock.advance(3599)
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 0
    issued = [r for r in fake.requests if r.operation == "create_access_token"]
    assert len(issued) >= 25
    assert {request.bearer for request in issued} == {api_token}


async def test_revoked_api_token_is_one_clear_error_and_no_storm(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """It says what is refused; an hour of requests asks no more than now and then."""
    session = connect(credentials=access(fake, api_token))
    fake.revoke(api_token)
    for _ in range(120):
        with pytest.raises(KoyebSessionError, match="API access token is refused"):
            await session.http.get("/v1/apps")
        clock.advance(30)
    assert count(fake, "create_access_token") <= 70


async def test_two_sessions_share_five_minute_tokens_for_an_hour(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """One exchange serves both, and nothing is refused."""
    store = AsyncMemoryTokenStore()
    sessions = [connect(store=store, credentials=access(fake, api_token, 5)) for _ in range(2)]
    for _ in range(120):
        replies = await async_gather(
            *[lambda s=session: s.http.get("/v1/apps") for session in sessions]
        )
        assert {reply.status_code for reply in replies} == {200}
        await async_idle()
        clock.advance(30)
    assert count(fake, "refresh") == 0
    assert {request.status for request in fake.requests} == {200}
    assert count(fake, "create_access_token") <= 26


async def test_issuer_is_remembered_when_a_program_starts_anew(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """A restart does not show another's token to a refresh."""
    store = AsyncMemoryTokenStore()
    given = access(fake, api_token)
    await connect(store=store, credentials=given).current_token()
    clock.advance(3590)
    session = connect(store=store, credentials=given)
    await session.current_token()
    await session.refresh()
    assert count(fake, "refresh") == 0


async def test_callable_is_told_what_it_replaces(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """`None` first, then each token before, also the expired one of the run before."""
    store = AsyncMemoryTokenStore()
    asked: list[Token | None] = []

    def grant(before: Token | None) -> Token:
        asked.append(before)
        return Token(fake.issue_token(), renewal=f"secret-grant-{len(asked)}")

    session = connect(store=store, credentials=grant)
    await session.current_token()
    await session.refresh()
    clock.advance(DAY * 2)
    again = connect(store=store, credentials=grant)
    await again.current_token()
    assert asked[0] is None
    assert [token and token.renewal for token in asked[1:]] == ["secret-grant-1", "secret-grant-2"]
    assert count(fake, "refresh") == 0
    assert "secret-grant" not in f"{again!r} {again.token!r} {asked!r}"


async def test_rotating_secret_is_saved_before_its_token_is_used(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A program that is killed at once finds the new secret: the provider has forgotten the old."""
    held: list[Token | None] = []

    class Watching(Troubled):
        async def save(self, token: Token) -> None:
            held.append(session.token)
            await super().save(token)

    session = connect(
        store=Watching(), credentials=lambda: Token(fake.issue_token(), renewal="secret-grant")
    )
    await session.current_token()
    assert held[0] is None


@pytest.mark.parametrize("fails", [0, 1])
async def test_rotating_secret_is_forgotten_when_the_session_ends_meanwhile(
    fake: FakeKoyeb, connect: Connect, fails: int
) -> None:
    """What a logout has overtaken is in no store, whether it was saved ahead or not."""
    store = Troubled()
    gate = store.gates["save"] = Gate()
    session = connect(
        store=store, credentials=lambda: Token(fake.issue_token(), renewal="secret-grant")
    )
    store.fails["save"] = fails
    async with AsyncBackground() as background:
        asking = background.start(session.current_token)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await background.settled()
        gate.open()
        with pytest.raises(KoyebSessionError):
            await asking.result()
        await leaving.result()
    assert session.token is None
    assert await store.load() is None


async def test_rotating_secret_shows_nowhere(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a provider nor a store that quotes it brings it into an error, a log or a frame."""
    caplog.set_level(logging.DEBUG)
    secret = "secret-grant-0123456789"

    class Quoting(Troubled):
        async def save(self, token: Token) -> None:
            raise OSError(f"cannot write {token.renewal}")

    def grant(before: Token | None) -> Token:
        if before is not None:
            raise LookupError(f"{before.renewal} is unknown")
        return Token(fake.issue_token(), renewal=secret)

    session = connect(store=Quoting(), credentials=grant)
    await session.current_token()
    with pytest.raises(KoyebSessionError, match="LookupError") as caught:
        await session.refresh()
    assert_no_secret(secret, session, session.token, caplog.records)
    assert_no_secret(secret, caught.value, packages=["koyeb_session"])
    assert all(secret not in str(request.headers) for request in fake.requests)


@pytest.mark.parametrize(
    "fault",
    [
        *(
            Fault(status=status)
            for status in (*range(300, 308), *range(400, 452), 500, 503)
            if status != 304
        ),
        Fault(reset=True),
        Fault(body=b"garbage"),
        Fault(body={"token": {}}),
    ],
    ids=str,
)
async def test_no_second_is_without_a_token_when_a_refresh_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, fault: Fault
) -> None:
    """With credentials that work, callers have a token at each moment, whatever is answered."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", fault, times=10_000)
    clock.advance(DAY - timedelta(minutes=2))
    for _ in range(12):
        token = await session.current_token()
        assert token.expires_at is not None
        assert token.expires_at.timestamp() > clock.time()
        assert (await session.http.get("/v1/apps")).status_code == 200
        clock.advance(20)
    assert count(fake, "login") == 1


async def test_rejected_new_tokens_are_renewed_later_and_later(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The pause doubles up to an hour; a token that is accepted ends it."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.deactivated.update(fake.organizations[ME])
    hours: list[int] = []
    for _ in range(6):
        before = len(fake.requests)
        for _ in range(60):
            assert (await session.http.get("/v1/apps")).status_code == 401
            clock.advance(60)
        hours.append(sum(r.operation in {"refresh", "login"} for r in fake.requests[before:]))
    assert hours[0] <= 8
    assert max(hours[1:]) <= 2
    fake.deactivated.clear()
    clock.advance(3600)
    assert (await session.http.get("/v1/apps")).status_code == 200
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 200
    fake.deactivated.update(fake.organizations[ME])
    before = len(fake.requests)
    for _ in range(12):
        assert (await session.http.get("/v1/apps")).status_code == 401
        clock.advance(10)
    renewals = sum(r.operation in {"refresh", "login"} for r in fake.requests[before:])
    assert renewals >= 2


# Whose session it is


@pytest.mark.parametrize("what", ["account", "service"])
async def test_record_of_another_is_left_alone(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """It is neither sent nor taken over nor revoked, and the log says what to do."""
    store = AsyncMemoryTokenStore()
    users = {ME: PASSWORD, "bob@example.com": "battery staple"}
    theirs = FakeKoyeb(users=users, clock=clock)
    await connect(store=store, credentials=PASSWORDS, transport=theirs.transport).current_token()
    safe_copy = await saved(store)
    assert safe_copy is not None
    if what == "account":
        ours = theirs
        credentials = PasswordCredentials("bob@example.com", "battery staple")
        session = connect(store=store, credentials=credentials, transport=ours.transport)
    else:
        ours = FakeKoyeb(users=users, clock=clock)
        session = connect(
            store=store,
            credentials=PASSWORDS,
            transport=ours.transport,
            base_url="https://staging.example.com",
        )
    before = len(ours.requests)
    await session.current_token()
    assert held(session) != safe_copy
    assert safe_copy not in {request.bearer for request in ours.requests[before:]}
    await session.logout()
    assert safe_copy in theirs.live_tokens()
    assert "the store holds a session of" in caplog.text
    assert "FileTokenStore(name=" in caplog.text
