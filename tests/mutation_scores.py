"""
Print how many mutants of each module the tests have killed, and which ones have survived.

It reads the results of ``mutmut run`` in ``mutants/``, and fails below 90 % in any module.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

GOAL = 0.9
UNNOTICED = {0, 5, 33, 34, 35}
"""Exit statuses: the tests passed, there were none, they were skipped, or it is unknown."""
AT_IMPORT = ("policy.x__check__", "policy.x__unless_none__", "wire.x__shown__")
"""Functions that make a class's validators at import, before mutmut says which mutant runs."""


def main() -> None:
    """Print a line for each module, and one for each survivor."""
    failed = False
    for path in sorted(Path("mutants").rglob("*.meta")):
        statuses = json.loads(path.read_text("utf-8"))["exit_code_by_key"]
        checked = {
            name: status
            for name, status in statuses.items()
            if status is not None and not any(made in name for made in AT_IMPORT)
        }
        survivors = [name for name, status in checked.items() if status in UNNOTICED]
        if not checked:
            continue
        share = 1 - len(survivors) / len(checked)
        failed |= share < GOAL
        print(f"{path}: {share:.1%} of {len(checked)} killed", *survivors, sep="\n    ")
    sys.exit(failed)


main()
