"""The conformance suite finds faults of one half, and those of its caller."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from koyeb_session import AsyncMemoryTokenStore, MemoryTokenStore
from koyeb_session.testing import async_check_store, check_store

SETTINGS: dict[str, Any] = check_store.__globals__
IMPATIENT = 0.3
"""Seconds to wait for a lock that nobody will release."""


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


async def test_conformance_refuses_a_store_of_the_other_half() -> None:
    """A missing `await` would be blamed on the store."""
    make_async: Any = AsyncMemoryTokenStore
    make_blocking: Any = MemoryTokenStore
    with pytest.raises(TypeError, match="AsyncMemoryTokenStore, which is not of the blocking half"):
        check_store(make_async)
    with pytest.raises(TypeError, match="MemoryTokenStore, which is not of the asynchronous half"):
        await async_check_store(make_blocking)


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
