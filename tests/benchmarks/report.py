"""The figures as a Markdown table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from itertools import groupby
from statistics import median

from .measure import OURS, Bench, Comparison, Goal, Run, quartiles

_HEAD = """\
| contender | median | middle half | to {yardstick} | to {peer} | goal |
|---|--:|--:|--:|--:|---|
"""
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
    "instructions": ((1e9, "G"), (1e6, "M"), (1.0, "")),
    "": ((1.0, ""),),
}


def table(run: Run) -> str:
    """Write all comparisons as Markdown."""
    return "\n".join(_pages(run)) + "\n"


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
    size, name = next((each for each in _SCALES[unit] if abs(value) >= each[0]), _SCALES[unit][-1])
    number = f"{value / size:.3g}" if value / size < 1000 else f"{value / size:.0f}"
    return f"{number} {name}".rstrip()


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
            than = f" of {goal.than}" if goal.than else ""
            return f"≤ {goal.limit:.2f}x{than}: {word}"
        case "speed-up":
            return f"≥ {goal.limit:g} times as fast: {word}"


def goals(run: Run) -> str:
    """Say which goals are missed."""
    count = sum(len(each.goals) for each in run.comparisons)
    missed = [
        f"{each.title} ({goal.contender})" for each in run.comparisons for goal in each.missed
    ]
    text = f"{count - len(missed)} of {count} goals are met."
    return f"{text} **Missed**: {'; '.join(missed)}." if missed else text


def _pages(run: Run) -> Iterator[str]:
    yield f"{run.machine}\n\n{goals(run)}"
    for topic, comparisons in groupby(run.comparisons, key=lambda each: each.topic):
        yield f"\n## {topic}"
        for comparison in comparisons:
            yield f"\n### {comparison.title}\n"
            yield _rows(comparison)
            yield from (f"\n{note}" for note in comparison.notes)
    if run.notes:
        yield "\n## counts\n"
        yield from run.notes


def _rows(comparison: Comparison) -> str:
    peer = comparison.best_peer
    rows = [_HEAD.format(yardstick=comparison.yardstick, peer=peer or "best peer").rstrip()]
    others = len(comparison.samples) > 1
    for name in comparison.samples:
        first, third = (amount(value, comparison.unit) for value in comparison.spread(name))
        label = f"**{name}**" if name.startswith(OURS) else name
        ratio = times(comparison.ratio(name, comparison.yardstick)) if others else ""
        against = f"{times(comparison.ratio(name, peer))}" if peer else ""
        own = "; ".join(
            verdict(comparison, each) for each in comparison.goals if each.contender == name
        )
        rows.append(
            f"| {label} | {amount(comparison.median(name), comparison.unit)} | {first} to {third} "
            f"| {ratio} | {against} | {own} |"
        )
    return "\n".join(rows)
