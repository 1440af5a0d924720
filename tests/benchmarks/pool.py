"""Many requests at once on sockets: which connections hold out, and how many of them there are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple
from unittest.mock import patch

import anyio
import httpx
import httpx2
from httpx_aiohttp import AiohttpTransport

from koyeb_session import AsyncSessionClient

from .measure import Bench, Comparison, Goal
from .service import EMAIL, PASSWORD

_PATIENCE: Final = 300.0
_ORIGINS: Final = 12
_OPEN: Final = Path("/proc/self/fd")


class Load(NamedTuple):
    """How many requests begin at one moment, and on which connections."""

    title: str
    requests: int
    warm: bool
    rounds: int
    rare: frozenset[str]
    goal: float


_NEW: Final = Load(
    *("1,000 concurrent requests of session.http on sockets", 1_000, False, 5),
    *(frozenset({"bare httpx"}), 20),
)
_WARM: Final = Load(
    *("100 concurrent requests of session.http on open sockets", 100, True, 12),
    *(frozenset[str](), 3),
)


def measure(bench: Bench) -> None:
    """Send them all at once, at a service that answers at once, and at one that takes its time."""
    token = anyio.run(_sign_in, bench.service.http)
    for load in (_NEW, _WARM):
        for service, url in (
            ("", bench.service.http),
            (", answered after 20 ms", bench.service.slow),
        ):
            _compare(bench, load, service, url, token)
    for load in (_NEW, _WARM):
        _compare(bench, load, ", trio", bench.service.http, token, backend="trio")
    _count_sockets(bench, token)


def _compare(
    bench: Bench, load: Load, how: str, url: str, token: str, *, backend: str = "asyncio"
) -> None:
    header = {"Authorization": f"Bearer {token}"}
    bare = partial(httpx.AsyncClient, base_url=url, headers=header, timeout=_PATIENCE)
    contenders: dict[str, Callable[[], Any]] = {
        "bare httpx": bare,
        "koyeb_session, as installed": partial(_session, url, token),
        "httpx2": partial(httpx2.AsyncClient, base_url=url, headers=header, timeout=_PATIENCE),
    }
    if backend == "asyncio":
        contenders |= {
            "koyeb_session, httpx-aiohttp": lambda: _session(url, token, AiohttpTransport()),
            "httpx on httpx-aiohttp": lambda: bare(transport=AiohttpTransport()),
        }
    samples = bench.interleave(
        {name: partial(_run, backend, make, load) for name, make in contenders.items()},
        load.rounds,
        warmups=0,
        rare=load.rare,
        again={"bare httpx"},
    )
    ours = "koyeb_session, as installed"
    goals = [Goal(ours, load.goal, "speed-up"), Goal(ours, 1.0, than="httpx2")]
    title = f"{load.title}{how}"
    bench.add(Comparison("pool", title, "s", "bare httpx", samples, goals))


async def _sign_in(url: str) -> str:
    async with AsyncSessionClient(base_url=url) as session:
        return (await session.login(EMAIL, PASSWORD)).id


def _session(url: str, token: str, transport: Any = None) -> AsyncSessionClient:
    return AsyncSessionClient(base_url=url, token=token, timeout=_PATIENCE, transport=transport)


def _run(backend: str, make: Callable[[], Any], load: Load) -> float:
    return anyio.run(_seconds, make, load, backend=backend)


async def _seconds(make: Callable[[], Any], load: Load) -> float:
    with patch.dict(sys.modules, {"httpx_aiohttp": None}):  # as installed: without the extra
        opened = make()
        async with opened as kept:
            client = kept.http if isinstance(kept, AsyncSessionClient) else kept
            if load.warm:
                await _all_at_once(client, ["/v1/apps"] * load.requests)
            begin = perf_counter()
            await _all_at_once(client, ["/v1/apps"] * load.requests)
            return perf_counter() - begin


async def _all_at_once(
    client: Any, urls: list[str], seen: Callable[[], None] | None = None
) -> None:
    async def get(url: str) -> None:
        reply = await client.get(url)
        assert reply.status_code == 200
        if seen is not None:
            seen()

    async with anyio.create_task_group() as tasks:
        for url in urls:
            tasks.start_soon(get, url)


def _count_sockets(bench: Bench, token: str) -> None:
    """Count the connections and files of one client that sends to many origins."""
    if not _OPEN.is_dir():
        bench.notes.append("No `/proc` here: sockets were not counted.\n")
        return
    origins = bench.service.origins[:_ORIGINS]
    peak = 0

    def seen() -> None:
        nonlocal peak
        peak = max(peak, _sockets())

    async def main() -> int:
        before = _sockets()
        async with AsyncSessionClient(
            base_url=bench.service.http, token=token, timeout=_PATIENCE, allowed_origins=origins
        ) as session:
            urls = [f"{origins[index % _ORIGINS]}/v1/apps" for index in range(_NEW.requests)]
            await _all_at_once(session.http, urls, seen)
        return before

    samples = {"koyeb_session": {0: float(-anyio.run(main) + peak)}}
    goals = [Goal("koyeb_session", 100, "amount")]
    title = f"most sockets open, 1,000 requests to {_ORIGINS} origins"
    bench.add(Comparison("pool", title, "", "koyeb_session", samples, goals))


def _sockets() -> int:
    count = 0
    for link in _OPEN.iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            count += str(link.readlink()).startswith("socket:")
    return count
