"""Signing in again, with what the user has given for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from .. import _operations as operations
from .._arguments import adopted
from .._concurrency.async_calls import async_call_blocking
from .._errors import KoyebSessionError, NotSignedInError, SessionExpiredError
from .._models import PasswordCredentials, Token
from .._outcomes import bare, caused, detached
from .._snapshot import Obtained
from .._timestamps import from_epoch

if TYPE_CHECKING:
    from .._models import Clock, Credentials
    from .sender import AsyncSender


async def async_sign_in(
    credentials: Credentials, sender: AsyncSender, clock: Clock, *, timeout: float
) -> Obtained | KoyebSessionError:
    """Log in with the password, or ask the user's function for a token."""
    if isinstance(credentials, PasswordCredentials):
        operation = operations.login(*attrs.astuple(credentials))
        if isinstance(operation, Exception):
            return _unusable(operation)
        outcome = await sender.send(operation, timeout=timeout, bounded=True)
        return Obtained(outcome, minted=True) if isinstance(outcome, Token) else outcome
    try:
        given = await async_call_blocking(credentials)
    except KoyebSessionError as exc:
        error = detached(exc)
        if isinstance(error, NotSignedInError | SessionExpiredError):  # another session's
            error = _unusable(error)  # it was asked: the next attempt has to wait
        return error
    except Exception as exc:  # noqa: BLE001 - the user's code; whatever it raises is the cause
        return _unusable(bare(exc, str(exc)))
    wall = clock.time()
    token = adopted(given, wall)
    if isinstance(token, Exception):
        return _unusable(token)
    if token.issued_at is None:  # which tells it from an API token, given once for all
        token = attrs.evolve(token, issued_at=from_epoch(wall))
    return Obtained(token, minted=False)


def _unusable(cause: BaseException) -> KoyebSessionError:
    text = f"signing in again failed: the credentials gave no usable token ({type(cause).__name__})"
    return caused(SessionExpiredError(text), cause)
