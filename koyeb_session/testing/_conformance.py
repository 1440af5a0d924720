"""A check for the authors of token stores: it tests the requirements of the protocol."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import anyio
import attrs

from .._async.stores.protocol import AsyncTokenStore
from .._core.models import Token
from .._core.validation import async_store_error, store_error
from .._sync.stores.protocol import TokenStore

T = TypeVar("T")

_AT: Final = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_LONG: Final = f"a.{'b' * 2000}.c"
_FULL: Final = Token(
    _LONG,
    "user",
    "organization",
    _AT,
    issued_at=_AT.replace(year=2099),
    renewal=_LONG[::-1],
    provenance="koyeb-session/1 https://app.koyeb.com account koyeb",
)
_BARE: Final = Token("d")
_HELD: Final = 0.05
"""Seconds for which a second caller must not get the lock."""
_PATIENCE: Final = 5.0
_BUSY: Final = "save() and load() work in the lock while others wait for it"


class _Failure(Exception):  # noqa: N818 - stands for any error inside the lock
    """The exception that the check raises inside the lock."""


def check_store(make_store: Callable[[], TokenStore]) -> None:
    """
    Check a blocking store against the promises of `TokenStore`.

    It cannot see other processes, the time after a holder was killed, the end of a long wait for
    the lock, nor a database that is away.

    Args:
        make_store: Makes a store; all that it makes keep the same session. Their session is
            deleted, before and after.

    Raises:
        AssertionError: The store breaks the promise that the message names.
        TypeError: ``make_store`` is no function, or makes no blocking store.

    >>> from koyeb_session.stores import MemoryTokenStore
    >>> store = MemoryTokenStore()
    >>> check_store(lambda: store)
    """
    one, other = (_made(make_store, store_error) for _ in range(2))
    one.delete()
    one.delete()
    _expect(one.load(), None, "delete() makes load() return None, also when there is nothing")
    for token in (_FULL, _BARE, _FULL):
        with one.lock():
            one.save(token)
        _expect(other.load(), token, "load() returns what another store saved last")
    with one.lock():
        one.delete()
        _expect(one.load(), None, "load() returns None after delete() inside the lock")
        one.save(_FULL)
        _expect(one.load(), _FULL, "load() returns inside the lock what was saved there")
    with contextlib.suppress(_Failure), one.lock():
        raise _Failure
    _check_lock(one, other)
    _check_lock(one, one)
    other.delete()
    _expect(one.load(), None, "load() returns None after delete() by another store")


def _check_lock(one: TokenStore, other: TokenStore) -> None:
    taken = threading.Event()
    problems: list[Exception] = []

    def take() -> None:
        try:
            with other.lock():
                taken.set()
        except Exception as exc:  # noqa: BLE001 - the store's; reported in the checking thread
            problems.append(exc)

    thread = threading.Thread(target=take, daemon=True)
    with one.lock():
        thread.start()
        _require(not taken.wait(_HELD), "lock() keeps others out until the block ends")
        one.save(_BARE)
        _expect(one.load(), _BARE, _BUSY)
    thread.join(_PATIENCE)
    _require(not problems, f"lock() waits for others rather than raise {problems}")
    _require(taken.is_set(), "lock() is free again when the block has ended")


async def async_check_store(make_store: Callable[[], AsyncTokenStore]) -> None:
    """
    Check an async store against the promises of `AsyncTokenStore`.

    It sees neither more nor less than `check_store`, but for cancelled blocks.

    Args:
        make_store: Makes a store; all that it makes keep the same session. Their session is
            deleted, before and after.

    Raises:
        AssertionError: The store breaks the promise that the message names.
        TypeError: ``make_store`` is no function, or makes no async store.
    """
    one, other = (_made(make_store, async_store_error) for _ in range(2))
    await one.delete()
    await one.delete()
    _expect(await one.load(), None, "delete() makes load() return None, also when there is nothing")
    for token in (_FULL, _BARE, _FULL):
        async with one.lock():
            await one.save(token)
        _expect(await other.load(), token, "load() returns what another store saved last")
    async with one.lock():
        await one.delete()
        _expect(await one.load(), None, "load() returns None after delete() inside the lock")
        await one.save(_FULL)
        _expect(await one.load(), _FULL, "load() returns inside the lock what was saved there")
    with contextlib.suppress(_Failure):
        async with one.lock():
            raise _Failure
    await _async_check_cancelled(one)
    await _async_check_lock(one, other)
    await _async_check_lock(one, one)
    await other.delete()
    _expect(await one.load(), None, "load() returns None after delete() by another store")


async def _async_check_lock(one: AsyncTokenStore, other: AsyncTokenStore) -> None:
    taken, ended = anyio.Event(), anyio.Event()
    problems: list[Exception] = []

    async def take() -> None:
        try:
            async with other.lock():
                taken.set()
        except Exception as exc:  # noqa: BLE001 - the store's; reported by the checking task
            problems.append(exc)
        ended.set()

    try:
        async with anyio.create_task_group() as tasks:
            async with one.lock():
                tasks.start_soon(take)
                with anyio.move_on_after(_HELD):
                    await taken.wait()
                _require(not taken.is_set(), "lock() keeps others out until the block ends")
                await one.save(_BARE)
                _expect(await one.load(), _BARE, _BUSY)
            with anyio.move_on_after(_PATIENCE):
                await ended.wait()
            _require(not problems, f"lock() waits for others rather than raise {problems}")
            _require(taken.is_set(), "lock() is free again when the block has ended")
    except ExceptionGroup as group:  # of one error, as `take` raises none
        raise group.exceptions[0] from None


async def _async_check_cancelled(one: AsyncTokenStore) -> None:
    with anyio.CancelScope() as scope:
        async with one.lock():
            scope.cancel()
            await anyio.sleep_forever()
    free = False
    with anyio.move_on_after(_PATIENCE):
        async with one.lock():
            free = True
    _require(free, "lock() is free again when the block was cancelled")


def _made(make_store: Callable[[], T], error: Callable[[object], Exception | None]) -> T:
    """Make a store, and refuse any other object."""
    if not callable(make_store):
        raise TypeError("make_store must be a function that makes a store: give lambda: store")
    store = make_store()
    if wrong := error(store):
        raise wrong
    return store


def _expect(found: object, wanted: Token | None, what: str) -> None:
    """Compare tokens with all their fields, some of which are no part of a token's equality."""
    if not isinstance(found, Token) or wanted is None:
        _require(found is wanted, what)
        return
    names = attrs.fields_dict(Token)
    other = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    _require(not other, f"{what}, {', '.join(other)} included")


def _require(fulfilled: bool, what: str) -> None:  # noqa: FBT001 - reads like an assertion
    """Raise an `AssertionError`, as `assert` does except under ``python -O``."""
    if not fulfilled:
        raise AssertionError(what)
