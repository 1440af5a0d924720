"""Many requests at once, while the token is due: what they take beside a static header."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import quantiles
from time import perf_counter
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


class Storm(NamedTuple):
    """One storm: its seconds, those of its middle and its slowest requests, and the exchanges."""

    wall: float
    p50: float
    p99: float
    exchanges: int


def measure(bench: Bench) -> None:
    """Storm on sockets, and on a transport without any."""
    with asyncio.Runner() as runner:
        for count, title, static, ours in (
            (_SOCKETS, "sockets, httpx-aiohttp", _static_on_sockets, _ours_on_sockets),
            (_PRETENDED, "no network", _static_on_nothing, _ours_on_nothing),
        ):
            contenders = {
                "static header": partial(_run, runner, static, bench, count),
                "koyeb_session": partial(_run, runner, ours, bench, count),
            }
            storms = bench.interleave(contenders, _ROUNDS[count])
            _keep(bench, f"{count:,} requests across an expiry, {title}", storms)


def _run(
    runner: asyncio.Runner,
    storm: Callable[[Bench, int], Awaitable[Storm]],
    bench: Bench,
    count: int,
) -> Storm:
    async def main() -> Storm:
        return await storm(bench, count)

    return runner.run(main())


def _keep(bench: Bench, title: str, storms: dict[str, dict[int, Storm]]) -> None:
    counts = sorted({storm.exchanges for storm in storms["koyeb_session"].values()})
    note = f"Exchanges in each of {len(storms['koyeb_session'])} storms: {counts} (goal: 1)."
    for metric in ("wall", "p50", "p99"):
        samples = {
            name: {number: float(getattr(storm, metric)) for number, storm in each.items()}
            for name, each in storms.items()
        }
        goals = [Goal("koyeb_session", 1.05)] if metric == "wall" else []
        notes = [note] if metric == "wall" else []
        bench.add(
            Comparison("storm", f"{title}: {metric}", "s", "static header", samples, goals, notes)
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


async def _static_on_nothing(bench: Bench, count: int) -> Storm:
    fake = FakeKoyeb(clock=FakeClock())  # as in the other storm: it is read for each request
    header = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with httpx.AsyncClient(
        base_url=fake.base_url, headers=header, transport=fake.transport
    ) as client:
        return await _storm(client, count, fake.exchanges)


async def _ours_on_nothing(bench: Bench, count: int) -> Storm:
    clock = FakeClock()
    fake = FakeKoyeb(clock=clock)
    async with (
        AsyncSessionClient(transport=fake.transport, clock=clock) as session,
        httpx.AsyncClient(
            base_url=fake.base_url, auth=session.auth, transport=fake.transport
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
    begin = perf_counter()
    seconds = await asyncio.gather(*(one() for _ in range(count)))
    wall = perf_counter() - begin
    cuts = quantiles(seconds, n=100)
    return Storm(wall, cuts[49], cuts[98], exchanges() - before)
