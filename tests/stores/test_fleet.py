"""
Many processes share one session: each token is exchanged once, even if processes die.

A few here; the long form has eight processes that make 50 requests each, across ten expiries.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from koyeb_session.testing import FakeKoyeb

from ..soak import SOAK
from ..support import count as count_of
from .conftest import FleetClock, RedisServer, Worker
from .fleet import opened

PROCESSES = 8 if SOAK else 4
EXPIRIES = 10 if SOAK else 3
REQUESTS = 50 if SOAK else 9
LIFETIME = timedelta(hours=1)

Record = Callable[[str, object], None]


@contextlib.contextmanager
def processes(options: dict[str, Any], count: int = PROCESSES) -> Generator[list[Worker]]:
    """Start a fleet, and end it in any case."""
    workers: list[Worker] = []
    try:
        for _ in range(count):
            workers.append(Worker(options))  # noqa: PERF401 - those that have started are ended
        yield workers
    finally:
        for worker in workers:
            worker.end()


def cross_expiries(clock: FleetClock, options: dict[str, Any]) -> str:
    """Have processes make requests across expiries; say what it took."""
    failed: list[str] = []
    fake = FakeKoyeb(clock=clock, token_lifetime=LIFETIME)
    with fake.serve() as url:
        options |= {"url": url, "clock": str(clock.path)}
        with opened(options) as (first, _):
            first.login("me@example.com", "correct horse")
        with processes(options) as fleet:
            for _ in range(EXPIRIES):
                # Half a minute is left: in the hard window, where everybody waits for a new one.
                clock.advance(LIFETIME - timedelta(seconds=30))
                failed += all_asked(fleet, REQUESTS // EXPIRIES)
        served = [request.status for request in fake.requests if request.operation == "apps"]
        logins = count_of(fake, "login")
        assert failed == []
        assert fake.exchanges() == EXPIRIES
        assert served.count(200) == PROCESSES * REQUESTS
        assert logins == 1
        return (
            f"{PROCESSES} processes x {REQUESTS} requests, {EXPIRIES} expiries: "
            f"{fake.exchanges()} exchanges, {logins} login, {len(failed)} failed requests, "
            f"{served.count(401)} refused and sent again"
        )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["blocking", "two_loops"] if SOAK else ["blocking"])
def test_fleet_on_a_file_exchanges_each_token_once(
    tmp_path: Path, fleet_clock: FleetClock, role: str, record_property: Record
) -> None:
    """As many exchanges as expiries, however many processes ask, and no failed request."""
    counts = cross_expiries(fleet_clock, {"role": role, "file": str(tmp_path / "session.json")})
    record_property("measured", f"file, {role}: {counts}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["blocking", "two_loops"] if SOAK else ["two_loops"])
def test_fleet_on_redis_exchanges_each_token_once(
    fleet_clock: FleetClock, redis_server: RedisServer, role: str, record_property: Record
) -> None:
    """The same on Redis, also with two event loops in each process."""
    counts = cross_expiries(fleet_clock, {"role": role, "redis": redis_server.port})
    record_property("measured", f"redis, {role}: {counts}")


def all_asked(fleet: list[Worker], count: int) -> list[str]:
    """Have every process make some requests; return the failures."""
    for worker in fleet:
        worker.ask(count)
    return [problem for worker in fleet for problem in json.loads(worker.answer())]
