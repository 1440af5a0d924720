"""A store, a clock or a listener that cannot work is refused when it is given."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    MemoryTokenStore,
    SessionClient,
    Token,
    stores,
)

from .fleet import Threaded

ASYNC_REDIS = redis.asyncio.Redis()
REDIS = redis.Redis()


def given(client: type, **arguments: Any) -> None:
    """Make a client, and nothing more."""
    client(**arguments)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("session.json", r"a path: give FileTokenStore\(path\)"),
        (Path("session.json"), r"a path: give FileTokenStore\(path\)"),
        ("redis://localhost", r"a URL: give RedisTokenStore\(client, key=...\)"),
        (REDIS, r"a Redis client: give RedisTokenStore\(client, key=...\)"),
        (ASYNC_REDIS, r"a Redis client: give RedisTokenStore\(client, key=...\)"),
        (MemoryTokenStore, r"a class: call MemoryTokenStore\(\)"),
        ({}, "dict, which has no load, save, delete, lock"),
        (AsyncMemoryTokenStore(), "AsyncMemoryTokenStore, which is not of the blocking half"),
        (stores.AsyncFileTokenStore("a"), "AsyncFileTokenStore, which is not of the blocking half"),
    ],
)
def test_store_that_is_none_of_the_blocking_half_is_refused(store: object, says: str) -> None:
    """The error names the object that was given, and the kind to give instead."""
    with pytest.raises(TypeError, match=f"^store must be a token store, not {says}"):
        given(SessionClient, store=store)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        ("session.json", r"a path: give AsyncFileTokenStore\(path\)"),
        ("redis://localhost", r"a URL: give AsyncRedisTokenStore\(client, key=...\)"),
        (REDIS, r"a Redis client: give AsyncRedisTokenStore\(client, key=...\)"),
        (MemoryTokenStore(), "MemoryTokenStore, which is not of the asynchronous half"),
        (stores.FileTokenStore("a"), "FileTokenStore, which is not of the asynchronous half"),
        (
            stores.RedisTokenStore(REDIS, key="a"),
            "RedisTokenStore, which is not of the asynchronous half",
        ),
    ],
)
def test_store_that_is_none_of_the_asynchronous_half_is_refused(store: object, says: str) -> None:
    """The same, with the stores of that half."""
    with pytest.raises(TypeError, match=f"^store must be a token store, not {says}"):
        given(AsyncSessionClient, store=store)


class Delegating:
    """A store whose plain methods return awaitables."""

    def __init__(self) -> None:
        self._store = AsyncMemoryTokenStore()

    def load(self) -> Awaitable[Token | None]:
        """Load."""
        return self._store.load()

    def save(self, token: Token) -> Awaitable[None]:
        """Save."""
        return self._store.save(token)

    def delete(self) -> Awaitable[None]:
        """Delete."""
        return self._store.delete()

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Lock."""
        async with self._store.lock():
            yield


async def test_store_that_may_be_right_is_taken() -> None:
    """A mock, or a store that passes its calls on, is not judged by its looks."""
    for store in (Delegating(), AsyncMock(), MagicMock()):
        given(AsyncSessionClient, store=store)
    given(SessionClient, store=MagicMock())
    given(SessionClient, store=SimpleNamespace(load=print, save=print, delete=print, lock=print))


@pytest.mark.parametrize(
    ("store", "client", "says"),
    [
        (stores.RedisTokenStore, ASYNC_REDIS, r"a blocking one: give redis.Redis\(...\)"),
        (stores.RedisTokenStore, valkey.asyncio.Valkey(), "a blocking one"),
        (stores.AsyncRedisTokenStore, REDIS, r"an asynchronous one: give redis.asyncio.Redis"),
        (stores.AsyncRedisTokenStore, valkey.Valkey(), "an asynchronous one"),
        (stores.RedisTokenStore, "redis://a", r"not a URL: give redis.Redis.from_url\(...\)"),
        (stores.AsyncRedisTokenStore, "redis://a", "not a URL: give redis.asyncio.Redis.from_url"),
        (stores.RedisTokenStore, redis.Redis, r"such as redis.Redis\(\), not Redis"),
        (stores.AsyncRedisTokenStore, None, r"such as redis.asyncio.Redis\(\), not NoneType"),
    ],
)
def test_client_that_is_none_of_the_stores_half_is_refused(
    store: Callable[..., object], client: object, says: str
) -> None:
    """A Redis store says what it has to be given, before anything is sent."""
    with pytest.raises(TypeError, match=f"^client must be .*{says}"):
        store(client, key="a")


def test_client_of_ones_own_is_taken() -> None:
    """Any object with ``execute_command`` will do."""
    clients: list[Any] = [*(Threaded(REDIS), MagicMock(), SimpleNamespace(execute_command=given))]
    for client in clients:
        stores.AsyncRedisTokenStore(client, key="a")
    stores.RedisTokenStore(MagicMock(), key="a")


@pytest.mark.parametrize("client", [SessionClient, AsyncSessionClient])
@pytest.mark.parametrize("clock", [time.time, 5, SimpleNamespace(time=time.time, monotonic=1.0)])
def test_clock_that_tells_no_time_is_refused(client: type, clock: object) -> None:
    """It has to have both clocks."""
    with pytest.raises(TypeError, match=r"clock must have time\(\) and monotonic\(\)"):
        given(client, clock=clock, token="a" * 64)
    given(client, clock=time)


class Listener:
    """A listener that has to be awaited."""

    async def __call__(self, token: Token | None) -> None:
        """Do nothing."""


def test_listener_that_cannot_be_called_is_refused() -> None:
    """In the blocking half nobody awaits an async one; in the other half both will do."""
    blocking, asynchronous = SessionClient(), AsyncSessionClient()
    for session in (blocking, asynchronous):
        wrong: Any = "listener"
        with pytest.raises(TypeError, match="listener must be a function of a token, not str"):
            session.on_token_change(wrong)
        session.on_token_change(lambda token: None)
    for listener in (Listener(), Listener().__call__):
        with pytest.raises(TypeError, match="listener must be a plain function"):
            blocking.on_token_change(listener)
        asynchronous.on_token_change(listener)
