"""Does something to a call between two of its lines, at a line that the test has counted."""

from __future__ import annotations

import _thread
import linecache
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import koyeb_session
from koyeb_session._concurrency.runtime import is_in_step

_PACKAGE: Final = str(Path(koyeb_session.__file__).parent)
_SERVICE: Final = str(Path(_PACKAGE, "testing"))
_THREADS: Final = threading.__file__
_PATIENCE: Final = 30.0
"""Seconds after which the work of another thread counts as stuck."""


class AtLine:
    """
    Counts the lines that the calling thread executes in the block, and acts before one of them.

    Attributes:
        lines: How many there were.
        reached: Whether it has acted.
    """

    _AT_LOCK = False
    _FOLLOWED: tuple[str, ...] = (_PACKAGE,)

    def __init__(self, act: Callable[[], object], at: int) -> None:
        self._act = act
        self._at = at
        self._signal: Any = _Act(act)
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
        """Follow the package's own frames."""
        if self.reached:
            return None
        path = frame.f_code.co_filename
        if path.startswith(_SERVICE) or not path.startswith(self._FOLLOWED):
            return None
        # The collector may run anywhere, also where this thread holds a lock of Python's own.
        if _is_of_a_finalizer(frame):
            return None
        been: set[int] = set()

        def follow(frame: FrameType, event: str, arg: object) -> Any:
            if self.reached:
                return None
            if event == "line" and not self._cannot_be_here(frame, been):
                self.lines += 1
                if self.lines == self._at:
                    self.reached = True
                    return self._signal.now  # with no step of Python code after it
            return follow

        return follow

    def _cannot_be_here(self, frame: FrameType, been: set[int]) -> bool:
        """
        Return whether nothing comes between this line and the one before.

        That is so at the end of a `with` block, which leads from its last line into `__exit__`;
        and for other threads where this one holds the lock.
        """
        line = frame.f_lineno
        is_block = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("with ")
        ends = is_block and line in been
        been.add(line)
        return ends or (is_in_step() and not self._AT_LOCK)


def _is_of_a_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


class _Act:
    """Acts when `now` is read."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    @property
    def now(self) -> None:
        self._act()


class _Signal(int):
    """A signal, which comes when `now` is read, and is handled when Python looks for it."""

    now: Any = property(_thread.interrupt_main)


class SignalAtLine(AtLine):
    """
    Has a signal come before a line: its handler acts at the next moment at which Python looks.

    An error that a trace function raises itself upsets Python 3.11. A handler may come where its
    thread holds the lock, and where it starts another thread. The service is another program's
    affair, and an error of a finalizer is lost: they are not interrupted.

    Attributes:
        struck: Whether the handler has acted.
    """

    _AT_LOCK = True
    _FOLLOWED = (_PACKAGE, _THREADS)

    def __init__(self, act: Callable[[], object], at: int) -> None:
        super().__init__(act, at)
        self._before: Any = None
        self._signal = _Signal(signal.SIGUSR1)
        self.struck = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGUSR1, self._handle)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        signal.signal(signal.SIGUSR1, self._before)

    def _handle(self, _: int, frame: FrameType | None) -> Any:
        if frame is not None and frame.f_code.co_name in {"_enter_frame", "follow"}:
            return self._signal.now  # not in the trace function: it comes once more
        is_inside = False
        while frame is not None:
            path = frame.f_code.co_filename
            # The garbage collector swallows exceptions of finalizers, and of its callbacks.
            is_collecting = frame.f_code.co_name in {"__del__", "gc_callback"}
            if path.startswith(_SERVICE) or is_collecting:
                return None
            is_inside = is_inside or path.startswith(_PACKAGE)
            frame = frame.f_back
        if is_inside:
            self.struck = True
            self._act()
        return None


class TimeIsUpError(Exception):
    """The error of a job queue in the middle of a job."""


def limit(work: Callable[[], object], at: int) -> tuple[SignalAtLine, TimeIsUpError | None]:
    """Do some work, and have a handler raise before its line ``at``; return the error that came."""

    def time_is_up() -> None:
        raise TimeIsUpError

    line = SignalAtLine(time_is_up, at)
    try:
        with line:
            work()
    except TimeIsUpError as exc:
        return line, exc
    return line, None


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
