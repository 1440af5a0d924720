"""
Fork hooks: a fork waits for some threads, and its child closes the sockets it inherits.

This module imports next to nothing. A fork hook is never unregistered, so everything that its
module refers to stays in memory until the interpreter has ended.
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
        RuntimeError: The system allows no further thread.
    """
    # Listed before it starts: from its first instruction on, a fork waits for it.
    _threads[:] = [thread, *(it for it in _threads if it.is_alive())]
    thread.start()


def _wait() -> None:
    for thread in tuple(_threads):
        if thread.is_alive():
            thread.join()


def close_in_children(opened: Any) -> None:
    """
    Make every process forked from now on close its copy of a socket.

    The parent's connection stays as it is. Otherwise the child would drop its copy unclosed, with a
    warning. The child may open sockets of its own on the parent's client, which only the parent
    closes. The child therefore closes those sockets when it exits.
    """
    if hasattr(opened, "detach"):  # a socket; other network back ends use other objects
        _sockets.add(opened)


def _close_sockets() -> None:
    for opened in tuple(_sockets):
        opened.close()
    _sockets.clear()


def _close_in_child() -> None:
    _close_sockets()
    atexit.unregister(_close_sockets)  # inherited when the parent is itself a child
    atexit.register(_close_sockets)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_child=_close_in_child)
