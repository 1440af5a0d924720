"""Calling the user's functions, plain ones only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from .shared_task import SharedTask

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def call(function: Callable[..., Any], *args: object) -> Any:
    """Blocking twin: an async function cannot be waited for here."""
    result = function(*args)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        message = "an async function was given to the blocking half: give it a plain one"
        raise TypeError(message)
    return result


def call_blocking(function: Callable[..., Any], *args: object) -> Any:
    """
    Blocking twin: call it in a daemon thread, and wait until the deadline.

    Raises:
        TimeoutError: The deadline came first; the thread goes on by itself.
        RuntimeError: It raised what would have ended its thread alone, as `sys.exit` does.
    """
    task = SharedTask(partial(_call_in_thread, function, *args))
    task.start(at_exit=False)
    outcome = task.join()
    if task.alive:
        raise TimeoutError
    return outcome


def _call_in_thread(function: Callable[..., Any], *args: object) -> Any:
    try:
        return call(function, *args)
    except Exception:
        raise
    except BaseException as exc:
        message = f"it raised {type(exc).__name__}"
        raise RuntimeError(message) from exc


def in_thread(
    function: Callable[[*Ts], T],
    *args: *Ts,
) -> T:
    """Blocking twin: call it here."""
    return function(*args)
