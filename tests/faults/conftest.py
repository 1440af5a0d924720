"""Prints the fault matrix as a table: ``pytest tests/faults --fault-table``."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, cast

import pytest

_cells: Final[dict[tuple[str, str], dict[str, str]]] = {}
_LEGEND: Final = (
    "Each cell: the error's class without its Error, or ok; how many requests reached a server; "
    "and the session: = as before, + with a new token, - signed out. "
    "A slash would set apart halves that differ."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--fault-table", action="store_true", help="print the fault matrix")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the result of a cell."""
    for name, value in report.user_properties:
        if name == "cell" and report.when == "call":
            fault, operation, half, summary = cast("tuple[str, str, str, str]", value)
            halves = _cells.setdefault((fault, operation), {})
            halves[half] = summary if report.passed else f"FAILED {half}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    if not _cells or not config.getoption("--fault-table", default=False):
        return
    operations = list(dict.fromkeys(operation for _, operation in _cells))
    terminalreporter.section("fault matrix")
    faults = dict.fromkeys(fault for fault, _ in _cells)
    rows = [
        ["", *operations],
        *([fault, *(_shown((fault, operation)) for operation in operations)] for fault in faults),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line(line.rstrip())
    counts = Counter(half for halves in _cells.values() for half in halves)
    terminalreporter.write_line("")
    terminalreporter.write_line(_LEGEND)
    terminalreporter.write_line(
        f"{len(rows) - 1} faults x {len(operations)} operations x {len(counts)} halves: "
        f"{counts.total()} cells ({', '.join(f'{half} {n}' for half, n in counts.items())})"
    )


def _shown(cell: tuple[str, str]) -> str:
    return " / ".join(dict.fromkeys(_cells.get(cell, {}).values()))
