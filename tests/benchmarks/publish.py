"""Write the pages that follow from the file of results: ``python -m tests.benchmarks.publish``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import attrs
import cattrs

from . import chart, report
from .measure import Run

RESULTS: Final = Path(__file__).with_name("results")
README: Final = Path(__file__).with_name("README.md")
_FILE: Final = RESULTS / "results.json"
_TABLE: Final = re.compile(r"(?<=\n\| beside bare `httpx`).*?(?=\n\n)", re.DOTALL)
_HALVES: Final = ("asyncio", "sync")


def save(run: Run) -> None:
    """Keep a whole run."""
    RESULTS.mkdir(exist_ok=True)
    _FILE.write_text(json.dumps(attrs.asdict(run), indent=1) + "\n", "utf-8")


def publish() -> None:
    """Write the table of all figures, the chart, and the table of the README beside this."""
    run = cattrs.structure(json.loads(_FILE.read_text("utf-8")), Run)
    (RESULTS / "table.md").write_text(report.table(run), "utf-8")
    chart.draw(run.comparisons, RESULTS / "chart.svg")
    text = README.read_text("utf-8")
    README.write_text(_TABLE.sub(lambda _: rows(run), text), "utf-8")


def rows(run: Run) -> str:
    """Write the README's table, from the end of its first words on."""
    of = {each.title: each for each in run.comparisons}

    def ratios(*titles: str) -> str:
        halves = (
            ", ".join(
                report.times(of[each].ratio("koyeb_session", of[each].yardstick))
                for each in (title.format(half) for title in titles)
            )
            for half in _HALVES
        )
        return " | ".join(halves)

    many = of["1,000 concurrent requests of session.http on sockets"]
    faster = 1 / many.ratio("koyeb_session, as installed", "bare httpx")
    return "\n".join(
        (
            ", in one run on two cores | asynchronous | blocking |",
            "|---|--:|--:|",
            "| whole program: import, client, first login over TLS | "
            + ratios("cold start to the first login over TLS, {}: wall")
            + " |",
            "| login, refresh, on an open connection | "
            + ratios("warm login, {}", "warm refresh, {}")
            + " |",
            "| a request with a fresh token, beside a static header | "
            + ratios("a request with a fresh token, httpx, {}")
            + " |",
            f"| 1,000 requests at one moment | over {int(faster) // 5 * 5} times as fast | |",
        )
    )


if __name__ == "__main__":
    publish()
