"""The Redis store on real servers, Redis and Valkey."""

from __future__ import annotations

import pickle
import socket
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest

from koyeb_session import StoreError, Token
from koyeb_session._concurrency.event_loop.waiting import async_sleep
from koyeb_session._storage.redis_scripts import LOCK, UNLOCK
from koyeb_session.stores import AsyncRedisTokenStore
from koyeb_session.testing import FakeKoyeb, Gate, async_check_store

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    async_pass_through,
    async_until,
)
from ..stores.conftest import RedisServer, any_server, redis_server
from ..stores.fleet import async_redis_client
from .doubles import Connect

__all__ = ["any_server", "redis_server"]  # fixtures

KEY = "session"
HOUR = 3_600_000


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """Start a Redis for one test."""
    return redis_server


def settings() -> ModuleType:
    """Give the module that holds the waiting times of the store, to be patched."""
    return sys.modules[AsyncRedisTokenStore.__init__.__globals__["__name__"]]


async def milliseconds(client: Any) -> int:
    """Read the clock of Redis."""
    seconds, micros = await client.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize("library", ["redis", "valkey"])
async def test_redis_store_does_what_a_store_has_to_do(
    any_server: RedisServer, library: str
) -> None:
    """It passes the conformance suite on Redis and on Valkey, with the client of either."""
    async with async_redis_client(any_server.port, library=library) as client:
        await async_check_store(lambda: AsyncRedisTokenStore(client, key=KEY))


async def test_client_that_decodes_replies_works_too(server: RedisServer) -> None:
    """The store works with clients that reply in bytes or in text."""
    async with async_redis_client(server.port, decode_responses=True) as client:
        await async_check_store(lambda: AsyncRedisTokenStore(client, key=KEY))


async def test_key_lives_as_long_as_the_token(server: RedisServer) -> None:
    """The key goes an hour after its token or a lock; it stays when the expiry is unknown."""
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY, lease=5)
        async with store.lock():
            assert HOUR < await client.pttl(KEY) <= HOUR + 5_000
        await store.save(Token("a", expires_at=datetime.now(UTC) + timedelta(hours=1)))
        assert 2 * HOUR - 10_000 < await client.pttl(KEY) <= 2 * HOUR
        async with store.lock():
            assert await client.pttl(KEY) > HOUR + 5_000
        await store.save(Token("a"))
        assert await client.pttl(KEY) == -1
        async with store.lock():
            assert await client.pttl(KEY) == -1
        await store.delete()
        assert HOUR < await client.pttl(KEY) <= HOUR + 5_000
        assert await client.keys() == [KEY.encode()]


@pytest.mark.parametrize("newer", [Token("newer"), None])
async def test_late_writer_cannot_overwrite_what_came_after_it(
    server: RedisServer, newer: Token | None
) -> None:
    """A holder that outlived its lease brings back neither an older token nor an ended session."""
    async with async_redis_client(server.port) as client:
        slow = AsyncRedisTokenStore(client, key=KEY, lease=0.05)
        other = AsyncRedisTokenStore(client, key=KEY)

        async def go_on() -> None:
            async with other.lock():  # once the lease is over
                if newer is None:
                    await other.delete()
                else:
                    await other.save(newer)

        async with slow.lock(), AsyncBackground() as background:
            await background.start(go_on).result()
            with pytest.raises(StoreError, match="newer token"):
                await slow.save(Token("older"))
        assert await other.load() == newer


@pytest.mark.parametrize("deletes", [False, True])
async def test_late_writer_is_late_also_when_redis_has_lost_its_data(
    server: RedisServer, *, deletes: bool
) -> None:
    """Fencing values go on growing, and a logout is remembered, though all else is forgotten."""
    async with async_redis_client(server.port) as client:
        slow, other = (AsyncRedisTokenStore(client, key=KEY) for _ in range(2))
        async with slow.lock(), AsyncBackground() as background:
            # Fencing values have their time from Redis: the next one is to be a later one.
            locked = await milliseconds(client)
            while await milliseconds(client) == locked:
                pass
            await client.flushall()

            async def go_on() -> None:
                async with other.lock():
                    await other.save(Token("newer"))

            await background.start(other.delete if deletes else go_on).result()
            with pytest.raises(StoreError, match="newer token"):
                await slow.save(Token("older"))
        assert await other.load() == (None if deletes else Token("newer"))


async def test_tokens_are_saved_after_redis_has_lost_its_data(server: RedisServer) -> None:
    """The first save after the loss, in the middle of an exchange, makes no writer late."""
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        for number in range(3):
            async with store.lock():
                await store.save(Token(f"before {number}"))
        async with store.lock():
            await client.flushall()
            await store.save(Token("amid"))
        async with store.lock():
            await store.save(Token("after"))
        assert await store.load() == Token("after")


async def test_record_that_cannot_be_read_is_passed_over(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's record under the key is nothing, with a warning."""
    async with async_redis_client(server.port) as client:
        await client.hset(KEY, "record", "?")
        assert await AsyncRedisTokenStore(client, key=KEY).load() is None
    assert "passed over" in caplog.text


async def test_lock_that_is_held_for_too_long_is_a_store_error(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for somebody else's renewal ends."""
    monkeypatch.setattr(settings(), "_LOCK_TIMEOUT", 0.05)
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        async with store.lock():
            with pytest.raises(StoreError, match="held for over"):
                async with store.lock():
                    raise AssertionError


async def test_lock_that_could_not_be_released_is_taken_over(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder need not wait for its own lease when Redis is back; others do."""
    monkeypatch.setattr(settings(), "_LOCK_TIMEOUT", 0.05)
    async with async_redis_client(server.port) as client:
        store, other = (AsyncRedisTokenStore(client, key=KEY) for _ in range(2))
        async with store.lock():
            server.stop()
        server.start()
        with pytest.raises(StoreError, match="held for over"):
            async with other.lock():
                raise AssertionError
        async with store.lock():
            await store.save(Token("a"))
        async with other.lock():
            assert await other.load() == Token("a")


class AsyncCounting:
    """A client that counts the commands that are under way, and the scripts that were sent."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.scripts: list[str] = []

    async def execute_command(self, *command: Any) -> Any:
        """Send a command."""
        self.scripts += [command[1]] if command[0] == "EVAL" else []
        return await self._client.execute_command(*command)


def fresh(token_id: str, **fields: Any) -> Token:
    """Make a token that was issued just now."""
    now = datetime.now(UTC)
    token = Token(token_id, expires_at=now + timedelta(hours=1), issued_at=now)
    return attrs.evolve(token, **fields)


async def test_new_token_is_taken_over_without_the_lock(server: RedisServer) -> None:
    """Members of a fleet that wait for a renewal do not queue to read its token."""
    old, new = fresh("old"), fresh("new")
    async with async_redis_client(server.port) as client:
        counting = AsyncCounting(client)
        holder, member = (AsyncRedisTokenStore(it, key=KEY) for it in (client, counting))
        await holder.save(old)
        assert await member.load() == old
        async with holder.lock():
            await holder.save(new)
            async with member.lock():
                assert await member.load() == new
            assert counting.scripts == [LOCK]
        async with member.lock():  # from now on it has to be locked to be exchanged
            assert await member.load() == new
            assert await client.hexists(KEY, "owner")
        assert counting.scripts == [LOCK, LOCK, UNLOCK]


@pytest.mark.parametrize(
    "new",
    [
        fresh("new", provenance="another account's"),
        fresh("new", user_id="another user"),
        fresh("new", expires_at=datetime.now(UTC) + timedelta(seconds=1)),
        Token("new", issued_at=datetime.now(UTC)),
        Token("new", expires_at=datetime.now(UTC) + timedelta(hours=1)),
        None,
    ],
)
async def test_token_that_may_be_exchanged_is_read_under_the_lock(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, new: Token | None
) -> None:
    """Another account's, or one that is due itself, or none, is no reason to go ahead."""
    monkeypatch.setattr(settings(), "_LOCK_TIMEOUT", 0.05)
    async with async_redis_client(server.port) as client:
        holder, member = (AsyncRedisTokenStore(client, key=KEY) for _ in range(2))
        await member.save(fresh("old", expires_at=datetime.now(UTC) + timedelta(hours=1)))
        async with holder.lock():
            if new is None:
                await holder.delete()
            else:
                await holder.save(aged(new))
            with pytest.raises(StoreError, match="held for over"):
                async with member.lock():
                    raise AssertionError


class AsyncLosing:
    """A client that loses the reply to a command that Redis has carried out, when told to."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.loses = False

    async def execute_command(self, *command: Any) -> Any:
        """Send it."""
        reply = await self._client.execute_command(*command)
        if self.loses:
            raise ConnectionError
        return reply


async def test_token_of_a_save_without_a_reply_is_read_under_the_lock(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record may be the store's own: the holder of the lock may be exchanging that token."""
    monkeypatch.setattr(settings(), "_LOCK_TIMEOUT", 0.05)
    async with async_redis_client(server.port) as client:
        losing = AsyncLosing(client)
        holder, member = (AsyncRedisTokenStore(it, key=KEY) for it in (client, losing))
        await member.save(fresh("old"))
        losing.loses = True
        with pytest.raises(StoreError):
            await member.save(fresh("new"))
        losing.loses = False
        async with holder.lock():
            with pytest.raises(StoreError, match="held for over"):
                async with member.lock():
                    raise AssertionError


def aged(token: Token) -> Token:
    """Make it old, if it ends soon: half of its life is over."""
    if token.expires_at is None or token.issued_at is None:
        return token
    ends_soon = token.expires_at - datetime.now(UTC) < timedelta(minutes=1)
    earlier = token.issued_at - timedelta(minutes=1)
    return attrs.evolve(token, issued_at=earlier) if ends_soon else token


@pytest.mark.parametrize("what", ["load", "save", "delete"])
async def test_block_that_goes_on_has_the_lock(server: RedisServer, what: str) -> None:
    """A block that acts after it has read another's new token keeps all others out."""
    async with async_redis_client(server.port) as client:
        counting = AsyncCounting(client)
        holder, member = (AsyncRedisTokenStore(it, key=KEY) for it in (client, counting))
        await member.save(fresh("old"))
        counting.scripts.clear()
        inside, gate = Gate(), Gate()

        async def hold() -> None:
            async with holder.lock():
                await holder.save(fresh("new"))
                await async_pass_through(inside)

        async def go_on() -> None:
            async with member.lock():
                assert await member.load() is not None
                if what == "save":
                    await member.save(fresh("newer"))
                elif what == "delete":
                    await member.delete()
                else:
                    assert await member.load() is not None
                await async_pass_through(gate)

        async with AsyncBackground() as background:
            background.start(hold)
            await async_arrived(inside)
            background.start(go_on)
            await async_until(lambda: counting.scripts.count(LOCK) == 2)
            inside.open()
            await async_arrived(gate)
            assert await client.hexists(KEY, "owner")
            gate.open()
        assert not await client.hexists(KEY, "owner")
        assert counting.scripts[-1] == UNLOCK


async def test_lock_that_is_held_is_asked_for_less_and_less_often(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses double, so that a fleet that waits is no load."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(settings(), "async_sleep", pause)
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        async with store.lock():
            with pytest.raises(StoreError, match="held for over 10 s"):
                async with store.lock():
                    raise AssertionError
    for number, seconds in enumerate(pauses):
        usual = min(0.02 * 2**number, 0.64)
        assert usual / 2 <= seconds <= usual * 1.5
    assert sum(pauses) > 10


async def test_one_client_serves_two_hundred_sessions(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """Its pool has fewer connections than there are sessions, and none of them is told so."""
    async with async_redis_client(server.port) as client:
        stores = [AsyncRedisTokenStore(client, key=KEY) for _ in range(200)]
        await stores[0].save(fresh("a"))
        found = await async_gather(*(store.load for store in stores))
        assert {token.id for token in found if token} == {"a"}
        await async_gather(*(partial(store.save, fresh("b")) for store in stores))


@pytest.mark.parametrize(
    ("most", "count"), [(None, 50), (1, 1), (2, 1), (20, 10), (1000, 50), ("many", 50)]
)
async def test_commands_queue_for_half_of_the_clients_connections(most: Any, count: int) -> None:
    """The client serves others, too; one of a user's own has a pool or not."""
    client = SimpleNamespace(execute_command=print)
    if most is not None:
        client.connection_pool = SimpleNamespace(max_connections=most)
    stand_in: Any = client
    assert len(AsyncRedisTokenStore(stand_in, key=KEY)._lanes) == count


class AsyncLate:
    """A client to which Redis gives no lock before the gate is open."""

    def __init__(self, client: Any, gate: Gate) -> None:
        self._client = client
        self._gate = gate

    async def execute_command(self, *command: Any) -> Any:
        """Send a command, now or later."""
        if LOCK in command:
            await async_pass_through(self._gate)
        return await self._client.execute_command(*command)


async def test_lock_that_comes_too_late_is_released(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hung gives the lock to somebody who is gone: nobody waits for that lease."""
    gate = Gate()
    async with async_redis_client(server.port) as client:
        with monkeypatch.context() as patched:
            patched.setattr(settings(), "_COMMAND_TIMEOUT", 0.1)
            with pytest.raises(StoreError, match="did not answer"):
                async with AsyncRedisTokenStore(AsyncLate(client, gate), key=KEY).lock():
                    raise AssertionError
        gate.open()
        while not await client.hexists(KEY, "fence"):
            await async_sleep(0.001)
        async with AsyncRedisTokenStore(client, key=KEY).lock():
            pass


async def test_redis_that_is_away_is_a_store_error(server: RedisServer) -> None:
    """A refused connection is a `StoreError`, for each method."""
    server.stop()
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        for use in (store.load, store.delete, lambda: store.save(Token("a"))):
            with pytest.raises(StoreError, match="ConnectionError"):
                await use()
        with pytest.raises(StoreError, match="ConnectionError"):
            async with store.lock():
                raise AssertionError


async def test_redis_that_hangs_is_a_store_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that would wait for ever is waited for no longer than is said."""
    monkeypatch.setattr(settings(), "_COMMAND_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with async_redis_client(port, socket_timeout=None) as client:
            with pytest.raises(StoreError, match="did not answer"):
                await AsyncRedisTokenStore(client, key=KEY).load()
            silent.close()  # which ends the thread that asks
            await async_idle()


@pytest.mark.parametrize(
    "arguments", [{"key": ""}, {"key": "k", "lease": 0}, {"key": "k", "lease": float("inf")}]
)
async def test_impossible_argument_is_refused(arguments: dict[str, Any]) -> None:
    """A session needs a key, and a lock a lease."""
    async with async_redis_client(1) as client:
        with pytest.raises(ValueError, match="must"):
            AsyncRedisTokenStore(client, **arguments)
        store = AsyncRedisTokenStore(client, key=KEY)
        assert repr(store).endswith("(key='session')")
        with pytest.raises(TypeError, match="make a client and a store in each process"):
            pickle.dumps(store)


async def test_session_that_is_not_saved_yet_is_saved_later(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """A token that Redis could not be told of is saved at the next look, unless a newer one is."""
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        session = connect(store=store)
        server.stop()
        token = await session.login("me@example.com", "correct horse")
        server.start()
        async with AsyncBackground() as background:
            kept = background.start(session.keep_current)
            while await store.load() is None:
                await async_sleep(0.01)
            await session.aclose()
            await kept.result()
        assert await store.load() == token


async def test_token_that_is_saved_late_replaces_no_newer_one(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """Others have gone on meanwhile: the token that they saved stays."""
    async with async_redis_client(server.port) as client:
        store = AsyncRedisTokenStore(client, key=KEY)
        session = connect(store=store)
        server.stop()
        token = await session.login("me@example.com", "correct horse")
        server.start()
        newer = Token(fake.issue_token(), issued_at=token.issued_at)
        await store.save(newer)
        await session.aclose()
        assert await store.load() == newer
