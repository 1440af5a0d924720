"""One session for each caller's token, and 100,000 of them held."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, Final

import httpx
from koyeb import api  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped

from koyeb_session import SessionClient, Token
from koyeb_session.testing import FakeKoyeb

from .hook import Nothing
from .measure import Bench, Comparison, Goal, Samples, Unit

_ROUNDS: Final = 20
_TIMES: Final = 1_000
_HELD: Final = 100_000
_FEW: Final = 1_000
Make = Callable[[Any], object]


def measure(bench: Bench) -> None:
    """Make sessions, and hold them."""
    fake = FakeKoyeb()
    ids = [fake.issue_token() for _ in range(_TIMES)]
    transport = Nothing()
    with SessionClient(transport=transport) as session:
        tokens = [session.use_token(token) for token in ids]

        def bare(token: Token) -> object:
            return httpx.Client(
                transport=transport, headers={"Authorization": f"Bearer {token.id}"}
            )

        def official(token: Token) -> object:
            return api.ApiClient(api.Configuration(access_token=token.id))

        makers: dict[str, tuple[Make, list[Any], int]] = {
            "bare httpx client, shared transport": (bare, tokens, _FEW),
            "koyeb_session": (session.for_token, tokens, _HELD),
            "koyeb_session, from a str": (session.for_token, ids, _HELD),
            "koyeb-sdk client": (official, tokens, _FEW),
        }
        samples = bench.interleave(
            {name: _timing(make, of) for name, (make, of, _) in makers.items()},
            _ROUNDS,
            again={next(iter(makers))},
        )
        _keep(bench, "for_token: one more session", "s", samples, 20e-6)
        sizes = {name: {0: _size(make, of, count)} for name, (make, of, count) in makers.items()}
        _keep(bench, f"for_token: memory of a session, {_HELD:,} held", "B", sizes, 1024)


def _keep(bench: Bench, title: str, unit: Unit, samples: Samples[float], limit: float) -> None:
    yardstick = next(iter(samples))
    goals = [Goal("koyeb_session", limit, "amount")]
    bench.add(Comparison("tenants", title, unit, yardstick, samples, goals))


def _timing(make: Make, tokens: list[Any]) -> Callable[[], float]:
    def sample() -> float:
        begin = time.perf_counter()
        for token in tokens:
            make(token)
        return (time.perf_counter() - begin) / len(tokens)

    return sample


def _size(make: Make, tokens: list[Any], count: int) -> float:
    """Return the bytes that Python allocates for one of many; the token itself was there before."""
    held: list[object] = [None] * count
    gc.collect()
    tracemalloc.start()
    for index in range(count):
        held[index] = make(tokens[index % len(tokens)])
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / count
