"""Many processes share one session: each token is exchanged once, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from koyeb_session import PasswordCredentials, SessionClient, SessionExpiredError
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeKoyeb

from .conftest import SOAK, FleetClock, RedisServer, Worker
from .fleet import opened

PROCESSES = 8
EXPIRIES = 10
REQUESTS = 50
KILLS = {"file": 200 if SOAK else 8, "redis": 200 if SOAK else 4}
LEASE = 1.0
"""Seconds; far longer than an exchange takes here."""
LIFETIME = timedelta(hours=1)


@contextlib.contextmanager
def processes(options: dict[str, Any], count: int = PROCESSES) -> Generator[list[Worker]]:
    """Start a fleet, and end it whatever happens."""
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(options))  # noqa: PERF401 - those that have started are ended
        yield workers
    finally:
        for worker in workers:
            worker.end()


def cross_expiries(clock: FleetClock, options: dict[str, Any]) -> None:
    """Have eight processes make 50 requests each across ten expiries; check the exchanges."""
    fake = FakeKoyeb(clock=clock, token_lifetime=LIFETIME)
    with fake.serve() as url:
        options |= {"url": url, "clock": str(clock.path)}
        with opened(options) as (first, _):
            first.login("me@example.com", "correct horse")
        with processes(options) as fleet:
            for _ in range(EXPIRIES):
                # Half a minute is left: in the hard window, where everybody waits for a new one.
                clock.advance(LIFETIME - timedelta(seconds=30))
                for worker in fleet:
                    worker.ask(REQUESTS // EXPIRIES)
                for worker in fleet:
                    assert json.loads(worker.told()) == []
        assert fake.exchanges() == EXPIRIES
        served = [request.status for request in fake.requests if request.operation == "apps"]
        assert served.count(200) == PROCESSES * REQUESTS
        assert [r.operation for r in fake.requests].count("login") == 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["blocking", "two_loops"] if SOAK else ["blocking"])
def test_fleet_on_a_file_exchanges_each_token_once(
    tmp_path: Path, fleet_clock: FleetClock, role: str
) -> None:
    """Eight processes x 50 requests across ten expiries: ten exchanges and no failed request."""
    cross_expiries(fleet_clock, {"role": role, "file": str(tmp_path / "session.json")})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["blocking", "two_loops"] if SOAK else ["two_loops"])
def test_fleet_on_redis_exchanges_each_token_once(
    tmp_path: Path, fleet_clock: FleetClock, redis_server: RedisServer, role: str
) -> None:
    """The same on Redis, also with two event loops in each process."""
    cross_expiries(fleet_clock, {"role": role, "redis": redis_server.port})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("where", "survives"),
    [
        ("file", "keeps"),
        ("redis", "credentials"),
        *([("file", "credentials"), ("redis", "keeps")] if SOAK else []),
    ],
)
def test_session_survives_kills(
    tmp_path: Path,
    fleet_clock: FleetClock,
    request: pytest.FixtureRequest,
    where: str,
    survives: str,
) -> None:
    """Processes are killed while they exchange and save; the store loads, the session goes on."""
    options: dict[str, Any] = {
        "role": "renewing",
        "lease": LEASE,
        "clock": str(fleet_clock.path),
        "credentials": survives == "credentials",
    }
    if where == "file":
        options["file"] = str(tmp_path / "session.json")
    else:
        options["redis"] = request.getfixturevalue("redis_server").port
    fake = FakeKoyeb(clock=fleet_clock, refresh="keeps" if survives == "keeps" else "revokes")
    chance = random.Random(4)  # noqa: S311 - which one to kill, and when
    with fake.serve() as url:
        options["url"] = url
        with opened(options) as (first, store):
            first.login("me@example.com", "correct horse")
            with processes(options, 3) as fleet:
                for worker in fleet:
                    assert worker.told() == "ready\n"
                for _ in range(KILLS[where]):
                    time.sleep(chance.random() / 50)  # somewhere in an exchange or a save
                    victim = chance.randrange(len(fleet))
                    fleet[victim].end()
                    fleet[victim] = Worker(options)
                    assert store.load() is not None
                    while fleet[victim].told() != "ready\n":
                        pass  # that it starts slowly is no fault of the lock
                    started, before = time.monotonic(), fake.exchanges()
                    while fake.exchanges() == before:
                        assert time.monotonic() - started < LEASE + 5, (
                            "a dead process holds the lock"
                        )
                        time.sleep(0.005)
        with opened(options) as (last, _):
            assert last.http.get("/v1/apps").status_code == 200
            last.refresh()


def test_kill_between_exchange_and_save_ends_a_session_without_credentials(
    tmp_path: Path, fleet_clock: FleetClock
) -> None:
    """What a revoking service handed to a process that died is lost: that is said, not hidden."""
    fake = FakeKoyeb(clock=fleet_clock)
    store = FileTokenStore(tmp_path / "session.json")
    with SessionClient(transport=fake.transport, clock=fleet_clock, store=store) as session:
        token = session.login("me@example.com", "correct horse")
        session.refresh()
    store.save(token)  # as if the process had died before it saved the new one
    with SessionClient(transport=fake.transport, clock=fleet_clock, store=store) as session:
        assert session.current_token() == token
        with pytest.raises(SessionExpiredError):
            session.refresh()
    credentials = PasswordCredentials("me@example.com", "correct horse")
    with SessionClient(
        transport=fake.transport, clock=fleet_clock, store=store, credentials=credentials
    ) as session:
        assert session.http.get("/v1/apps").status_code == 200
