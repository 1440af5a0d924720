"""Tests show each guarantee, and measurements each figure of the summary of speed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
GUARANTEES = (TESTS.parent / ".github" / "GUARANTEES.md").read_text("utf-8")
SPEED = (TESTS / "benchmarks" / "README.md").read_text("utf-8")


def test_guarantees_name_tests_that_are_there() -> None:
    """Each guarantee names a test function that the suite has."""
    rows = re.findall(r"^\| ([^|]+) \| (`test_[^|]+) \|$", GUARANTEES, re.MULTILINE)
    assert len(rows) >= 10
    sources = "\n".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    for guarantee, shown_by in rows:
        names = re.findall(r"`(\w+)`", shown_by)
        assert names, guarantee
        for name in names:
            assert re.search(rf"(def|class) {name}\b", sources), name


FIGURES = {
    "whole program": ["cold start to the first login over TLS, {}: wall"],
    "login, refresh": ["warm login, {}", "warm refresh, {}"],
    "a request with a fresh token": ["a request with a fresh token, httpx, {}"],
}


@pytest.mark.parametrize(("half", "column"), [("asyncio", 0), ("sync", 1)])
@pytest.mark.parametrize("begin", FIGURES)
def test_figures_are_those_that_were_measured(begin: str, half: str, column: int) -> None:
    """The ratios of the summary are those of the last whole run of the benchmarks."""
    (row,) = re.findall(rf"^\| {begin}[^|]*\| ([^|]+) \| ([^|]+) \|$", SPEED, re.MULTILINE)
    measured = [ratio(title.format(half)) for title in FIGURES[begin]]
    assert row[column].split(", ") == measured


def test_many_requests_are_as_much_faster_as_is_said() -> None:
    """The summary's "over 30 times", say, agrees with the last whole run of the benchmarks."""
    title = "1,000 concurrent requests of session.http on sockets"
    share = ratio(title, "koyeb_session, as installed").removesuffix("x")
    (said,) = re.findall(r"over (\d+) times as fast", SPEED)
    assert 1 / float(share) >= int(said)  # the table rounds


def ratio(title: str, contender: str = "koyeb_session") -> str:
    """Read the ratio to the yardstick out of the table of results."""
    table = (TESTS / "benchmarks" / "results" / "table.md").read_text("utf-8")
    part = table.partition(f"### {title}\n")[2].partition("###")[0]
    (row,) = [line for line in part.splitlines() if line.startswith(f"| **{contender}** |")]
    return row.split(" | ")[3]
