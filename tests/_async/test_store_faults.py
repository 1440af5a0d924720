"""A store that fails or hangs keeps nobody from a token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from koyeb_session import AsyncMemoryTokenStore, KoyebSessionError, PasswordCredentials, StoreError
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.log import log
from koyeb_session._core.provenance import account_of, read_provenance
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate

from ..concurrency import async_idle
from ..support import DAY, ME, PASSWORD, PASSWORDS, inside, operations, raising
from .doubles import Away, BrokenStore, Connect, Troubled, UnspeakableError

SOON = timedelta(seconds=20)


# The store


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
    session = connect(token=fake.issue_token(), store=store)
    clock.advance(DAY / 2)
    await getattr(session, call)()
    await async_idle()
    assert operations(fake) == sent
    assert "renewal failed: the token store could not be locked: OSError" in caplog.text
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


@pytest.mark.parametrize("kind", [ValueError, TimeoutError])
async def test_a_renewed_token_survives_an_error_that_cannot_be_told(
    fake: FakeKoyeb, connect: Connect, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """The new token stays, and is saved later, after any error of a save."""
    store = BrokenStore("save", error=UnspeakableError(kind))
    session = connect(token=fake.issue_token(), store=store)
    token = await session.refresh()
    assert session.token is token
    assert fake.live_tokens() == [token.id]
    (message,) = caplog.messages
    assert message.startswith("the new token is kept in memory only: the token store could not be")
    store.broken.clear()
    await session.aclose()
    assert await store.load() == token


# Everything has an end


@pytest.mark.pitfall(39)
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
    fake: FakeKoyeb, connect: Connect, monkeypatch: pytest.MonkeyPatch
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
    await session.aclose()  # nobody waits for a turn that never began
    monkeypatch.undo()


# How long each step may take


@pytest.mark.parametrize("expired", [False, True])
async def test_a_store_that_cannot_be_read_is_not_a_session_that_has_ended(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, expired: bool
) -> None:
    """It may have the token; it is asked again after a wait."""
    store = Away()
    session = connect(token=fake.issue_token() if expired else None, store=store)
    clock.advance(DAY)
    for _ in range(2):
        with pytest.raises(
            StoreError, match="the token store could not be read: OSError"
        ) as caught:
            await session.current_token()
        assert caught.value.retryable
    assert store.loads == 2  # once more, in case it was a passing failure; then it is left in peace


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
