"""Request a newer token: by a refresh, or from the session's credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from .._api import operations
from .._concurrency.event_loop.calls import async_call_blocking
from .._core.deadline import PATIENCE
from .._core.errors import (
    ApiError,
    AuthenticationError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    SessionExpiredError,
)
from .._core.models import AccessTokenCredentials, PasswordCredentials, Token
from .._core.results import (
    class_and_text,
    safe_copy,
    secrets_of,
    with_cause,
    without_frames,
)
from .._core.snapshot import FailedAttempt, Issuer, NewToken, Snapshot
from .._core.timestamps import from_epoch
from .._core.validation import parse_token, takes_token

if TYPE_CHECKING:
    from typing import Any

    from .._core.deadline import Deadline
    from .._core.models import Clock, Credentials
    from .http.sender import AsyncSender

Attempt: TypeAlias = NewToken | FailedAttempt

_REMEDY: Final = "make one in Koyeb's control panel that may act in this organization"


def is_refusal(error: KoyebSessionError) -> bool:
    """Return whether another attempt will get the same answer: any 3xx and nearly any 4xx."""
    return isinstance(error, ApiError) and not error.retryable


class AsyncTokenSource:
    """
    Requests a newer token, once per call, for a renewal that does everything else.

    The issuer of a token renews it. A token from credentials is never sent to a refresh, which may
    revoke the copy that another program, or the user, is still using.
    """

    __slots__ = ("_clock", "_takes_token", "credentials", "sender")

    def __init__(self, sender: AsyncSender, credentials: Credentials | None, clock: Clock) -> None:
        self._clock = clock
        # Asked once: the signature of the user's callable may run code of the user.
        self._takes_token = callable(credentials) and takes_token(credentials)
        self.credentials: Credentials | None = credentials
        self.sender: AsyncSender = sender

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that a request with the credentials contains."""
        match self.credentials:
            case PasswordCredentials(password=secret) | AccessTokenCredentials(api_token=secret):
                return (secret,)
            case _:
                return ()

    def can_refresh(self, old: Snapshot) -> bool:
        """Return whether the token may be refreshed, rather than replaced by credentials."""
        if old.issuer is Issuer.GIVEN:
            return self.credentials is None or isinstance(self.credentials, PasswordCredentials)
        return old.issuer is Issuer.KOYEB

    def uses_up(self, replaced: Token | None) -> bool:
        """Return whether the credentials would use up a one-time secret of this token."""
        return replaced is not None and replaced.renewal is not None and self._takes_token

    @property
    def patience(self) -> int:
        """
        The factor of the time that a renewal may take after its callers have stopped waiting.

        A callable may have used up a one-time secret, and only its answer has the next one.
        """
        return PATIENCE if self._takes_token else 1

    async def refresh(self, old: Snapshot, deadline: Deadline) -> Attempt:
        """
        Refresh a token.

        A refresh is not repeated if its reply was lost: the service may have carried it out. The
        next request with the old token, or the next renewal, finds out.
        """
        outcome = await self.sender.send_once(operations.refresh(old.token), deadline)
        if isinstance(outcome, Token):
            return NewToken(
                outcome, just_issued=True, how="renewed", event="renewed", issuer=Issuer.KOYEB
            )
        return FailedAttempt(outcome, refused=isinstance(outcome, AuthenticationError))

    async def sign_in(
        self, old: Snapshot | None, replaced: Token | None, deadline: Deadline
    ) -> Attempt:
        """
        Ask the credentials for a token.

        Args:
            old: The snapshot to replace.
            replaced: The newest known token, expired or not, perhaps from the store. A callable
                gets it, so that a rotating grant can continue from it.
            deadline: The limit for everything.
        """
        match self.credentials:
            case None:
                from .._core.endings import no_way  # noqa: PLC0415 - see that module

                error = no_way(old, replaced, self._clock)
                return FailedAttempt(error, attempted=False, soon=True)
            case PasswordCredentials() as given:
                operation = operations.login(*attrs.astuple(given))
                if isinstance(operation, Exception):
                    return FailedAttempt(_unusable(operation, old), signs_in=True)
                return self._issued(await self.sender.send_once(operation, deadline), Issuer.KOYEB)
            case AccessTokenCredentials() as given:
                bearer = Token(given.api_token)
                operation = operations.create_access_token(
                    bearer, given.organization_id, given.validity
                )
                outcome = await self.sender.send_once(operation, deadline)
                return self._issued(_explained(outcome), Issuer.CREDENTIALS)
            case source:
                arguments = (replaced,) if self._takes_token else ()
                wall = self._clock.time()
                try:
                    given = await async_call_blocking(source, *arguments)
                    if deadline.passed:  # the callers have gone, but the secret must be saved
                        deadline.restart()
                    return _brought(given, wall, old)
                except Exception as exc:
                    if isinstance(exc, TimeoutError) and deadline.passed:
                        raise
                    return FailedAttempt(_raised(exc, old, replaced), signs_in=True, soon=True)

    async def revoke(self, token: Token, deadline: Deadline) -> KoyebSessionError | None:
        """Revoke a token at the service; a token that the service rejects counts as revoked."""
        outcome = await self.sender.send(operations.logout(token), deadline)
        return None if isinstance(outcome, AuthenticationError) else outcome

    def _issued(self, outcome: Token | KoyebSessionError, issuer: Issuer) -> Attempt:
        if isinstance(outcome, Token):
            return NewToken(outcome, just_issued=True, issuer=issuer)
        return FailedAttempt(outcome, signs_in=True)


def _explained(outcome: Token | KoyebSessionError) -> Token | KoyebSessionError:
    """Say in the error that the API access token, or the organization, is at fault."""
    match outcome:
        case AuthenticationError():
            advice = f"the API access token is refused: {_REMEDY}"
        case PermissionDeniedError():
            advice = f"the API access token may not do this: {_REMEDY}"
        case NotFoundError():
            advice = "check the organization's id, and that the user of the token is a member"
        case _:
            return outcome
    outcome.message = f"{outcome.message}; {advice}"
    return outcome


def _brought(given: Any, wall: float, old: Snapshot | None) -> Attempt:
    """Check the return value of a callable, and make a new token of it."""
    token = parse_token(given, wall, "the token")
    if isinstance(token, Exception):
        # At 0.0 no token has expired: any other fault is one of the callable, which is told of it.
        late = parse_token(given, 0.0)
        expired = late if isinstance(late, Token) else None
        return FailedAttempt(_unusable(token, old), signs_in=True, soon=True, expired=expired)
    # Marks it as renewable: without `issued_at` an opaque token counts as an API token.
    if token.issued_at is None:
        token = attrs.evolve(token, issued_at=from_epoch(wall))
    return NewToken(token, just_issued=False, issuer=Issuer.CREDENTIALS)


def _raised(exc: Exception, old: Snapshot | None, replaced: Token | None) -> KoyebSessionError:
    """Make the error for credentials that raised; keep an error of this package as it is."""
    secrets = tuple(secrets_of(replaced, None if old is None else old.token))
    if isinstance(exc, KoyebSessionError):
        error = without_frames(exc, secrets)
        # These come from another session, whose end does not end this one.
        is_another = isinstance(error, NotSignedInError | SessionExpiredError)
        return _unusable(error, old) if is_another else error
    cause = safe_copy(exc, secrets)
    return _unusable(cause, old, type(exc).__name__)


def _unusable(
    cause: BaseException, old: Snapshot | None, name: str | None = None
) -> KoyebSessionError:
    """Make the error for credentials without a token; that ends a session, if there is one."""
    kind = NotSignedInError if old is None else SessionExpiredError
    what = class_and_text(name or type(cause).__name__, cause)
    error = kind(f"the credentials gave no token: {what}")
    error.retryable = getattr(cause, "retryable", isinstance(cause, OSError))
    return with_cause(error, cause)
