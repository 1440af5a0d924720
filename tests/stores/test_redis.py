"""A session on a real Redis that restarts, hangs and forgets in mid-exchange."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import pytest

from koyeb_session import SessionClient
from koyeb_session.stores import RedisTokenStore
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from .conftest import FleetClock, RedisServer
from .fleet import WITHOUT_JITTER, redis_client

KEY = "session"


@contextlib.contextmanager
def store_on(server: RedisServer) -> Generator[RedisTokenStore]:
    """Make a store with a client of its own."""
    with redis_client(server.port) as client:
        yield RedisTokenStore(client, key=KEY)
        for thread in threading.enumerate():  # one may still give the lock back
            if thread.name == "koyeb-session":
                thread.join(10)


def restart(server: RedisServer) -> None:
    """Crash it and start it again, with its data."""
    server.stop()
    server.start()


def hang(server: RedisServer) -> None:
    """Stop it from answering; connections stay open."""
    server.process.send_signal(signal.SIGSTOP)


def lose_data(server: RedisServer) -> None:
    """Empty it."""
    with redis_client(server.port) as client:
        client.flushall()


def go_away(server: RedisServer) -> None:
    """Crash it."""
    server.stop()


@pytest.mark.parametrize("fault", [restart, hang, lose_data, go_away])
def test_fault_in_mid_exchange_fails_no_request(
    redis_server: RedisServer, fleet_clock: FleetClock, fault: Any
) -> None:
    """While the token is good no request fails; when Redis is back, it is told of the new token."""
    fake = FakeKoyeb(clock=fleet_clock, token_lifetime=timedelta(hours=1))
    with (
        store_on(redis_server) as store,
        SessionClient(
            transport=fake.transport,
            clock=fleet_clock,
            refresh_policy=WITHOUT_JITTER,
            store=store,
        ) as session,
    ):
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
    with store_on(redis_server) as store:
        assert store.load() == session.token


def wait_for(happened: Any) -> None:
    """Wait until something has happened in another thread or process."""
    ends = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.005)
