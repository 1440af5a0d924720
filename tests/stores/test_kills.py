"""Processes are killed while they exchange and save: the store loads, and the lock is free soon."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from koyeb_session import SessionExpiredError, Token
from koyeb_session.testing import FakeIdentityProvider, FakeKoyeb, Fault, Gate

from ..concurrency import arrived
from ..soak import SOAK
from ..support import count
from .conftest import PATIENCE, FleetClock, RedisServer, Worker, running
from .fleet import opened, redis_client
from .test_fleet import processes

KILLS = 200 if SOAK else 2
LEASE = 1.0
"""Seconds; far longer than an exchange takes here."""
SHORT_LEASE = 0.2

MOMENTS = {
    "locked": False,
    "loaded": False,
    "asked": False,  # the request is on its way
    "answered": True,  # the service has done its work, and the reply is on its way
    "exchanged": True,
    "written": True,  # but not put in the place of the old one yet
    "renamed": False,
    "saved": False,
    "unlocked": False,
}
"""When a process may die in a renewal, and whether a service that revokes ends the session then."""
AT_THE_SERVICE: dict[str, Any] = {"asked": "request", "answered": "reply"}
SAVED = {"renamed", "saved", "unlocked"}
OF_A_FILE = {"written", "renamed"}
CASES = [
    (where, moment, service)
    for where in ("file", "redis")
    for moment, ends in MOMENTS.items()
    if where == "file" or moment not in OF_A_FILE
    for service in (("revokes", "keeps") if ends else ("revokes",))
]

ALL = [*product(("file", "redis"), ("keeps", "credentials"))]
SURVIVES = ALL if SOAK else [("file", "keeps"), ("redis", "credentials")]


@pytest.fixture(scope="module")
def forker() -> Iterator[Worker]:
    """Start a process that forks those that are to be killed."""
    worker = Worker({"role": "forker"})
    yield worker
    worker.end()


@pytest.fixture(scope="module")
def lasting_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start a Redis for all tests."""
    with running("redis-server", tmp_path_factory.mktemp("redis")) as server:
        yield server


def place_of(where: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Give the part of the options that says which store it is."""
    if where == "file":
        return {"file": str(request.getfixturevalue("tmp_path") / "session.json")}
    return {"redis": request.getfixturevalue("lasting_redis").port, "key": request.node.name}


def lock_left(options: dict[str, Any]) -> float:
    """Tell for how many seconds at most a dead process still holds the lock."""
    if "file" in options:
        return 0.0
    with redis_client(options["redis"]) as client:
        seconds, micros = client.time()
        until = float(client.hget(options["key"], "until") or 0) / 1000
        return until - float(seconds) - float(micros) / 1e6


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_session_survives_a_kill_at_any_moment_but_one(
    fleet_clock: FleetClock,
    request: pytest.FixtureRequest,
    forker: Worker,
    case: tuple[str, str, Any],
) -> None:
    """Only between a revoking exchange and its save is a session lost that has no credentials."""
    where, moment, service = case
    options = {"clock": str(fleet_clock.path), "lease": SHORT_LEASE, "moment": moment}
    options |= place_of(where, request)
    fake = FakeKoyeb(clock=fleet_clock, refresh=service)
    with fake.serve() as url:
        options["url"] = url
        with opened(options) as (first, _):
            first.login("me@example.com", "correct horse")
        (old,) = fake.live_tokens()
        gate = kill(fake, "refresh", forker, options)
        assert lock_left(options) <= SHORT_LEASE
        ends = MOMENTS[moment] and service == "revokes"
        with opened(options) as (next_one, store):
            assert (store.load().id == old) == (moment not in SAVED)
            next_one.current_token()
            with pytest.raises(SessionExpiredError) if ends else contextlib.nullcontext():
                next_one.refresh()
        with opened(options | {"credentials": True}) as (last, _):
            assert last.http.get("/v1/apps").status_code == 200
            last.refresh()
        gate.open()  # now that the service has long seen the connection end
    assert count(fake, "login") == 1 + ends


@pytest.mark.pitfall(46)
@pytest.mark.parametrize(("where", "moment"), dict.fromkeys(case[:2] for case in CASES))
def test_rotating_secret_survives_a_kill_at_any_moment_but_one(
    fleet_clock: FleetClock, request: pytest.FixtureRequest, forker: Worker, where: str, moment: str
) -> None:
    """Only between the provider's answer and its save is a one-time secret lost; none is reused."""
    options = {"clock": str(fleet_clock.path), "lease": SHORT_LEASE, "moment": moment}
    options |= place_of(where, request)
    fake = FakeKoyeb(clock=fleet_clock)
    provider = FakeIdentityProvider(fake)
    ends = MOMENTS[moment]
    with fake.serve() as url, provider.serve() as provider_url:
        options |= {"url": url, "credentials": {"provider": provider_url}}
        with opened(options) as (first, _):
            first.use_token(Token(fake.issue_token(), renewal=provider.sign_in()))
        gate = kill(provider, "token", forker, options)
        for _ in range(2):
            expected = pytest.raises(SessionExpiredError) if ends else contextlib.nullcontext()
            with opened(options) as (session, _), expected:
                session.current_token()
                session.refresh()
                assert session.http.get("/v1/apps").status_code == 200
        gate.open()  # now that the provider has long seen the connection end
    assert (provider.reuses > 0) == ends
    assert count(fake, "refresh") == 0


def kill(
    fake: FakeKoyeb | FakeIdentityProvider, operation: str, forker: Worker, options: dict[str, Any]
) -> Gate:
    """Have a process renew the token, and kill it at the moment that the options say."""
    moment = options["moment"]
    gate = Gate()
    if moment in AT_THE_SERVICE:
        fake.fail(operation, Fault(gate=gate, hold=AT_THE_SERVICE[moment]))
    forker.ask(json.dumps(options))
    child = int(forker.answer())
    if moment in AT_THE_SERVICE:
        arrived(gate)
    else:
        assert forker.answer() == f"{moment}\n"
    os.kill(child, signal.SIGKILL)
    assert forker.answer() == "gone\n"
    return gate


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("where", "survives"), SURVIVES)
def test_session_survives_kills(
    fleet_clock: FleetClock, request: pytest.FixtureRequest, where: str, survives: str
) -> None:
    """Kills at random moments, of those who wait for the lock too: the session goes on."""
    options: dict[str, Any] = {
        "role": "renewing",
        "lease": LEASE,
        "clock": str(fleet_clock.path),
        "credentials": survives == "credentials",
        **place_of(where, request),
    }
    fake = FakeKoyeb(clock=fleet_clock, refresh="keeps" if survives == "keeps" else "revokes")
    chance = random.Random(4)  # noqa: S311 - which one to kill, and when
    with fake.serve() as url:
        options["url"] = url
        with opened(options) as (first, store):
            first.login("me@example.com", "correct horse")
            with processes(options, 3 if SOAK else 2) as fleet:
                for worker in fleet:
                    assert worker.answer() == "ready\n"
                for _ in range(KILLS):
                    time.sleep(chance.random() / 50)  # somewhere in an exchange or a save
                    index = chance.randrange(len(fleet))
                    fleet[index].end()
                    fleet[index] = Worker(options)
                    assert store.load() is not None
                    while fleet[index].answer() != "ready\n":
                        pass  # that it starts slowly is no fault of the lock
                    started, before = time.monotonic(), fake.exchanges()
                    while fake.exchanges() == before:
                        held = time.monotonic() - started
                        assert held < LEASE + PATIENCE, "a dead process holds the lock"
                        time.sleep(0.005)
        with opened(options) as (last, _):
            assert last.http.get("/v1/apps").status_code == 200
            last.refresh()
    assert survives == "credentials" or count(fake, "login") == 1
