"""The Redis store on real servers, Redis and Valkey."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, TypeAlias

import attrs
import pytest

from koyeb_session import AsyncSessionClient, StoreError, Token
from koyeb_session._concurrency.event_loop.waiting import async_sleep
from koyeb_session._core.deadline import PATIENCE as DEADLINES
from koyeb_session._storage.redis_scripts import LOCK, UNLOCK
from koyeb_session.stores import AsyncRedisTokenStore
from koyeb_session.testing import Gate, async_check_store

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_pass_through,
    async_until,
)
from ..stores.conftest import RedisServer, any_server, redis_server
from ..stores.fleet import async_redis_client

__all__ = ["any_server", "redis_server"]  # fixtures

KEY = "session"
HOUR = 3_600_000
Stores: TypeAlias = tuple[AsyncRedisTokenStore, AsyncRedisTokenStore]


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


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    """Make a client of the server."""
    async with async_redis_client(server.port) as client:
        yield client


@pytest.fixture
def stores(client: Any) -> Stores:
    """Make two stores of one session, as two processes have them."""
    return AsyncRedisTokenStore(client, key=KEY), AsyncRedisTokenStore(client, key=KEY)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have stores give up on a lock soon."""
    monkeypatch.setattr(settings(), "_LOCK_TIMEOUT", 0.05)


async def is_held(store: AsyncRedisTokenStore) -> None:
    """Check that somebody holds the lock, so that this store cannot have it."""
    with pytest.raises(StoreError, match="held for over"):
        async with store.lock():
            raise AssertionError


@pytest.mark.parametrize(
    "options",
    [{"library": "redis"}, {"library": "valkey"}, {"decode_responses": True}],
    ids=["redis", "valkey", "replies in text"],
)
async def test_redis_store_does_what_a_store_has_to_do(
    any_server: RedisServer, options: dict[str, Any]
) -> None:
    """It passes the conformance suite on Redis and on Valkey, with the client of either."""
    async with async_redis_client(any_server.port, **options) as client:
        await async_check_store(lambda: AsyncRedisTokenStore(client, key=KEY))


@pytest.mark.parametrize(
    "lasting",
    [Token("a"), Token("a", renewal="b", expires_at=datetime.now(UTC))],
    ids=["no expiry", "rotating secret"],
)
async def test_key_lives_as_long_as_the_token(client: Any, lasting: Token) -> None:
    """The key goes an hour after its token or a lock; it stays when no end of use is known."""
    store = AsyncRedisTokenStore(client, key=KEY, lease=5)
    async with store.lock():
        assert HOUR < await client.pttl(KEY) <= HOUR + 5_000
    await store.save(Token("a", expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert 2 * HOUR - 10_000 < await client.pttl(KEY) <= 2 * HOUR
    async with store.lock():
        assert await client.pttl(KEY) > HOUR + 5_000
    await store.save(lasting)
    assert await client.pttl(KEY) == -1
    async with store.lock():
        assert await client.pttl(KEY) == -1
    await store.delete()
    assert HOUR < await client.pttl(KEY) <= HOUR + 5_000
    assert await client.keys() == [KEY.encode()]


@pytest.mark.parametrize("newer", [Token("newer"), None])
async def test_late_writer_cannot_overwrite_what_came_after_it(
    client: Any, newer: Token | None
) -> None:
    """A holder that outlived its lease brings back neither an older token nor an ended session."""
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


@pytest.mark.parametrize("within", [False, True])
async def test_block_within_that_of_another_store_leaves_its_lock(
    client: Any, *, within: bool
) -> None:
    """A late writer is known for one during the inner block, and after it."""
    slow = AsyncRedisTokenStore(client, key=KEY, lease=0.05)
    other = AsyncRedisTokenStore(client, key=KEY)

    async def go_on() -> None:
        async with other.lock():  # once the lease is over
            await other.save(Token("newer"))

    async def save_late() -> None:
        with pytest.raises(StoreError, match="newer token"):
            await slow.save(Token("older"))

    async with slow.lock(), AsyncBackground() as background:
        async with AsyncRedisTokenStore(client, key="another").lock():
            await background.start(go_on).result()
            if within:
                await save_late()
        await save_late()


@pytest.mark.parametrize("deletes", [False, True])
async def test_late_writer_is_late_also_when_redis_has_lost_its_data(
    client: Any, stores: Stores, *, deletes: bool
) -> None:
    """Fencing values go on growing, and a logout is remembered, though all else is forgotten."""
    slow, other = stores

    async def go_on() -> None:
        async with other.lock():
            await other.save(Token("newer"))

    async with slow.lock(), AsyncBackground() as background:
        # Fencing values have their time from Redis: the next one is to be a later one.
        locked = await milliseconds(client)
        while await milliseconds(client) == locked:
            pass
        await client.flushall()
        await background.start(other.delete if deletes else go_on).result()
        with pytest.raises(StoreError, match="newer token"):
            await slow.save(Token("older"))
    assert await other.load() == (None if deletes else Token("newer"))


async def test_tokens_are_saved_after_redis_has_lost_its_data(client: Any, stores: Stores) -> None:
    """The first save after the loss, in the middle of an exchange, makes no writer late."""
    store, _ = stores
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
    client: Any, stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged record is nothing, with a warning, and is replaced."""
    await client.hset(KEY, "record", '{"format": "koyeb-session", "vers')
    assert await stores[0].load() is None
    assert "passed over" in caplog.text
    await stores[0].save(Token("a"))
    assert await stores[0].load() == Token("a")


@pytest.mark.parametrize(
    ("command", "loads"),
    [
        (("HSET", KEY, "record", "their only copy"), False),
        (("HSET", KEY, "theirs", "their only copy"), True),
        (("SET", KEY, "their only copy"), False),
    ],
)
async def test_key_of_another_program_is_left_as_it_is(
    client: Any, stores: Stores, command: tuple[str, ...], *, loads: bool
) -> None:
    """No field is replaced, none is added, and the key does not expire."""
    await client.execute_command(*command)
    before = await client.dump(KEY)
    store, _ = stores
    refused = f"^the key {KEY} holds no session, and is left as it is: give another key$"
    with pytest.raises(StoreError, match=refused):
        await store.save(Token("a"))
    with pytest.raises(StoreError, match=refused):
        async with store.lock():
            raise AssertionError
    if not loads:
        with pytest.raises(StoreError, match=refused):
            await store.load()
    await store.delete()  # there is no token
    assert await client.dump(KEY) == before
    assert await client.pttl(KEY) == -1


def test_lease_outlasts_the_longest_renewal() -> None:
    """Catches a second use of a one-time secret, by a process that took over the lock."""
    lease = inspect.signature(AsyncRedisTokenStore).parameters["lease"].default
    timeout = inspect.signature(AsyncSessionClient).parameters["timeout"].default
    saves = 3 * vars(settings())["_COMMAND_TIMEOUT"]
    assert lease > DEADLINES * timeout + saves


async def test_lock_that_could_not_be_released_is_taken_over(
    server: RedisServer, stores: Stores, impatient: None
) -> None:
    """Its holder need not wait for its own lease when Redis is back; others do."""
    store, other = stores
    async with store.lock():
        await is_held(store)  # it is a lock for its own store, too
        server.stop()
    server.start()
    await is_held(other)
    async with store.lock():
        await store.save(Token("a"))
    async with other.lock():
        assert await other.load() == Token("a")


async def test_lock_is_released_when_all_connections_are_in_use(
    client: Any, stores: Stores, watched: WatchedStore
) -> None:
    """A pool raises at once when it is exhausted: nobody waits for that lease."""
    watching, store = watched
    async with store.lock():
        watching.refuses = 1
    assert watching.scripts == [LOCK, UNLOCK, UNLOCK]
    assert not await client.hexists(KEY, "owner")
    async with stores[1].lock():
        pass


async def test_command_whose_reply_is_lost_may_be_sent_again(
    client: Any, watched: WatchedStore, impatient: None
) -> None:
    """The block has the lock that it took the first time; nobody waits for that lease."""
    watching, store = watched
    watching.repeats = True
    async with store.lock():
        await store.save(Token("a"))
        assert await store.load() == Token("a")
        await store.delete()
    assert watching.scripts.count(LOCK) == 1
    assert not await client.hexists(KEY, "owner")


class AsyncWatched:
    """A client that notes the scripts that were sent; it may hang at a lock, or lose replies."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.scripts: list[str] = []
        self.gate: Gate | None = None
        self.loses = False
        self.repeats = False
        """Whether it sends each command twice, as redis-py does when a reply is lost."""
        self.refuses = 0
        """The number of commands for which its pool has no connection left."""

    async def execute_command(self, *command: Any) -> Any:
        """Send a command, now or later."""
        self.scripts += [command[1]] if command[0] == "EVAL" else []
        if self.gate is not None and LOCK in command:
            await async_pass_through(self.gate)
        if self.refuses:
            self.refuses -= 1
            raise ConnectionError("Too many connections")
        if self.repeats:
            await self._client.execute_command(*command)
        reply = await self._client.execute_command(*command)
        if self.loses:
            raise ConnectionError
        return reply


WatchedStore: TypeAlias = tuple[AsyncWatched, AsyncRedisTokenStore]


@pytest.fixture
def watched(client: Any) -> WatchedStore:
    """Make a client that is watched, and a store on it."""
    watched = AsyncWatched(client)
    return watched, AsyncRedisTokenStore(watched, key=KEY)


def fresh(token_id: str, **fields: Any) -> Token:
    """Make a token that was issued just now."""
    now = datetime.now(UTC)
    token = Token(token_id, expires_at=now + timedelta(hours=1), issued_at=now)
    return attrs.evolve(token, **fields)


async def test_new_token_is_taken_over_without_the_lock(
    client: Any, stores: Stores, watched: WatchedStore
) -> None:
    """Members of a fleet that wait for a renewal do not queue to read its token."""
    old, new = fresh("old"), fresh("new")
    (holder, _), (counting, member) = stores, watched
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
        fresh("new", issued_at=datetime.now(UTC) - timedelta(hours=2)),
        Token("new", issued_at=datetime.now(UTC)),
        Token("new", expires_at=datetime.now(UTC) + timedelta(hours=1)),
        None,
    ],
)
async def test_token_that_may_be_exchanged_is_read_under_the_lock(
    stores: Stores, impatient: None, new: Token | None
) -> None:
    """Another account's, or one that is due itself, or none, is no reason to go ahead."""
    holder, member = stores
    await member.save(fresh("old", expires_at=datetime.now(UTC) + timedelta(hours=1)))
    async with holder.lock():
        if new is None:
            await holder.delete()
        else:
            await holder.save(new)
        await is_held(member)


async def test_token_of_a_save_without_a_reply_is_read_under_the_lock(
    stores: Stores, watched: WatchedStore, impatient: None
) -> None:
    """The record may be the store's own: the holder of the lock may be exchanging that token."""
    (holder, _), (losing, member) = stores, watched
    await member.save(fresh("old"))
    losing.loses = True
    with pytest.raises(StoreError):
        await member.save(fresh("new"))
    losing.loses = False
    async with holder.lock():
        await is_held(member)


@pytest.mark.parametrize("what", ["load", "save", "delete"])
async def test_block_that_goes_on_has_the_lock(
    client: Any, stores: Stores, watched: WatchedStore, what: str
) -> None:
    """A block that acts after it has read another's new token keeps all others out."""
    (holder, _), (counting, member) = stores, watched
    await member.save(fresh("old"))
    counting.scripts.clear()
    inside, gate = Gate(), Gate()
    acts: dict[str, Any] = {"load": member.load, "save": partial(member.save, fresh("newer"))}

    async def hold() -> None:
        async with holder.lock():
            await holder.save(fresh("new"))
            await async_pass_through(inside)

    async def go_on() -> None:
        async with member.lock():
            assert await member.load() is not None
            found = await acts.get(what, member.delete)()
            assert what != "load" or found is not None
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
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses double, so that a fleet that waits is no load."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(settings(), "async_sleep", pause)
    async with stores[0].lock():
        with pytest.raises(StoreError, match="held for over 10 s"):
            async with stores[0].lock():
                raise AssertionError
    for number, seconds in enumerate(pauses):
        usual = min(0.02 * 2**number, 0.64)
        assert usual / 2 <= seconds <= usual * 1.5
    assert sum(pauses) > 10


async def test_one_client_serves_two_hundred_sessions(client: Any) -> None:
    """Its pool has fewer connections than there are sessions, and none of them is told so."""
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


async def test_lock_that_comes_too_late_is_released(
    client: Any, stores: Stores, watched: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hung gives the lock to somebody who is gone: nobody waits for that lease."""
    hanging, store = watched
    hanging.gate = gate = Gate()
    with monkeypatch.context() as patched:
        patched.setattr(settings(), "_COMMAND_TIMEOUT", 0.1)
        with pytest.raises(StoreError, match="did not answer"):
            async with store.lock():
                raise AssertionError
    gate.open()
    while not await client.hexists(KEY, "fence"):
        await async_sleep(0.001)
    async with stores[0].lock():
        pass


async def test_redis_that_is_away_is_a_store_error(server: RedisServer, stores: Stores) -> None:
    """A refused connection is a `StoreError`, for each method."""
    server.stop()
    store, _ = stores
    for use in (store.load, store.delete, lambda: store.save(Token("a"))):
        with pytest.raises(StoreError, match="ConnectionError"):
            await use()
    with pytest.raises(StoreError, match="ConnectionError"):
        async with store.lock():
            raise AssertionError


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
