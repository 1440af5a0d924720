"""Many requests at once, while the token is due: their cost beside a static header."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import quantiles
from time import perf_counter, process_time
from typing import Any, Final, NamedTuple

import httpx
from httpx_aiohttp import AiohttpTransport

from koyeb_session import AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb

from .measure import Bench, Comparison, Goal
from .service import EMAIL, PASSWORD

_SOCKETS: Final = 1_000
_PRETENDED: Final = 10_000
_ROUNDS: Final = {_SOCKETS: 12, _PRETENDED: 8}
_DUE: Final = timedelta(hours=23, minutes=59, seconds=30)
_PATIENCE: Final = 120.0
_ASLEEP: Final = 0.02
_SLEEPING: Final = "a transport that only sleeps"


class Storm(NamedTuple):
    """One storm: its seconds, CPU's too, its middle and slowest requests', and the exchanges."""

    wall: float
    cpu: float
    p50: float
    p99: float
    exchanges: int


def measure(bench: Bench) -> None:
    """Storm on sockets, and on a transport without any."""
    with asyncio.Runner() as runner:
        for count, title, static, ours in (
            (_SOCKETS, "sockets, httpx-aiohttp", _static_on_sockets, _ours_on_sockets),
            (_SOCKETS, _SLEEPING, _static_asleep, _ours_asleep),
            (_PRETENDED, _SLEEPING, _static_asleep, _ours_asleep),
        ):
            contenders = {
                "static header": partial(_run, runner, static, bench, count),
                "koyeb_session": partial(_run, runner, ours, bench, count),
            }
            storms = bench.interleave(contenders, _ROUNDS[count], again={"static header"})
            _keep(bench, f"{count:,} requests across an expiry, {title}", storms, count)


def _run(
    runner: asyncio.Runner,
    storm: Callable[[Bench, int], Awaitable[Storm]],
    bench: Bench,
    count: int,
) -> Storm:
    async def main() -> Storm:
        return await storm(bench, count)

    return runner.run(main())


def _keep(bench: Bench, title: str, storms: dict[str, dict[int, Storm]], count: int) -> None:
    counts = sorted({storm.exchanges for storm in storms["koyeb_session"].values()})
    note = f"Exchanges in each of {len(storms['koyeb_session'])} storms: {counts} (goal: 1)."
    for metric in ("wall", "p50", "p99"):
        samples = {
            name: {number: float(getattr(storm, metric)) for number, storm in each.items()}
            for name, each in storms.items()
        }
        on_sockets = metric == "wall" and not title.endswith(_SLEEPING)
        goals = [Goal("koyeb_session", 1.05)] if on_sockets else []
        notes = [note] if metric == "wall" else []
        bench.add(
            Comparison("storm", f"{title}: {metric}", "s", "static header", samples, goals, notes)
        )
    if title.endswith(_SLEEPING):
        _keep_own(bench, title, storms, count)


def _keep_own(bench: Bench, title: str, storms: dict[str, dict[int, Storm]], count: int) -> None:
    """Keep the cost of a waiter beside a request that waits for nothing, the exchange included."""
    static = storms["static header"]
    samples = {
        name: {number: (storm.cpu - static[number].cpu) / count for number, storm in taken.items()}
        for name, taken in storms.items()
        if name != "static header"
    }
    goals = [Goal("koyeb_session", 30e-6, "amount")]
    bench.add(
        Comparison("storm", f"{title}: a waiter's own CPU", "s", "koyeb_session", samples, goals)
    )


async def _static_on_sockets(bench: Bench, count: int) -> Storm:
    url = bench.service.http
    async with AsyncSessionClient(base_url=url) as session:
        token = await session.login(EMAIL, PASSWORD)
    header = {"Authorization": f"Bearer {token.id}"}
    async with httpx.AsyncClient(
        base_url=url, headers=header, transport=AiohttpTransport(), timeout=_PATIENCE
    ) as client:
        return await _storm(client, count, bench.service.exchanges)


async def _ours_on_sockets(bench: Bench, count: int) -> Storm:
    clock = FakeClock(datetime.now(UTC))
    async with (
        AsyncSessionClient(base_url=bench.service.http, clock=clock) as session,
        httpx.AsyncClient(
            base_url=bench.service.http,
            auth=session.auth,
            transport=AiohttpTransport(),
            timeout=_PATIENCE,
        ) as client,
    ):
        await session.login(EMAIL, PASSWORD)
        clock.advance(_DUE)
        return await _storm(client, count, bench.service.exchanges)


class _Sleeping(httpx.AsyncBaseTransport):
    """Answers after a while, and does nothing else: no work of its own hides another's."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        await asyncio.sleep(_ASLEEP)
        return httpx.Response(200)


async def _static_asleep(bench: Bench, count: int) -> Storm:
    fake = FakeKoyeb(clock=FakeClock())  # as in the other storm: it is read for each request
    header = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with httpx.AsyncClient(
        base_url=fake.base_url, headers=header, transport=_Sleeping()
    ) as client:
        return await _storm(client, count, fake.exchanges)


async def _ours_asleep(bench: Bench, count: int) -> Storm:
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    async with (
        AsyncSessionClient(transport=fake.transport, clock=clock) as session,
        httpx.AsyncClient(
            base_url=fake.base_url, auth=session.auth, transport=_Sleeping()
        ) as client,
    ):
        await session.login(EMAIL, PASSWORD)
        clock.advance(_DUE)
        return await _storm(client, count, fake.exchanges)


async def _storm(client: Any, count: int, exchanges: Callable[[], int]) -> Storm:
    async def one() -> float:
        reply = await client.get("/v1/apps")
        assert reply.status_code == 200
        return perf_counter() - begin

    before = exchanges()
    begin, cpu = perf_counter(), process_time()
    seconds = await asyncio.gather(*(one() for _ in range(count)))
    wall, cpu = perf_counter() - begin, process_time() - cpu
    cuts = quantiles(seconds, n=100)
    return Storm(wall, cpu, cuts[49], cuts[98], exchanges() - before)
