"""The cost of imports and cold starts in instructions, which no neighbor on the machine changes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import Final

from .cold import HALVES
from .measure import Bench, Comparison, Goal
from .processes import PROGRAMS

_STATEMENTS: Final = {
    "import httpx": "import httpx",
    "koyeb_session": "from koyeb_session import SessionClient",
    "koyeb_session, async": "from koyeb_session import AsyncSessionClient",
    "import httpx2": "import httpx2",
}
_VALGRIND: Final = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


def measure(bench: Bench) -> None:
    """Count them, less those of an empty program; all threads of a program together."""
    if shutil.which("valgrind") is None:
        bench.notes.append("No `valgrind` here: instructions were not counted.\n")
        return
    empty = _count("-c", "")
    imports = {name: _count("-c", text) - empty for name, text in _STATEMENTS.items()}
    goals = [Goal("koyeb_session", 1.05), Goal("koyeb_session, async", 1.05)]
    _keep(bench, "import alone, instructions", "import httpx", imports, goals)
    for half, programs in HALVES.items():
        counts = {
            name: _count(str(PROGRAMS / f"{program}.py"), bench.service.http) - empty
            for name, program in programs.items()
            if name != "koyeb-sdk"
        }
        # Without TLS: a handshake would not end in time.
        _keep(bench, f"cold start to the first login, {half}, instructions", "bare httpx", counts)


def _keep(
    bench: Bench,
    title: str,
    yardstick: str,
    counts: dict[str, float],
    goals: list[Goal] | None = None,
) -> None:
    samples = {name: {0: count} for name, count in counts.items()}
    bench.add(Comparison("instructions", title, "instructions", yardstick, samples, goals or []))


def _count(*program: str) -> float:
    done = subprocess.run(
        [*_VALGRIND, sys.executable, "-P", *program],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )
    (count,) = re.findall(r"Collected : (\d+)", done.stderr)
    return float(count)
