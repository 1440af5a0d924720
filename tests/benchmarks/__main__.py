"""Measure: ``python -m tests.benchmarks [--quick] [TOPIC ...]``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Final

from . import archive, publish, report
from .measure import Bench, Run
from .service import Service

TOPICS: Final = (
    *("cold", "imports", "construction", "warm", "hook"),
    *("storm", "pool", "tenants", "portal", "fleet", "instructions"),
)


def main() -> None:
    """Measure the topics of the command line; a full run is written to the folder ``results``."""
    parser = argparse.ArgumentParser(prog="nox -s bench --")
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"of {', '.join(TOPICS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and nothing written")
    parser.add_argument("--json", metavar="FILE", help="also keep all samples, for pyperf")
    given = parser.parse_args()
    unknown = {*given.topics} - {*TOPICS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(TOPICS)}")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    with Service() as service:
        bench = Bench(service, quick=given.quick)
        for topic in given.topics or TOPICS:
            sys.stderr.write(f"{topic} …\n")
            importlib.import_module(f"{__package__}.{topic}").measure(bench)
    run = Run(report.noise(bench), bench.comparisons, bench.notes)
    sys.stdout.write(report.table(run))
    if not given.topics and not given.quick:
        publish.save(run)
        publish.publish()
    if given.json and bench.comparisons:
        archive.save(bench, given.json)


if __name__ == "__main__":
    main()
