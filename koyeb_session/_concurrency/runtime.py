"""The current event loop and process, the lock on session state, and the hooks for forks."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # A fork hook keeps everything that its module imports in memory until the interpreter ends.
    from collections.abc import Callable
    from typing import Any, Final

_lock = threading.RLock()
_owner = threading.Condition(_lock)


class _StateLock:
    """
    A lock that no signal handler can leave locked.

    From Python 3.14 on, a handler may raise after a ``with`` has acquired a plain lock, and before
    the block that would release it. Here, acquiring and noting it are one step of C code, and so is
    releasing it.
    """

    __exit__ = _lock.__exit__

    def __enter__(self) -> None:
        acquired: list[bool] = []
        try:
            acquired.extend(map(_lock.acquire, (True,)))
        except BaseException:
            if acquired:
                _lock.release()
            raise


state_lock: Final = _StateLock()
"""
The lock around each check-then-set of a session's state, for the whole process.

Re-entrant: a signal handler or a finalizer may use a session while its own thread holds the lock.
"""

GRACE: Final = 1.0
"""Seconds that a shared task may be late, and that those who wait for its end allow for."""

_process = object()
"""The identity of this process: each fork gives the child a new one."""


def is_in_step() -> bool:
    """
    Return whether the calling thread holds the lock, and so must not wait for another one.

    That is so where a signal handler or a finalizer has interrupted it.
    """
    try:
        _owner.notify(0)  # nobody waits: it only looks who holds the lock
    except RuntimeError:
        return False
    return True


def _after_fork_in_child() -> None:
    global _process  # noqa: PLW0603 - the one thing that a fork changes
    _process = object()
    _lock.release()


if hasattr(os, "register_at_fork"):
    # The forking thread holds the lock across the fork. So no other thread is in the middle of a
    # change, and the one thread that survives in the child can release the lock.
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_after_fork_in_child,
    )


def in_trio() -> bool:
    """Return whether trio runs this task."""
    # The name may be missing while another thread imports trio; then trio runs nothing here.
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return in_trio_task is not None and in_trio_task()


def current_loop() -> object:
    """Return the identity of the running event loop."""
    if in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - the blocking half works without it

    return asyncio.get_running_loop()


def current_task() -> object:
    """Return the running task; `None` in a thread without an event loop."""
    if in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        return trio.lowlevel.current_task()
    import asyncio  # noqa: PLC0415 - the blocking half works without it

    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_process() -> object:
    """Return the identity of this process, which changes with each fork."""
    return _process


def async_call_soon(where: Any, callback: Callable[[], object]) -> bool:
    """
    Ask an event loop to call ``callback``; callable from any thread.

    Returns:
        `False` if that event loop no longer runs: all tasks of it are dead.
    """
    try:
        if hasattr(where, "run_sync_soon"):  # trio's token
            where.run_sync_soon(callback)
            return True
        if where.is_running():
            where.call_soon_threadsafe(callback)
            return True
    except RuntimeError:  # the event loop has ended; trio's error is a RuntimeError too
        pass
    return False


def is_running(where: object) -> bool:
    """Return whether an event loop runs; callable from any thread."""
    return async_call_soon(where, _nothing)


def _nothing() -> None:
    """Do nothing: an event loop that accepts this callback is running."""
