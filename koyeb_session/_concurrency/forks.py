"""
Fork hooks: a fork waits for some threads, and its child drops the connections it inherits.

This module imports next to nothing. A fork hook is never unregistered, so everything that its
module refers to stays in memory until the interpreter has ended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

LONGEST = 1.0
"""Seconds for which a fork waits at most for a thread that has nothing more to do."""
_PAUSE = 0.0001

_threads: list[threading.Thread] = []
_sockets: weakref.WeakSet[socket] = weakref.WeakSet()
_streams: weakref.WeakKeyDictionary[object, Any] = weakref.WeakKeyDictionary()
"""The connections of event loops, and the network streams below them."""


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
            wait_until_gone(thread.native_id)


def wait_until_gone(native_id: int | None) -> None:
    """Wait for the system, which counts a thread for a moment after it has ended for Python."""
    ends = time.monotonic() + LONGEST
    while os.access(f"/proc/self/task/{native_id}", os.F_OK) and time.monotonic() < ends:
        time.sleep(_PAUSE)


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


def keep_in_children(connection: object, stream: Any) -> None:
    """
    Have each forked child drop an event loop's connection silently.

    Only the parent's loop can close it, as the two processes share its selector. The loop's objects
    for the connection warn when they are dropped. So the child replaces its copy of the socket by
    the null device, and keeps the objects until the interpreter has ended.
    """
    _streams[connection] = stream


def _keep_streams(kept: list[object]) -> None:
    kept += _streams
    _streams.clear()


def _close_copy(descriptor: int) -> None:
    """Close a descriptor whose number stays taken: its owner will close it once more."""
    if descriptor >= 0:  # it is not closed yet
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _close_in_child(kept: list[object]) -> None:
    _close_sockets()
    for stream in tuple(_streams.values()):
        with contextlib.suppress(Exception):  # a stream of another kind than sockets
            _close_copy(stream.get_extra_info("socket").fileno())
    _keep_streams(kept)
    for work in (_close_sockets, _keep_streams):
        atexit.unregister(work)  # inherited when the parent is itself a child
    atexit.register(_close_sockets)
    atexit.register(_keep_streams, kept)


if hasattr(os, "register_at_fork"):
    # The list is an argument of the hook: a module's own names are dropped before the end.
    os.register_at_fork(before=_wait, after_in_child=partial(_close_in_child, []))
