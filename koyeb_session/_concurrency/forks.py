"""
Threads that a fork waits for, and sockets that its child has no use for.

It imports next to nothing: a hook keeps what its module holds until the interpreter has ended.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

_threads: list[threading.Thread] = []
_sockets: weakref.WeakSet[socket] = weakref.WeakSet()


def start_before_forks(thread: threading.Thread) -> None:
    """
    Start a thread that no fork may interrupt.

    Raises:
        RuntimeError: There can be no more threads.
    """
    _threads[:] = [thread, *(it for it in _threads if it.is_alive())]
    thread.start()


def _wait() -> None:
    for thread in tuple(_threads):
        if thread.is_alive():
            thread.join()


def close_in_children(opened: Any) -> None:
    """
    Have each child that is forked from now on close its copy of a socket.

    The parent's connection stays as it is. The child would drop its copy unclosed, with a warning.
    At its own end it closes what it has opened since: the client is the parent's to close.
    """
    if hasattr(opened, "detach"):  # a socket; another network back end may have anything
        _sockets.add(opened)


def _close_sockets() -> None:
    for opened in tuple(_sockets):
        opened.close()
    _sockets.clear()


def _close_in_child() -> None:
    _close_sockets()
    atexit.unregister(_close_sockets)  # of a parent that is a child itself
    atexit.register(_close_sockets)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_child=_close_in_child)
