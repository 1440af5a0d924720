"""Where work lives, the one lock, and what a fork changes."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # A fork hook keeps what its module holds until the interpreter has ended.
    from collections.abc import Callable
    from typing import Any, Final

state_lock: Final = threading.RLock()
"""
Guards each check-then-set of a session's state, for the whole process.

Re-entrant: a signal handler or a finalizer may use a session while its own thread holds the lock.
"""

_process = object()


def _after_fork_in_child() -> None:
    global _process  # noqa: PLW0603 - the one thing that a fork changes
    _process = object()
    state_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=state_lock.acquire,
        after_in_parent=state_lock.release,
        after_in_child=_after_fork_in_child,
    )


def in_trio() -> bool:
    """Tell whether trio runs this task."""
    # Another thread may be importing it, for httpcore: then it runs nothing here.
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return in_trio_task is not None and in_trio_task()


def current_loop() -> object:
    """Name the running event loop."""
    if in_trio():
        import trio  # noqa: PLC0415 - only where it is running

        return trio.lowlevel.current_trio_token()
    import asyncio  # noqa: PLC0415 - the blocking half does without

    return asyncio.get_running_loop()


def current_process() -> object:
    """Name the process since its last fork, in either half."""
    return _process


def async_call_soon(where: Any, callback: Callable[[], object]) -> bool:
    """
    Have an event loop call ``callback``, from whichever thread.

    Returns:
        Whether that event loop runs. `False`: what lives there is dead.
    """
    try:
        if hasattr(where, "run_sync_soon"):  # trio's token
            where.run_sync_soon(callback)
            return True
        if where.is_running():
            where.call_soon_threadsafe(callback)
            return True
    except RuntimeError:  # it has ended: trio's error is one, too
        pass
    return False
