"""A store, a clock or a listener that cannot work is refused when it is given."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
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
from koyeb_session.testing import FakeClock

from .fleet import Threaded

ASYNC_REDIS = redis.asyncio.Redis()
REDIS = redis.Redis()
GIVE_ASYNC_REDIS = r"give AsyncRedisTokenStore\(client, key=...\)"
NOT_ASYNC = "which is not of the asynchronous half"
NOT_BLOCKING = "which is not of the blocking half"


def given(client: type, **arguments: Any) -> None:
    """Make a client, and nothing more."""
    client(**arguments)


@pytest.mark.parametrize(
    ("client", "store", "says"),
    [
        (SessionClient, "session.json", r"a path: give FileTokenStore\(path\)"),
        (SessionClient, Path("session.json"), r"a path: give FileTokenStore\(path\)"),
        (SessionClient, "redis://localhost", r"a URL: give RedisTokenStore\(client, key=...\)"),
        (SessionClient, REDIS, r"a Redis client: give RedisTokenStore\(client, key=...\)"),
        (SessionClient, ASYNC_REDIS, r"a Redis client: give RedisTokenStore\(client, key=...\)"),
        (SessionClient, MemoryTokenStore, r"a class: call MemoryTokenStore\(\)"),
        (SessionClient, {}, "dict, which has no load, save, delete, lock"),
        (SessionClient, AsyncMemoryTokenStore(), f"AsyncMemoryTokenStore, {NOT_BLOCKING}"),
        (SessionClient, stores.AsyncFileTokenStore("a"), f"AsyncFileTokenStore, {NOT_BLOCKING}"),
        (AsyncSessionClient, "session.json", r"a path: give AsyncFileTokenStore\(path\)"),
        (AsyncSessionClient, "redis://localhost", f"a URL: {GIVE_ASYNC_REDIS}"),
        (AsyncSessionClient, REDIS, f"a Redis client: {GIVE_ASYNC_REDIS}"),
        (AsyncSessionClient, MemoryTokenStore(), f"MemoryTokenStore, {NOT_ASYNC}"),
        (AsyncSessionClient, stores.FileTokenStore("a"), f"FileTokenStore, {NOT_ASYNC}"),
        (
            AsyncSessionClient,
            stores.RedisTokenStore(REDIS, key="a"),
            f"RedisTokenStore, {NOT_ASYNC}",
        ),
    ],
)
def test_store_that_is_none_of_the_clients_half_is_refused(
    client: type, store: object, says: str
) -> None:
    """The error names the object that was given, and the kind to give instead."""
    with pytest.raises(TypeError, match=f"^store must be a token store, not {says}"):
        given(client, store=store)


async def test_store_that_may_be_right_is_taken() -> None:
    """A mock, or a store that passes its calls on, is not judged by its looks."""

    @contextlib.asynccontextmanager
    async def lock() -> AsyncGenerator[None]:
        yield

    delegating = SimpleNamespace(load=given, save=given, delete=given, lock=lock)
    for store in (delegating, AsyncMock(), MagicMock()):
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
    with pytest.raises(TypeError, match=r"clock must be a clock, not a class: call FakeClock\(\)"):
        given(client, clock=FakeClock)
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
