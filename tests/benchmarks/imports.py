"""The cost of an import, inside of a new process."""

from __future__ import annotations

from functools import partial
from typing import Final

from .measure import Bench, Comparison, Goal
from .processes import printed

_ROUNDS: Final = 20
_PROGRAM: Final = """
from time import perf_counter
begin = perf_counter()
{}
print(perf_counter() - begin)
"""
_STATEMENTS: Final = {
    "import httpx": "import httpx",
    "koyeb_session": "from koyeb_session import SessionClient",
    "koyeb_session, async": "from koyeb_session import AsyncSessionClient",
    "import httpx2": "import httpx2",
    "httpx_auth": "from httpx_auth import OAuth2ClientCredentials",
    "authlib": "from authlib.integrations.httpx_client import OAuth2Client",
    "supabase-auth": "from supabase_auth import SyncGoTrueClient",
    "openai": "from openai import OpenAI",
    "koyeb-sdk": "from koyeb import api",
    "koyeb-sdk, async": "from koyeb import api_async",
}

_SLOW: Final = {"openai", "koyeb-sdk", "koyeb-sdk, async"}


def measure(bench: Bench) -> None:
    """Import each of them, many times."""
    contenders = {name: partial(_seconds, text) for name, text in _STATEMENTS.items()}
    samples = bench.interleave(contenders, _ROUNDS, rare=_SLOW, again={"import httpx"})
    goals = [Goal("koyeb_session", 1.05), Goal("koyeb_session, async", 1.05)]
    bench.add(Comparison("imports", "import alone", "s", "import httpx", samples, goals))


def _seconds(statement: str) -> float:
    (seconds,) = printed(_PROGRAM.format(statement))
    return seconds
