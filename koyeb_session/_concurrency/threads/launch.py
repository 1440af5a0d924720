"""Start threads where a signal handler may raise at any moment."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import Final

NAME: Final = "koyeb-session"


def launch(work: Callable[[], object]) -> bool:
    """
    Run ``work`` in its own daemon thread; return `False` if no thread can be started.

    A signal handler runs in the main thread, between any two steps of Python code. `Thread.start`
    takes many steps. A handler that raises there leaves a thread that is listed and never begins,
    or one that begins and fails. So the main thread starts a helper in one step of C code, and the
    helper starts the thread.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return _start(work)
    try:
        _thread.start_new_thread(_start_or_run, (work,))
    except RuntimeError as exc:
        if exc.__traceback__ is not None and exc.__traceback__.tb_next is not None:
            raise  # a signal handler raised it: the frame is the handler's
        return False
    return True


def _start(work: Callable[[], object]) -> bool:
    try:
        threading.Thread(target=work, name=NAME, daemon=True).start()
    except RuntimeError:
        return False
    return True


def _start_or_run(work: Callable[[], object]) -> None:
    if not _start(work):  # no other thread can be started
        work()
