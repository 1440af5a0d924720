"""Sessions that share a store: tokens that are taken over, and records that are left alone."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import attrs
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    SessionExpiredError,
    StoreError,
    Token,
)
from koyeb_session._core.timestamps import from_epoch
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import async_gather, async_idle
from ..jwts import jwt
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, inside, log, operations
from .doubles import AsyncUnderWay, BrokenStore, Connect, Troubled, saved

THEIRS = (
    Token("theirs", provenance="koyeb-session/1 https://elsewhere.example account koyeb"),
    Token("theirs", "somebody-else"),
    Token("theirs", provenance="koyeb-session/1 https://app.koyeb.com their-account koyeb"),
)
"""Records of another service, of another user in an earlier version's store, of an account."""


async def test_a_session_begins_with_the_stores_token(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Another process's token is taken over without an exchange, and not saved; the log says so."""
    caplog.set_level("INFO", "koyeb_session")
    store = Troubled()
    await store.save(Token(fake.issue_token()))
    session = connect(store=store, credentials=PASSWORDS)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 200)]
    assert store.calls == ["save", "lock", "load"]
    assert caplog.messages == ["taken over from the store; the token is good for 1 d 0 h"]


@pytest.mark.parametrize("names_its_end", [False, True])
async def test_a_saved_session_that_has_expired_is_told(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, names_its_end: bool
) -> None:
    """The user has signed in, a day ago: "not signed in" would tell of another mistake."""
    store = Troubled()
    token = await connect(store=store).login(ME, PASSWORD)
    # A store of the user may keep the id alone; a JWT names its own end.
    await store.save(token if names_its_end else Token(token.id))
    clock.advance(DAY + timedelta(hours=2))
    wanted = "the saved session expired 2 h 0 min ago; sign in again with login(), or give credent"
    for use in ("current_token", "refresh"):
        with pytest.raises(SessionExpiredError, match=re.escape(wanted)):
            await getattr(connect(store=store), use)()
    assert operations(fake) == ["login"]


@pytest.mark.pitfall(21)
async def test_a_renewal_by_others_is_taken_over(
    fake: FakeKoyeb, clock: FakeClock, stored: AsyncSessionClient, second: AsyncSessionClient
) -> None:
    """Two sessions on one store make one exchange; the loser uses the winner's token."""
    clock.advance(DAY - timedelta(seconds=30))
    await async_gather(stored.current_token, second.current_token)
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [held(stored)] == [held(second)]


@pytest.mark.pitfall(21)
async def test_a_refused_token_is_looked_up_in_the_store_first(
    fake: FakeKoyeb, clock: FakeClock, stored: AsyncSessionClient, second: AsyncSessionClient
) -> None:
    """
    A request whose token others have renewed is replayed with theirs, without an exchange.

    Another process makes all exchanges; catches a memory that grows with each of them.
    """
    former = held(second)
    for exchange in range(1, 6):
        clock.advance(1)
        await stored.refresh()
        assert (await second.http.get("/v1/apps")).status_code == 200
        assert held(second) == held(stored)
        assert fake.exchanges() == exchange
    ours = {its.id for its in inside(second).persistence.ownership.ours}
    assert former not in ours
    assert held(second) in ours


@pytest.mark.parametrize("seconds", [0, -60])
async def test_an_older_token_in_the_store_is_passed_over(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, seconds: int
) -> None:
    """The store's token is not taken over when it is expired, or older than the session's own."""
    store = AsyncMemoryTokenStore()
    lifetime = timedelta(hours=1) if seconds else timedelta(0)
    await store.save(Token(fake.issue_token(lifetime=lifetime)))
    clock.advance(-seconds)
    session = connect(token=fake.issue_token(), store=store)
    await session.refresh()
    assert fake.exchanges() == 1
    assert await saved(store) == held(session)


async def test_a_token_of_unknown_age_in_the_store_is_taken_over(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """A token without the time of its issue is not held to be older."""
    await store.save(Token("opaque"))
    assert (await stored.refresh()).id == "opaque"
    assert log(fake) == [("login", 200)]
    await store.save(Token(fake.issue_token()))
    assert (await stored.refresh()).id == fake.live_tokens()[-1]


@pytest.mark.pitfall(31)
async def test_mirrored_sessions_come_to_rest_when_one_is_renewed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The token that a session holds already is no new session, and tells nobody."""
    token = fake.issue_token()
    sessions = [connect(token=token) for _ in range(2)]
    heard: list[Token | None] = []
    for session, other in (sessions, sessions[::-1]):

        async def mirror(token: Token | None, other: AsyncSessionClient = other) -> None:
            heard.append(token)
            if token is not None:
                await other.use_token(token)

        session.on_token_change(mirror)
    await sessions[0].refresh()
    await async_idle()
    assert len(heard) == 2
    assert fake.live_tokens() == [held(sessions[0])] == [held(sessions[1])]


@pytest.mark.pitfall(31)
async def test_renewal_goes_on_when_the_same_token_is_given_again(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """Nothing is revoked that is in use."""
    async with AsyncUnderWay(fake, "refresh", session.refresh) as background:
        await session.use_token(held(session))
        background.gate.open()
        assert (await background.job.result()).id == held(session)
    assert fake.live_tokens() == [held(session)]


@pytest.mark.pitfall(32)
async def test_refusal_is_not_believed_when_somebody_else_has_renewed(
    fake: FakeKoyeb, store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """After a lease that ended, the winner's token lies in the store."""
    async with AsyncUnderWay(fake, "refresh", stored.refresh, hold="request") as background:
        fake.revoke(held(stored))
        winner = Token(fake.issue_token())
        await store.save(winner)  # beside the lock
        background.gate.open()
        assert (await background.job.result()).id == winner.id
    assert held(stored) == winner.id


@pytest.mark.pitfall(35)
@pytest.mark.parametrize("ahead", [-0.4, 0.4, -3600, 3600])
async def test_winner_is_taken_over_when_the_clocks_of_two_machines_differ(
    fake: FakeKoyeb, store: BrokenStore, connect: Connect, ahead: float
) -> None:
    """The last read or write decides which token is newer, and no clock does."""
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


@pytest.mark.pitfall(48)
@pytest.mark.parametrize("status", [429, 502, 401])
async def test_a_back_off_does_not_hide_what_others_have_saved(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, status: int
) -> None:
    """It spares the service. Catches an hour of errors while the store holds a good token."""
    store = Troubled()
    ours, theirs = connect(store=store), connect(store=store)
    await ours.login(ME, PASSWORD)
    clock.advance(DAY / 2)
    fake.fail("refresh", Fault(status=status, headers={"retry-after": "3000"}), times=9)
    with pytest.raises(KoyebSessionError):
        await ours.refresh()
    fake.revoke_all()
    clock.advance(1)
    for _ in range(20):
        with pytest.raises(SessionExpiredError):
            await ours.http.get("/v1/apps")
        clock.advance(0.1)
    fake.requests.clear()
    store.calls.clear()
    for _ in range(20):
        with pytest.raises(SessionExpiredError):
            await ours.http.get("/v1/apps")
        clock.advance(0.1)
    assert 1 <= store.calls.count("load") <= 2  # once a second
    assert set(operations(fake)) <= {"apps"}
    token = await theirs.login(ME, PASSWORD)
    clock.advance(1)
    assert (await ours.http.get("/v1/apps")).status_code == 200
    assert held(ours) == token.id


async def test_store_is_not_looked_into_at_each_request_for_a_token_of_anothers_credentials(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A session without them cannot renew it: it looks for a newer one, later and later."""
    store = Troubled()
    owner = connect(store=store, credentials=fake.issue_token)
    await owner.current_token()
    clock.advance(DAY * 0.6)
    reader = connect(store=store)
    store.calls.clear()
    for _ in range(20):
        assert (await reader.http.get("/v1/apps")).status_code == 200
        await async_idle()
        clock.advance(1)
    assert 2 <= store.calls.count("lock") <= 8
    await owner.refresh()
    clock.advance(60)
    await reader.http.get("/v1/apps")
    await async_idle()
    assert held(reader) == held(owner)


async def test_a_store_that_hangs_is_looked_into_once(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a task or a thread that each request of a long back-off leaves behind."""
    store = Troubled()
    session = connect(store=store)
    settings = inside(session).keeper._lookout.__class__.look.__globals__
    monkeypatch.setitem(settings, "_PAUSE", 0.01)
    await session.login(ME, PASSWORD)
    clock.advance(DAY / 2)
    fake.fail("refresh", Fault(status=429, headers={"retry-after": "3000"}))
    with pytest.raises(KoyebSessionError):
        await session.refresh()
    fake.revoke_all()
    gate = store.gates["load"] = Gate()
    store.calls.clear()
    for _ in range(30):
        clock.advance(1)
        with pytest.raises(SessionExpiredError, match="too many requests"):
            await session.http.get("/v1/apps")
    assert store.calls == ["load"]
    gate.open()


@pytest.mark.pitfall(45)
@pytest.mark.parametrize("what", ["account", "service", "later version"])
async def test_record_of_another_is_not_used(
    clock: FakeClock,
    store: BrokenStore,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    """It is neither sent nor taken over nor revoked, and the log says what to do."""
    bob = PasswordCredentials("bob@example.com", "battery staple")
    users = {ME: PASSWORD, bob.email: bob.password}
    ours = theirs = FakeKoyeb(users=users, clock=clock)
    await connect(store=store, credentials=PASSWORDS, transport=theirs.transport).current_token()
    safe_copy, whose = await saved(store), "another account"
    arguments: dict[str, Any] = {"credentials": bob}
    if what == "service":
        ours, whose = FakeKoyeb(users=users, clock=clock), f"the service {theirs.base_url}"
        arguments = {"credentials": PASSWORDS, "base_url": "https://staging.example.com"}
    if what == "later version":
        whose, record = "an unknown account", await store.load()
        assert record is not None
        await store.save(attrs.evolve(record, provenance="koyeb-session/2 of another form"))
    session = connect(store=store, transport=ours.transport, **arguments)
    before = len(ours.requests)
    await session.current_token()
    assert held(session) != safe_copy
    assert await saved(store) == held(session)
    assert safe_copy not in {request.bearer for request in ours.requests[before:]}
    await session.logout()
    assert safe_copy in theirs.live_tokens()
    assert caplog.messages == [
        (
            f"the store holds a session of {whose}: it is not used, and is replaced when this "
            "session saves its own; give each a store of its own, as by FileTokenStore(name=...)"
        )
    ]


@pytest.mark.parametrize(("who", "theirs"), [("user", THEIRS[1]), ("account", THEIRS[2])])
async def test_record_of_somebody_else_is_not_taken_over(
    store: BrokenStore,
    stored: AsyncSessionClient,
    caplog: pytest.LogCaptureFixture,
    who: str,
    theirs: Token,
) -> None:
    """A login, too, binds the session to its account; earlier versions noted a user at most."""
    await store.save(theirs)
    token = await stored.refresh()
    assert token.id != theirs.id
    assert await store.load() == token
    assert f"a session of another {who}: it is not used" in caplog.text


async def test_given_tokens_make_one_session_in_one_store(
    fake: FakeKoyeb, store: BrokenStore, connect: Connect
) -> None:
    """Two programs were given two tokens; catches tokens that count as accounts."""
    first, second = connect(store=store), connect(store=store)
    await first.use_token(fake.issue_token())
    token = await second.use_token(fake.issue_token())
    assert (await first.refresh()).id == token.id
    assert fake.requests == []


async def test_session_goes_on_as_the_account_of_its_record(
    store: BrokenStore, second: AsyncSessionClient
) -> None:
    """A program without credentials notes the account that it has found, and not an unknown one."""
    before = await store.load()
    await second.refresh()
    after = await store.load()
    assert before is not None
    assert after is not None
    assert after.id == held(second) != before.id
    assert after.provenance == before.provenance is not None


@pytest.mark.parametrize(("theirs", "ours"), [("iat", "exp"), ("exp", "iat"), ("iat", None)])
async def test_record_is_taken_over_unless_it_is_known_to_be_older(
    clock: FakeClock, connect: Connect, store: BrokenStore, theirs: str, ours: str | None
) -> None:
    """A session that begins has only the tokens to compare, and not all JWTs say their age."""
    claims = {"exp": {"exp": int(clock.time()) + 900}, "iat": {"iat": int(clock.time()) - 900}}
    found = Token(jwt({**claims["exp"], **claims[theirs]}))
    await store.save(found)
    token = "opaque" if ours is None else jwt({**claims["exp"], **claims[ours], "sub": "me"})
    session = connect(token=token, store=store)
    assert (await session.refresh()).id == found.id


@pytest.mark.parametrize("between", ["nothing", "a first look", "another's save"])
async def test_logout_that_its_store_failed_is_done_when_the_client_closes(
    fake: FakeKoyeb,
    store: BrokenStore,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    between: str,
) -> None:
    """The record is deleted then, unless somebody else has saved another one since."""
    session = connect(token=fake.issue_token(), store=store)
    await store.save(Token(fake.issue_token()))
    store.broken = {"load", "delete"} if between == "nothing" else {"delete"}
    with pytest.raises(StoreError):
        await session.logout()
    store.broken.clear()
    caplog.clear()
    theirs = None
    if between == "another's save":
        theirs = Token(fake.issue_token())
        await store.save(theirs)
    await session.aclose()
    assert await store.load() is theirs
    assert caplog.messages == []


@pytest.mark.parametrize("theirs", THEIRS)
async def test_a_login_that_cannot_be_saved_leaves_no_session_of_another(
    store: BrokenStore, connect: Connect, theirs: Token
) -> None:
    """Catches a next run that goes on as the user before."""
    await store.save(theirs)
    store.broken = {"save"}
    await connect(store=store).login(ME, PASSWORD)
    assert await store.load() is None


@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("broken", ["", "lock"])
async def test_a_logout_leaves_anothers_record(
    fake: FakeKoyeb,
    store: BrokenStore,
    stored: AsyncSessionClient,
    caplog: pytest.LogCaptureFixture,
    *,
    broken: str,
    theirs: Token,
) -> None:
    """It is neither deleted nor revoked, with the store's lock and without it."""
    await store.save(theirs)
    store.broken.add(broken)
    await stored.logout()
    await stored.aclose()
    assert "still be in the store" not in caplog.text
    assert await store.load() == theirs
    assert fake.live_tokens() == []
    assert operations(fake) == ["login", "logout"]


@pytest.mark.parametrize("theirs", THEIRS)
async def test_callable_is_not_told_of_anothers_token(
    store: BrokenStore, connect: Connect, theirs: Token
) -> None:
    """It continues from the session's own token; catches the use of a stranger's secret."""
    asked: list[Token | None] = []

    def grant(before: Token | None) -> Token:
        asked.append(before)
        return Token(f"own-{len(asked)}", "me")

    await store.save(THEIRS[0])
    session = connect(store=store, credentials=grant)
    await session.current_token()
    await store.save(theirs)
    await session.refresh()
    assert [before and before.id for before in asked] == [None, "own-1"]


async def test_record_of_another_user_stays_when_a_save_is_made_up_for(
    store: BrokenStore, stored: AsyncSessionClient
) -> None:
    """A late save takes nobody's place, and the session goes on with its own token."""
    store.broken.add("save")
    token = await stored.refresh()
    store.broken.clear()
    await store.save(THEIRS[1])
    await stored.aclose()
    assert await store.load() == THEIRS[1]
    assert stored.token == token


async def test_token_that_was_dead_when_it_was_taken_over_is_given_up(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A session whose store held a token that others had revoked signs in at the next request."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store, credentials=PASSWORDS)
    assert (await session.http.get("/v1/apps")).status_code == 200
    clock.advance(60)
    await store.save(Token(fake.issue_token(), issued_at=from_epoch(clock.time())))
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "login") == 2
