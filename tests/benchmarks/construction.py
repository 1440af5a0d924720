"""The first client of a new process, and the second one."""

from __future__ import annotations

from functools import partial
from typing import Final

from .measure import Bench, Comparison, Goal
from .processes import printed

_ROUNDS: Final = 20
_PROGRAM: Final = """
from time import perf_counter
{}
for _ in range(2):
    begin = perf_counter()
    kept = {}
    print(perf_counter() - begin)
"""
_CLIENTS: Final = {
    "bare httpx": ("import httpx", "httpx.Client()"),
    "koyeb_session": ("from koyeb_session import SessionClient", "SessionClient()"),
    "koyeb_session, async": (
        "from koyeb_session import AsyncSessionClient",
        "AsyncSessionClient()",
    ),
    "koyeb_session, with .http": (
        "from koyeb_session import SessionClient",
        "SessionClient().http",
    ),
    "httpx2": ("import httpx2", "httpx2.Client()"),
    "authlib": (
        "from authlib.integrations.httpx_client import OAuth2Client",
        "OAuth2Client()",
    ),
    "koyeb-sdk": ("from koyeb import api", "api.ApiClient(api.Configuration())"),
}


def measure(bench: Bench) -> None:
    """Make two of each in a new process, many times."""
    contenders = {
        name: partial(printed, _PROGRAM.format(*client)) for name, client in _CLIENTS.items()
    }
    taken = bench.interleave(contenders, _ROUNDS, rare={"koyeb-sdk"}, again={"bare httpx"})
    for index, title in enumerate(("first client of a process", "second client of a process")):
        samples = {
            name: {number: times[index] for number, times in each.items()}
            for name, each in taken.items()
        }
        ours = ("koyeb_session", "koyeb_session, async")
        goals = [Goal(name, 1e-3, "amount") if index else Goal(name, 1.0) for name in ours]
        bench.add(Comparison("construction", title, "s", "bare httpx", samples, goals))
