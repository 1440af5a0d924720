"""Decide whether to trust a file, by its kind, its owner and its permissions."""

from __future__ import annotations

import enum
import os
import stat
from typing import Final

NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
"""Without this flag, opening a pipe that has no writer would block forever."""
_ROOT: Final = 0


class Distrust(enum.Enum):
    """A reason to distrust a file."""

    NO_FILE = enum.auto()
    """It is a folder, a pipe or a device."""
    FOREIGN = enum.auto()
    """It belongs to another user, who is not root."""
    WRITABLE = enum.auto()
    """Others may write to it."""


def distrust(status: os.stat_result) -> Distrust | None:
    """
    Return a reason to distrust a file, if there is one.

    The status must be an open file's: nobody can swap that between check and use.
    """
    if not stat.S_ISREG(status.st_mode):
        return Distrust.NO_FILE
    if os.name == "nt":  # pragma: no cover - Windows has access lists instead
        return None
    if status.st_uid not in {_ROOT, os.geteuid()}:
        return Distrust.FOREIGN
    return Distrust.WRITABLE if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None
