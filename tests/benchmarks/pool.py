"""A thousand requests at once on sockets: which connections hold out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, Final
from unittest.mock import patch

import httpx
import httpx2
from httpx_aiohttp import AiohttpTransport

from koyeb_session import AsyncSessionClient

from .measure import Bench, Comparison, Goal
from .service import EMAIL, PASSWORD

_ROUNDS: Final = 5
_COUNT: Final = 1_000
_PATIENCE: Final = 300.0
_SLOW: Final = {"bare httpx"}


def measure(bench: Bench) -> None:
    """Send them all at once."""
    url = bench.service.http
    with asyncio.Runner() as runner:
        token = runner.run(_sign_in(url))
        header = {"Authorization": f"Bearer {token}"}
        bare = partial(httpx.AsyncClient, base_url=url, headers=header, timeout=_PATIENCE)
        contenders: dict[str, Callable[[], Any]] = {
            "bare httpx": bare,
            "koyeb_session, as installed": partial(_session, url, token),
            "koyeb_session, httpx-aiohttp": lambda: _session(url, token, AiohttpTransport()),
            "httpx on httpx-aiohttp": lambda: bare(transport=AiohttpTransport()),
            "httpx2": partial(httpx2.AsyncClient, base_url=url, headers=header, timeout=_PATIENCE),
        }
        samples = bench.interleave(
            {name: partial(_run, runner, make) for name, make in contenders.items()},
            _ROUNDS,
            warmups=0,
            rare=_SLOW,
        )
    goals = [
        Goal("koyeb_session, as installed", 2, "speed-up"),
        Goal("koyeb_session, httpx-aiohttp", 10, "speed-up"),
    ]
    title = f"{_COUNT:,} concurrent requests of session.http on sockets"
    bench.add(Comparison("pool", title, "s", "bare httpx", samples, goals))


async def _sign_in(url: str) -> str:
    async with AsyncSessionClient(base_url=url) as session:
        return (await session.login(EMAIL, PASSWORD)).id


def _session(url: str, token: str, transport: Any = None) -> AsyncSessionClient:
    return AsyncSessionClient(base_url=url, token=token, timeout=_PATIENCE, transport=transport)


def _run(runner: asyncio.Runner, make: Callable[[], Any]) -> float:
    async def main() -> float:
        with patch.dict(sys.modules, {"httpx_aiohttp": None}):  # as installed: without the extra
            opened = make()
            async with opened as kept:
                client = kept.http if isinstance(kept, AsyncSessionClient) else kept
                begin = perf_counter()
                replies = await asyncio.gather(*(client.get("/v1/apps") for _ in range(_COUNT)))
                seconds = perf_counter() - begin
                assert all(reply.status_code == 200 for reply in replies)
                return seconds

    return runner.run(main())
