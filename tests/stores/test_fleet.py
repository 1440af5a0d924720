"""
Many processes share one session: each token is exchanged once, even if processes die.

A few here; the long form has eight processes that make 50 requests each, across ten expiries.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from koyeb_session.testing import FakeKoyeb

from ..soak import SOAK
from ..support import count
from .conftest import FleetClock, Worker
from .fleet import opened

PROCESSES = 8 if SOAK else 4
EXPIRIES = 10 if SOAK else 3
REQUESTS = 50 if SOAK else 9
LIFETIME = timedelta(hours=1)
ALL = [*product(("file", "redis"), ("blocking", "two_loops"))]
CASES = ALL if SOAK else [("file", "blocking"), ("redis", "two_loops")]


@contextlib.contextmanager
def processes(options: dict[str, Any], number: int = PROCESSES) -> Generator[list[Worker]]:
    """Start a fleet, and end it in any case."""
    workers: list[Worker] = []
    try:
        for _ in range(number):
            workers.append(Worker(options))  # noqa: PERF401 - those that have started are ended
        yield workers
    finally:
        for worker in workers:
            worker.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("where", "role"), CASES)
def test_fleet_exchanges_each_token_once(
    fleet_clock: FleetClock, request: pytest.FixtureRequest, where: str, role: str
) -> None:
    """
    As many exchanges as expiries, however many processes ask, and no failed request.

    Also with two event loops in each process.
    """
    place: Any = str(fleet_clock.path.with_name("session.json"))
    if where == "redis":
        place = request.getfixturevalue("redis_server").port
    answers: list[int] = []
    fake = FakeKoyeb(clock=fleet_clock, token_lifetime=LIFETIME)
    with fake.serve() as url:
        options = {"role": role, where: place, "url": url, "clock": str(fleet_clock.path)}
        with opened(options) as (first, _):
            first.login("me@example.com", "correct horse")
        with processes(options) as fleet:
            for _ in range(EXPIRIES):
                # Half a minute is left: in the hard window, where everybody waits for a new one.
                fleet_clock.advance(LIFETIME - timedelta(seconds=30))
                for worker in fleet:
                    worker.ask(REQUESTS // EXPIRIES)
                for worker in fleet:
                    answers += json.loads(worker.answer())
    assert answers == [200] * (PROCESSES * REQUESTS)
    assert fake.exchanges() == EXPIRIES
    assert count(fake, "login") == 1
