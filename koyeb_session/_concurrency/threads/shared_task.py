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

from ..runtime import atomic, place
from .deadlines import ends
from .waiting import Event

T = TypeVar("T")

Work: TypeAlias = Callable[[], T]

_at_exit: Final[set[Flight[Any]]] = set()
"""What the end of the interpreter waits for; the threads are daemons, which it would cut off."""
_registered: object = None
"""The process whose end waits for them."""


class Flight(Generic[T]):
    """
    Blocking twin: in a daemon thread, where no signal handler can interrupt it.

    Whatever a handler raises reaches the thread that waits, and that one alone. A normal end of the
    interpreter waits for a flight until it should have ended.
    """

    __slots__ = (
        "_begun",
        "_context",
        "_ends",
        "_landed",
        "_outcome",
        "_over",
        "_place",
        "_raised",
        "_returned",
        "_runner",
        "_then",
        "_under_way",
        "_unstarted",
        "_work",
        "about",
    )

    def __init__(
        self,
        work: Work[T],
        then: Work[None] | None = None,
        *,
        about: object = None,
        seconds: float = math.inf,
        under_way: set[Flight[Any]] | None = None,
    ) -> None:
        self.about: object = about
        self._work = work
        self._then = then
        self._place = place()
        self._ends = time.monotonic() + seconds
        self._begun = False
        self._landed = Event()
        self._over = Event()
        self._outcome: T | None = None
        self._raised: Exception | None = None
        self._returned = False
        self._runner: int | None = None
        self._under_way = under_way
        self._context = contextvars.copy_context()
        self._context.run(ends.set, math.inf)  # it has a deadline of its own
        self._unstarted = [True]

    @property
    def alive(self) -> bool:
        """
        Whether it is under way, here, or about to be.

        One that hangs counts as dead: foreign code cannot be stopped, and others go on without it.
        """
        if self._landed.is_set() or self._place is not place():
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
        if self._place is not place():
            return
        if at_exit:
            _wait_at_exit(self)
        if self._under_way is not None:
            self._under_way.add(self)
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

    def lead(self, timeout: float = math.inf) -> T | None:
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
        if self._place is not place() or self._runner == threading.get_ident():
            return
        self.start()
        seconds = self._ends - time.monotonic() if timeout is None else timeout
        if not self._begun and not self._landed.wait(min(seconds, _GRACE)) and not self._begun:
            self._launch()  # a signal handler raised in the one who was about to start it
        self._landed.wait(seconds)

    def ended(self, timeout: float) -> None:
        """
        Wait for it and for what comes ``then``, for at most ``timeout`` seconds.

        One that has not begun soon will not: a signal handler raised in the one who was about to
        start it.
        """
        if self._place is not place():
            return
        if self._begun or self._over.wait(min(timeout, _GRACE)) or self._begun:
            self._over.wait(timeout)

    def at_exit(self) -> None:
        """Wait until it should have ended: the interpreter is about to end."""
        self.ended(self._ends + _GRACE - time.monotonic())

    def _run(self) -> None:
        with atomic:
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
                self._land()
            if self._then is not None:
                self._then()
        finally:
            self._runner = None
            self._end()

    def _land(self) -> None:
        self._landed.set()
        if self._under_way is not None:
            self._under_way.discard(self)

    def _end(self) -> None:
        self._land()
        self._over.set()
        _at_exit.discard(self)


_GRACE: Final = 1.0
"""Seconds for which a flight may be late."""


def _wait_at_exit(flight: Flight[Any]) -> None:
    global _registered  # noqa: PLW0603 - it changes with each fork
    if _registered is not place():
        _registered = place()
        _at_exit.clear()  # those of the parent
        atexit.register(_finish)
        _finish_in_child()
    _at_exit.add(flight)


def _finish_in_child() -> None:
    """Have a process of `multiprocessing` wait too: it ends without `atexit`."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _finish, exitpriority=0)


def _finish() -> None:
    """Wait for all that is under way, each until it should have ended."""
    while _at_exit:
        with contextlib.suppress(KeyError):  # it has just ended
            flight = _at_exit.pop()
            flight.at_exit()
