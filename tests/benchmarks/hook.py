"""The cost of signing a request while the token is fresh, on a transport that does nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter, time
from typing import Any, Final

import httpx
import httpx2
import uvloop
from authlib.integrations.httpx_client import (  # type: ignore[import-untyped]
    AsyncOAuth2Client,
    OAuth2Client,
)
from httpx_auth import OAuth2ClientCredentials

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.httpx2 import auth_for
from koyeb_session.testing import FakeKoyeb

from .measure import Bench, Comparison, Goal, Samples, timed

_ROUNDS: Final = 150
_TIMES: Final = 40
_URL: Final = "https://app.koyeb.com/v1/apps"
_DAY: Final = 86_400
_YARDSTICKS: Final = {"httpx": "static header", "httpx2": "static header, httpx2"}
_LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Nothing(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Answers at once."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return httpx.Response(200)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer."""
        return httpx.Response(200)


class Nothing2(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Answers at once, for httpx2."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer."""
        return httpx2.Response(200)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer."""
        return httpx2.Response(200)


def measure(bench: Bench) -> None:
    """Send requests with a static header, with our auth and with others'."""
    token = FakeKoyeb().issue_token()
    clients = _blocking(token)
    contenders = {
        name: partial(timed, partial(client.get, _URL), _TIMES) for name, client in clients.items()
    }
    _keep(
        bench, "sync", bench.interleave(contenders, _ROUNDS, warmups=3, again=_YARDSTICKS.values())
    )
    for client in clients.values():
        client.close()
    for name, new_loop in _LOOPS.items():
        with asyncio.Runner(loop_factory=new_loop) as runner:
            _measure_async(bench, runner, name, _awaiting(token))


def _measure_async(
    bench: Bench, runner: asyncio.Runner, loop: str, clients: dict[str, Any]
) -> None:
    contenders: dict[str, Callable[[], float]] = {
        name: partial(_run, runner, client) for name, client in clients.items()
    }
    _keep(bench, loop, bench.interleave(contenders, _ROUNDS, warmups=3, again=_YARDSTICKS.values()))
    for client in clients.values():
        runner.run(client.aclose())


def _run(runner: asyncio.Runner, client: Any) -> float:
    async def get() -> float:
        begin = perf_counter()
        for _ in range(_TIMES):
            await client.get(_URL)
        return (perf_counter() - begin) / _TIMES

    return runner.run(get())


def _keep(bench: Bench, how: str, samples: Samples[float]) -> None:
    """Keep them apart by the library below: each is compared with its own kind."""
    for kind, ours, other in (
        ("httpx", "koyeb_session", "httpx_auth"),
        ("httpx2", "koyeb_session.httpx2", "authlib"),
    ):
        yardstick = _YARDSTICKS[kind]
        names = (yardstick, f"({yardstick}, again)", ours, other)
        some = {name: samples[name] for name in names}
        title = f"a request with a fresh token, {kind}, {how}"
        bench.add(Comparison("hook", title, "s", yardstick, some, [Goal(ours, 1.02)]))


def _blocking(token: str) -> dict[str, Any]:
    header = {"Authorization": f"Bearer {token}"}
    session = SessionClient(token=token)
    return {
        "static header": httpx.Client(transport=Nothing(), headers=header),
        "koyeb_session": httpx.Client(transport=Nothing(), auth=session.auth),
        "httpx_auth": httpx.Client(transport=Nothing(), auth=_httpx_auth(token)),
        "static header, httpx2": httpx2.Client(transport=Nothing2(), headers=header),
        "koyeb_session.httpx2": httpx2.Client(transport=Nothing2(), auth=auth_for(session)),
        "authlib": OAuth2Client(token=_oauth(token), transport=Nothing2()),
    }


def _awaiting(token: str) -> dict[str, Any]:
    header = {"Authorization": f"Bearer {token}"}
    session = AsyncSessionClient(token=token)
    return {
        "static header": httpx.AsyncClient(transport=Nothing(), headers=header),
        "koyeb_session": httpx.AsyncClient(transport=Nothing(), auth=session.auth),
        "httpx_auth": httpx.AsyncClient(transport=Nothing(), auth=_httpx_auth(token)),
        "static header, httpx2": httpx2.AsyncClient(transport=Nothing2(), headers=header),
        "koyeb_session.httpx2": httpx2.AsyncClient(transport=Nothing2(), auth=auth_for(session)),
        "authlib": AsyncOAuth2Client(token=_oauth(token), transport=Nothing2()),
    }


def _oauth(token: str) -> dict[str, object]:
    return {"access_token": token, "token_type": "Bearer", "expires_at": int(time()) + _DAY}


def _httpx_auth(token: str) -> httpx.Auth:
    """Make an auth that gets its token from a service in this process, once."""
    reply = {"access_token": token, "token_type": "Bearer", "expires_in": _DAY}
    service = httpx.MockTransport(lambda _: httpx.Response(200, json=reply))
    client = httpx.Client(transport=service)
    return OAuth2ClientCredentials("https://sign-in.example/token", "me", "secret", client=client)
