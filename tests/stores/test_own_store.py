"""The stores that the documentation of `koyeb_session.stores` shows, run as they stand there."""

from __future__ import annotations

import contextlib
import re
import secrets
import sqlite3
import textwrap
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from koyeb_session import SessionClient, Token, stores
from koyeb_session.testing import FakeKoyeb, async_check_store, check_store

# What a reader imports.
NAMES: dict[str, Any] = {
    **{module.__name__: module for module in (anyio, contextlib, secrets, sqlite3, time)},
    "Token": Token,
    "check_store": check_store,
    "datetime": datetime,
    "to_thread": anyio.to_thread,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Make a database with the documented table."""
    path = tmp_path / "sessions.db"
    documented()["SqliteTokenStore"](path).create()
    return path


def documented() -> dict[str, Any]:
    """Run all code of the documentation, as one program."""
    program = dict(NAMES)
    for block in re.findall(r"code-block:: python\n\n((?:    .*\n|\n)+)", stores.__doc__ or ""):
        exec(textwrap.dedent(block), program)  # noqa: S102 - the documentation's own
    return program


def test_documented_store_passes_its_documented_test(tmp_path: Path) -> None:
    """Who copies the store for SQLite, and its test, has a store that is whole."""
    documented()["test_my_store"](tmp_path)


async def test_documented_async_store_does_what_a_store_has_to_do(path: Path) -> None:
    """The async one passes the conformance suite, on both event loops."""
    kind = documented()["AsyncSqliteTokenStore"]
    await async_check_store(lambda: kind(path))


def test_documented_store_keeps_all_fields(path: Path) -> None:
    """What is no part of a token's equality is kept as well."""
    store = documented()["SqliteTokenStore"](path)
    store.save(Token("a", renewal="b", provenance="c"))
    assert (store.load().renewal, store.load().provenance) == ("b", "c")


def test_documented_store_keeps_a_session(path: Path) -> None:
    """A session in it goes on, renewed, in the next run."""
    fake = FakeKoyeb()
    kind = documented()["SqliteTokenStore"]
    for _ in range(2):
        with SessionClient(transport=fake.transport, store=kind(path)) as session:
            if not fake.requests:
                session.login("me@example.com", "correct horse")
            session.current_token()
            session.refresh()
    assert [request.operation for request in fake.requests] == ["login", "refresh", "refresh"]


def test_lock_of_a_killed_holder_is_free_after_its_lease(path: Path) -> None:
    """The row's end frees it, and its late holder frees nobody else's."""
    store = documented()["SqliteTokenStore"](path)
    assert store.take("killed", lease=0.01)
    with store.lock():
        store.release("killed")
        assert not store.take("third")
