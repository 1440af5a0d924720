"""The naive versions can still be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .versions import ROOT, VERSIONS


def test_what_is_replaced_is_there_once() -> None:
    """`nox -s naive` would otherwise run the tests on the package as it is."""
    for naive in VERSIONS:
        for edit in naive.edits:
            assert (ROOT / edit.path).read_text("utf-8").count(edit.old) == 1, str(naive)


def test_each_version_is_code_that_runs(tmp_path: Path) -> None:
    """A test that fails on a slip shows nothing; catches bad syntax and unknown names."""
    for number, naive in enumerate(VERSIONS):
        for path, text in naive.files().items():
            if path.endswith(".py"):
                (tmp_path / f"{number}_{Path(path).name}").write_text(text, "utf-8")
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F823"]
    done = subprocess.run([*check, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_each_pitfall_has_a_naive_version() -> None:
    """All twenty-five numbers are there."""
    assert {number for naive in VERSIONS for number in naive.pitfalls} == set(range(1, 26))
