"""A check for the authors of token stores: it tests the requirements of the protocol."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import anyio

from .._async.stores.protocol import AsyncTokenStore
from .._core.models import Token
from .._sync.stores.protocol import TokenStore

_AT: Final = datetime(2100, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
_LONG: Final = f"a.{'b' * 2000}.c"
_FULL: Final = Token(_LONG, "user", "organization", _AT, issued_at=_AT.replace(year=2099))
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

    >>> from koyeb_session.stores import MemoryTokenStore
    >>> store = MemoryTokenStore()
    >>> check_store(lambda: store)
    """
    one, other = make_store(), make_store()
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
    """
    one, other = make_store(), make_store()
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
    taken = anyio.Event()

    async def take() -> None:
        async with other.lock():
            taken.set()

    async with anyio.create_task_group() as tasks:
        async with one.lock():
            tasks.start_soon(take)
            with anyio.move_on_after(_HELD):
                await taken.wait()
            _require(not taken.is_set(), "lock() keeps others out until the block ends")
            await one.save(_BARE)
            _expect(await one.load(), _BARE, _BUSY)
        with anyio.move_on_after(_PATIENCE):
            await taken.wait()
        _require(taken.is_set(), "lock() is free again when the block has ended")


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


def _expect(found: Token | None, wanted: Token | None, what: str) -> None:
    _require(found == wanted, what)
    if found is not None and wanted is not None:  # `issued_at` is not part of a token's equality
        _require(found.issued_at == wanted.issued_at, f"{what}, issued_at included")


def _require(fulfilled: bool, what: str) -> None:  # noqa: FBT001 - reads like an assertion
    """Raise an `AssertionError`, as `assert` does except under ``python -O``."""
    if not fulfilled:
        raise AssertionError(what)
