"""The mutants can still be made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .versions import ROOT, VERSIONS


def test_code_that_is_replaced_is_there_once() -> None:
    """`nox -s mutants` would otherwise run the tests on the package as it is."""
    for mutant in VERSIONS:
        for edit in mutant.edits:
            assert (ROOT / edit.path).read_text("utf-8").count(edit.old) == 1, str(mutant)


def test_each_version_is_code_that_runs(tmp_path: Path) -> None:
    """A test that fails on a slip shows nothing; catches bad syntax and unknown names."""
    for number, mutant in enumerate(VERSIONS):
        for path, text in mutant.files().items():
            if path.endswith(".py"):
                (tmp_path / f"{number}_{Path(path).name}").write_text(text, "utf-8")
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821,F823"]
    done = subprocess.run([*check, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_each_pitfall_has_a_mutant() -> None:
    """All twenty-five numbers are there."""
    assert {number for mutant in VERSIONS for number in mutant.pitfalls} == set(range(1, 26))
