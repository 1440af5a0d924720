"""What happens seldom: each branch of the engine that no other test takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    ServerError,
    StoreError,
    Token,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.snapshot import FailedAttempt, NewToken, Urgency
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    AsyncBackground,
    async_advance,
    async_arrived,
    async_pass_through,
    async_until,
)

ME = "me@example.com"
PASSWORD = "correct horse"
PASSWORDS = PasswordCredentials(ME, PASSWORD)
Connect = Callable[..., AsyncSessionClient]


class AsyncBuggy(httpx.AsyncBaseTransport):
    """A transport with a mistake."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raise."""
        raise LookupError("a bug")


async def test_all_say_so_where_waiting_would_never_end(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that this thread must not wait for is refused to each operation."""
    session = connect(token=fake.issue_token())

    def refusal(_: object) -> StoreError:
        return StoreError("not here")

    monkeypatch.setattr(type(session._keeper._renewal), "refusal", refusal)
    for call in (session.refresh, partial(session.login, ME, PASSWORD), session.logout):
        with pytest.raises(StoreError, match="not here"):
            await call()


async def test_nobody_waits_longer_than_there_is_time_to_try_again(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A service that wants five seconds is not asked again by a caller who has one."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=503, headers={"retry-after": "5"}))
    with pytest.raises(ServerError):
        await session.refresh(timeout=1)
    assert len(fake.requests) == 1


async def test_a_mistake_of_a_transport_reaches_the_caller(connect: Connect) -> None:
    """It is neither wrapped nor taken for an outage."""
    with pytest.raises(LookupError, match="a bug"):
        await connect(transport=AsyncBuggy(), credentials=PASSWORDS).current_token()


async def test_keep_current_goes_on_after_a_mistake(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log, with its traceback."""
    session = connect(transport=AsyncBuggy(), credentials=PASSWORDS)
    async with AsyncBackground() as background:
        kept = background.start(session.keep_current)
        await async_until(lambda: "keep_current() goes on after" in caplog.text)
        await session.aclose()
        await kept.result()


async def test_a_token_that_is_no_good_begins_no_session(
    clock: FakeClock, connect: Connect
) -> None:
    """Nothing is revoked, as nothing is good."""
    session = connect()
    expired = Token("t", expires_at=datetime.fromtimestamp(clock.time() - 1, UTC))
    outcome = await session._keeper.begin_session(
        NewToken(expired, just_issued=True), None, Deadline(5)
    )
    assert isinstance(outcome, WireError)


async def test_a_stronger_caller_asks_no_more_once_the_session_has_ended(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weaker exchange gave up at the store, and a logout came meanwhile."""
    session = connect(token=fake.issue_token())

    async def join(_: float) -> KoyebSessionError:
        session._state.clear()
        return StoreError("away")

    shared = SimpleNamespace(join=join, replaces=session._state.snapshot, urgency=Urgency.AHEAD)

    def begin(*_: object) -> Any:
        return shared

    monkeypatch.setattr(type(session._keeper), "_join_or_start", begin)
    with pytest.raises(KoyebSessionError, match="meanwhile"):
        await session.refresh()


async def test_a_renewal_that_is_cut_off_is_told(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline that foreign code meets is the renewal's."""
    session = connect(token=fake.issue_token())

    async def late(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(type(session._keeper._renewal), "run", late)
    with pytest.raises(TransportTimeoutError, match="not renewed"):
        await session.refresh()


async def test_a_renewal_that_fails_after_its_exchange_has_succeeded(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new token is there, whatever comes after it."""
    session = connect(token=fake.issue_token())
    newer = Token(fake.issue_token())

    async def run(*_: object) -> None:
        session._state.commit(NewToken(newer, just_issued=False))
        raise LookupError

    monkeypatch.setattr(type(session._keeper._renewal), "run", run)
    assert (await session.refresh()).id == newer.id


async def test_a_logout_that_runs_out_of_time_is_told(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that meets the deadline is as good as one that hangs."""
    session = connect(store=AsyncMemoryTokenStore(), token=fake.issue_token())

    async def late(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(type(session._keeper._persistence), "sign_out", late)
    with pytest.raises(TransportTimeoutError, match="logout: not done"):
        await session.logout()


async def test_a_listener_may_close_the_client(fake: FakeKoyeb, connect: Connect) -> None:
    """Nobody waits for it then, as it would wait for itself."""
    session = connect(token=fake.issue_token())
    closed: list[bool] = []

    async def listener(_: Token | None) -> None:
        await session.aclose()
        closed.append(True)

    session.on_token_change(listener)
    await session.refresh()
    await async_until(lambda: bool(closed))


async def test_closing_waits_for_a_listener(fake: FakeKoyeb, connect: Connect) -> None:
    """It writes the token somewhere, and takes a while."""
    session = connect(token=fake.issue_token())
    gate = Gate()

    async def listener(_: Token | None) -> None:
        await async_pass_through(gate)

    session.on_token_change(listener)
    await session.refresh()
    async with AsyncBackground() as background:
        closing = background.start(session.aclose)
        await async_arrived(gate)
        assert not closing.done
        gate.open()
        await closing.result()


async def test_another_users_record_is_left_alone(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions noted no account, but the user is known."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    await store.save(Token(fake.issue_token(), "somebody-else"))
    token = await session.refresh()
    assert await store.load() == token
    assert "a session of another user" in caplog.text


async def test_nothing_is_written_where_there_is_no_session(connect: Connect) -> None:
    """A store is not emptied by a session that never began."""
    store = AsyncMemoryTokenStore()
    await store.save(Token("kept"))
    session = connect(store=store)
    assert session._keeper._persistence is not None
    session._keeper._persistence.mark_unsaved()
    await session.aclose()
    assert await store.load() == Token("kept")


async def test_a_logout_leaves_another_services_record(fake: FakeKoyeb, connect: Connect) -> None:
    """It is neither deleted nor revoked."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    await session.login(ME, PASSWORD)
    provenance = "koyeb-session/1 https://elsewhere.example account koyeb"
    await store.save(Token("theirs", provenance=provenance))
    await session.logout()
    assert await store.load() == Token("theirs")
    assert fake.live_tokens() == []


class AsyncOdd(AsyncMemoryTokenStore):
    """A store whose next save fails in a way of its own."""

    fails: Callable[[Token], Any] | None = None
    deletes = True

    async def save(self, token: Token) -> None:
        """Fail, or keep it."""
        fails, self.fails = self.fails, None
        if fails is None:
            await super().save(token)
            return
        written = fails(token)
        if written is not None:
            await super().save(written)
        raise OSError("no reply")

    async def delete(self) -> None:
        """Fail, or forget the token."""
        if not self.deletes:
            raise OSError("no reply")
        await super().delete()


async def test_a_save_that_fails_after_it_was_done_is_a_save(connect: Connect) -> None:
    """The store holds what it was to hold."""
    store = AsyncOdd()
    session = connect(store=store)
    store.fails = lambda token: token
    token = await session.login(ME, PASSWORD)
    assert await store.load() == token


async def test_a_save_that_another_process_has_overtaken_deletes_nothing(
    clock: FakeClock, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """What it cannot be replaced by is somebody else's, and stays."""
    store = AsyncOdd()
    session = connect(store=store)
    others = Token("o" * 64, expires_at=datetime.fromtimestamp(clock.time() + 1, UTC))
    store.fails = lambda _: others
    await session.login(ME, PASSWORD)
    assert "it holds what somebody else has saved since" in caplog.text
    clock.advance(60)
    await session.aclose()


async def test_a_session_that_was_replaced_is_not_gone_on_with(
    clock: FakeClock, connect: Connect
) -> None:
    """Another process has renewed what a login here has ended: the login counts."""
    fake = FakeKoyeb(users={"ann@example.com": "a", "bob@example.com": "b"}, clock=clock)
    store = AsyncOdd()
    session = connect(store=store, transport=fake.transport)
    await session.login("ann@example.com", "a")
    saved = await store.load()
    assert saved is not None
    store.deletes = False
    store.fails = lambda _: None
    bob = await session.login("bob@example.com", "b")
    await store.save(Token(fake.issue_token("ann@example.com"), provenance=saved.provenance))
    await session.aclose()
    assert await store.load() == bob


async def test_a_record_that_says_nothing_of_its_age_is_replaced_by_a_login(
    connect: Connect,
) -> None:
    """The store could not be read before: nobody can tell which came first."""

    class Unlockable(AsyncMemoryTokenStore):
        locked = False

        @asynccontextmanager
        async def lock(self) -> AsyncGenerator[None]:
            if not self.locked:
                raise OSError("away")
            async with super().lock():
                yield

    store = Unlockable()
    session = connect(store=store)
    token = await session.login(ME, PASSWORD)
    await store.save(Token("o" * 64))
    store.locked = True
    await session.aclose()
    assert await store.load() == token


async def test_a_refused_token_is_not_refreshed_in_a_back_off(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The credentials bring the next one at once."""
    session = connect(
        token=fake.issue_token(), credentials=PASSWORDS, retry_policy=RetryPolicy(attempts=1)
    )
    fake.fail("refresh", Fault(status=503))
    with pytest.raises(ServerError):
        await session.refresh()
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests][1:] == ["apps", "login", "apps"]


async def test_nothing_is_sent_when_no_time_is_left(fake: FakeKoyeb, connect: Connect) -> None:
    """A reply that nobody waits for may be the session."""
    session = connect(token=fake.issue_token())
    over = Deadline(0)
    renewed = await session._keeper._renewal._request_new_token(None, 0, Urgency.NEEDED, over)
    assert isinstance(renewed, FailedAttempt)
    held = session.token
    assert held is not None
    sent = await session._sender.send_once(operations.refresh(held), over)
    assert isinstance(sent, TransportTimeoutError)
    assert fake.requests == []


async def test_credentials_that_meet_the_deadline_are_its_end(connect: Connect) -> None:
    """A timeout of their own is another matter, as long as there is time."""

    def late() -> str:
        raise TimeoutError

    source = connect(credentials=late)._keeper._source
    with pytest.raises(TimeoutError):
        await source.sign_in(None, None, Deadline(0))
    assert isinstance(await source.sign_in(None, None, Deadline(60)), FailedAttempt)


async def test_what_waits_for_a_lock_that_cannot_be_had_is_told(connect: Connect) -> None:
    """It is not done, and nobody waits for it any longer."""
    gate = Gate()

    class Gone(AsyncMemoryTokenStore):
        @asynccontextmanager
        async def lock(self) -> AsyncGenerator[None]:
            await async_pass_through(gate)
            raise OSError("away")
            yield

    async def nothing(*_: object) -> None:
        raise AssertionError

    persistence = connect(store=Gone())._keeper._persistence
    assert persistence is not None
    turn = persistence.hold()
    async with AsyncBackground() as background:
        done = background.start(partial(turn.do, nothing, 60))
        await async_arrived(gate)
        await background.settled()
        gate.open()
        assert await done.result() is False
    assert turn.problem is not None


async def test_a_store_that_cannot_be_used_keeps_nobody(
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread can be had for it, as at the end of the interpreter: the session goes on."""
    session = connect(store=AsyncMemoryTokenStore(), token=fake.issue_token())
    persistence = session._keeper._persistence
    assert persistence is not None
    turn = persistence.hold()
    await turn.leave(Deadline(5))
    shared = type(turn._task)
    start = shared.start

    def only_others(self: Any, *, alone: bool = False, **rest: Any) -> None:
        if not alone:
            start(self, **rest)

    monkeypatch.setattr(shared, "start", only_others)
    monkeypatch.setattr(type(turn), "alive", False)
    token = await session.refresh()
    assert session.token is token
    monkeypatch.undo()


async def test_a_token_that_was_replaced_meanwhile_is_not_replaced_again(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A renewal that hung comes back when others have gone on without it."""
    session = connect(token=fake.issue_token())
    late = NewToken(Token(fake.issue_token()), just_issued=False)
    assert isinstance(session._state.commit(late, replaces=None), KoyebSessionError)


async def test_a_reply_of_elsewhere_is_not_answered_for(fake: FakeKoyeb, connect: Connect) -> None:
    """A client of the user's follows a redirect: what is refused there went out without a token."""
    session = connect(token=fake.issue_token())
    for url, headers in (
        ("https://elsewhere.example/v1/apps", {"Authorization": "Bearer x"}),
        ("https://app.koyeb.com/v1/apps", {}),
    ):
        request = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
        flow = session.auth.async_auth_flow(request)
        assert await async_advance(flow) is request
        refused = httpx.Response(401, request=httpx.Request("GET", url, headers=headers))
        assert await async_advance(flow, refused) is None
    assert fake.requests == []
