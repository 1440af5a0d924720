"""The security policy names tests that are there, and versions that are asked for."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
POLICY = (ROOT / ".github" / "SECURITY.md").read_text("utf-8")


def test_promises_name_tests_that_are_there() -> None:
    """The policy names test functions that the suite has."""
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", POLICY):
        assert re.search(rf"def {name}\b", sources), name


def test_each_promise_names_a_test() -> None:
    """No row of the table of promises says what nothing shows."""
    table = POLICY.partition("| promise |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert len(rows) >= 10
    for row in rows:
        assert re.fullmatch(r"\| [^|]+ \| (`test_\w+`(, )?)+ \|", row), row


def test_minimum_versions_are_those_that_are_asked_for() -> None:
    """The policy and the package's extras leave out the same packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = {*project["dependencies"], *chain(*project["optional-dependencies"].values())}
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", POLICY, re.MULTILINE)
    assert len(rows) >= 5
    assert {f"{name}>={version}" for name, version in rows} <= asked
