# Generated from tests/_async/test_redis_store.py by .ci/generate_sync.py: edit that, not this.

"""The Redis store on real servers, Redis and Valkey."""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from koyeb_session import SessionClient, StoreError, Token
from koyeb_session._concurrency.waiting import sleep
from koyeb_session._redis import LOCK, UNLOCK
from koyeb_session.stores import RedisTokenStore
from koyeb_session.testing import FakeKoyeb, Gate, check_store

from ..concurrency import (
    Background,
    arrived,
    gather,
    idle,
    pass_through,
    until,
)
from ..stores.conftest import RedisServer, any_server, redis_server
from ..stores.fleet import redis_client

__all__ = ["any_server", "redis_server"]  # fixtures

Connect = Callable[..., SessionClient]
KEY = "session"
HOUR = 3_600_000


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """Start a Redis for one test."""
    return redis_server


def settings() -> dict[str, Any]:
    """Give the waiting times of the store, to be patched."""
    return RedisTokenStore.__init__.__globals__


def milliseconds(client: Any) -> int:
    """Read the clock of Redis."""
    seconds, micros = client.time()
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.mark.parametrize("library", ["redis", "valkey"])
def test_redis_store_does_what_a_store_has_to_do(any_server: RedisServer, library: str) -> None:
    """It passes the conformance suite on Redis and on Valkey, with the client of either."""
    with redis_client(any_server.port, library=library) as client:
        check_store(lambda: RedisTokenStore(client, key=KEY))


def test_client_that_decodes_replies_works_too(server: RedisServer) -> None:
    """What the user's client makes of a reply, bytes or text, does not matter."""
    with redis_client(server.port, decode_responses=True) as client:
        check_store(lambda: RedisTokenStore(client, key=KEY))


def test_key_lives_as_long_as_the_token(server: RedisServer) -> None:
    """The key goes an hour after its token or a lock; it stays when the expiry is unknown."""
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY, lease=5)
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


@pytest.mark.parametrize("newer", [Token("newer"), None])
def test_late_writer_cannot_overwrite_what_came_after_it(
    server: RedisServer, newer: Token | None
) -> None:
    """Who outlived its lease brings back neither an older token nor a session that was left."""
    with redis_client(server.port) as client:
        slow = RedisTokenStore(client, key=KEY, lease=0.05)
        other = RedisTokenStore(client, key=KEY)

        def go_on() -> None:
            with other.lock():  # once the lease is over
                if newer is None:
                    other.delete()
                else:
                    other.save(newer)

        with slow.lock(), Background() as background:
            background.start(go_on).result()
            with pytest.raises(StoreError, match="newer token"):
                slow.save(Token("older"))
        assert other.load() == newer


@pytest.mark.parametrize("deletes", [False, True])
def test_late_writer_is_late_also_when_redis_has_lost_its_data(
    server: RedisServer, *, deletes: bool
) -> None:
    """Fencing values go on growing, and a logout is remembered, though all else is forgotten."""
    with redis_client(server.port) as client:
        slow, other = (RedisTokenStore(client, key=KEY) for _ in range(2))
        with slow.lock(), Background() as background:
            # Fencing values have their time from Redis: the next one is to be a later one.
            locked = milliseconds(client)
            while milliseconds(client) == locked:
                pass
            client.flushall()

            def go_on() -> None:
                with other.lock():
                    other.save(Token("newer"))

            background.start(other.delete if deletes else go_on).result()
            with pytest.raises(StoreError, match="newer token"):
                slow.save(Token("older"))
        assert other.load() == (None if deletes else Token("newer"))


def test_tokens_are_saved_after_redis_has_lost_its_data(server: RedisServer) -> None:
    """Who saves first after the loss, in the middle of an exchange, makes nobody late."""
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        for number in range(3):
            with store.lock():
                store.save(Token(f"before {number}"))
        with store.lock():
            client.flushall()
            store.save(Token("amid"))
        with store.lock():
            store.save(Token("after"))
        assert store.load() == Token("after")


def test_record_that_cannot_be_read_is_passed_over(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program's record under the key is nothing, with a warning."""
    with redis_client(server.port) as client:
        client.hset(KEY, "record", "?")
        assert RedisTokenStore(client, key=KEY).load() is None
    assert "passed over" in caplog.text


def test_lock_that_is_held_for_too_long_is_a_store_error(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for somebody else's renewal ends."""
    monkeypatch.setitem(settings(), "_PATIENCE", 0.05)
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        with store.lock():
            with pytest.raises(StoreError, match="held for over"):
                with store.lock():
                    raise AssertionError


def test_lock_that_could_not_be_given_back_is_taken_over(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder need not wait for its own lease when Redis is back; others do."""
    monkeypatch.setitem(settings(), "_PATIENCE", 0.05)
    with redis_client(server.port) as client:
        store, other = (RedisTokenStore(client, key=KEY) for _ in range(2))
        with store.lock():
            server.stop()
        server.start()
        with pytest.raises(StoreError, match="held for over"):
            with other.lock():
                raise AssertionError
        with store.lock():
            store.save(Token("a"))
        with other.lock():
            assert other.load() == Token("a")


class Counting:
    """A client that counts the commands that are under way, and the scripts that were sent."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.scripts: list[str] = []

    def execute_command(self, *command: Any) -> Any:
        """Send a command."""
        self.scripts += [command[1]] if command[0] == "EVAL" else []
        return self._client.execute_command(*command)


def fresh(token_id: str, **fields: Any) -> Token:
    """Make a token that was issued just now."""
    now = datetime.now(UTC)
    token = Token(token_id, expires_at=now + timedelta(hours=1), issued_at=now)
    return attrs.evolve(token, **fields)


def test_new_token_is_taken_over_without_the_lock(server: RedisServer) -> None:
    """Members of a fleet that wait for a renewal do not queue to read what it brought."""
    old, new = fresh("old"), fresh("new")
    with redis_client(server.port) as client:
        counting = Counting(client)
        holder, member = (RedisTokenStore(it, key=KEY) for it in (client, counting))
        holder.save(old)
        assert member.load() == old
        with holder.lock():
            holder.save(new)
            with member.lock():
                assert member.load() == new
            assert counting.scripts == [LOCK]
        with member.lock():  # from now on it has to be locked to be exchanged
            assert member.load() == new
            assert client.hexists(KEY, "owner")
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
def test_token_that_may_be_exchanged_is_read_under_the_lock(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, new: Token | None
) -> None:
    """Another account's, or one that is due itself, or none, is no reason to go ahead."""
    monkeypatch.setitem(settings(), "_PATIENCE", 0.05)
    with redis_client(server.port) as client:
        holder, member = (RedisTokenStore(client, key=KEY) for _ in range(2))
        member.save(fresh("old", expires_at=datetime.now(UTC) + timedelta(hours=1)))
        with holder.lock():
            if new is None:
                holder.delete()
            else:
                holder.save(aged(new))
            with pytest.raises(StoreError, match="held for over"):
                with member.lock():
                    raise AssertionError


def aged(token: Token) -> Token:
    """Make it old, if it ends soon: half of its life is over."""
    if token.expires_at is None or token.issued_at is None:
        return token
    ends_soon = token.expires_at - datetime.now(UTC) < timedelta(minutes=1)
    earlier = token.issued_at - timedelta(minutes=1)
    return attrs.evolve(token, issued_at=earlier) if ends_soon else token


@pytest.mark.parametrize("what", ["load", "save", "delete"])
def test_block_that_goes_on_has_the_lock(server: RedisServer, what: str) -> None:
    """What a block does after it has read another's new token keeps all others out."""
    with redis_client(server.port) as client:
        counting = Counting(client)
        holder, member = (RedisTokenStore(it, key=KEY) for it in (client, counting))
        member.save(fresh("old"))
        counting.scripts.clear()
        inside, gate = Gate(), Gate()

        def hold() -> None:
            with holder.lock():
                holder.save(fresh("new"))
                pass_through(inside)

        def go_on() -> None:
            with member.lock():
                assert member.load() is not None
                if what == "save":
                    member.save(fresh("newer"))
                elif what == "delete":
                    member.delete()
                else:
                    assert member.load() is not None
                pass_through(gate)

        with Background() as background:
            background.start(hold)
            arrived(inside)
            background.start(go_on)
            until(lambda: counting.scripts.count(LOCK) == 2)
            inside.open()
            arrived(gate)
            assert client.hexists(KEY, "owner")
            gate.open()
        assert not client.hexists(KEY, "owner")
        assert counting.scripts[-1] == UNLOCK


def test_lock_that_is_held_is_asked_for_less_and_less_often(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses double, so that a fleet that waits is no load."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setitem(settings(), "sleep", pause)
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        with store.lock():
            with pytest.raises(StoreError, match="held for over 10 s"):
                with store.lock():
                    raise AssertionError
    for number, seconds in enumerate(pauses):
        usual = min(0.02 * 2**number, 0.64)
        assert usual / 2 <= seconds <= usual * 1.5
    assert sum(pauses) > 10


def test_one_client_serves_two_hundred_sessions(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """Its pool has fewer connections than there are sessions, and none of them is told so."""
    with redis_client(server.port) as client:
        stores = [RedisTokenStore(client, key=KEY) for _ in range(200)]
        stores[0].save(fresh("a"))
        found = gather(*(store.load for store in stores))
        assert {token.id for token in found if token} == {"a"}
        gather(*(partial(store.save, fresh("b")) for store in stores))


@pytest.mark.parametrize(
    ("most", "count"), [(None, 50), (1, 1), (2, 1), (20, 10), (1000, 50), ("many", 50)]
)
def test_commands_queue_for_half_of_the_clients_connections(most: Any, count: int) -> None:
    """The client serves others, too; one of a user's own has a pool or not."""
    client = SimpleNamespace(execute_command=print)
    if most is not None:
        client.connection_pool = SimpleNamespace(max_connections=most)
    stand_in: Any = client
    assert len(RedisTokenStore(stand_in, key=KEY)._lanes) == count


class Late:
    """A client to which Redis gives no lock before the gate is open."""

    def __init__(self, client: Any, gate: Gate) -> None:
        self._client = client
        self._gate = gate

    def execute_command(self, *command: Any) -> Any:
        """Send a command, now or later."""
        if LOCK in command:
            pass_through(self._gate)
        return self._client.execute_command(*command)


def test_lock_that_comes_too_late_is_given_back(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that hung gives the lock to somebody who is gone: nobody waits for that lease."""
    gate = Gate()
    with redis_client(server.port) as client:
        with monkeypatch.context() as patched:
            patched.setitem(settings(), "_COMMAND_TIMEOUT", 0.1)
            with pytest.raises(StoreError, match="did not answer"):
                with RedisTokenStore(Late(client, gate), key=KEY).lock():
                    raise AssertionError
        gate.open()
        while not client.hexists(KEY, "fence"):
            sleep(0.001)
        with RedisTokenStore(client, key=KEY).lock():
            pass


def test_redis_that_is_away_is_a_store_error(server: RedisServer) -> None:
    """A refused connection is a `StoreError`, whatever was to be done."""
    server.stop()
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        for use in (store.load, store.delete, lambda: store.save(Token("a"))):
            with pytest.raises(StoreError, match="ConnectionError"):
                use()
        with pytest.raises(StoreError, match="ConnectionError"):
            with store.lock():
                raise AssertionError


def test_redis_that_hangs_is_a_store_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that would wait for ever is waited for no longer than is said."""
    monkeypatch.setitem(settings(), "_COMMAND_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with redis_client(port, socket_timeout=None) as client:
            with pytest.raises(StoreError, match="did not answer"):
                RedisTokenStore(client, key=KEY).load()
            silent.close()  # which ends the thread that asks
            idle()


@pytest.mark.parametrize(
    "arguments", [{"key": ""}, {"key": "k", "lease": 0}, {"key": "k", "lease": float("inf")}]
)
def test_impossible_argument_is_refused(arguments: dict[str, Any]) -> None:
    """A session needs a key, and a lock a lease."""
    with redis_client(1) as client:
        with pytest.raises(ValueError, match="must"):
            RedisTokenStore(client, **arguments)
        store = RedisTokenStore(client, key=KEY)
        assert repr(store).endswith("(key='session')")
        with pytest.raises(TypeError, match="make a client and a store in each process"):
            pickle.dumps(store)


def test_session_that_is_not_saved_yet_is_saved_later(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """A token that Redis could not be told of is saved at the next look, unless a newer one is."""
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        session = connect(store=store)
        server.stop()
        token = session.login("me@example.com", "correct horse")
        server.start()
        with Background() as background:
            kept = background.start(session.keep_current)
            while store.load() is None:
                sleep(0.01)
            session.close()
            kept.result()
        assert store.load() == token


def test_token_that_is_saved_late_replaces_no_newer_one(
    server: RedisServer, connect: Connect, fake: FakeKoyeb
) -> None:
    """Others have gone on meanwhile: what they have saved stays."""
    with redis_client(server.port) as client:
        store = RedisTokenStore(client, key=KEY)
        session = connect(store=store)
        server.stop()
        token = session.login("me@example.com", "correct horse")
        server.start()
        newer = Token(fake.issue_token(), issued_at=token.issued_at)
        store.save(newer)
        session.close()
        assert store.load() == newer
