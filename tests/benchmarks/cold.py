"""From the start of a program to its first login over TLS, and to its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from .measure import Bench, Comparison, Goal, Unit
from .processes import Launcher, Usage

_ROUNDS: Final = 24
_GOAL: Final = 1.15
_METRICS: Final[dict[str, Callable[[Usage], float]]] = {
    "wall": lambda usage: usage.wall,
    "CPU": lambda usage: usage.cpu,
    "peak memory": lambda usage: usage.peak,
}
HALVES: Final = {
    "sync": {
        "bare httpx": "bare_httpx",
        "koyeb_session": "our_sync",
        "httpx2": "bare_httpx2",
        "koyeb-sdk": "koyeb_sdk",
    },
    "asyncio": {
        "bare httpx": "bare_httpx_async",
        "koyeb_session": "our_async",
        "httpx2": "bare_httpx2_async",
        "koyeb-sdk": "koyeb_sdk_async",
    },
}


def measure(bench: Bench) -> None:
    """Run whole programs."""
    with Launcher(bench.service.environment) as launcher:
        for half, programs in HALVES.items():
            contenders = {
                name: partial(launcher.run, program, bench.service.https)
                for name, program in programs.items()
            }
            usages = bench.interleave(contenders, _ROUNDS, rare={"koyeb-sdk"}, again={"bare httpx"})
            for metric, pick in _METRICS.items():
                goals = [Goal("koyeb_session", _GOAL)] if metric == "wall" else []
                samples = {
                    name: {number: pick(usage) for number, usage in taken.items()}
                    for name, taken in usages.items()
                }
                title = f"cold start to the first login over TLS, {half}: {metric}"
                unit: Unit = "B" if metric == "peak memory" else "s"
                bench.add(Comparison("cold", title, unit, "bare httpx", samples, goals))
