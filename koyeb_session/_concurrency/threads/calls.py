"""Call the user's functions, plain ones only."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from .shared_task import SharedTask

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def call(function: Callable[..., Any], *args: object) -> Any:
    """Call a plain function; refuse an async one, which cannot be awaited here."""
    result = function(*args)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        message = "an async function was given to the blocking half: give it a plain one"
        raise TypeError(message)
    return result


def call_blocking(function: Callable[..., Any], *args: object) -> Any:
    """
    Call a function in a daemon thread, and wait until the deadline.

    Raises:
        TimeoutError: The deadline came first; the thread keeps running.
        RuntimeError: The function raised no `Exception` but, say, the `SystemExit` of `sys.exit`.
    """
    task = SharedTask(partial(_call_in_thread, function, *args))
    task.start(at_exit=False)
    outcome = task.join()
    if task.alive:
        raise TimeoutError
    return outcome


def _call_in_thread(function: Callable[..., Any], *args: object) -> Any:
    with exceptions_only():
        return call(function, *args)


@contextlib.contextmanager
def exceptions_only() -> Generator[None]:
    """
    Raise a `RuntimeError` if the user's code in the block ends in something that is no `Exception`.

    An error handler for the user's code would not see it, and the thread would end with it. The
    block is for threads of this package, which no signal handler interrupts.

    Raises:
        RuntimeError: The code raised, say, the `SystemExit` of `sys.exit`.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as exc:
        message = f"it raised {type(exc).__name__}"
        raise RuntimeError(message) from exc


def in_thread(
    function: Callable[[*Ts], T],
    *args: *Ts,
) -> T:
    """Call a function in this thread: unlike its awaited twin, the caller may block."""
    return function(*args)
