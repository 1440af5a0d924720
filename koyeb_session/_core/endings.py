"""
Make the errors for callers without a token: each states a cause and a remedy in one sentence.

The module is imported only when it is needed: most sessions never end this way.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Final

from .errors import KoyebSessionError, NotSignedInError, SessionExpiredError, StoreError
from .log import format_duration, time_from_now
from .models import Token
from .results import with_cause
from .snapshot import Phase
from .tokens import is_api_token
from .validation import parse_token

if TYPE_CHECKING:
    from .models import Clock
    from .snapshot import LastFailure, Observation, Snapshot

_SIGN_IN: Final = "sign in again with login(), or give credentials="
_SIGNED_OUT: Final = "signed out: call login()"
_NOT_RENEWED_HERE: Final = (
    "the token has expired, and this session does not renew it: get another one where it came from"
)
_CANNOT_BE_REFRESHED: Final = (
    "an API access token cannot be refreshed, and needs no refresh: use it as it is, or exchange "
    "it for short-lived tokens with AccessTokenCredentials(api_token, organization_id)"
)
_FOR_PROGRAMS: Final = re.compile(
    r"[;:] (?:sign in again with|call) login\(\)(?:, or give (?:token= or )?credentials=)?"
    r"|; it tries again (?:now|in [^;,]+), or at once with refresh\(\)"
)


def for_people(message: str) -> str:
    """Return the message of an error without the remedies that only a program has: its calls."""
    return _FOR_PROGRAMS.sub("", message)


def no_way(old: Snapshot | None, saved: Token | None, clock: Clock) -> KoyebSessionError:
    """
    Make the error for a session that has no means to renew its token.

    Args:
        old: The snapshot to replace; `None`: there is none.
        saved: The newest known token; without ``old``, that of the store.
        clock: The clock that tells whether they have expired.
    """
    if old is None:
        # At 0.0 no token has expired: this is one that only its expiry makes useless.
        last = None if saved is None else parse_token(saved, 0.0)
        if isinstance(last, Token) and last.expires_at is not None:
            age = clock.time() - last.expires_at.timestamp()
            return SessionExpiredError(f"the saved session {_expired(age)}; {_SIGN_IN}")
        return NotSignedInError("not signed in: call login(), or give token= or credentials=")
    if is_api_token(old.token):
        return SessionExpiredError(_CANNOT_BE_REFRESHED)
    if not old.renewable:
        return SessionExpiredError(_NOT_RENEWED_HERE)
    if old.phase(clock) is Phase.EXPIRED:
        when = _expired(old.age(clock) - old.expiry)
        return SessionExpiredError(f"the token {when}; {_SIGN_IN}")
    return SessionExpiredError(
        "the token came from credentials, which this session does not have: give credentials="
    )


def _expired(age: float) -> str:
    return f"expired {format_duration(age)} ago" if age >= 1 else "has just expired"


def refused(old: Snapshot, error: KoyebSessionError) -> KoyebSessionError:
    """Make the error for a refresh that the service refused, without credentials to sign in."""
    if is_api_token(old.token):
        return with_cause(SessionExpiredError(_CANNOT_BE_REFRESHED), error)
    text = f"the service refused the token: {error.message}; {_SIGN_IN}"
    return with_cause(SessionExpiredError(text), error)


def add_last_failure(error: KoyebSessionError, last: LastFailure, now: Clock) -> None:
    """Add the last failure to an error that says that the session cannot renew its token."""
    failed = f"its last renewal failed {format_duration(last.age(now))} ago: {last.error.message}"
    error.message = f"{error.message.removesuffix(f'; {_SIGN_IN}')}; {failed}; {_SIGN_IN}"
    error.retryable = last.error.retryable
    error.__cause__ = last.error


def no_token(seen: Observation, error: KoyebSessionError | None) -> KoyebSessionError:
    """
    Make the error for callers that get no token.

    Args:
        seen: The observation that led to this.
        error: The error of this renewal or the last one; `None` without a renewal.
    """
    if error is None:
        if seen.snapshot is None:
            return NotSignedInError(_SIGNED_OUT)
        return SessionExpiredError(_NOT_RENEWED_HERE)
    last = seen.failure
    if last is None or last.error is not error:
        return error  # it comes from a store, or from the caller's own deadline
    tells_the_end = isinstance(error, SessionExpiredError | NotSignedInError)
    if seen.snapshot is None or (tells_the_end and last.signs_in):
        return _when(error, last, seen.now)
    if tells_the_end or isinstance(error, StoreError):
        return error
    text = f"the token could not be renewed{_ago(last, seen.now)}: {error.message}"
    advice = _next_try(last, seen.now) if seen.has_credentials else _SIGN_IN
    ended = SessionExpiredError(f"{text}; {advice}")
    ended.retryable = error.retryable
    return with_cause(ended, error)


def _when(error: KoyebSessionError, last: LastFailure, now: Clock) -> KoyebSessionError:
    """Add the time of a failed sign-in, and of the next attempt, to its error."""
    if not last.signs_in:
        return error
    told = copy.copy(error)
    ago = _ago(last, now)
    told.message = f"{error.message}; {f'that was{ago}; ' if ago else ''}{_next_try(last, now)}"
    return with_cause(told, error.__cause__)


def _ago(last: LastFailure, now: Clock) -> str:
    age = last.age(now)
    return f" {format_duration(age)} ago" if age >= 1 else ""


def _next_try(last: LastFailure, now: Clock) -> str:
    wait = last.wait - last.age(now)
    return f"it tries again {time_from_now(wait)}, or at once with refresh()"
