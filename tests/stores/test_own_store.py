"""The stores for SQLite that `examples/own_store_sqlite.py` shows, whole and of both halves."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from koyeb_session import Token
from koyeb_session.testing import async_check_store, check_store

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_store_sqlite.py"))
SqliteTokenStore: Any = EXAMPLE["SqliteTokenStore"]
AsyncSqliteTokenStore: Any = EXAMPLE["AsyncSqliteTokenStore"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a database with the table of the example."""
    path = tmp_path / "sessions.db"
    SqliteTokenStore(path).create()
    return path


def test_store_does_what_a_store_has_to_do(path: Path) -> None:
    """A reader who copies the store has one that is whole."""
    check_store(lambda: SqliteTokenStore(path))


async def test_async_store_does_what_a_store_has_to_do(path: Path) -> None:
    """The async one passes the conformance suite, on both event loops."""
    await async_check_store(lambda: AsyncSqliteTokenStore(path))


def test_store_keeps_all_fields(path: Path) -> None:
    """The fields that do not count for a token's equality are kept as well."""
    store = SqliteTokenStore(path)
    store.save(Token("a", renewal="b", provenance="c"))
    assert (store.load().renewal, store.load().provenance) == ("b", "c")


def test_lock_of_a_killed_holder_is_free_after_its_lease(path: Path) -> None:
    """The row's end frees it, and its late holder frees nobody else's."""
    store = SqliteTokenStore(path)
    assert store.take("killed", lease=0.01)
    with store.lock():
        store.release("killed")
        assert not store.take("third")
