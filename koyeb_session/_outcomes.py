"""
Results and errors as values.

Inside the package errors are returned, and :func:`unwrap` is the only place that raises them. Its
frame, and those above it, hold no secret.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final, TypeVar

from ._errors import KoyebSessionError, StoreError, TransportTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

_WIRE: Final = {"httpx", "httpcore", "h11", "h2", "hpack"}

T = TypeVar("T")
E = TypeVar("E", bound=KoyebSessionError)


def caused(error: KoyebSessionError, cause: BaseException | None) -> KoyebSessionError:
    """Give ``error`` its cause, without raising it."""
    error.__cause__ = cause
    return error


def bare(exc: BaseException, text: str) -> BaseException:
    """
    Copy a foreign error with only its class and ``text``.

    The original's traceback holds frames whose locals show headers and bodies.
    """
    try:
        return type(exc)(text)
    except Exception:  # noqa: BLE001 - a class whose constructor wants more than a text
        return Exception(f"{type(exc).__name__}: {text}")


def foreign(exc: BaseException, secrets: Iterable[str] = ()) -> BaseException:
    """Copy a foreign error without its frames, and without what it may quote of our secrets."""
    from ._redaction import Redactor  # noqa: PLC0415 - only where something has failed

    return bare(exc, Redactor(secrets)(text_of(exc)))


def text_of(exc: BaseException) -> str:
    """Say what a foreign error says; nothing where it cannot be told."""
    try:
        return str(exc)
    except Exception:  # noqa: BLE001 - what failed is known all the same
        return ""


def without_wire_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the HTTP libraries: their locals show headers and bodies."""
    if traceback is None:
        return None
    rest = without_wire_frames(traceback.tb_next)
    package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    if package in _WIRE:
        return rest
    traceback.tb_next = rest
    return traceback


def detached(error: E) -> E:
    """Copy an error of this package that came out of user code, without the frames on its way."""
    cause = error.__cause__
    if isinstance(cause, KoyebSessionError):
        cause = detached(cause)
    elif cause is not None:
        cause = bare(cause, text_of(cause))
    error = copy.copy(error)
    error.__cause__ = cause
    return error


def unwrap(outcome: T | KoyebSessionError) -> T:
    """
    Return a result, or raise the error that stands in its place.

    Each caller gets its own copy: one outcome may be raised in many tasks at once.
    """
    if isinstance(outcome, KoyebSessionError):
        raise copy.copy(outcome) from outcome.__cause__
    return outcome


def store_error(what: str, exc: Exception) -> StoreError:
    """Tell that the store failed; a custom one may raise anything."""
    if isinstance(exc, StoreError):
        return detached(exc)
    text = f"the token store could not be {what}: {type(exc).__name__}"
    error = StoreError(text)
    # What the system says names a file; anything else may quote what the store holds.
    error.__cause__ = bare(exc, text_of(exc) if isinstance(exc, OSError) else "")
    return error


def not_renewed(seconds: float) -> TransportTimeoutError:
    """Tell that a renewal, or the patience of who waits for it, has ended without a token."""
    return TransportTimeoutError(f"the token was not renewed within {round(seconds, 2):g} s")
