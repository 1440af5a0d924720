"""Programs that run to their end in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import koyeb_session

from ..concurrency import PATIENCE


def run_python(
    *arguments: str, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """Run Python on the package under test, to its end."""
    package = str(Path(koyeb_session.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": package},
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
