"""
Say why callers are left without a token, and what they can do: one sentence for each cause.

It is imported when that happens, as most sessions never see it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

from .errors import KoyebSessionError, NotSignedInError, SessionExpiredError, StoreError
from .log import from_now, spell
from .results import caused
from .snapshot import Phase
from .tokens import is_api_token

if TYPE_CHECKING:
    from .models import Clock
    from .snapshot import Look, Snapshot, Trouble

_SIGN_IN: Final = "sign in again with login(), or give credentials="
_SIGNED_OUT: Final = "signed out: call login()"
_NOT_RENEWED_HERE: Final = (
    "the token has expired, and this session does not renew it: get another one where it came from"
)
_CANNOT_BE_REFRESHED: Final = (
    "an API access token cannot be refreshed, and needs no refresh: use it as it is, or exchange "
    "it for short-lived tokens with AccessTokenCredentials(api_token, organization_id)"
)


def no_way(old: Snapshot | None, clock: Clock) -> KoyebSessionError:
    """Tell that there is nothing to renew a token with."""
    if old is None:
        return NotSignedInError("not signed in: call login(), or give token= or credentials=")
    if is_api_token(old.token):
        return SessionExpiredError(_CANNOT_BE_REFRESHED)
    if not old.renewable:
        return SessionExpiredError(_NOT_RENEWED_HERE)
    if old.phase(clock) is Phase.EXPIRED:
        age = old.age(clock) - old.expiry
        when = f"expired {spell(age)} ago" if age >= 1 else "has just expired"
        return SessionExpiredError(f"the token {when}; {_SIGN_IN}")
    return SessionExpiredError(
        "the token came from credentials, which this session does not have: give credentials="
    )


def refused(old: Snapshot, error: KoyebSessionError) -> KoyebSessionError:
    """Tell that the service refused to refresh a token, and that there are no credentials."""
    if is_api_token(old.token):
        return caused(SessionExpiredError(_CANNOT_BE_REFRESHED), error)
    text = f"the service refused the token: {error.message}; {_SIGN_IN}"
    return caused(SessionExpiredError(text), error)


def add_last_failure(error: KoyebSessionError, last: Trouble, now: Clock) -> None:
    """Say in an error that nothing can be tried any more what the last attempt met with."""
    failed = f"its last renewal failed {spell(last.age(now))} ago: {last.error.message}"
    error.message = f"{error.message.removesuffix(f'; {_SIGN_IN}')}; {failed}; {_SIGN_IN}"
    error.args = (error.message,)
    error.retryable = last.error.retryable
    error.__cause__ = last.error


def no_token(look: Look, error: KoyebSessionError | None) -> KoyebSessionError:
    """
    Make the error for callers who are left without a token.

    Args:
        look: What was known when this was decided.
        error: What the renewal met with, now or the last time; `None`: there was none.
    """
    if error is None:
        if look.snapshot is None:
            return NotSignedInError(_SIGNED_OUT)
        return SessionExpiredError(_NOT_RENEWED_HERE)
    last = look.trouble
    if last is None or last.error is not error:
        return error  # of a store, or of a caller's own deadline
    tells_the_end = isinstance(error, SessionExpiredError | NotSignedInError)
    if look.snapshot is None or (tells_the_end and last.signs_in):
        return _when(error, last, look.now)
    if tells_the_end or isinstance(error, StoreError):
        return error
    text = f"the token could not be renewed{_ago(last, look.now)}: {error.message}"
    advice = _next_try(last, look.now) if look.has_credentials else _SIGN_IN
    ended = SessionExpiredError(f"{text}; {advice}")
    ended.retryable = error.retryable
    return caused(ended, error)


def _when(error: KoyebSessionError, last: Trouble, now: Clock) -> KoyebSessionError:
    """Add to a failed sign-in how long ago it was, and when the next one is."""
    if not last.signs_in:
        return error
    told = copy.copy(error)
    ago = _ago(last, now)
    told.message = f"{error.message}; {f'that was{ago}; ' if ago else ''}{_next_try(last, now)}"
    told.args = (told.message,)
    return caused(told, error.__cause__)


def _ago(last: Trouble, now: Clock) -> str:
    age = last.age(now)
    return f" {spell(age)} ago" if age >= 1 else ""


def _next_try(last: Trouble, now: Clock) -> str:
    wait = last.wait - last.age(now)
    return f"the next try is {from_now(wait)}, that of refresh() at once"
