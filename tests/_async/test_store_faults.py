"""A store that fails or hangs keeps nobody from a token."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    KoyebSessionError,
    PasswordCredentials,
    StoreError,
    Token,
    TransportError,
)
from koyeb_session._concurrency.event_loop.shared_task import AsyncSharedTask
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.log import log
from koyeb_session._core.provenance import account_of, read_provenance
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived, async_idle, async_until
from ..support import DAY, ME, PASSWORD, PASSWORDS, held, inside, operations, raising
from .doubles import (
    BrokenStore,
    Connect,
    Grants,
    InterceptedStore,
    Troubled,
    UnspeakableError,
    saved,
)

SOON = timedelta(seconds=20)
BYTES: Any = b"own-id"


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("load", "inside the store's lock: the token store could not be read: OSError: disk full"),
        ("lock", "without the store: the token store could not be locked: OSError: disk full"),
    ],
)
async def test_a_store_that_cannot_be_read_does_not_keep_callers_waiting(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    broken: str,
    text: str,
) -> None:
    """When callers need a token, it is renewed without the store, and that is in the log."""
    session = connect(token=fake.issue_token(), store=BrokenStore(broken))
    clock.advance(DAY - timedelta(seconds=30))
    await session.current_token()
    assert fake.exchanges() == 1
    assert f"the token is renewed {text}" in caplog.messages


@pytest.mark.parametrize("signs_in", [True, False])
async def test_log_tells_of_no_renewal_where_there_is_no_token_yet(
    connect: Connect, caplog: pytest.LogCaptureFixture, *, signs_in: bool
) -> None:
    """A sign-in goes on without the store; without credentials, the error says what is wrong."""
    session = connect(store=BrokenStore("lock"), credentials=PASSWORDS if signs_in else None)
    reason = "the token store could not be locked: OSError: disk full"
    if signs_in:
        await session.current_token()
        assert caplog.messages[0] == f"the session signs in without the store: {reason}"
    else:
        with pytest.raises(StoreError, match=f"^{reason}"):
            await session.current_token()
    assert "renewed" not in caplog.text


@pytest.mark.parametrize(
    ("call", "sent"), [("current_token", []), ("new_session", ["new_session"])]
)
async def test_a_store_that_cannot_be_read_is_waited_for_while_there_is_time(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    call: str,
    sent: list[str],
) -> None:
    """In the soft window others may be renewing the token: no exchange without the store."""
    store = BrokenStore("lock")
    await store.save(older := Token(fake.issue_token()))
    clock.advance(1)
    session = connect(token=fake.issue_token(), store=store)
    clock.advance(DAY / 2)
    await getattr(session, call)()
    await async_idle()
    assert operations(fake) == sent
    assert "renewal failed: the token store could not be locked: OSError" in caplog.text
    assert await store.load() == older  # there was nothing to write in its place
    store.broken.clear()
    clock.advance(5)
    await session.current_token()
    await async_idle()
    assert fake.exchanges() == 1


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
async def test_a_renewal_survives_an_error_that_cannot_be_told(
    fake: FakeKoyeb, connect: Connect, kind: type[Exception]
) -> None:
    """The token is renewed inside the store's lock, and saved, after any error of a read."""
    store = BrokenStore("load", error=UnspeakableError(kind))
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    assert (await session.http.get("/v1/apps")).status_code == 200
    store.broken.clear()
    assert await store.load() == token


@pytest.mark.parametrize(
    ("fails", "left"),
    [
        ({"save": 1}, "what it held is deleted"),
        ({"save": 1, "delete": 1}, "what it holds could not be deleted"),
        ({"load": 2, "save": 1}, "it holds what somebody else has saved since"),
    ],
)
async def test_log_tells_what_a_store_that_fails_is_left_with(
    fake: FakeKoyeb,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    fails: dict[str, int],
    left: str,
) -> None:
    """A record that was not read before may be newer, and stays."""
    store = Troubled()
    await store.save(Token(fake.issue_token()))
    store.fails |= fails
    await connect(store=store).login(ME, PASSWORD)
    reason = "the token store could not be written: OSError: save failed"
    assert caplog.messages == [f"the new token is kept in memory only: {reason}; {left}"]
    assert (await saved(store) is None) == (left == "what it held is deleted")


async def test_error_of_a_store_quotes_no_token(connect: Connect) -> None:
    """Neither the session's own, nor another one that it has seen, however short they are."""
    store = BrokenStore()
    await store.save(Token("another-id"))
    session = connect(token="the-own-id", store=store)
    problems: list[StoreError | None] = []
    for text in ("", "the-own-id unknown", "another-id unknown"):
        store.broken, store.error = {"load"} if text else set(), OSError(text)
        hold = inside(session).persistence.hold()
        await hold.ready(PATIENCE)
        problems.append(hold.problem)
        await hold.leave(Deadline(PATIENCE))
    quoted = "the token store could not be read: OSError: [secret] unknown"
    assert list(map(str, problems)) == ["None", quoted, quoted]


@pytest.mark.parametrize("reads", ["in one hold", "in the next hold", "without the lock"])
async def test_record_that_could_not_be_replaced_is_not_gone_back_to(
    store: BrokenStore,
    connect: Connect,
    grants: Grants,
    caplog: pytest.LogCaptureFixture,
    reads: str,
) -> None:
    """The session's own token is newer: catches the use of one that the provider has forgotten."""
    caplog.set_level("DEBUG", "koyeb_session")
    older = Token("older", renewal="secret-of-the-older")
    await store.save(older)
    session = connect(store=store, credentials=grants)
    store.broken = {"save", "delete"}
    hold = inside(session).persistence.hold() if reads == "in one hold" else None
    await session.use_token(Token("newer", renewal="secret-grant-0"))
    if reads == "without the lock":
        store.broken.add("lock")
    for _ in range(2):
        await session.refresh()
    if hold is not None:
        await hold.leave(Deadline(PATIENCE))
    assert grants.asked == ["secret-grant-0", "secret-grant-1"]
    assert await store.load() is older
    ahead = "the token store could not be written: OSError: disk full"  # saved ahead of its use
    assert caplog.messages.count(ahead) == (0 if "lock" in store.broken else 2)


@pytest.mark.pitfall(39)
@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("call", ["lock", "load", "save", "delete"])
@pytest.mark.parametrize("act", ["login", "refresh", "current_token", "logout", "request"])
async def test_session_goes_on_when_its_store_hangs(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, act: str, call: str
) -> None:
    """Each call ends within its time, and so does the closing."""
    store = Troubled()
    session = connect(store=store, token=fake.issue_token(), credentials=PASSWORDS, timeout=0.02)
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


async def test_a_store_that_cannot_be_used_keeps_nobody(
    fake: FakeKoyeb,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No thread can be had for it, as at the end of the interpreter: the session goes on."""
    session = connect(store=AsyncMemoryTokenStore(), token=fake.issue_token())
    persistence = inside(session).persistence
    assert persistence is not None
    turn = persistence.hold()
    await turn.leave(Deadline(5))
    shared = turn._task.__class__
    start = shared.start

    def only_others(self: Any, *, alone: bool = False, **rest: Any) -> None:
        if not alone:
            start(self, **rest)

    monkeypatch.setattr(shared, "start", only_others)
    monkeypatch.setattr(turn.__class__, "alive", False)
    token = await session.refresh()
    assert session.token is token
    reason = "no thread can be had to use the token store"
    assert caplog.messages == [
        f"the token is renewed without the store: {reason}",
        f"the new token is kept in memory only: {reason}",
    ]
    await session.aclose()  # nobody waits for a turn that never began
    monkeypatch.undo()


async def test_save_that_is_not_done_in_time_is_left_to_its_task(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells of it; no second save begins beside it, and none is left when it is done."""
    store = Troubled()
    session = connect(store=store)
    persistence = inside(session).persistence
    gate = store.gates["save"] = Gate()
    async with AsyncBackground() as background:
        job = background.start(lambda: session.login(ME, PASSWORD))
        await async_arrived(gate)
        problem = await persistence.synchronize(Deadline(0))
        text = "the token store could not be written in time"
        assert str(problem) == text
        assert caplog.messages == [f"the new token is kept in memory only: {text}"]
        assert persistence.pending_save() is None
        gate.open()
        await job.result()
    await async_idle()
    assert await saved(store) == held(session)
    assert persistence.pending_save() is None


async def test_client_knows_each_task_at_its_store(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a time limit, and the client waits for it when it closes."""
    made: list[dict[str, Any]] = []
    init = vars(AsyncSharedTask)["__init__"]

    def note(self: Any, *args: Any, **options: Any) -> None:
        made.append(options)
        init(self, *args, **options)

    session = connect(token="own-id", store=BrokenStore("save"), timeout=60)
    persistence = inside(session).persistence
    with monkeypatch.context() as patched:
        patched.setattr(AsyncSharedTask, "__init__", note)
        await persistence.load_unlocked(7)
        inside(session).state.mark_unsaved()
        await persistence.synchronize(Deadline(PATIENCE))
        assert persistence.pending_save() is not None
    assert [options["seconds"] for options in made] == [7, 120, 60]
    assert all(it["active_tasks"] is inside(session).keeper.active_tasks for it in made)


@pytest.mark.parametrize(
    ("odd", "wrong"),
    [
        ("own-id", "TypeError: the token of load() must be of class koyeb_session.Token, not str"),
        ({}, "TypeError: the token of load() must be of class koyeb_session.Token, not dict"),
        (Token(BYTES), "TypeError: token.id must be a str, not bytes"),
        (
            Token("own-id", expires_at=datetime.now(UTC).replace(tzinfo=None)),  # as of a database
            "ValueError: token.expires_at must be aware: give it a time zone, as in datetime",
        ),
    ],
)
async def test_store_that_returns_no_token_cannot_be_read(
    fake: FakeKoyeb, connect: Connect, odd: Any, wrong: str
) -> None:
    """The error says what is wrong with it, and a logout ends the session all the same."""
    store = Odd(odd)
    with pytest.raises(StoreError, match=re.escape(f"the token store could not be read: {wrong}")):
        await connect(store=store).current_token()
    session = connect(store=store, token=fake.issue_token())
    await session.refresh()
    await session.logout()
    assert fake.live_tokens() == []
    assert await saved(store) is None


class Odd(AsyncMemoryTokenStore):
    """A store that returns something else than it has saved."""

    def __init__(self, odd: Any) -> None:
        super().__init__()
        self._odd = odd

    async def load(self) -> Any:
        """Return it."""
        return self._odd


@pytest.mark.parametrize("expired", [False, True])
async def test_a_store_that_cannot_be_read_is_not_a_session_that_has_ended(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, expired: bool
) -> None:
    """It may have the token; it is asked again after a wait."""
    store = Troubled()
    store.fails["load"] = 9
    session = connect(token=fake.issue_token() if expired else None, store=store)
    clock.advance(DAY)
    wanted = "the token store could not be read: OSError"
    for _ in range(2):
        with pytest.raises(StoreError, match=wanted) as caught:
            await session.current_token()
        assert caught.value.retryable
    # Once more, in case it was a passing failure; then it is left in peace.
    assert store.calls.count("load") == 2


@pytest.mark.parametrize("closes", [False, True])
async def test_login_is_saved_for_its_own_account_when_the_log_raises(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    closes: bool,
) -> None:
    """
    A filter of the user's is called in the midst of it; catches a record of the last account.

    It is a later request that saves the token, or the end of the client.
    """
    caplog.set_level("INFO", "koyeb_session")
    store = AsyncMemoryTokenStore()
    session = connect(token=fake.issue_token(), store=store)
    with monkeypatch.context() as patched:
        patched.setattr(log, "filter", raising(ZeroDivisionError()))
        with pytest.raises(ZeroDivisionError):
            await session.login(ME, PASSWORD)
    if closes:
        await session.aclose()
    else:
        clock.advance(60)
        assert (await session.http.get("/v1/apps")).status_code == 200
        await async_idle()
    found = await store.load()
    assert found is not None
    assert found == session.token
    provenance = read_provenance(found)
    assert provenance is not None
    assert provenance.account == account_of(PasswordCredentials(ME, PASSWORD))


@pytest.mark.parametrize("fails_first", [False, True])
async def test_store_that_is_away_keeps_no_refused_request_from_signing_in(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, fails_first: bool
) -> None:
    """A renewal ahead of need that its store has stopped is neither joined nor waited out."""
    store = Troubled()
    session = connect(store=store, credentials=PASSWORDS)
    assert (await session.http.get("/v1/apps")).status_code == 200
    store.gates["lock"] = gate = Gate()
    store.fails["lock"] = 9
    clock.advance(timedelta(hours=13))
    assert (await session.http.get("/v1/apps")).status_code == 200  # and begins a renewal
    await async_arrived(gate)
    fake.revoke_all()  # another process has renewed the session
    async with AsyncBackground() as background:
        if fails_first:
            gate.open()
            await async_until(lambda: inside(session).state.failure is not None)
        request = background.start(lambda: session.http.get("/v1/apps"))
        if not fails_first:
            await async_until(lambda: fake.requests[-1].status == 401)
            gate.open()
        assert (await request.result()).status_code == 200
    assert operations(fake) == ["login", "apps", "apps", "apps", "refresh", "login", "apps"]


@pytest.mark.parametrize("point", ["load", "save"])
@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        ("refresh", (), "try again"),
        ("logout", (), "logout: it goes on"),
        ("login", (ME, PASSWORD), None),
        ("aclose", (), None),
    ],
)
async def test_a_store_that_uses_its_own_session_does_not_wait_for_itself(
    fake: FakeKoyeb,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
    *,
    point: str,
    method: str,
    arguments: tuple[str, ...],
    told: str | None,
) -> None:
    """Its call would wait for the lock that it holds, until the time for the lock is up."""
    raised: list[str | None] = []

    class Curious(InterceptedStore):
        async def intercept(self, call: str) -> None:
            if call != point or raised:
                return
            raised.append(None)
            try:
                await getattr(session, method)(*arguments)
            except TransportError as exc:
                raised[0] = exc.message.partition(" once this function has returned")[0]

    session = connect(token=fake.issue_token(), store=Curious())
    with contextlib.suppress(KoyebSessionError):
        await session.refresh()
    await async_idle()
    assert raised == [told]
    assert "in time" not in caplog.text
