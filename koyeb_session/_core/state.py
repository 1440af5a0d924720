"""What a session knows, and how that changes: one swap of one immutable snapshot."""

from __future__ import annotations

import logging
import math
import random
from types import EllipsisType
from typing import TYPE_CHECKING, Final

from .._concurrency.runtime import state_lock
from .errors import KoyebSessionError, NotSignedInError, WireError
from .log import Duration, fields, format_duration, log, time_from_now
from .snapshot import FrozenClock, Observation, Snapshot, seconds_to_next_check
from .tokens import is_api_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from .models import Clock, Token
    from .policy import RefreshPolicy
    from .snapshot import Decision, FailedAttempt, LastFailure, NewToken

SUPERSEDED: Final = NotSignedInError("the session was signed out, or in again, meanwhile")
"""Stands for a token that came too late to be used."""
_REJECTION_MEMORY: Final = 60.0
_LONGEST_REJECTION_MEMORY: Final = 3600.0
"""Seconds for which a rejection of a new token is the answer; they double with each rejection."""


class SessionState:
    """
    Holds a session's snapshot; knows nothing of how a newer one is obtained.

    ``snapshot`` is read without a lock, and only ever replaced as a whole. ``generation`` counts
    sign-ins and sign-outs: a renewal that began before one may not commit.
    """

    __slots__ = (
        "_policy",
        "_rejections",
        "_renew",
        "clock",
        "closed",
        "failure",
        "generation",
        "has_credentials",
        "mark",
        "on_change",
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
    ) -> None:
        self._policy = policy
        self._rejections = 0
        self._renew = renew
        self.clock: Clock = clock
        self.closed: bool = False
        self.generation: int = 0
        self.has_credentials: bool = has_credentials
        self.mark: object = object()
        """Stands for this session in the errors that it raises; another one out of a pickle."""
        self.on_change: Callable[[Token | None], None] | None = None
        self.rejected: tuple[Snapshot, float] | None = None
        """A token that was refused although it was new, and the age up to which that is final."""
        self.signed_out: bool = False
        self.snapshot: Snapshot | None = None
        self.failure: LastFailure | None = None

    def observe(self) -> Observation:
        """Read all that a decision is made on, without a lock: a failure says what it is about."""
        clock = self.clock
        snapshot, failure = self.snapshot, self.failure
        if failure is not None and failure.about is not snapshot:
            failure = None
        now = FrozenClock(clock.time(), clock.monotonic())
        return Observation(snapshot, failure, now, self.has_credentials)

    @property
    def decision(self) -> Decision:
        """What to do when a token is asked for."""
        return self.observe().decision

    @property
    def seconds_to_next_check(self) -> float:
        """In how many seconds there may be something to renew."""
        seen = self.observe()
        return seconds_to_next_check(seen.snapshot, seen.blocking_failure, seen.now)

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent."""
        return self.observe().usable

    @property
    def summary(self) -> str:
        """Say for a person where the session stands, also when a clock raises; no secret."""
        if self.closed:
            return "closed"
        snapshot = self.snapshot
        if snapshot is None:
            return "signed out" if self.signed_out else "not signed in"
        who = f" as {snapshot.token.user_id}" if snapshot.token.user_id else ""
        try:
            return self._told(snapshot, who)
        except Exception:  # noqa: BLE001 - a clock of the user's, maybe at the interpreter's end
            return f"signed in{who}"

    def _told(self, snapshot: Snapshot, who: str) -> str:
        """Say what is left of a session."""
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

    def close(self) -> None:
        """Let the token be read, but not used any more."""
        with state_lock:
            self.closed = True
            if self.snapshot is not None:
                # Forces every caller off the fast path, where `check_open` raises.
                self.snapshot.check_at = -math.inf

    def check_open(self) -> None:
        """
        Refuse to go on after :meth:`close`.

        Raises:
            RuntimeError: The session is closed.
        """
        if self.closed:
            message = "the session client is closed: make another one"
            raise RuntimeError(message)

    def commit(
        self,
        new_token: NewToken,
        generation: int | None = None,
        *,
        replaces: Snapshot | EllipsisType | None = ...,
        begins: bool = False,
        unsaved: bool = False,
    ) -> Snapshot | KoyebSessionError:
        """
        Check a token and swap it in.

        Args:
            new_token: The token.
            generation: The generation in which the renewal began; `None`: any.
            replaces: The snapshot that it is to replace; left out if that does not matter.
            begins: Whether this begins a session, rather than going on with one.
            unsaved: Whether a store is still to be told of it; a later request looks whether it is.

        Returns:
            The new snapshot, or what is wrong with the token; :data:`SUPERSEDED` if the session has
            moved on.
        """
        token = new_token.token
        snapshot = self._policy.snapshot(
            token, self.clock, just_issued=new_token.just_issued, renew=self._renew
        )
        snapshot.issuer, snapshot.from_store = new_token.issuer, new_token.from_store
        if snapshot.expiry <= 0:
            return WireError("the service handed out a token that has expired")
        if unsaved:
            snapshot.defer_check(self.clock)
        with state_lock:
            if generation is not None and generation != self.generation:
                return SUPERSEDED
            if not isinstance(replaces, EllipsisType) and replaces is not self.snapshot:
                return SUPERSEDED  # the renewal hung, and others have gone on without it
            if new_token.just_issued and _is_shorter(token, self.snapshot):
                return WireError("the service handed out the same token with less time left")
            self.generation += begins
            if begins:
                self.forget_rejections()
            self._swap(snapshot)
        return snapshot

    def clear(self) -> Snapshot | None:
        """Sign out, and return what there was."""
        with state_lock:
            old = self.snapshot
            self.generation += 1
            self._swap(None)
        return old

    def defer_check(self, snapshot: Snapshot) -> None:
        """Have a later request look whether the store has been told of its token."""
        if not self.closed:
            snapshot.defer_check(self.clock)

    def mark_saved(self, snapshot: Snapshot) -> None:
        """Have requests look for nothing but the token's age again."""
        if not self.closed:
            snapshot.check_at = snapshot.soft

    def record_failure(
        self, failed: FailedAttempt, generation: int | None = None, *, again: bool = False
    ) -> None:
        """
        Note that a renewal has failed, so that the next one waits.

        Args:
            failed: What failed.
            generation: The generation in which it began; `None`: any.
            again: Whether those who wait try again in a moment, so that it is no news yet.
        """
        error = failed.error
        if not failed.attempted:
            seen = self.observe()
            if seen.failure is not None:
                from .endings import add_last_failure  # noqa: PLC0415 - as that module says

                add_last_failure(error, seen.failure, seen.now)
            return  # no request was sent, so no back-off is needed
        seen = self.observe()
        held = seen.snapshot
        if held is not None and not held.renewable:
            return  # an API token cannot be refreshed: that says nothing about its validity
        left = math.inf if held is None else held.expiry - held.age(seen.now)
        failure = self._policy.failure(
            error,
            seen.now,
            random.random(),  # noqa: S311 - spreads load
            last=seen.failure,
            left=left if left > 0 else math.inf,
            soon=failed.soon,
        )._replace(signs_in=failed.signs_in, refused=failed.refused, about=held)
        with state_lock:
            if generation is not None and generation != self.generation:  # it was another session's
                return
            self.failure = failure
        self._log_failure(failure, left, again=again)

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
        """Tell an operator of a token that this session goes on with."""
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
        Remember that a brand-new token was rejected, so that a further 401 is the answer.

        Otherwise each refused request would renew once more. The memory doubles with each token
        that is rejected in a row, up to an hour. A token that another process saved may have been
        dead before: it is not remembered.
        """
        if snapshot.from_store:
            return
        memory = min(_REJECTION_MEMORY * 2.0**self._rejections, _LONGEST_REJECTION_MEMORY)
        self._rejections = min(self._rejections + 1, 16)
        self.rejected = (snapshot, snapshot.age(self.clock) + memory)

    def forget_rejections(self) -> None:
        """Forget rejections: the service has accepted a token."""
        self.rejected = None
        self._rejections = 0

    def must_accept_401(self, snapshot: Snapshot) -> bool:
        """Tell whether a refusal of this token is simply the answer."""
        refused, until = self.rejected or (None, 0.0)
        return not snapshot.renewable or (refused is snapshot and snapshot.age(self.clock) < until)

    def no_token_error(
        self, seen: Observation, error: KoyebSessionError | None
    ) -> KoyebSessionError:
        """Make the error for callers who are left without a token."""
        from .endings import no_token  # noqa: PLC0415 - as that module says

        return no_token(seen, error)

    def _swap(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and self.closed:  # by a renewal that :meth:`close` did not stop
            snapshot.check_at = -math.inf
        self.snapshot = snapshot
        self.failure = None
        self.signed_out = snapshot is None
        if self.on_change is not None:
            self.on_change(None if snapshot is None else snapshot.token)


def _known(seconds: float) -> float | None:
    """Give a number that JSON has, too."""
    return None if seconds == math.inf else seconds


def _is_shorter(token: Token, old: Snapshot | None) -> bool:
    """Tell whether this is the old token again with an earlier expiry."""
    if old is None or token.id != old.token.id:
        return False
    if token.expires_at is None or old.token.expires_at is None:
        return False
    return token.expires_at < old.token.expires_at
