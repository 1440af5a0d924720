"""One run: contenders take turns, so that a slow moment of the machine is slow for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from statistics import median, quantiles
from typing import Final, Literal, TypeVar

import attrs

from .service import Service

T = TypeVar("T")
Unit = Literal["s", "B", "instructions", ""]
Samples = Mapping[str, Mapping[int, T]]

OURS: Final = "koyeb_session"
"""The prefix of the names of our own contenders; a contender in brackets is for reference."""
_RARELY: Final = 4
_QUICK: Final = 4
_FEWEST: Final = 5
_CALIBRATION: Final = 100_000


@attrs.frozen
class Goal:
    """
    The figure that a contender should reach.

    Attributes:
        contender: Its name.
        limit: The ratio to the yardstick, or the amount, that it must keep to.
        kind: Whether ``limit`` is such a ratio at most, a speed-up at least, or an amount at most.
        than: The contender to compare with, instead of the yardstick.
    """

    contender: str
    limit: float
    kind: Literal["ratio", "speed-up", "amount"] = "ratio"
    than: str | None = None


@attrs.frozen
class Comparison:
    """
    The same work, done by several contenders in turns.

    Attributes:
        topic: Which part of the run it belongs to.
        title: The work, in a few words.
        unit: Of the samples.
        yardstick: The contender that the others are compared with.
        samples: Contender -> round -> its sample; those of one round were taken side by side.
        goals: The figures that our contenders should reach.
        notes: Other observations.
    """

    topic: str
    title: str
    unit: Unit
    yardstick: str
    samples: Samples[float]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()

    @property
    def missed(self) -> list[Goal]:
        """The goals that are not reached."""
        return [goal for goal in self.goals if not self.is_met(goal)]

    @property
    def best_peer(self) -> str | None:
        """The fastest that is neither ours nor the yardstick; `None` if there is no such one."""
        peers = [
            name
            for name in self.samples
            if name != self.yardstick and not name.startswith((OURS, "("))
        ]
        return min(peers, key=self.median, default=None)

    def median(self, name: str) -> float:
        """Return the median of a contender's samples."""
        return median(self.samples[name].values())

    def spread(self, name: str) -> tuple[float, float]:
        """Return the first and the third quartile of a contender's samples."""
        return quartiles([*self.samples[name].values()])

    def ratio(self, name: str, to: str) -> float:
        """Return the median, over the rounds, of how a contender compares with another one."""
        ours, theirs = self.samples[name], self.samples[to]
        return median(ours[number] / theirs[number] for number in ours.keys() & theirs.keys())

    def is_met(self, goal: Goal) -> bool:
        """Return whether a goal is reached."""
        if goal.kind == "amount":
            return self.median(goal.contender) <= goal.limit
        ratio = self.ratio(goal.contender, goal.than or self.yardstick)
        return ratio <= (goal.limit if goal.kind == "ratio" else 1 / goal.limit)


@attrs.frozen
class Run:
    """
    A whole run, as the file of results keeps it.

    Attributes:
        machine: How quiet the machine was.
        comparisons: The measurements.
        notes: Figures that were counted rather than compared, in Markdown.
    """

    machine: str
    comparisons: list[Comparison]
    notes: list[str]


class Bench:
    """
    The means of a topic's measurements, and the place of its figures.

    Attributes:
        service: The service, in a process of its own.
        comparisons: The measurements.
        notes: Figures that were counted rather than timed, in Markdown.
        calibration: Seconds of one and the same loop, run once in each round of the whole run.
    """

    def __init__(self, service: Service, *, quick: bool) -> None:
        self.service = service
        self.comparisons: list[Comparison] = []
        self.notes: list[str] = []
        self.calibration = [_calibrate()]
        self._quick = quick

    def some(self, count: int, *, fewest: int = _FEWEST) -> int:
        """Return how many, fewer in a quick run."""
        return max(count // _QUICK, fewest) if self._quick else count

    def interleave(
        self,
        contenders: Mapping[str, Callable[[], T]],
        rounds: int,
        *,
        warmups: int = 1,
        rare: Collection[str] = (),
        again: Collection[str] = (),
    ) -> dict[str, dict[int, T]]:
        """
        Let the contenders take turns: A B C, B C A, and so on.

        Args:
            contenders: Name -> a function that takes one sample.
            rounds: How many samples to take of each; fewer in a quick run.
            warmups: How many rounds to throw away first.
            rare: Those so slow that they take part in one round out of four.
            again: Yardsticks that take part twice: their difference is the machine's noise.

        Returns:
            Name -> round -> its sample.
        """
        contenders = {**contenders, **{f"({name}, again)": contenders[name] for name in again}}
        rare = {*rare, *(f"({name}, again)" for name in rare)}
        names = [*contenders]
        samples: dict[str, dict[int, T]] = {name: {} for name in names}
        gc.collect()
        gc.freeze()  # without earlier objects, the collections below are short
        for number in range(-warmups, self.some(rounds)):
            self.calibration.append(_calibrate())
            first = number % len(names)
            for name in names[first:] + names[:first]:
                if name in rare and number % _RARELY:
                    continue
                gc.collect()  # the garbage of one contender is not the next one's to collect
                sample = contenders[name]()
                if number >= 0:
                    samples[name][number] = sample
        gc.unfreeze()
        return samples

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison."""
        self.comparisons.append(comparison)


def quartiles(samples: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    if len(samples) == 1:
        return samples[0], samples[0]
    first, _, third = quantiles(samples, n=4)
    return first, third


def timed(work: Callable[[], object], times: int) -> float:
    """Return the seconds that one call takes, out of many."""
    begin = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begin) / times


def _calibrate() -> float:
    begin = time.perf_counter()
    for _ in range(_CALIBRATION):
        pass
    return time.perf_counter() - begin
