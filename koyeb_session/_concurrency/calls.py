"""Calling the user's functions, plain ones only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple, Unpack

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


call_blocking = call


def in_thread(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Blocking twin: call it here."""
    return function(*args)
