"""The figures as a Markdown table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from itertools import groupby
from statistics import median

from .measure import OURS, Bench, Comparison, Goal, quartiles

_HEAD = """\
| contender | median | middle half | to {yardstick} | to {peer} | goal |
|---|--:|--:|--:|--:|---|
"""
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


def table(bench: Bench) -> str:
    """Write all comparisons as Markdown."""
    return "\n".join(_pages(bench)) + "\n"


def noise(bench: Bench) -> str:
    """Say how much the machine was disturbed."""
    middle = median(bench.calibration)
    first, third = quartiles(bench.calibration)
    worst = max(bench.calibration)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores. "
        f"How quiet the machine was: one and the same loop, run {len(bench.calibration)} times in "
        f"between, took {amount(middle, 's')} (middle half {first / middle - 1:+.1%} to "
        f"{third / middle - 1:+.1%}, at worst {worst / middle:.2f} times as long); "
        f"load average {load}."
    )


def amount(value: float, unit: str) -> str:
    """Write a value in the largest unit that it has at least one of."""
    size, name = next((each for each in _SCALES[unit] if value >= each[0]), _SCALES[unit][-1])
    return f"{value / size:.3g} {name}" if value / size < 1000 else f"{value / size:.0f} {name}"


def times(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{ratio:.2g}x"


def verdict(comparison: Comparison, goal: Goal) -> str:
    """Say what the goal is, and whether it is met."""
    word = "met" if comparison.is_met(goal) else "**missed**"
    match goal.kind:
        case "amount":
            return f"≤ {amount(goal.limit, comparison.unit)}: {word}"
        case "ratio":
            return f"≤ {goal.limit:.2f}x: {word}"
        case "speed-up":
            return f"≥ {goal.limit:g} times as fast: {word}"


def _pages(bench: Bench) -> Iterator[str]:
    yield noise(bench)
    for topic, comparisons in groupby(bench.comparisons, key=lambda each: each.topic):
        yield f"\n## {topic}"
        for comparison in comparisons:
            yield f"\n### {comparison.title}\n"
            yield _rows(comparison)
            yield from (f"\n{note}" for note in comparison.notes)
    if bench.notes:
        yield "\n## counts\n"
        yield from bench.notes


def _rows(comparison: Comparison) -> str:
    peer = comparison.best_peer
    rows = [_HEAD.format(yardstick=comparison.yardstick, peer=peer or "best peer").rstrip()]
    goals = {goal.contender: goal for goal in comparison.goals}
    for name in comparison.samples:
        first, third = (amount(value, comparison.unit) for value in comparison.spread(name))
        label = f"**{name}**" if name.startswith(OURS) else name
        against = f"{times(comparison.ratio(name, peer))}" if peer else ""
        goal = verdict(comparison, goals[name]) if name in goals else ""
        rows.append(
            f"| {label} | {amount(comparison.median(name), comparison.unit)} | {first} to {third} "
            f"| {times(comparison.ratio(name, comparison.yardstick))} | {against} | {goal} |"
        )
    return "\n".join(rows)
