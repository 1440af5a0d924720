"""A login and a refresh on connections that are open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial
from time import perf_counter
from typing import Any, Final

import httpx
import httpx2
from koyeb import api, api_async  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped

from koyeb_session import AsyncSessionClient, SessionClient

from .measure import Bench, Comparison, Goal, Samples, timed
from .service import EMAIL, PASSWORD

_ROUNDS: Final = 40
_TIMES: Final = 20
_BODY: Final = {"email": EMAIL, "password": PASSWORD}
_LOGIN: Final = "/v1/account/login"
_REFRESH: Final = "/v1/account/refresh"
_TITLES: Final = ("warm login", "warm refresh")
Pair = tuple[Callable[[], Any], Callable[[], Any]]


def measure(bench: Bench) -> None:
    """Sign in and refresh with both halves."""
    with _blocking(bench.service.http) as pairs:
        for index, title in enumerate(_TITLES):
            contenders = {name: partial(timed, pair[index], _TIMES) for name, pair in pairs.items()}
            _keep(
                bench, f"{title}, sync", bench.interleave(contenders, _ROUNDS, again={"bare httpx"})
            )
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        pairs = runner.run(stack.enter_async_context(_awaiting(bench.service.http)))
        for index, title in enumerate(_TITLES):
            contenders = {name: partial(_run, runner, pair[index]) for name, pair in pairs.items()}
            _keep(
                bench,
                f"{title}, asyncio",
                bench.interleave(contenders, _ROUNDS, again={"bare httpx"}),
            )
        runner.run(stack.aclose())


def _keep(bench: Bench, title: str, samples: Samples[float]) -> None:
    goals = [Goal("koyeb_session", 0.90)]
    bench.add(Comparison("warm", title, "s", "bare httpx", samples, goals))


def _run(runner: asyncio.Runner, work: Callable[[], Awaitable[object]]) -> float:
    async def timed() -> float:
        begin = perf_counter()
        for _ in range(_TIMES):
            await work()
        return (perf_counter() - begin) / _TIMES

    return runner.run(timed())


class _Bare:
    """The work of a program with an httpx or httpx2 client of its own."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._token = ""

    def login(self) -> None:
        self._take(self._client.post(_LOGIN, json=_BODY))

    def refresh(self) -> None:
        self._take(self._client.put(_REFRESH, headers=self._headers))

    async def async_login(self) -> None:
        self._take(await self._client.post(_LOGIN, json=_BODY))

    async def async_refresh(self) -> None:
        self._take(await self._client.put(_REFRESH, headers=self._headers))

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def _take(self, reply: Any) -> None:
        self._token = reply.raise_for_status().json()["token"]["id"]


class _Sdk:
    """The work of a program with the official SDK."""

    def __init__(self, module: Any, client: Any) -> None:
        self._sessions = module.SessionsApi(client)
        self._configuration = client.configuration
        self._configuration.api_key_prefix["Bearer"] = "Bearer"
        self._body = module.LoginRequest(**_BODY)

    def login(self) -> None:
        self._take(self._sessions.login(self._body))

    def refresh(self) -> None:
        self._take(self._sessions.refresh_token())

    async def async_login(self) -> None:
        self._take(await self._sessions.login(self._body))

    async def async_refresh(self) -> None:
        self._take(await self._sessions.refresh_token())

    def _take(self, reply: Any) -> None:
        self._configuration.api_key["Bearer"] = reply.token.id


@contextlib.contextmanager
def _blocking(url: str) -> Generator[dict[str, Pair]]:
    with (
        httpx.Client(base_url=url) as client,
        httpx2.Client(base_url=url) as client2,
        SessionClient(base_url=url) as session,
        api.ApiClient(api.Configuration(host=url)) as sdk,
    ):
        bare, bare2, official = _Bare(client), _Bare(client2), _Sdk(api, sdk)
        yield {
            "bare httpx": (bare.login, bare.refresh),
            "koyeb_session": (partial(session.login, EMAIL, PASSWORD), session.refresh),
            "httpx2": (bare2.login, bare2.refresh),
            "koyeb-sdk": (official.login, official.refresh),
        }


@contextlib.asynccontextmanager
async def _awaiting(url: str) -> AsyncGenerator[dict[str, Pair]]:
    async with (
        httpx.AsyncClient(base_url=url) as client,
        httpx2.AsyncClient(base_url=url) as client2,
        AsyncSessionClient(base_url=url) as session,
        api_async.ApiClient(api_async.Configuration(host=url)) as sdk,
    ):
        bare, bare2, official = _Bare(client), _Bare(client2), _Sdk(api_async, sdk)
        yield {
            "bare httpx": (bare.async_login, bare.async_refresh),
            "koyeb_session": (partial(session.login, EMAIL, PASSWORD), session.refresh),
            "httpx2": (bare2.async_login, bare2.async_refresh),
            "koyeb-sdk": (official.async_login, official.async_refresh),
        }
