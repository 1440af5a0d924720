"""
Run the tests of the pitfalls on naive versions of the package: ``python -m tests.mutants``.

Fail if a mutant passes them all, or if a test fails on none of them: it would show nothing.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree as ET

from .versions import ROOT, VERSIONS, Mutant

GENERATOR = runpy.run_path(str(ROOT / ".ci" / "generate_sync.py"))
KNOWN = sorted({number for mutant in VERSIONS for number in mutant.pitfalls})
MARKED = r"^((?:@pytest\.mark\.pitfall\(\d+\)\n)+)(?:@.*\n(?:[ )].*\n)*)*(?:async )?def (test_\w+)"
NEEDED = (".ci", "koyeb_session", "tests", "pyproject.toml")
# A test that hangs ends its process; the next ones run in another.
BOUNDED = (
    *("--timeout=10", "--timeout-method=thread", "--tb=no", "-k", "not trio"),
    *("--numprocesses=1", "--max-worker-restart=99"),
)


def defined(numbers: set[int]) -> Iterator[str]:
    """Name every test of some pitfalls."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = path.read_text("utf-8")
        for marks, name in re.findall(MARKED, text, re.MULTILINE):
            if numbers & {*map(int, re.findall(r"\d+", marks))}:
                yield f"{path.relative_to(ROOT)}::{name}"


def failed(mutant: Mutant) -> set[str]:
    """Name the tests that fail on a mutant."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        make(mutant, place)
        tests = {test.partition("::")[0] for test in defined({*mutant.pitfalls})}
        report = place / "report.xml"
        call = [sys.executable, "-m", "pytest", *BOUNDED, f"--junitxml={report}", *sorted(tests)]
        call += [f"--pitfall={number}" for number in mutant.pitfalls]
        output = subprocess.run(call, cwd=place, capture_output=True, check=False).stdout
        if not report.exists():
            sys.exit(f"{mutant}\n{output.decode()}")
        return set(failures(report))


def make(mutant: Mutant, place: Path) -> None:
    """Copy the files that the tests need, with the mutant in it, in both halves."""
    for needed in NEEDED:
        copy = shutil.copytree if (ROOT / needed).is_dir() else shutil.copy
        copy(ROOT / needed, place / needed)
    for path, text in mutant.files().items():
        (place / path).write_text(text, "utf-8")
        for source, target in GENERATOR["TREES"].items():
            if path.startswith(source):
                goal = Path(path.replace(source, target))
                converted = GENERATOR["convert"](text, set())
                (place / goal).write_bytes(GENERATOR["tidy"](converted, goal, ROOT))


def failures(report: Path) -> Iterator[str]:
    """Read which tests failed."""
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        if case.find("failure") is not None or case.find("error") is not None:
            module = case.get("classname", "").replace(".", "/")
            yield f"{module}.py::{case.get('name', '').partition('[')[0]}"


def main(numbers: set[int]) -> None:
    """Print which tests fail on each mutant; those of some pitfalls, or of all."""
    versions = [mutant for mutant in VERSIONS if numbers & set(mutant.pitfalls)]
    unseen = set(defined(numbers & {*KNOWN}))
    passed: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, names in zip(versions, pool.map(failed, versions), strict=True):
            print(mutant, *sorted(names), sep="\n    ", flush=True)
            unseen -= names
            passed += [] if names else [str(mutant)]
    if passed or unseen:
        sys.exit("\n".join(["", "Pass:", *passed, "", "Fail on none:", *sorted(unseen)]))
    print(f"{len(versions)} mutants fail, and each test of a pitfall fails on one of them.")


main(set(map(int, sys.argv[1:])) or {*KNOWN})
