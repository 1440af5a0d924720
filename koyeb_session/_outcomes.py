"""
Results and errors as values.

Inside the package errors are returned, and :func:`unwrap` is the only place that raises them. Its
frame, and those above it, hold no secret.
"""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Final, TypeVar

from ._errors import (
    KoyebSessionError,
    NotSignedInError,
    SessionExpiredError,
    StoreError,
    TransportTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")
E = TypeVar("E", bound=KoyebSessionError)

RAISED_BY: Final = "koyeb_session.raised_by"
"""The extension of a request that has the mark of the session that signed it."""
_GO = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""What Go escapes in JSON, and Python does not."""


def scrub(text: str, secrets: Iterable[str]) -> str:
    """Take what this request kept secret out of a text that the service wrote, JSON in it too."""
    for secret in secrets:
        quoted = {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
        forms = {secret, *quoted, *(form.translate(_GO) for form in quoted)}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "[secret]")
    return text


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


def said(exc: BaseException) -> str:
    """Say what a foreign error says, up to the bytes of a broken reply that it may quote."""
    return re.sub(r"(?:\bbytearray\()?\bb['\"].*", "...", str(exc), flags=re.DOTALL)


def detached(error: E) -> E:
    """Copy an error of this package that came out of user code, without the frames on its way."""
    cause = error.__cause__
    if isinstance(cause, KoyebSessionError):
        cause = detached(cause)
    elif cause is not None:
        cause = bare(cause, str(cause))
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


def store_error(what: str, exc: Exception) -> StoreError:
    """Tell that the store failed; a custom one may raise anything."""
    if isinstance(exc, StoreError):
        return detached(exc)
    text = f"the token store could not be {what}: {type(exc).__name__}"
    error = StoreError(text)
    # What the system says names a file; anything else may quote what the store holds.
    error.__cause__ = bare(exc, str(exc) if isinstance(exc, OSError) else "")
    return error


def not_renewed(seconds: float) -> TransportTimeoutError:
    """Tell that a renewal, or the patience of who waits for it, has ended without a token."""
    return TransportTimeoutError(f"the token was not renewed within {round(seconds, 2):g} s")


def unasked(outcome: object) -> bool:
    """Tell whether a renewal asked the service nothing: its store failed, and there was time."""
    return isinstance(outcome, StoreError)


def nothing_sent(outcome: object) -> bool:
    """Tell whether there was nothing to renew a token with."""
    return isinstance(outcome, NotSignedInError) or (
        isinstance(outcome, SessionExpiredError) and outcome.__cause__ is None
    )
