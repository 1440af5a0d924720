"""
Results and errors as values.

Inside the package errors are returned, and :func:`unwrap` is the only place that raises them. Its
frame, and those above it, hold no secret.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

from ._errors import KoyebSessionError, StoreError, TransportTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from ._models import Token

_WIRE: Final = {"httpx", "httpcore", "h11", "h2", "hpack"}

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
E = TypeVar("E", bound=KoyebSessionError)

RAISED_BY: Final = "koyeb_session.raised_by"
"""The extension of a request that has the mark of the session that signed it."""

_LIKE_A_TOKEN: Final = r"[\w.~+=-]{40,}"  # noqa: S105 - a pattern
"""A JWT, an API access token, or a piece of one; a UUID has 36 characters."""


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
        is_key = isinstance(exc, KeyError) and len(exc.args) == 1  # which Python shows quoted
        return str(exc.args[0] if is_key else exc)
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


def frameless(function: Callable[[*Ts], T]) -> Callable[[*Ts], T]:
    """
    Take the frames of a function off what it raises, as their locals show a secret.

    For what returns its errors, so that only a signal handler can raise in it.
    """

    @functools.wraps(function)
    def call(*args: *Ts) -> T:
        try:
            return function(*args)
        except BaseException as exc:  # noqa: BLE001 - it is raised again
            del args
            raise exc.with_traceback(None)  # noqa: B904 - it is the same one

    return call


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


def unwrap(outcome: T | KoyebSessionError, mark: object = None) -> T:
    """
    Return a result, or raise the error that stands in its place.

    Each caller gets its own copy: one outcome may be raised in many tasks at once.

    Args:
        outcome: The result or the error.
        mark: The mark of the session that raises it, whichever session it came from before.
    """
    if isinstance(outcome, KoyebSessionError):
        raise _marked(copy.copy(outcome), mark) from outcome.__cause__
    return outcome


def _marked(error: E, mark: object) -> E:
    if error.raised_by is not mark:
        error.raised_by = mark
    return error


def store_error(what: str, exc: Exception, token: Token | None = None) -> StoreError:
    """
    Tell that the store failed; a store of the user's own may raise anything.

    ``token`` is what it was given, if anything: its secrets are taken out of what the error says.
    """
    if isinstance(exc, StoreError):
        return detached(exc)
    text = redacted_text(exc, token)
    said = f": {text}" if text else ""
    error = StoreError(f"the token store could not be {what}: {type(exc).__name__}{said}")
    error.__cause__ = bare(exc, text)
    return error


def redacted_text(exc: BaseException, token: Token | None = None) -> str:
    """Say in one line what a store's error says, without what looks like a part of a token."""
    from ._redaction import Redactor  # noqa: PLC0415 - only where something has failed

    secrets = () if token is None else (token.id, token.renewal or "")
    text = Redactor(filter(None, secrets))(text_of(exc))
    return re.sub(_LIKE_A_TOKEN, "[...]", text)


def not_renewed(seconds: float) -> TransportTimeoutError:
    """Tell that a renewal, or the patience of who waits for it, has ended without a token."""
    return TransportTimeoutError(f"the token was not renewed within {round(seconds, 2):g} s")
