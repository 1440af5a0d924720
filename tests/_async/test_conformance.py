"""The conformance suite finds the faults of a store."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

import attrs
import pytest

from koyeb_session import AsyncMemoryTokenStore, AsyncTokenStore, Token
from koyeb_session._concurrency.event_loop.waiting import async_sleep
from koyeb_session.testing import async_check_store

from ..concurrency import PATIENCE

SETTINGS: dict[str, Any] = async_check_store.__globals__
IMPATIENT = 0.3
"""Seconds to wait for a lock that nobody will release."""


class Lossy(AsyncMemoryTokenStore):
    """A store that does not save the token as it is."""

    def __init__(self, change: Callable[[Token, Token | None], Any]) -> None:
        super().__init__()
        self._change = change

    async def save(self, token: Token) -> None:
        """Save it otherwise."""
        await super().save(self._change(token, await self.load()))


def whole_seconds(token: Token, _: Token | None) -> Token:
    """Cut the times off, as a column does that knows no fractions."""
    at = token.expires_at
    return attrs.evolve(token, expires_at=at and at.replace(microsecond=0))


def merged(token: Token, old: Token | None) -> Token:
    """Keep the old time where there is no new one, as an update of given fields does."""
    at = None if old is None else old.expires_at
    return attrs.evolve(token, expires_at=token.expires_at or at)


class OutOfTransaction(AsyncMemoryTokenStore):
    """A lock within which the store is read from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Token | None = None

    async def load(self) -> Token | None:
        """Return the token from the time when the lock was taken, if it is."""
        return self._seen or await super().load()

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Keep the token that there is."""
        async with super().lock():
            self._seen = await super().load()
            yield
            self._seen = None


class Open(AsyncMemoryTokenStore):
    """A lock that lets everybody in."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Do nothing."""
        yield


class Refusing(AsyncMemoryTokenStore):
    """A lock that does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = False

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Raise where it should wait."""
        if self._taken:
            raise TimeoutError
        self._taken = True
        try:
            yield
        finally:
            self._taken = False


class OneOwner(AsyncMemoryTokenStore):
    """A lock that keeps the state of a block on the object."""

    def __init__(self, rows: set[object]) -> None:
        super().__init__()
        self._rows = rows
        self._owner = object()
        self._over = False

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Forget who had it when the next one comes."""
        self._owner = object()
        while self._rows and not self._over:
            await async_sleep(0.001)
        self._rows.add(self._owner)
        try:
            yield
        finally:
            self._rows.discard(self._owner)

    def end(self) -> None:
        """Let those go who wait in vain."""
        self._over = True


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (
            lambda: Lossy(lambda token, _: attrs.evolve(token, id=token.id[:255])),
            "returns what another store saved last",
        ),
        (lambda: Lossy(whole_seconds), "returns what another store saved last"),
        (lambda: Lossy(lambda token, _: token.id), "returns what another store saved last"),
        (lambda: Lossy(lambda token, _: attrs.evolve(token, issued_at=None)), "issued_at included"),
        (
            lambda: Lossy(lambda token, _: attrs.evolve(token, renewal=None, provenance=None)),
            "last, renewal, provenance included",
        ),
        (lambda: Lossy(merged), "returns what another store saved last"),
        (OutOfTransaction, "inside the lock"),
        (Open, "keeps others out"),
        (Refusing, "rather than raise"),
        (lambda: OneOwner(set()), "is free again when the block has ended"),
    ],
    ids=[
        *(
            "short",
            "rounded",
            "text",
            "not issued",
            "not renewed",
            "merged",
            "outside",
            "open",
            "refusing",
        ),
        "one owner",
    ],
)
async def test_conformance_finds_a_broken_store(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[], AsyncTokenStore], what: str
) -> None:
    """A faulty store does not pass, and the error says what it does wrong."""
    store = kind()
    if isinstance(store, Open):  # its second taker comes in at once, at any time
        monkeypatch.setitem(SETTINGS, "_HELD", PATIENCE)
    if isinstance(store, OneOwner):
        monkeypatch.setitem(SETTINGS, "_PATIENCE", IMPATIENT)
    with pytest.raises(AssertionError, match=what):
        await async_check_store(lambda: store)
    if isinstance(store, OneOwner):
        store.end()


@pytest.mark.parametrize(
    ("make_store", "says"),
    [
        (AsyncMemoryTokenStore(), "^make_store must be a function that makes a store: give lambda"),
        (lambda: "redis://", "^store must be a token store, not a URL"),
    ],
    ids=["store", "url"],
)
async def test_conformance_refuses_another_thing_than_a_maker_of_stores(
    make_store: Any, says: str
) -> None:
    """The caller's own mistake is no fault of the store."""
    with pytest.raises(TypeError, match=says):
        await async_check_store(make_store)
