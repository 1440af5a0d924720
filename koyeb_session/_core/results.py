"""
Results and errors as values.

Inside the package errors are returned, and only `unwrap` raises them. No frame of such a
traceback holds a secret.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from .errors import (
    KoyebSessionError,
    StoreError,
    TransportError,
    TransportTimeoutError,
    attributes_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from .deadline import Deadline
    from .models import Token

_WIRE: Final = {"httpx", "httpcore", "h11", "h2", "hpack"}

T = TypeVar("T")
P = ParamSpec("P")
E = TypeVar("E", bound=KoyebSessionError)

RAISED_BY: Final = "koyeb_session.raised_by"
"""The request extension that holds the mark of the session that signed the request."""

_LIKE_A_TOKEN: Final = r"[\w.~+=-]{40,}"  # noqa: S105 - a pattern
"""A JWT, an API access token, or a part of one, but no UUID, which has 36 characters."""


def with_cause(error: E, cause: BaseException | None) -> E:
    """Set the cause of ``error``, and return it."""
    error.__cause__ = cause
    return error


def sanitized_copy(exc: BaseException, text: str) -> BaseException:
    """
    Copy a foreign error with only its class and ``text``.

    The original's traceback holds frames whose locals show headers and bodies. If the class cannot
    be made of a text, the text names it, and the copy is of its nearest base that can be.
    """
    if (copied := _made_of(type(exc), text)) is not None:
        return copied
    named = f"{type(exc).__name__}: {text}"
    copies = (_made_of(kind, named) for kind in type(exc).__mro__)
    return next(copied for copied in copies if copied is not None)


def _made_of(kind: type, text: str) -> BaseException | None:
    """Make an error of a text; `None` if its constructor takes other arguments."""
    try:
        made = kind(text)
    except Exception:  # noqa: BLE001 - the constructor may be the user's
        return None
    # One that takes another argument may have put the text into a sentence of its own.
    return made if isinstance(made, BaseException) and text_of(made) == text else None


def safe_copy(exc: BaseException, secrets: Iterable[str] = ()) -> BaseException:
    """Copy a foreign error without its frames, and without the secrets that it may quote."""
    from .redaction import Redactor  # noqa: PLC0415 - only needed after a failure

    return sanitized_copy(exc, Redactor(secrets)(text_of(exc)))


def text_of(exc: BaseException) -> str:
    """Return the message of a foreign error; an empty text if its `str` raises."""
    try:
        is_key = isinstance(exc, KeyError) and len(exc.args) == 1  # its `str` would be quoted
        return str(exc.args[0] if is_key else exc)
    except Exception:  # noqa: BLE001 - the class of the error is known nevertheless
        return ""


def class_and_text(name: str, copied: BaseException) -> str:
    """Describe a foreign error by its class and by its copy, whose text may name the class, too."""
    text = text_of(copied).removeprefix(f"{name}: ")
    return f"{name}: {text}" if text else name


def without_wire_frames(traceback: TracebackType | None) -> TracebackType | None:
    """Remove the frames of the HTTP libraries, whose locals show headers and bodies."""
    if traceback is None:
        return None
    rest = without_wire_frames(traceback.tb_next)
    package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    if package in _WIRE:
        return rest
    traceback.tb_next = rest
    return traceback


def frameless(function: Callable[P, T]) -> Callable[P, T]:
    """
    Decorate a function to remove its frames from any exception, as their locals show a secret.

    It is meant for functions that return their errors, where only a signal handler can raise.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except BaseException as exc:  # noqa: BLE001 - raised again below
            del args, kwargs
            raise exc.with_traceback(None)  # noqa: B904 - the same exception, so there is no cause

    return call


def without_frames(error: E, secrets: Iterable[str] = ()) -> E:
    """Copy an error of this package that the user's code raised, without frames and secrets."""
    secrets = tuple(secrets)
    cause = error.__cause__
    if isinstance(cause, KoyebSessionError):
        cause = without_frames(cause, secrets)
    elif cause is not None:
        cause = safe_copy(cause, secrets) if secrets else sanitized_copy(cause, text_of(cause))
    error = copy.copy(error)
    error.__cause__ = cause
    if secrets:
        _redact(error, secrets)
    return error


def _redact(error: KoyebSessionError, secrets: Iterable[str]) -> None:
    """Remove secrets from the texts of an error; a text without any stays as it is."""
    from .redaction import Redactor  # noqa: PLC0415 - only needed after a failure

    redact, shorten = Redactor(secrets), Redactor(())
    error.__dict__.pop("__notes__", None)
    for name, value in attributes_of(error).items():
        if isinstance(value, str) and (text := redact(value)) != shorten(value):
            setattr(error, name, text)
    message = error.message
    text = redact(message)
    error.message = message if text == shorten(message) else text


def secrets_of(*tokens: Token | None) -> Iterator[str]:
    """Yield the secrets of tokens."""
    for token in tokens:
        if token is not None:
            yield from filter(None, (token.id, token.renewal))


def unwrap(outcome: T | KoyebSessionError | ValueError | TypeError, mark: object = None) -> T:
    """
    Return a result, or raise it if it is an error.

    Each caller gets its own copy, as many tasks may raise the same outcome at once. The frames in
    the copy's traceback hold only the original, so that no cycle keeps them in memory.

    Args:
        outcome: The result, an error of this package, or an error for a wrong argument.
        mark: The mark of the session that raises the error; it replaces that of another session.
    """
    if isinstance(outcome, KoyebSessionError):
        raise _marked(copy.copy(outcome), mark) from outcome.__cause__
    if isinstance(outcome, ValueError | TypeError):
        raise copy.copy(outcome)
    return outcome


def _marked(error: E, mark: object) -> E:
    if error.raised_by is not mark:
        error.raised_by = mark
    return error


def store_failure(what: str, exc: Exception, *tokens: Token | None) -> StoreError:
    """
    Make a `StoreError` of a store's exception, as the user's own store may raise anything.

    ``tokens`` are those that the store may hold: the message must not quote their secrets.
    """
    if isinstance(exc, StoreError):
        return without_frames(exc, secrets_of(*tokens))
    text = redacted_text(exc, *tokens)
    said = f": {text}" if text else ""
    error = StoreError(f"the token store could not be {what}: {type(exc).__name__}{said}")
    return with_cause(error, sanitized_copy(exc, text))


def redacted_text(exc: BaseException, *tokens: Token | None) -> str:
    """Return the message of a store's error, without tokens and anything that looks like one."""
    from .redaction import Redactor  # noqa: PLC0415 - only needed after a failure

    text = Redactor(secrets_of(*tokens))(text_of(exc))
    return re.sub(_LIKE_A_TOKEN, "[...]", text)


def cannot_wait(what: str) -> TransportError:
    """Make the error of a call that would wait for itself."""
    return TransportError(
        f"{what} once this function has returned: it was called in the midst of a change of the "
        "session, by a signal handler, a finalizer, or the store, credentials or hooks that the "
        "change uses, and the change is waiting for it"
    )


def not_signed_out(deadline: Deadline) -> TransportTimeoutError:
    """Make the error of a logout that was not done in time."""
    return TransportTimeoutError(f"logout: not done within {deadline.seconds:g} s")


def renewal_timed_out(seconds: float) -> TransportTimeoutError:
    """Make the error for a renewal, or a wait for one, that ran into its time limit."""
    return TransportTimeoutError(f"the token was not renewed within {round(seconds, 2):g} s")
