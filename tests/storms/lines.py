"""Does something to a call between two of its lines, at a line that the test has counted."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import koyeb_session
from koyeb_session._concurrency.runtime import state_lock

_PACKAGE: Final = str(Path(koyeb_session.__file__).parent)
_SERVICE: Final = str(Path(_PACKAGE, "testing"))
_PATIENCE: Final = 10.0
"""Seconds after which what another thread does will not end any more."""


class AtLine:
    """
    Counts the lines that the calling thread executes in the block, and acts before one of them.

    Attributes:
        lines: How many there were.
        reached: Whether it has acted.
    """

    def __init__(self, act: Callable[[], object], at: int, *, everywhere: bool = False) -> None:
        self._act = act
        self._at = at
        self._everywhere = everywhere
        self._left: Any = None
        self.lines = 0
        self.reached = False

    def __enter__(self) -> Self:
        self._left = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._left)

    def _enter_frame(self, frame: FrameType, event: str, arg: object) -> Any:
        """Follow the package's own frames, and those of others if that is wanted."""
        if self.reached:
            return None
        path = frame.f_code.co_filename
        if path.startswith((_SERVICE, "<")):
            return None
        if not path.startswith(_PACKAGE) and not (self._everywhere and path != __file__):
            return None
        been: set[int] = set()

        def follow(frame: FrameType, event: str, arg: object) -> Any:
            if self.reached:
                return None
            if event == "line" and not self._cannot_be_here(frame, been):
                self.lines += 1
                if self.lines == self._at:
                    self.reached = True
                    self._act()
            return follow

        return follow

    def _cannot_be_here(self, frame: FrameType, been: set[int]) -> bool:
        """
        Tell whether nothing comes between this line and the one before.

        That is so at the end of a `with` block, which leads from its last line into `__exit__`;
        and for other threads where this one holds the lock.
        """
        line = frame.f_lineno
        is_block = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("with ")
        ends = is_block and line in been
        been.add(line)
        return ends or (holds_the_lock() and not self._everywhere)


def holds_the_lock() -> bool:
    """Tell whether the calling thread is in a step that others cannot come into."""
    owned: Callable[[], bool] | None = getattr(state_lock, "_is_owned", None)
    return owned is not None and owned()


def in_another_thread(work: Callable[[], object]) -> Callable[[], None]:
    """Do some work in another thread, and wait until it is done."""

    def act() -> None:
        errors: list[Exception] = []

        def run() -> None:
            try:
                work()
            except Exception as exc:  # noqa: BLE001 - raised where it is waited for
                errors.append(exc)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        assert not thread.is_alive(), "another thread has to wait for this one"
        assert not errors, errors

    return act
