"""Tokens that a secret brings: API access tokens, and callables that rotate theirs."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta
from traceback import format_exception

import attrs
import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportTimeoutError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate, assert_no_secret

from ..concurrency import (
    PATIENCE,
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    async_pass_through,
    deadlines,
)
from ..support import DAY, ME, PASSWORD, count, inside
from .doubles import BrokenStore, Connect, Grants, Held, Troubled


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
    """A token is renewed by its issuer: none of these is ever refreshed."""
    session = connect(credentials=access(fake, api_token))
    for _ in range(25):
        await session.refresh()
        clock.advance(3599)
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 0
    issued = [r for r in fake.requests if r.operation == "create_access_token"]
    assert len(issued) >= 25
    assert {request.bearer for request in issued} == {api_token}


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("revoked", "Token rejected .* the API access token is refused: make one in"),
        ("not allowed", "may not create .* the API access token may not do this: make one in"),
        ("no such organization", "not found .* check the organization's id, and that the user"),
    ],
)
async def test_api_token_that_issues_nothing_is_one_clear_error_and_no_storm(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, trouble: str, said: str
) -> None:
    """It says what is wrong; an hour of requests asks no more than now and then."""
    organization = fake.organizations[ME][0]
    fake = FakeKoyeb(clock=clock, organization_api_tokens_may_issue=False)
    api_token = fake.issue_api_token(organization_id=organization)
    if trouble == "revoked":
        fake.revoke(api_token)
    if trouble == "no such organization":
        fake.organizations[ME].remove(organization)
    session = connect(
        transport=fake.transport, credentials=AccessTokenCredentials(api_token, organization)
    )
    for _ in range(120):
        with pytest.raises(KoyebSessionError, match=said):
            await session.http.get("/v1/apps")
        clock.advance(30)
    assert count(fake, "create_access_token") <= 8


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


async def test_rejected_five_minute_tokens_are_renewed_when_they_are_due_alone(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """A deactivated organization refuses each new token, and none is issued because of that."""
    session = connect(credentials=access(fake, api_token, 5))
    expires = (await session.current_token()).expires_at
    assert expires is not None
    assert expires.timestamp() == clock.time() + 300
    fake.deactivated.update(fake.organizations[ME])
    hours: list[int] = []
    for _ in range(4):
        before = count(fake, "create_access_token")
        for _ in range(240):
            assert (await session.http.get("/v1/apps")).status_code == 401
            await async_idle()
            clock.advance(15)
        hours.append(count(fake, "create_access_token") - before)
    assert hours[0] <= 24 + 8
    assert max(hours[1:]) <= 24 + 3
    fake.deactivated.clear()
    assert (await session.http.get("/v1/apps")).status_code == 200


@pytest.mark.pitfall(46)
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
    # Nor does a program that has no credentials, also if a callable has brought the token.
    tokens = AsyncMemoryTokenStore()
    await connect(store=tokens, credentials=fake.issue_token).current_token()
    for kept in (store, tokens):
        session = connect(store=kept)
        await session.current_token()
        with pytest.raises(SessionExpiredError, match="came from credentials, which this session"):
            await session.refresh()
    assert count(fake, "refresh") == 0


@pytest.mark.pitfall(46)
async def test_three_programs_and_the_owner_share_the_token_of_a_vault(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The service revokes a refreshed token: no program kills the others' copy, run after run."""
    held = [fake.issue_token(lifetime=timedelta(minutes=5))]
    programs = [{"store": AsyncMemoryTokenStore(), "credentials": lambda: held[-1]} for _ in "123"]
    for minute in range(30):
        for program in programs:
            session = connect(**program)
            assert (await session.http.get("/v1/apps")).status_code == 200
            await session.refresh()
        assert held[-1] in fake.live_tokens()
        clock.advance(60)
        if minute % 2:
            held.append(fake.issue_token(lifetime=timedelta(minutes=5)))
    assert {(r.operation, r.status) for r in fake.requests} == {("apps", 200)}


async def test_callable_is_told_what_it_replaces(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, grants: Grants
) -> None:
    """`None` first, then each token before, also the expired one of the run before."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store, credentials=grants)
    await session.current_token()
    await session.refresh()
    clock.advance(DAY * 2)
    again = connect(store=store, credentials=grants)
    await again.current_token()
    assert grants.asked == [None, "secret-grant-1", "secret-grant-2"]
    assert count(fake, "refresh") == 0
    assert "secret-grant" not in f"{again!r} {again.token!r}"


async def test_rotating_secret_is_saved_before_its_token_is_used(
    connect: Connect, grants: Grants, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that is killed at once finds the new secret: the provider has forgotten the old."""
    saved: list[tuple[Token, Token | None]] = []

    class Watching(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            saved.append((token, session.token))
            await super().save(token)

    session = connect(store=Watching(), credentials=grants)
    used = await session.current_token()
    (first, held), *_ = saved
    assert held is None
    assert (first.id, first.renewal) == (used.id, "secret-grant-1")
    assert caplog.messages == []


@pytest.mark.pitfall(46)
@pytest.mark.parametrize("is_new", [True, False], ids=["a restart", "a session"])
async def test_rotating_secret_is_not_used_beside_a_held_lock(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, grants: Grants, *, is_new: bool
) -> None:
    """Its holder may be using it: a second use ends the sign-in of the whole fleet."""
    store = Held()
    session = connect(store=store, credentials=grants, timeout=60)

    async def hold(token: Token) -> None:
        begin = store.save if is_new else session.use_token
        await begin(token)
        clock.advance(DAY)

    await hold(Token(fake.issue_token(), renewal="secret-grant"))
    with pytest.raises(StoreError) as caught:
        await session.current_token()
    assert caught.value.retryable
    assert grants.asked == []
    # A provider without such a secret can be asked at any time.
    await hold(Token(fake.issue_token()))
    await session.current_token()
    assert grants.asked == [None]


async def test_next_secret_of_the_same_token_is_taken_over(
    fake: FakeKoyeb, connect: Connect, store: BrokenStore
) -> None:
    """A provider may keep the token and replace its secret; catches a reuse of the old one."""
    same = Token(fake.issue_token(lifetime=DAY * 9))
    asked: list[str | None] = []

    def grant(before: Token | None) -> Token:
        asked.append(None if before is None else before.renewal)
        return attrs.evolve(same, renewal=f"secret-grant-{len(asked)}")

    sessions = [connect(store=store, credentials=grant) for _ in range(2)]
    for session in sessions:
        await session.current_token()
    for session in (*sessions, *sessions):
        await session.refresh()
    assert asked == [None, *(f"secret-grant-{number}" for number in range(1, len(asked)))]
    signed_in_again = attrs.evolve(same, renewal="secret-grant-by-hand")
    for given in (signed_in_again, same):
        assert (await sessions[0].use_token(given)).renewal == signed_in_again.renewal
    assert (await sessions[1].refresh()).renewal == signed_in_again.renewal
    await sessions[1].refresh()
    assert asked[-1] == signed_in_again.renewal


@pytest.fixture
async def resting(store: BrokenStore, connect: Connect, grants: Grants) -> AsyncSessionClient:
    """Make a session on ``store`` whose token and secret another one has replaced since."""
    busy, resting = (connect(store=store, credentials=grants) for _ in range(2))
    await busy.current_token()
    await resting.current_token()
    await busy.refresh()
    return resting


@pytest.mark.pitfall(46)
@pytest.mark.parametrize("broken", ["", "lock"])
async def test_rotating_secret_is_the_one_in_the_store_after_idle_hours(
    clock: FakeClock, store: BrokenStore, grants: Grants, resting: AsyncSessionClient, broken: str
) -> None:
    """
    The other program's token has expired, too; catches a use of the session's own old secret.

    No error shows either of them.
    """
    store.broken.add(broken)
    assert resting.token is not None
    grants.quotes = [resting.token.id, resting.token.renewal]  # the provider is away at first
    for _ in range(2):
        clock.advance(DAY)
        with pytest.raises(KoyebSessionError) as caught:
            await resting.current_token()
        assert str(caught.value).count("[secret]") >= 3
        assert_no_secret(["secret-grant-1", "secret-grant-2"], str(caught.value))
    grants.quotes.clear()
    clock.advance(DAY)
    await resting.current_token()
    assert grants.asked == [None, "secret-grant-1", *["secret-grant-2"] * 3]
    # The record whose secret is used up is replaced, or deleted where there is no lock.
    record = await store.load()
    assert (record and record.renewal) == (None if broken else "secret-grant-5")


async def test_record_is_deleted_when_its_secret_has_brought_a_token_that_has_expired(
    clock: FakeClock, store: BrokenStore, grants: Grants, resting: AsyncSessionClient
) -> None:
    """No lock is there to replace it; catches a second use of the secret by the next program."""
    store.broken.add("lock")
    grants.lifetime = timedelta(minutes=-5)
    clock.advance(DAY)
    with pytest.raises(KoyebSessionError):
        await resting.current_token()
    assert grants.asked == [None, "secret-grant-1", "secret-grant-2"]
    assert await store.load() is None


async def test_rotating_secret_that_could_not_be_saved_is_the_next_one_to_use(
    store: BrokenStore, connect: Connect, grants: Grants
) -> None:
    """The store still holds the one before it; catches a use of that, which looks like theft."""
    session = connect(store=store, credentials=grants)
    await session.current_token()
    store.broken = {"save", "delete"}
    for _ in range(2):
        await session.refresh()
    assert grants.asked == [None, "secret-grant-1", "secret-grant-2"]


async def test_rotating_secret_of_a_slow_provider_is_not_lost(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It answers after the callers have gone; asked again with the old secret, it sees a theft."""
    given: list[Token] = []
    for seconds in deadlines(lambda: given):
        gate, store, grants = Gate(), AsyncMemoryTokenStore(), Grants(fake)

        async def late(before: Token | None, gate: Gate = gate, grants: Grants = grants) -> Token:
            token = grants(before)
            await async_pass_through(gate)
            return token

        session = connect(credentials=late, store=store, timeout=seconds)
        await session.use_token(Token(fake.issue_token(), renewal="secret-grant"))
        clock.advance(DAY)
        with pytest.raises(TransportTimeoutError):
            await session.current_token()
        gate.open()
        with contextlib.suppress(KoyebSessionError):
            token = await session.current_token()
            saved = await store.load()
            # On a busy machine, the save takes longer than this caller's time.
            if grants.asked == ["secret-grant"] and saved and saved.renewal == token.renewal:
                assert token.renewal == "secret-grant-1"
                given.append(token)


@pytest.mark.parametrize("fails", [False, True], ids=["a token", "an expired token"])
async def test_rotating_secret_is_in_memory_whatever_the_store_does(
    fake: FakeKoyeb, connect: Connect, *, fails: bool
) -> None:
    """A slow provider's answer is being saved when the renewal's own time ends."""
    kept: list[str | None] = []
    for seconds in deadlines(lambda: "secret-grant-2" in kept):  # a busy machine needs longer
        grants, store = Grants(fake), Troubled()
        session = connect(credentials=grants, store=store, timeout=seconds)
        await session.current_token()
        grants.seconds = 1.6 * seconds  # of the two that a renewal has for such a secret
        grants.lifetime = timedelta(minutes=-5) if fails else None
        gate = store.gates["save"] = Gate()
        with pytest.raises(KoyebSessionError):
            await session.refresh()
        await inside(session).keeper.task.wait_done(PATIENCE)
        assert session.token is not None
        kept.append(session.token.renewal)
        gate.open()
        await session.aclose()


@pytest.mark.parametrize("begins", ["alone", "with a store", "after a restart"])
@pytest.mark.parametrize("late", [False, True], ids=["expired when it comes", "expires on its way"])
async def test_rotating_secret_of_a_token_that_has_expired_is_not_lost(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, grants: Grants, begins: str, *, late: bool
) -> None:
    """A machine that sleeps, or has a clock that is ahead, gets no token, but the next secret."""
    store = None if begins == "alone" else AsyncMemoryTokenStore()

    def grant(before: Token | None) -> Token:
        is_last = len(grants.asked) == 2
        grants.lifetime = timedelta(minutes=5 if late or is_last else -5)
        token = grants(before)
        if late and not is_last:
            # The first clock is read when the callable has been asked, the second one later.
            clock.step_wall(301)
        return token

    session = connect(store=store, credentials=grant)
    await session.use_token(Token(fake.issue_token(), renewal="secret-grant-0"))
    for number in range(1, 4):
        clock.advance(DAY)
        if begins == "after a restart":
            session = connect(store=store, credentials=grant)
        with pytest.raises(KoyebSessionError) if number < 3 else contextlib.nullcontext():
            await session.current_token()
    assert grants.asked == ["secret-grant-0", "secret-grant-1", "secret-grant-2"]
    assert (await session.current_token()).renewal == "secret-grant-3"
    assert store is None or ((saved := await store.load()) and saved.renewal) == "secret-grant-3"


@pytest.mark.parametrize("fails", [0, 1])
async def test_rotating_secret_is_forgotten_when_the_session_ends_meanwhile(
    connect: Connect, grants: Grants, fails: int
) -> None:
    """No store keeps a token that a logout has overtaken, saved ahead of need or not."""
    store = Troubled()
    gate = store.gates["save"] = Gate()
    store.fails["save"] = fails
    session = connect(store=store, credentials=grants)
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


@pytest.mark.parametrize("act", ["login", "logout"])
async def test_rotating_secret_is_not_saved_once_the_session_has_moved_on(
    clock: FakeClock, connect: Connect, grants: Grants, act: str
) -> None:
    """Not even for a moment: a program that ends then would leave it to the next run."""
    secrets: list[str | None] = []

    class Recording(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            secrets.append(token.renewal)
            await super().save(token)

    async def grant(before: Token | None) -> Token:
        await async_pass_through(gate)
        return grants(before)

    gate = Gate()
    gate.open()
    store = Recording()
    session = connect(store=store, credentials=grant)
    await session.current_token()
    clock.advance(DAY / 2)
    gate = Gate()
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        if act == "login":
            await session.login(ME, PASSWORD)
        else:
            background.start(session.logout)  # it waits for the provider, too
            await background.settled()
        gate.open()
        with contextlib.suppress(KoyebSessionError):
            await renewal.result()
    await session.aclose()
    assert grants.asked == [None, "secret-grant-1"]
    assert "secret-grant-2" not in secrets
    stored = await store.load()
    assert (stored and stored.id) == (session.token and session.token.id)


@pytest.mark.parametrize("kind", [LookupError, ServerError, StoreError])
@pytest.mark.parametrize("call", ["load", "save", "delete", "lock"])
async def test_rotating_secret_shows_nowhere(
    fake: FakeKoyeb,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    call: str,
    kind: type[Exception],
) -> None:
    """Neither a provider nor a store that quotes it brings it into an error, a log or a frame."""
    caplog.set_level(logging.DEBUG)
    secret = "secret-grant-0123456789"
    store = BrokenStore(error=kind(f"cannot {call} {secret}"))

    def grant(before: Token | None) -> Token:
        if before is None or before.renewal != secret:
            return Token(fake.issue_token(), renewal=secret)
        error = kind(f"{before.renewal} is unknown")
        error.add_note(before.renewal)
        raise error

    session = connect(store=store, credentials=grant)
    await session.current_token()
    with pytest.raises(KoyebSessionError, match="is unknown") as caught:
        await session.refresh()
    store.broken = {call}
    shown: list[object] = [caught.value, *vars(caught.value).values()]
    for act in (session.refresh, session.logout):
        try:
            await act()
        except KoyebSessionError as error:
            shown += [error, error.__cause__]
    assert_no_secret(secret, *shown, session, session.token, caplog.records)
    assert_no_secret(secret, caught.value, packages=["koyeb_session"])
    assert secret not in "".join(format_exception(caught.value))
    assert all(secret not in str(request.headers) for request in fake.requests)
