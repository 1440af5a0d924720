"""Measure: ``python -m tests.benchmarks [--quick] [TOPIC ...]``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Final

from . import archive, chart, report
from .measure import Bench
from .service import Service

TOPICS: Final = (
    *("cold", "imports", "construction", "warm", "hook"),
    *("storm", "pool", "tenants", "portal", "fleet"),
)
RESULTS: Final = Path(__file__).with_name("results")


def main() -> None:
    """Measure what the command line asks for; a full run is written to the folder ``results``."""
    parser = argparse.ArgumentParser(prog="nox -s bench --")
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing written")
    parser.add_argument("--json", metavar="FILE", help="also keep all samples, for pyperf")
    given = parser.parse_args()
    unknown = {*given.topics} - {*TOPICS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode
    with Service() as service:
        bench = Bench(service, quick=given.quick)
        for topic in given.topics or TOPICS:
            sys.stderr.write(f"{topic} …\n")
            importlib.import_module(f"{__package__}.{topic}").measure(bench)
    table = report.table(bench)
    sys.stdout.write(table)
    if not given.topics and not given.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "table.md").write_text(table, "utf-8")
        chart.draw(bench.comparisons, RESULTS / "chart.svg")
    if given.json and bench.comparisons:
        archive.save(bench, given.json)


if __name__ == "__main__":
    main()
