"""A fleet that shares one session on Redis: the cost of an expiry for the service and the Redis."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from redis.asyncio import Redis

from koyeb_session import AsyncSessionClient
from koyeb_session.stores import AsyncRedisTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb

from .measure import Bench, Comparison, Goal
from .service import EMAIL, PASSWORD

_FLEETS: Final = ((50, 20), (200, 2))  # members, and requests that each of them makes at a time
_EXPIRIES: Final = 5
_DAY: Final = timedelta(hours=24)
_HARD: Final = timedelta(seconds=30)
_SOFT: Final = timedelta(hours=6)
_SHORT: Final = 0.01  # seconds
_PATIENCE: Final = 10.0  # seconds
_INFO: Final = {"cmdstat_info", "cmdstat_config|resetstat"}


def measure(bench: Bench) -> None:
    """Let a fleet meet expiries, and count."""
    if shutil.which("redis-server") is None:
        bench.notes.append("No `redis-server` here: the fleet was not counted.")
        return
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        command = ("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "")
        server = subprocess.Popen([*command, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            _wait(port)
            for count, requests in _FLEETS:
                asyncio.run(_count(bench, port, count, requests))
        finally:
            server.terminate()
            server.wait()


async def _count(bench: Bench, port: int, count: int, each_makes: int) -> None:
    clock = FakeClock(datetime.now(UTC))
    fake = FakeKoyeb(clock=clock)
    redis = Redis(port=port)  # with as many connections as it has by default, for all of them
    key = f"fleet of {count}"
    store = AsyncRedisTokenStore(redis, key=key)
    members = [
        AsyncSessionClient(
            transport=fake.transport, clock=clock, store=AsyncRedisTokenStore(redis, key=key)
        )
        for _ in range(count)
    ]

    failed = 0

    async def work() -> None:
        nonlocal failed
        requests = [each.http.get("/v1/apps") for each in members for _ in range(each_makes)]
        for reply in await asyncio.gather(*requests, return_exceptions=True):
            failed += isinstance(reply, BaseException) or reply.status_code != 200

    async def grow_old(left: timedelta) -> None:
        token = await store.load()
        assert token is not None
        assert token.expires_at is not None
        clock.advance(token.expires_at.timestamp() - left.total_seconds() - clock.time())
        await work()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # the renewals
        await work()

    await members[0].login(EMAIL, PASSWORD)
    bench.notes += [
        (
            f"A fleet of {count} members on one Redis, {each_makes} requests each at a time, "
            f"a token of {_DAY.total_seconds() / 3600:.0f} hours:\n"
        ),
        (await _phase(redis, fake, count, "the members' first look at the store", work))[0],
        (await _phase(redis, fake, count, "requests while it is fresh", work))[0],
    ]
    title = f"{count} members on one Redis client"
    for what, left in (("the hard window", _HARD), ("the soft window", _SOFT)):

        async def expiries(left: timedelta = left) -> None:
            for _ in range(_EXPIRIES):
                await grow_old(left)

        note, exchanges, scripts = await _phase(
            redis, fake, count, f"an expiry met in {what}", expiries, per=_EXPIRIES
        )
        bench.notes.append(note)
        where = f"at an expiry met in {what}"
        _keep(bench, f"{title}: scripts for each member {where}", scripts, 3)
        _keep(bench, f"{title}: exchanges {where}", exchanges, 1)
    _keep(bench, f"{title}: requests that failed", failed, 0)
    for each in members:
        await each.aclose()
    await redis.aclose()


def _keep(bench: Bench, title: str, amount: float, limit: float) -> None:
    samples = {"koyeb_session": {0: amount}}
    goals = [Goal("koyeb_session", limit, "amount")]
    bench.add(Comparison("fleet", title, "", "koyeb_session", samples, goals))


def _wait(port: int) -> None:
    """Wait until it listens."""
    ends = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < ends, "redis-server does not start"
            time.sleep(_SHORT)
        else:
            return


async def _phase(
    redis: Any,
    fake: FakeKoyeb,
    members: int,
    title: str,
    work: Callable[[], Awaitable[None]],
    *,
    per: int = 1,
) -> tuple[str, float, float]:
    """Return the outcome in words, the exchanges, and the scripts for each member."""
    exchanges, begin = fake.exchanges(), time.perf_counter()
    await redis.config_resetstat()
    await work()
    stats: dict[str, Any] = await redis.info("commandstats")
    calls = {
        name.removeprefix("cmdstat_"): stat["calls"] / per
        for name, stat in sorted(stats.items())
        if name not in _INFO
    }
    scripts = calls.pop("eval", 0) + calls.pop("evalsha", 0)
    calls.pop("hello", None)
    listed = ", ".join(f"{count:g} {name}" for name, count in calls.items()) or "none"
    seconds = (time.perf_counter() - begin) / per
    exchanged = (fake.exchanges() - exchanges) / per
    note = (
        f"- {title}: {exchanged:g} exchanges; {scripts:g} scripts sent to Redis, "
        f"{scripts / members:.2f} a member (what they ran: {listed}); {seconds * 1e3:.0f} ms."
    )
    return note, exchanged, scripts / members
