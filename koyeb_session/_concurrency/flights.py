"""Work that everyone waits for, and no waiter owns: in a thread."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from .deadlines import ends, remaining
from .places import atomic, place

T = TypeVar("T")

Work: TypeAlias = Callable[[], T]


class Flight(Generic[T]):
    """Blocking twin: who leads it to its end runs it here, anyone else in a daemon thread."""

    __slots__ = (
        "_begun",
        "_ends",
        "_landed",
        "_landing",
        "_place",
        "_seconds",
        "_then",
        "_work",
        "about",
        "outcome",
    )

    def __init__(
        self,
        work: Work[T],
        then: Work[None] | None = None,
        *,
        about: object = None,
        seconds: float = math.inf,
    ) -> None:
        self.about: object = about
        self._work = work
        self._then = then
        self._seconds = seconds
        self._place = place()
        self._ends = time.monotonic() + seconds * 1.5  # see `deadlines.first_part`
        self._begun = False
        self._landed = False
        self._landing: threading.Event | None = None
        """Made for the first who waits: most flights carry nobody else."""
        self.outcome: T | None = None
        """What ``work`` returned; `None` while under way, and if its thread was interrupted."""

    @property
    def alive(self) -> bool:
        """Whether it is under way, here, or about to be; its thread may have been interrupted."""
        if self._landed or self._place is not place():
            return False
        return self._begun or time.monotonic() < self._ends

    def start(self) -> None:
        """Let it run by itself."""
        context = contextvars.copy_context()
        context.run(ends.set, math.inf)  # it has a deadline of its own
        thread = threading.Thread(
            target=context.run, args=(self._run,), name="koyeb-session", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # there are too many, or the interpreter ends: another time, then
            self._land()

    def lead(self, timeout: float = math.inf) -> T | None:
        """Run it here; who has less time than it may take waits for it, as the others do."""
        if remaining(timeout) < self._seconds:
            self.start()
            return self.join(timeout)
        self._run()
        return self.outcome

    def join(self, timeout: float | None = None) -> T | None:
        """Wait for it, for at most ``timeout`` seconds; `None`: until it should have ended."""
        rest = max(self._ends - time.monotonic(), 0.0)
        with atomic:
            if self._landing is None:
                self._landing = threading.Event()
        if not self._landed:  # looked at after the event is there: see `_land`
            self._landing.wait(remaining(rest if timeout is None else timeout))
        return self.outcome

    def _run(self) -> None:
        with atomic:
            self._begun = self.alive
        if not self._begun:  # it comes so late that others have gone on without it
            self._land()
            return
        try:
            self.outcome = self._work()
        finally:
            self._land()
        if self._then is not None:
            self._then()

    def _land(self) -> None:
        """Let go of all who wait."""
        self._landed = True  # before the event is looked for: see `join`
        if self._landing is not None:
            self._landing.set()
