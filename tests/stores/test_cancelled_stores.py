"""A store whose caller is cancelled shows no token to a tool that prints local variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from select import select
from typing import Any, NoReturn

import anyio
import keyring
import pytest

from koyeb_session import Token
from koyeb_session.stores import AsyncFileTokenStore, AsyncKeyringTokenStore, AsyncRedisTokenStore
from koyeb_session.testing import Gate

from ..concurrency import PATIENCE, async_until
from .fleet import async_redis_client
from .walkers import assert_none_shows

ID, RENEWAL = "0123456789" * 7, "a refresh token/+"
TOKEN = Token(ID, "user", expires_at=datetime(2100, 1, 1, tzinfo=UTC), renewal=RENEWAL)
USES = ("load", "save", "delete", "lock")


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Hold threads until the end of the test."""
    gate = Gate()
    yield gate
    gate.open()


def stuck(gate: Gate) -> Callable[..., NoReturn]:
    """Make a function that holds each thread at a gate, and fails in the end."""

    def hold(*_: object) -> NoReturn:
        gate.pass_through(PATIENCE)
        raise OSError

    return hold


async def use(store: Any, what: str) -> None:
    """Use a store in one way."""
    if what == "save":
        await store.save(TOKEN)
    elif what == "lock":
        async with store.lock():
            await store.save(TOKEN)
    else:
        await getattr(store, what)()


async def cancelled(store: Any, what: str, under_way: Any) -> BaseException:
    """Cancel a use of a store once it is under way, and catch its error."""
    caught: list[BaseException] = []

    async def run() -> None:
        try:
            await use(store, what)
        except BaseException as exc:
            caught.append(exc)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await async_until(under_way)
        tasks.cancel_scope.cancel()
    return caught[0]


@pytest.mark.parametrize("what", ["save", "lock"])
async def test_file_whose_caller_is_cancelled_shows_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate, what: str
) -> None:
    """The thread that writes is left to itself."""
    monkeypatch.setattr(os, "fsync", stuck(gate))
    store = AsyncFileTokenStore(tmp_path / "session.json")
    error = await cancelled(store, what, lambda: gate.arrived)
    assert_none_shows(error, (ID, RENEWAL), __file__)


@pytest.mark.parametrize("what", USES)
async def test_keyring_whose_caller_is_cancelled_shows_no_token(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, what: str
) -> None:
    """A keyring may wait for a person."""
    monkeypatch.setattr(keyring, "get_password", stuck(gate))
    monkeypatch.setattr(keyring, "set_password", stuck(gate))
    error = await cancelled(AsyncKeyringTokenStore(), what, lambda: gate.arrived)
    assert_none_shows(error, (ID, RENEWAL), __file__)


@pytest.mark.parametrize("what", USES)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_redis_whose_caller_is_cancelled_shows_no_token(what: str) -> None:
    """The command is under way, and nobody waits for its reply."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with async_redis_client(silent.getsockname()[1], socket_timeout=0.2) as client:
            store = AsyncRedisTokenStore(client, key="k")
            error = await cancelled(store, what, lambda: select([silent], [], [], 0)[0])
    assert_none_shows(error, (ID, RENEWAL), __file__)
