"""
Many processes share one session: each token is exchanged once, even if processes die.

A few here; the long form has eight processes that make 50 requests each, across ten expiries.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from koyeb_session.testing import FakeKoyeb

from ..soak import SOAK
from .conftest import PATIENCE, FleetClock, RedisServer, Worker
from .fleet import opened

PROCESSES = 8 if SOAK else 4
EXPIRIES = 10 if SOAK else 3
REQUESTS = 50 if SOAK else 9
LIFETIME = timedelta(hours=1)
FAULTS = ("restart", "hang", "lose_data", "go_away")
FAULT_ROUNDS = 10 if SOAK else 1

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
                failed += all_asked(fleet, REQUESTS // EXPIRIES)[0]
        served = [request.status for request in fake.requests if request.operation == "apps"]
        logins = [request.operation for request in fake.requests].count("login")
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


@pytest.mark.timeout(120)
def test_processes_share_five_minute_access_tokens_for_an_hour(
    tmp_path: Path, fleet_clock: FleetClock
) -> None:
    """One token serves both until the next one is due; nothing is refused, and none refreshed."""
    fake = FakeKoyeb(clock=fleet_clock)
    api_token = fake.issue_api_token()
    given = {"api_token": api_token, "organization": fake.organizations["me@example.com"][0]}
    options = {"role": "blocking", "file": str(tmp_path / "session.json"), "credentials": given}
    with fake.serve() as url:
        options |= {"url": url, "clock": str(fleet_clock.path)}
        with processes(options, 2) as fleet:
            for _ in range(13):
                assert all_asked(fleet, 2)[0] == []
                # 15 seconds are left: in the hard window, where everybody waits for a new one.
                fleet_clock.advance(285)
    issued = [r.bearer for r in fake.requests if r.operation == "create_access_token"]
    assert set(issued) == {api_token}
    assert len(issued) == 13
    assert {(r.operation, r.status) for r in fake.requests} == {
        ("create_access_token", 200),
        ("apps", 200),
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("service", ["keeps", "revokes"])
def test_fleet_outlives_a_faulty_redis(
    fleet_clock: FleetClock, redis_server: RedisServer, service: Any, record_property: Record
) -> None:
    """
    Redis restarts, hangs, forgets or goes away amid a renewal: no request fails, all go on.

    Two that renew at once without it look like theft to a service that revokes: it ends the
    session, and a request may be refused before they have signed in again.
    """
    fake = FakeKoyeb(clock=fleet_clock, token_lifetime=LIFETIME, refresh=service)
    options: dict[str, Any] = {"role": "two_loops", "redis": redis_server.port, "lease": 1.0}
    options |= {"clock": str(fleet_clock.path), "credentials": service == "revokes"}
    chance = random.Random(4)  # noqa: S311 - when the fault comes
    failed: list[str] = []
    rounds = [getattr(redis_server, fault) for fault in FAULTS for _ in range(FAULT_ROUNDS)]
    with fake.serve() as url:
        options["url"] = url
        with opened(options) as (first, _):
            first.login("me@example.com", "correct horse")
        with processes(options, PROCESSES if SOAK else 2) as fleet:
            for fault in rounds:
                fleet_clock.advance(LIFETIME * 0.6)  # ahead of need: nobody waits for the exchange
                moment = partial(time.sleep, chance.random() / 20)
                failed += all_asked(fleet, 6, moment, fault)[0]
                redis_server.come_back()
                problems, ends = all_asked(fleet, 2)
                started = time.monotonic()
                while problems or ends < fleet_clock.time() + LIFETIME.total_seconds() * 0.7:
                    assert time.monotonic() < started + PATIENCE, "the fleet does not recover"
                    failed += problems
                    fleet_clock.advance(1)  # no back-off is as long
                    time.sleep(0.02)
                    problems, ends = all_asked(fleet, 2)
        served = [request.status for request in fake.requests if request.operation == "apps"]
        logins = [request.operation for request in fake.requests].count("login")
        counts = (
            f"{len(rounds)} faults of Redis, {len(fleet)} processes, a service that {service}: "
            f"{served.count(200)} requests answered, {len(failed)} failed, "
            f"{fake.exchanges()} exchanges, {logins - 1} sign-ins after the first"
        )
        assert service == "revokes" or (failed, logins) == ([], 1), counts
        record_property("measured", counts)


def all_asked(
    fleet: list[Worker], count: int, *meanwhile: Callable[[], object]
) -> tuple[list[str], float]:
    """
    Have every process make some requests, and something happen meanwhile.

    Returns:
        The failures, and when the first of their tokens expires.
    """
    for worker in fleet:
        worker.ask(count)
    for happen in meanwhile:
        happen()
    answers = [json.loads(worker.answer()) for worker in fleet]
    return [problem for problems, _ in answers for problem in problems], min(a[1] for a in answers)
