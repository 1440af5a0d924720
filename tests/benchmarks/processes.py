"""Whole programs: the cost of each, from its start to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple, Self

PROGRAMS: Final = Path(__file__).with_name("programs")
_LAUNCH: Final = Path(__file__).with_name("launch.py")


class Usage(NamedTuple):
    """The cost of one run of a program: seconds, seconds of CPU, bytes of memory at most."""

    wall: float
    cpu: float
    peak: float


def printed(program: str) -> list[float]:
    """Run a program in a new process, and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True
    )
    return [float(line) for line in done.stdout.splitlines()]


class Launcher:
    """A small process that starts programs; see ``launch.py``."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_LAUNCH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._write({**environment})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, program: str, *arguments: str) -> Usage:
        """Run one of the ``programs``, without its folder on ``sys.path``."""
        path = str(PROGRAMS / f"{program}.py")
        self._write([sys.executable, "-P", path, *arguments])
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{program} has failed"
        return Usage(*json.loads(line))

    def _write(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()
