"""All samples as a file of pyperf's: ``python -m pyperf stats FILE``, ``compare_to`` and so on."""

from __future__ import annotations

from typing import Any, Final

import pyperf  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped

from .measure import Bench

_UNITS: Final = {"s": "second", "B": "byte", "instructions": "integer", "": "integer"}
_pyperf: Final[Any] = pyperf


def save(bench: Bench, path: str) -> None:
    """Write them, with pyperf's facts about the machine."""
    benchmarks: list[Any] = []
    for comparison in bench.comparisons:
        number = float if comparison.unit == "s" else int
        for name, samples in comparison.samples.items():
            metadata = {
                "name": f"{comparison.topic}: {comparison.title}: {name}",
                "unit": _UNITS[comparison.unit],
            }
            run = _pyperf.Run([*map(number, samples.values())], metadata=metadata)
            benchmarks.append(_pyperf.Benchmark([run]))
    _pyperf.BenchmarkSuite(benchmarks).dump(path, replace=True)
