# Generated from tests/_async/test_stores.py by .ci/generate_sync.py: edit that, not this.

"""The stores that need nothing but memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from koyeb_session import MemoryTokenStore, SessionClient, Token, TokenStore
from koyeb_session.testing import FakeKoyeb, Gate, check_store

from ..concurrency import Background, arrived, pass_through

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


def test_a_session_without_a_store_keeps_nothing(fake: FakeKoyeb, connect: Connect) -> None:
    """What stands in for no store loads nothing, and takes all calls."""
    session = connect(token=fake.issue_token())
    exchange = session._keeper._exchange
    assert not exchange.has_store
    exchange.store.save(Token("t"))
    assert exchange.store.load() is None
    exchange.store.delete()
    lock: AbstractContextManager[None] = exchange.store.lock()
    with lock, exchange.store.lock():
        pass
    assert connect(store=MemoryTokenStore())._keeper._exchange.has_store
