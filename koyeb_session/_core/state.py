"""The state of a session, which changes by swapping one snapshot for another."""

from __future__ import annotations

import logging
import math
import random
from types import EllipsisType
from typing import TYPE_CHECKING, Final

import attrs

from .._concurrency.runtime import state_lock
from .errors import PASSING, KoyebSessionError, NotSignedInError, WireError
from .log import Duration, fields, format_duration, log, time_from_now
from .snapshot import (
    FrozenClock,
    Issuer,
    Observation,
    Owner,
    Rejection,
    Snapshot,
    seconds_to_next_check,
)
from .tokens import is_api_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from .models import Clock, Token
    from .policy import RefreshPolicy
    from .snapshot import FailedAttempt, LastFailure, NewToken

SUPERSEDED: Final = NotSignedInError("the session was signed out, or in again, meanwhile")
"""The error for a token that comes after the session has changed."""
_REJECTION_MEMORY: Final = 60.0
_LONGEST_REJECTION_MEMORY: Final = 3600.0
"""Seconds for which a rejection is remembered; they double with each rejection in a row."""
_NOBODY: Final = Owner()


class Lifetime:
    """Tells all sessions of one client whether the client is closing, or closed."""

    __slots__ = ("ended",)

    def __init__(self, *, ended: bool = False) -> None:
        self.ended: bool = ended


_ENDED: Final = Lifetime(ended=True)
"""That of a session that was closed itself, whether or not its client is."""


class SessionState:
    """
    Holds a session's snapshot, and decides whether a new token may replace it.

    ``snapshot`` is read without a lock, as it is only ever replaced as a whole. It is replaced
    under `state_lock`, together with ``owner``, ``failure`` and ``signed_out``. ``generation``
    counts sign-ins and sign-outs: a renewal that began in an older generation may not commit its
    token.
    """

    __slots__ = (
        "_policy",
        "_renew",
        "change",
        "clock",
        "failure",
        "generation",
        "has_credentials",
        "last_sign_out",
        "lifetime",
        "mark",
        "on_change",
        "owner",
        "rejected",
        "signed_out",
        "snapshot",
    )

    def __init__(
        self,
        policy: RefreshPolicy,
        clock: Clock,
        *,
        renew: bool = True,
        has_credentials: bool = False,
        lifetime: Lifetime | None = None,
    ) -> None:
        self._policy = policy
        self._renew = renew
        self.change: object = None
        """The identity of the last change that is to be saved, as `state_lock` guards it."""
        self.clock: Clock = clock
        self.generation: int = 0
        self.has_credentials: bool = has_credentials
        self.last_sign_out: int = 0
        """The generation that began with the last sign-out."""
        self.lifetime: Lifetime = lifetime or Lifetime()
        """That of the client whose connections this session uses, until the session is closed."""
        self.mark: object = object()
        """The identity of this session in the errors that it raises."""
        self.on_change: Callable[[Token | None], None] | None = None
        self.owner: Owner = _NOBODY
        self.rejected: Rejection | None = None
        self.signed_out: bool = False
        self.snapshot: Snapshot | None = None
        self.failure: LastFailure | None = None

    def observe(self) -> Observation:
        """
        Read the input of one decision, without a lock.

        The snapshot may change between the two reads. A failure names the snapshot that it is
        about, so a failure of another snapshot is ignored.
        """
        clock = self.clock
        snapshot, failure = self.snapshot, self.failure
        if failure is not None and failure.about is not snapshot:
            failure = None
        now = FrozenClock(clock.time(), clock.monotonic())
        return Observation(snapshot, failure, now, self.has_credentials)

    @property
    def seconds_to_next_check(self) -> float:
        """The seconds until a renewal may be due."""
        seen = self.observe()
        return seconds_to_next_check(seen.snapshot, seen.blocking_failure, seen.now)

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent."""
        return self.observe().usable

    @property
    def summary(self) -> str:
        """A description of the session for people, without secrets, even if a clock raises."""
        if self.closed:
            return "closed"
        snapshot = self.snapshot
        if snapshot is None:
            return "signed out" if self.signed_out else "not signed in"
        who = f" as {snapshot.token.user_id}" if snapshot.token.user_id else ""
        try:
            return self._told(snapshot, who)
        except Exception:  # noqa: BLE001 - the user's clock, maybe at the interpreter's end
            return f"signed in{who}"

    def _told(self, snapshot: Snapshot, who: str) -> str:
        """Describe a session that has a token."""
        if is_api_token(snapshot.token):
            return f"signed in{who}, with an API access token"
        seen = self.observe()
        left = snapshot.expiry - snapshot.age(seen.now)
        if left > 0 and seen.usable is not None:
            return f"signed in{who}, token good for {format_duration(left)}"
        what = "expired" if left <= 0 else "refused"
        if self.has_credentials:
            return f"signed in{who}, token {what}: the next request signs in again"
        return f"the session{who} has ended: token {what}"

    @property
    def closed(self) -> bool:
        """Whether this session is closed, or the client that it was made by."""
        return self.lifetime.ended

    def close(self) -> None:
        """Close the session: the token can still be read, but no longer used."""
        with state_lock:
            self.lifetime = _ENDED

    def check_open(self) -> None:
        """
        Raise if the session is closed.

        Raises:
            RuntimeError: The session is closed, or the client that it was made by.
        """
        if self.lifetime is _ENDED:
            message = "the session client is closed: make another one"
            raise RuntimeError(message)
        if self.lifetime.ended:
            message = "the client that this session was made by is closed"
            raise RuntimeError(message)

    def commit(
        self,
        new_token: NewToken,
        generation: int | None = None,
        *,
        since: int | None = None,
        replaces: Snapshot | EllipsisType | None = ...,
        begins: bool = False,
        unsaved: bool = False,
    ) -> Snapshot | KoyebSessionError:
        """
        Check a token, and make it the session's token.

        Args:
            new_token: The token.
            generation: The generation in which the renewal began; `None`: any.
            since: The generation in which a sign-in began: a sign-out after it wins.
            replaces: The snapshot that it should replace; omitted if that does not matter.
            begins: Whether this begins a session, rather than continuing one.
            unsaved: Whether the token is to be saved; a later request checks that it was.

        Returns:
            The new snapshot, or an error: :data:`SUPERSEDED` if the session has moved on.
        """
        token = new_token.token
        snapshot = self._policy.snapshot(
            token,
            self.clock,
            just_issued=new_token.just_issued,
            renew=self._renew,
            just_brought=new_token.issuer is Issuer.CREDENTIALS and not new_token.from_store,
        )
        snapshot.issuer, snapshot.from_store = new_token.issuer, new_token.from_store
        if snapshot.expiry <= 0:
            return WireError("the service handed out a token that has expired")
        if unsaved:
            snapshot.defer_check(self.clock)
        # Checks and swap are one step: nothing changes the session in between.
        with state_lock:
            if generation is not None and generation != self.generation:
                return SUPERSEDED
            if since is not None and since < self.last_sign_out:
                return SUPERSEDED
            if not isinstance(replaces, EllipsisType) and replaces is not self.snapshot:
                return SUPERSEDED  # the renewal hung, and another one has replaced it
            if new_token.just_issued and _is_shorter(token, self.snapshot):
                return WireError("the service handed out the same token with less time left")
            last = self.owner
            owner = new_token.owner or last
            if owner is not last:
                owner = owner._replace(replaced=last.account if begins else last.replaced)
            self._swap(snapshot, owner, begins=begins, unsaved=unsaved)
        return snapshot

    def keep_secret(self, old: Snapshot, renewal: str) -> None:
        """Keep the next one-time secret, with a token that could not be replaced."""
        with state_lock:
            if self.snapshot is old:
                old.token = attrs.evolve(old.token, renewal=renewal)

    def clear(self, *, unsaved: bool = False) -> Snapshot | None:
        """Sign out, and return the last snapshot; ``unsaved``: its record is to be deleted."""
        with state_lock:
            old = self.snapshot
            self._swap(None, self.owner, begins=False, unsaved=unsaved)
        return old

    def mark_unsaved(self) -> None:
        """Have the store written once more, even if the session has not changed."""
        self.change = object()

    def record_failure(
        self, failed: FailedAttempt, generation: int | None = None, *, again: bool = False
    ) -> None:
        """
        Record that a renewal has failed, so that the next one waits.

        Args:
            failed: The failed attempt.
            generation: The generation in which it began; `None`: any.
            again: Whether the waiting callers try again at once, so that it is only debug output.
        """
        error = failed.error
        seen = self.observe()
        if not failed.attempted and seen.usable is None:
            if seen.failure is not None and seen.failure.attempted:
                from .endings import add_last_failure  # noqa: PLC0415 - see that module

                add_last_failure(error, seen.failure, seen.now)
            return  # no request was sent, so no back-off is needed
        # With a token, there is one: otherwise each request would look into the store.
        held = seen.snapshot
        if held is not None and not held.renewable:
            return  # it cannot be refreshed; the failure says nothing about its validity
        left = math.inf if held is None else held.expiry - held.age(seen.now)
        failure = self._policy.failure(
            error,
            seen.now,
            random.random(),  # noqa: S311 - spreads load
            last=seen.failure,
            left=left if left > 0 else math.inf,
            soon=failed.soon,
            signs_in=failed.signs_in,
        )._replace(
            signs_in=failed.signs_in,
            refused=failed.refused,
            attempted=failed.attempted,
            about=held,
        )
        with state_lock:
            if generation is not None and generation != self.generation:  # that session has ended
                return
            self.failure = failure
        self._log_failure(failure, left, again=again or not failed.attempted)

    def _log_failure(self, failure: LastFailure, left: float, *, again: bool) -> None:
        error, held = failure.error, failure.about
        what = "signing in failed" if held is None else "renewal failed"
        usable = self.usable is not None
        extra = fields(
            "sign_in_failed" if held is None else "renewal_failed",
            error=type(error).__name__,
            status=getattr(error, "status", None),
            request_id=getattr(error, "request_id", None),
            retry_in=failure.wait,
            expires_in=_known(left) if usable else 0.0,
            user_id=None if held is None else held.token.user_id,
        )
        if again:
            log.debug("%s: %s; it is tried again", what, error, extra=extra)
            return
        state = f"the token is good for {format_duration(left)}" if usable else "no token is left"
        level = logging.WARNING if usable else logging.ERROR
        next_try = time_from_now(failure.wait)
        log.log(level, "%s: %s; %s; next try %s", what, error, state, next_try, extra=extra)

    def log_new_token(self, new_token: NewToken, snapshot: Snapshot) -> None:
        """Log a token that the session now uses."""
        extra = fields(
            new_token.event,
            expires_in=_known(snapshot.expiry),
            user_id=snapshot.token.user_id,
        )
        log.info(
            "%s; the token is good for %s", new_token.how, Duration(snapshot.expiry), extra=extra
        )

    def mark_rejected(self, snapshot: Snapshot) -> None:
        """
        Remember that a brand-new token was rejected, so that a further 401 is accepted.

        Otherwise each rejected request would start another renewal. The time doubles with each
        token that is rejected in a row, up to an hour; however many requests it is rejected for. A
        row ends two hours after its last rejection. A token that another process saved is not
        remembered, as it may have been invalid when it was loaded.
        """
        last = self.rejected
        if snapshot.from_store or (last is not None and last.about is snapshot):
            return
        clock, before = self.clock, 0
        # Otherwise a token that was accepted, and not rejected as well, has ended the row.
        if last is not None and last.accepted in {None, last.about, snapshot}:
            before = last.in_a_row if last.age(clock) < 2 * _LONGEST_REJECTION_MEMORY else 0
        wait = min(_REJECTION_MEMORY * 2.0**before, _LONGEST_REJECTION_MEMORY)
        self.rejected = Rejection(
            snapshot, min(before + 1, 16), clock.time(), clock.monotonic(), wait
        )

    def note_accepted(self, signed: Snapshot, status: int = 200) -> None:
        """
        Forget rejections if the status of a reply, other than 401, says that a token is good.

        The rejected token itself may have been too new. But if the next one is rejected as well,
        some endpoint refuses tokens that others accept, and no newer token would help.
        """
        last = self.rejected
        # A gateway that is overloaded or down has not looked at the token.
        if last is None or signed is not self.snapshot or status >= 500 or status in PASSING:
            return
        if signed is not last.about or last.in_a_row == 1:
            self.rejected = last._replace(wait=0.0, accepted=signed)

    def must_accept_401(self, signed: Snapshot) -> bool:
        """
        Return whether a 401 for this token is final: no newer one is there, and none can be had.

        That is so if the session cannot renew it, or if it was rejected when it was brand-new.
        """
        if self.snapshot is not signed:  # another caller has renewed it already
            return False
        if not signed.renewable:
            return True
        # Each new token counts: short-lived ones are replaced often while the pause goes on.
        last = self.rejected
        return last is not None and not signed.from_store and last.is_remembered(self.clock)

    def no_token_error(
        self, seen: Observation, error: KoyebSessionError | None
    ) -> KoyebSessionError:
        """Make the error for callers that get no token."""
        from .endings import no_token  # noqa: PLC0415 - see that module

        return no_token(seen, error)

    def _swap(
        self, snapshot: Snapshot | None, owner: Owner, *, begins: bool, unsaved: bool
    ) -> None:
        """Replace the snapshot; the caller holds `state_lock`."""
        if unsaved:
            self.mark_unsaved()  # first: a signal handler may raise before the next line
        # Nothing is called in these lines, so that no signal handler comes between them.
        if begins or snapshot is None:
            self.generation += 1
        if begins:
            self.rejected = None
        self.snapshot = snapshot
        self.owner = owner
        self.failure = None
        self.signed_out = snapshot is None
        if snapshot is None:
            self.last_sign_out = self.generation
        if self.on_change is not None:
            self.on_change(None if snapshot is None else snapshot.token)


def _known(seconds: float) -> float | None:
    """Return a number that JSON can represent, or `None` for infinity."""
    return None if seconds == math.inf else seconds


def _is_shorter(token: Token, old: Snapshot | None) -> bool:
    """Return whether this is the old token again with an earlier expiry."""
    if old is None or token.id != old.token.id:
        return False
    if token.expires_at is None or old.token.expires_at is None:
        return False
    return token.expires_at < old.token.expires_at
