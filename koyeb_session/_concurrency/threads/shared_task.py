"""Work that everyone waits for, and no waiter owns: in a thread of its own."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeAlias, TypeVar

from ..runtime import current_process, state_lock
from .deadlines import ends
from .waiting import Event

T = TypeVar("T")

Work: TypeAlias = Callable[[], T]

_at_exit: Final[set[SharedTask[Any]]] = set()
"""What the end of the interpreter waits for; the threads are daemons, which it would cut off."""
_registered: object = None
"""The process whose end waits for them."""


class SharedTask(Generic[T]):
    """
    Blocking twin: in a daemon thread, where no signal handler can interrupt it.

    Whatever a handler raises reaches the thread that waits, and that one alone. A normal end of the
    interpreter waits for a flight until it should have ended.
    """

    __slots__ = (
        "_active_tasks",
        "_all_done",
        "_begun",
        "_context",
        "_done",
        "_ends",
        "_home",
        "_on_done",
        "_outcome",
        "_raised",
        "_returned",
        "_runner",
        "_unstarted",
        "_work",
        "replaces",
    )

    def __init__(
        self,
        work: Work[T],
        on_done: Work[None] | None = None,
        *,
        replaces: object = None,
        seconds: float = math.inf,
        active_tasks: set[SharedTask[Any]] | None = None,
    ) -> None:
        self.replaces: object = replaces
        self._work = work
        self._on_done = on_done
        self._home = current_process()
        self._ends = time.monotonic() + seconds
        self._begun = False
        self._done = Event()
        self._all_done = Event()
        self._outcome: T | None = None
        self._raised: Exception | None = None
        self._returned = False
        self._runner: int | None = None
        self._active_tasks = active_tasks
        self._context = contextvars.copy_context()
        self._context.run(ends.set, math.inf)  # it has a deadline of its own
        self._unstarted = [True]

    @property
    def alive(self) -> bool:
        """
        Whether it is under way, here, or about to be.

        One that hangs counts as dead: foreign code cannot be stopped, and others go on without it.
        """
        if self._done.is_set() or self._home is not current_process():
            return False
        return time.monotonic() < self._ends + _GRACE

    @property
    def succeeded(self) -> bool:
        """Whether ``work`` has returned."""
        return self._returned

    @property
    def outcome(self) -> T | None:
        """
        What ``work`` returned; `None` while under way.

        Raises:
            Exception: What ``work`` raised.
        """
        if self._raised is not None:
            raise self._raised
        return self._outcome

    def start(self, *, at_exit: bool = True, alone: bool = False) -> None:
        """
        Let it run by itself, once.

        Where no thread can be had, as from Python 3.12 on once the main thread has ended, it runs
        here, unless it has to be ``alone``: then it is not done at all.
        """
        try:
            self._unstarted.pop()  # one step: of two threads, one starts it
        except IndexError:
            return
        if self._home is not current_process():
            return
        if at_exit:
            _wait_at_exit(self)
        if self._active_tasks is not None:
            self._active_tasks.add(self)
        self._launch(alone=alone)

    def _launch(self, *, alone: bool = False) -> None:
        thread = threading.Thread(
            target=self._context.copy().run, args=(self._run,), name="koyeb-session", daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, KeyError) as exc:
            # `Thread.start` stumbles over what a signal handler raises in the midst of it.
            if exc.__context__ is not None:
                raise exc.__context__ from None
            if alone:
                self._begun = True
                self._end()
            else:
                self._run()

    def run(self, timeout: float = math.inf) -> T | None:
        """Start it and wait for it, for at most ``timeout`` seconds."""
        return self.join(timeout)

    def join(self, timeout: float | None = None) -> T | None:
        """
        Wait for it, for at most ``timeout`` seconds; `None`: until it should have ended.

        Raises:
            Exception: What ``work`` raised.
        """
        self.wait(timeout)
        return self.outcome

    def wait(self, timeout: float | None = None) -> None:
        """
        Wait as `join` does, whatever comes of it.

        Not for one of the process before a fork, and not in its own thread, where a finalizer may
        ask for it.
        """
        if self._home is not current_process() or self._runner == threading.get_ident():
            return
        self.start()
        seconds = self._ends - time.monotonic() if timeout is None else timeout
        if not self._begun and not self._done.wait(min(seconds, _GRACE)) and not self._begun:
            self._launch()  # a signal handler raised in the one who was about to start it
        self._done.wait(seconds)

    def wait_done(self, timeout: float) -> None:
        """
        Wait for it and for what comes ``on_done``, for at most ``timeout`` seconds.

        One that has not begun soon will not: a signal handler raised in the one who was about to
        start it.
        """
        if self._home is not current_process():
            return
        if self._begun or self._all_done.wait(min(timeout, _GRACE)) or self._begun:
            self._all_done.wait(timeout)

    def at_exit(self) -> None:
        """Wait until it should have ended: the interpreter is about to end."""
        self.wait_done(self._ends + _GRACE - time.monotonic())

    def _run(self) -> None:
        with state_lock:
            begun, self._begun = self._begun, True
        if begun:  # it was launched twice: see `wait`
            return
        self._runner = threading.get_ident()
        try:
            try:
                if self.alive:  # else its thread comes so late that others have gone on without it
                    self._outcome = self._work()
                    self._returned = True
            except Exception as exc:  # noqa: BLE001 - see `outcome`
                self._raised = exc
            finally:
                self._set_done()
            if self._on_done is not None:
                self._on_done()
        finally:
            self._runner = None
            self._end()

    def _set_done(self) -> None:
        self._done.set()
        if self._active_tasks is not None:
            self._active_tasks.discard(self)

    def _end(self) -> None:
        self._set_done()
        self._all_done.set()
        _at_exit.discard(self)


_GRACE: Final = 1.0
"""Seconds for which a flight may be late."""


def _wait_at_exit(task: SharedTask[Any]) -> None:
    global _registered  # noqa: PLW0603 - it changes with each fork
    if _registered is not current_process():
        _registered = current_process()
        _at_exit.clear()  # those of the parent
        atexit.register(_finish)
        _finish_in_child()
    _at_exit.add(task)


def _finish_in_child() -> None:
    """Have a process of `multiprocessing` wait too: it ends without `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _finish, exitpriority=0)


def _finish() -> None:
    """Wait for all that is under way, each until it should have ended."""
    while _at_exit:
        with contextlib.suppress(KeyError):  # it has just ended
            task = _at_exit.pop()
            task.at_exit()
