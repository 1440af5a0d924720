"""
Hand work to threads where a signal handler may raise at any moment.

This module imports as little as `forks`, for the same reason.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
from functools import partial

from ..forks import LONGEST, wait_until_gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, TypeAlias

    _Work: TypeAlias = Callable[[], object]

NAME: Final = "koyeb-session"
_KEPT: Final = 2
"""The number of idle threads: one renews, while another one holds the store's lock for it."""
_IDLE: Final = 1.0
"""
Seconds for which an idle thread waits for more work.

One start in a second costs nothing. So a thread is kept for the next step of a busy program, and a
program that is idle, or counts its threads, has none.
"""


class _IdleThread:
    """
    A thread that waits for its next piece of work. The process owns it, and no task or session.

    It takes the first thing that it is given, in one atomic step, and nothing after that. So work
    never waits for other work, and where a signal handler raises, it is given as a whole or not.
    """

    __slots__ = ("_called", "_given", "thread")

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self._called = threading.Lock()
        self._called.acquire()
        self._given: dict[None, _Work | None] = {}

    def give(self, work: _Work | None) -> bool:
        """Give it work, or `None` to end it; return `False` if it has taken something else."""
        if self._given.setdefault(None, work) is not work:
            return False
        self._called.release()  # if a signal handler raises before this, the thread is late
        return True

    def take(self) -> _Work | None:
        """Wait for work; return `None` if the thread is to end."""
        self._called.acquire(timeout=_IDLE)
        return self._given.setdefault(None, None)


_idle: Final[list[_IdleThread]] = []


def launch(work: _Work) -> bool:
    """
    Run ``work`` in a daemon thread of its own; return `False` if no thread can be started.

    An idle thread does it, if there is one. Otherwise one is started. A signal handler runs in the
    main thread, between any two steps of Python code, and `Thread.start` takes many steps. A
    handler that raises there leaves a thread that is listed and never begins, or one that begins
    and fails. So the main thread starts a helper in one step of C code, which starts the thread.
    """
    if sys.is_finalizing():  # no other thread runs any more, and an idle one takes no work
        return False
    here = threading.get_ident()
    for idle in tuple(_idle):
        # Not the calling thread: a finalizer may have interrupted one that is about to be idle.
        if idle.thread.ident != here and idle.give(work):
            return True
    if here != threading.main_thread().ident:
        return _start(work)
    try:
        _thread.start_new_thread(_start_or_run, (work,))
    except RuntimeError as exc:
        if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            raise  # a signal handler raised it: the frame is the handler's
        return False
    return True


def _start(*works: _Work) -> bool:
    try:
        threading.Thread(target=_run_each, args=([*works],), name=NAME, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _start_or_run(work: _Work) -> None:
    # The thread is idle only when this helper is gone, as a fork would count both.
    is_alone = partial(wait_until_gone, threading.get_native_id())
    if not _start(is_alone, work):  # no other thread can be started
        work()


def _run_each(works: list[_Work]) -> None:
    """Do one piece of work after another, from the last one on; refer to none that is done."""
    while works:
        works.pop()()
        works = works or _wait_for_more()


def _wait_for_more() -> list[_Work]:
    if len(_idle) >= _KEPT:
        return []
    idle = _IdleThread()
    _idle.append(idle)
    try:
        work = idle.take()
    finally:  # memory may have run out
        _idle.remove(idle)
    return [] if work is None else [work]


def end_idle_threads() -> None:
    """
    End the idle threads, and wait for a moment until they are gone.

    Each fork does: Python 3.12 and later warn of a fork of a process with several threads.
    """
    for idle in tuple(_idle):
        with contextlib.suppress(RuntimeError):  # another thread is ending it, too
            if not idle.give(None):
                continue
        idle.thread.join(LONGEST)
        wait_until_gone(idle.thread.native_id)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=end_idle_threads, after_in_child=_idle.clear)
