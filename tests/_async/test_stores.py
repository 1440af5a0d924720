"""The stores that need nothing but memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from koyeb_session import AsyncMemoryTokenStore
from koyeb_session.testing import async_check_store


async def test_memory_store_does_what_a_store_has_to_do() -> None:
    """It passes the conformance suite."""
    store = AsyncMemoryTokenStore()
    await async_check_store(lambda: store)


@pytest.mark.parametrize("copy_of", [pickle.dumps, copy.copy, copy.deepcopy])
async def test_memory_store_cannot_be_copied(copy_of: Callable[[object], object]) -> None:
    """A copy would be another session's: the error says what to do."""
    with pytest.raises(TypeError, match="give the same object to each client"):
        copy_of(AsyncMemoryTokenStore())
