"""The Redis store on a real server that restarts, hangs and forgets."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from koyeb_session import SessionClient, StoreError, Token
from koyeb_session.stores import AsyncRedisTokenStore, RedisTokenStore
from koyeb_session.testing import FakeKoyeb, Fault, Gate, async_check_store, check_store

from .conftest import FleetClock, RedisServer
from .fleet import WITHOUT_JITTER, redis_client

KEY = "session"
HOUR = 3_600_000


@pytest.fixture
def anyio_backend() -> str:
    """Redis's own client runs on asyncio alone."""
    return "asyncio"


def store_on(server: RedisServer, **options: Any) -> RedisTokenStore:
    """Make a store with a client of its own."""
    return RedisTokenStore(redis_client(server.port, asynchronous=False), key=KEY, **options)


def test_redis_store_does_what_a_store_has_to_do(redis_server: RedisServer) -> None:
    """The blocking store passes the conformance suite."""
    check_store(lambda: store_on(redis_server))


async def test_async_redis_store_does_what_a_store_has_to_do(redis_server: RedisServer) -> None:
    """The async store passes the conformance suite."""
    async with redis_client(redis_server.port, asynchronous=True) as client:
        await async_check_store(lambda: AsyncRedisTokenStore(client, key=KEY))


def test_client_that_decodes_replies_works_too(redis_server: RedisServer) -> None:
    """What the user's client makes of a reply, bytes or text, does not matter."""
    client = redis_client(redis_server.port, asynchronous=False, decode_responses=True)
    check_store(lambda: RedisTokenStore(client, key=KEY))


def test_key_lives_as_long_as_the_token(redis_server: RedisServer) -> None:
    """The key goes an hour after its token or a lock; it stays when the expiry is unknown."""
    client = redis_client(redis_server.port, asynchronous=False)
    store = store_on(redis_server, lease=5)
    with store.lock():
        assert HOUR < client.pttl(KEY) <= HOUR + 5_000
    store.save(Token("a", expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert 2 * HOUR - 10_000 < client.pttl(KEY) <= 2 * HOUR
    with store.lock():
        assert client.pttl(KEY) > HOUR + 5_000
    store.save(Token("a"))
    assert client.pttl(KEY) == -1
    with store.lock():
        assert client.pttl(KEY) == -1
    store.delete()
    assert HOUR < client.pttl(KEY) <= HOUR + 5_000
    assert client.keys() == [KEY.encode()]


def test_late_writer_cannot_overwrite_a_newer_token(redis_server: RedisServer) -> None:
    """A holder that outlived its lease is told so, and neither its token nor its unlock counts."""
    slow, quick = store_on(redis_server, lease=0.05), store_on(redis_server, lease=30)
    with slow.lock(), contextlib.ExitStack() as stack:
        with concurrently():
            stack.enter_context(quick.lock())  # once the lease is over
            quick.save(Token("newer"))
        with pytest.raises(StoreError, match="newer token"):
            slow.save(Token("older"))
    assert quick.load() == Token("newer")


@contextlib.contextmanager
def concurrently() -> Generator[None]:
    """Stand for another process: what it holds is no part of this context."""
    from koyeb_session._sync import redis_store

    before = redis_store._held.get()
    try:
        yield
    finally:
        redis_store._held.set(before)


def test_late_writer_cannot_bring_back_a_deleted_session(redis_server: RedisServer) -> None:
    """After a logout a holder of an older lock saves in vain."""
    slow, other = store_on(redis_server, lease=0.05), store_on(redis_server)
    with slow.lock():
        with concurrently(), other.lock():
            other.delete()
        with pytest.raises(StoreError, match="newer token"):
            slow.save(Token("older"))
    assert other.load() is None


def test_record_that_cannot_be_read_is_passed_over(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's record under the key is nothing, with a warning."""
    redis_client(redis_server.port, asynchronous=False).hset(KEY, "record", "?")
    assert store_on(redis_server).load() is None
    assert "passed over" in caplog.text


def test_lock_that_is_held_for_too_long_is_a_store_error(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for somebody else's renewal ends."""
    monkeypatch.setattr("koyeb_session._sync.redis_store._PATIENCE", 0.05)
    with (
        store_on(redis_server).lock(),
        pytest.raises(StoreError, match="held for over"),
        store_on(redis_server).lock(),
    ):
        raise AssertionError


def test_redis_that_is_away_is_a_store_error(redis_server: RedisServer) -> None:
    """A refused connection is a `StoreError`, at once."""
    redis_server.stop()
    began = time.monotonic()
    with pytest.raises(StoreError, match="ConnectionError"):
        store_on(redis_server).load()
    assert time.monotonic() - began < 5


def test_redis_that_hangs_is_a_store_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a client without any timeout of its own waits for a bounded time."""
    import redis

    monkeypatch.setattr("koyeb_session._sync.redis_store._COMMAND_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client: Any = redis.Redis(port=silent.getsockname()[1], socket_timeout=None)
        with pytest.raises(StoreError, match="did not answer"):
            RedisTokenStore(client, key=KEY).load()
    for thread in threading.enumerate():
        if thread.name == "koyeb-session":
            thread.join(5)


@pytest.mark.parametrize("arguments", [{"key": ""}, {"key": "k", "lease": 0}])
def test_impossible_argument_is_refused(arguments: dict[str, Any]) -> None:
    """A session needs a key, and a lock a lease."""
    with pytest.raises(ValueError, match="must"):
        RedisTokenStore(redis_client(1, asynchronous=False), **arguments)


def test_repr_says_which_session(redis_server: RedisServer) -> None:
    """The key shows, and no secret."""
    assert repr(store_on(redis_server)) == "RedisTokenStore(key='session')"


def restart(server: RedisServer) -> None:
    """Crash it and start it again, with its data."""
    server.stop()
    server.start()


def hang(server: RedisServer) -> None:
    """Stop it from answering; connections stay open."""
    server.process.send_signal(signal.SIGSTOP)


def lose_data(server: RedisServer) -> None:
    """Empty it."""
    redis_client(server.port, asynchronous=False).flushall()


def go_away(server: RedisServer) -> None:
    """Crash it."""
    server.stop()


@pytest.mark.parametrize("fault", [restart, hang, lose_data, go_away])
def test_fault_in_mid_exchange_fails_no_request(
    redis_server: RedisServer, fleet_clock: FleetClock, fault: Any
) -> None:
    """While the token is good no request fails; when Redis is back, it is told of the new token."""
    fake = FakeKoyeb(clock=fleet_clock, token_lifetime=timedelta(hours=1))
    session = SessionClient(
        transport=fake.transport,
        clock=fleet_clock,
        refresh_policy=WITHOUT_JITTER,
        store=store_on(redis_server),
    )
    with session:
        first = session.login("me@example.com", "correct horse")
        gate = Gate()
        fake.fail("refresh", Fault(gate=gate))
        fleet_clock.advance(timedelta(minutes=40))
        assert session.http.get("/v1/apps").status_code == 200  # and begins the exchange
        gate.wait_arrived()
        fault(redis_server)
        gate.open()
        for _ in range(20):
            assert session.http.get("/v1/apps").status_code == 200
        wait_for(lambda: session.token != first)
        for _ in range(20):
            assert session.http.get("/v1/apps").status_code == 200
        session._keeper.drain()
        if fault is hang:
            redis_server.process.send_signal(signal.SIGCONT)
        elif fault is go_away:
            redis_server.start()
        wait_for(redis_server.answers)
    assert fake.exchanges() == 1
    assert store_on(redis_server).load() == session.token


def wait_for(happened: Any) -> None:
    """Wait until something has happened in another thread or process."""
    ends = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.005)
