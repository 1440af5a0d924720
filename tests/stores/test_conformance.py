"""The conformance suite finds the faults of a store."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from koyeb_session import AsyncMemoryTokenStore, MemoryTokenStore, Token, TokenStore
from koyeb_session.testing import async_check_store, check_store

from .conftest import PATIENCE

SETTINGS: dict[str, Any] = check_store.__globals__
IMPATIENT = 0.3
"""Seconds to wait for a lock that nobody will release."""


class Lossy(MemoryTokenStore):
    """A store that does not save the token as it is."""

    def __init__(self, change: Callable[[Token, Token | None], Token]) -> None:
        super().__init__()
        self._change = change

    def save(self, token: Token) -> None:
        """Save it otherwise."""
        super().save(self._change(token, self.load()))


def whole_seconds(token: Token, _: Token | None) -> Token:
    """Cut the times off, as a column does that knows no fractions."""
    at = token.expires_at
    return attrs.evolve(token, expires_at=at and at.replace(microsecond=0))


def merged(token: Token, old: Token | None) -> Token:
    """Keep the old time where there is no new one, as an update of given fields does."""
    at = None if old is None else old.expires_at
    return attrs.evolve(token, expires_at=token.expires_at or at)


class OutOfTransaction(MemoryTokenStore):
    """A lock within which the store is read from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Token | None = None

    def load(self) -> Token | None:
        """Return the token from the time when the lock was taken, if it is."""
        return self._seen or super().load()

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Keep the token that there is."""
        with super().lock():
            self._seen = super().load()
            yield
            self._seen = None


class Open(MemoryTokenStore):
    """A lock that lets everybody in."""

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Do nothing."""
        yield


class Refusing(MemoryTokenStore):
    """A lock that does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = False

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Raise where it should wait."""
        if self._taken:
            raise TimeoutError
        self._taken = True
        try:
            yield
        finally:
            self._taken = False


class OneOwner(MemoryTokenStore):
    """A lock that keeps the state of a block on the object."""

    def __init__(self, rows: set[object]) -> None:
        super().__init__()
        self._rows = rows
        self._owner = object()
        self._over = threading.Event()

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Forget who had it when the next one comes."""
        self._owner = object()
        while self._rows and not self._over.wait(0.001):
            pass
        self._rows.add(self._owner)
        try:
            yield
        finally:
            self._rows.discard(self._owner)

    def end(self) -> None:
        """Let those go who wait in vain."""
        self._over.set()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (
            lambda: Lossy(lambda token, _: attrs.evolve(token, id=token.id[:255])),
            "returns what another store saved last",
        ),
        (lambda: Lossy(whole_seconds), "returns what another store saved last"),
        (lambda: Lossy(lambda token, _: attrs.evolve(token, issued_at=None)), "issued_at included"),
        (lambda: Lossy(merged), "returns what another store saved last"),
        (OutOfTransaction, "inside the lock"),
        (Open, "keeps others out"),
        (Refusing, "rather than raise"),
        (lambda: OneOwner(set()), "is free again when the block has ended"),
    ],
    ids=["short", "rounded", "not issued", "merged", "outside", "open", "refusing", "one owner"],
)
def test_conformance_finds_a_broken_store(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[], TokenStore], what: str
) -> None:
    """A faulty store does not pass, and the error says what it does wrong."""
    store = kind()
    if isinstance(store, Open):  # its second taker comes in at once, at any time
        monkeypatch.setitem(SETTINGS, "_HELD", PATIENCE)
    if isinstance(store, OneOwner):
        monkeypatch.setitem(SETTINGS, "_PATIENCE", IMPATIENT)
    with pytest.raises(AssertionError, match=what):
        check_store(lambda: store)
    if isinstance(store, OneOwner):
        store.end()


class Unshielded(AsyncMemoryTokenStore):
    """A lock that a cancelled block cannot release."""

    def __init__(self) -> None:
        super().__init__()
        self._semaphore = anyio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Wait before it is released."""
        await self._semaphore.acquire()
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            self._semaphore.release()


async def test_conformance_finds_a_lock_that_a_cancelled_block_leaves_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lock that is not released under cancellation does not pass."""
    monkeypatch.setitem(SETTINGS, "_PATIENCE", IMPATIENT)
    store = Unshielded()
    with pytest.raises(AssertionError, match="when the block was cancelled"):
        await async_check_store(lambda: store)


UNASSERTED = """
import asyncio
from koyeb_session import AsyncMemoryTokenStore, MemoryTokenStore
from koyeb_session.testing import async_check_store, check_store

class Forgetful(MemoryTokenStore):
    def save(self, token): pass

class AsyncForgetful(AsyncMemoryTokenStore):
    async def save(self, token): pass

for check in (
    lambda: check_store(Forgetful),
    lambda: asyncio.run(async_check_store(AsyncForgetful)),
):
    try:
        check()
    except AssertionError:
        print("found")
"""


def test_check_finds_what_is_wrong_without_assertions() -> None:
    """`python -O` takes assertions away, but not the checks."""
    done = subprocess.run(
        [sys.executable, "-O", "-c", UNASSERTED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "found\nfound\n"
