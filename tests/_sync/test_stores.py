# Generated from tests/_async/test_stores.py by .ci/generate_sync.py: edit that, not this.

"""The stores that need nothing but memory."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable, Generator
from datetime import timedelta

import pytest

from koyeb_session import (
    MemoryTokenStore,
    PasswordCredentials,
    SessionClient,
    StoreError,
    Token,
    TokenStore,
)
from koyeb_session._timestamps import from_epoch
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate, check_store

from ..concurrency import Background, arrived, pass_through, until

Connect = Callable[..., SessionClient]


def test_memory_store_does_what_a_store_has_to_do() -> None:
    """It passes the conformance suite."""
    store = MemoryTokenStore()
    check_store(lambda: store)


def test_memory_keeps_what_was_saved_last() -> None:
    """A token is there from save to delete; deleting nothing is fine."""
    store: TokenStore = MemoryTokenStore()
    assert store.load() is None
    store.delete()
    first, second = Token("first"), Token("second")
    store.save(first)
    store.save(second)
    assert store.load() is second
    store.delete()
    assert store.load() is None


def test_memory_is_locked_for_one_at_a_time() -> None:
    """Who holds the lock keeps all others out until the block ends."""
    store = MemoryTokenStore()
    gate = Gate()
    order: list[str] = []

    def first() -> None:
        with store.lock():
            pass_through(gate)
            order.append("first")

    def second() -> None:
        with store.lock():
            order.append("second")

    with Background() as background:
        background.start(first)
        arrived(gate)
        background.start(second)
        background.settled()
        assert order == []
        gate.open()
    assert order == ["first", "second"]


def test_memory_is_free_again_when_the_block_raises() -> None:
    """An error in the block does not leave the lock behind."""
    store = MemoryTokenStore()
    with pytest.raises(KeyError):
        with store.lock():
            raise KeyError
    with store.lock():
        assert store.load() is None


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
def test_memory_store_cannot_be_copied(copy_of: Callable[[object], object]) -> None:
    """A copy would be another session's: the error says what to do."""
    with pytest.raises(TypeError, match="give the same object to each client"):
        copy_of(MemoryTokenStore())


class Away(MemoryTokenStore):
    """A store that is away for who comes through its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: Gate | None = None

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Fail once the gate is open, if there is one."""
        if self.gate is not None:
            pass_through(self.gate)
            raise StoreError("away")
        with super().lock():
            yield


@pytest.mark.parametrize("fails_first", [False, True])
def test_store_that_is_away_keeps_no_refused_request_from_signing_in(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, fails_first: bool
) -> None:
    """A renewal ahead of need that its store has stopped is neither joined nor waited out."""
    store = Away()
    session = connect(
        store=store, credentials=PasswordCredentials("me@example.com", "correct horse")
    )
    assert (session.http.get("/v1/apps")).status_code == 200
    store.gate = gate = Gate()
    clock.advance(timedelta(hours=13))
    assert (session.http.get("/v1/apps")).status_code == 200  # and begins a renewal
    arrived(gate)
    fake.revoke_all()  # another process has renewed the session
    with Background() as background:
        if fails_first:
            gate.open()
            until(lambda: session._state.trouble is not None)
        request = background.start(lambda: session.http.get("/v1/apps"))
        if not fails_first:
            until(lambda: fake.requests[-1].status == 401)
            gate.open()
        assert (request.result()).status_code == 200
    operations = [request.operation for request in fake.requests]
    assert operations == ["login", "apps", "apps", "apps", "refresh", "login", "apps"]


def test_token_that_was_dead_when_it_was_taken_over_is_given_up(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A session whose store held a token that others had revoked signs in at the next request."""
    store = MemoryTokenStore()
    session = connect(
        store=store, credentials=PasswordCredentials("me@example.com", "correct horse")
    )
    assert (session.http.get("/v1/apps")).status_code == 200
    clock.advance(60)
    store.save(Token(fake.issue_token(), issued_at=from_epoch(clock.time())))
    fake.revoke_all()
    assert (session.http.get("/v1/apps")).status_code == 401
    assert (session.http.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests].count("login") == 2
