"""
Results and errors as values.

Inside the package errors are returned, and :func:`unwrap` is the only place that raises them. Its
frame, and those above it, hold no secret.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from ._errors import (
    KoyebSessionError,
    NotSignedInError,
    SessionExpiredError,
    StoreError,
    TransportTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._models import Token

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
E = TypeVar("E", bound=KoyebSessionError)

_GO = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""What Go escapes in JSON, and Python does not."""
_LIKE_A_TOKEN = re.compile(r"[\w.~+=-]{40,}")
"""A JWT, an API access token, or a piece of one; a UUID has 36 characters."""
_LONGEST = 500
"""Characters of a store's error; some quote the whole statement that has failed."""


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
        cause = bare(cause, str(cause))
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
    text = str(exc)
    if token is not None:
        text = scrub(text, [secret for secret in (token.id, token.renewal) if secret])
    text = _LIKE_A_TOKEN.sub("[...]", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


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
