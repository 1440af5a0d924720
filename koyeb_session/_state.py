"""What a session knows, and how that changes: one swap of one immutable snapshot."""

from __future__ import annotations

import logging
import math
import random
from types import EllipsisType
from typing import TYPE_CHECKING, Final

from ._concurrency.places import atomic
from ._errors import KoyebSessionError, NotSignedInError, WireError
from ._log import Span, fields, from_now, log, spell
from ._snapshot import Look, Moment, Snapshot, next_look
from ._wire import is_api_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._models import Clock, Token
    from ._policy import RefreshPolicy
    from ._snapshot import Failed, Obtained, Trouble, Verdict

SUPERSEDED: Final = NotSignedInError("the session was signed out, or in again, meanwhile")
"""Stands for a token that came too late to be used."""
_REJECTION_MEMORY: Final = 60.0
_LONGEST_REJECTION_MEMORY: Final = 3600.0
"""Seconds for which a rejection of a new token is the answer; they double with each rejection."""


class SessionState:
    """
    Holds a session's snapshot; knows nothing of how a newer one is obtained.

    ``snapshot`` is read without a lock, and only ever replaced as a whole. ``fence`` counts
    sign-ins and sign-outs: a renewal that began before one may not commit.
    """

    __slots__ = (
        "_policy",
        "_rejections",
        "_renew",
        "clock",
        "closed",
        "fence",
        "has_credentials",
        "mark",
        "on_change",
        "rejected",
        "signed_out",
        "snapshot",
        "trouble",
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
        self.fence: int = 0
        self.has_credentials: bool = has_credentials
        self.mark: object = object()
        """Stands for this session in the errors that it raises; another one out of a pickle."""
        self.on_change: Callable[[Token | None], None] | None = None
        self.rejected: tuple[Snapshot, float] | None = None
        """A token that was refused although it was new, and the age up to which that is final."""
        self.signed_out: bool = False
        self.snapshot: Snapshot | None = None
        self.trouble: Trouble | None = None

    def look(self) -> Look:
        """Read all that a decision is made on, without a lock: a failure says what it is about."""
        clock = self.clock
        snapshot, trouble = self.snapshot, self.trouble
        if trouble is not None and trouble.about is not snapshot:
            trouble = None
        now = Moment(clock.time(), clock.monotonic())
        return Look(snapshot, trouble, now, self.has_credentials)

    @property
    def verdict(self) -> Verdict:
        """What to do when a token is asked for."""
        return self.look().verdict

    @property
    def next_look(self) -> float:
        """In how many seconds there may be something to renew."""
        look = self.look()
        return next_look(look.snapshot, look.blocked, look.now)

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent."""
        return self.look().usable

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
        look = self.look()
        left = snapshot.expiry - snapshot.age(look.now)
        if left > 0 and look.usable is not None:
            return f"signed in{who}, token good for {spell(left)}"
        what = "expired" if left <= 0 else "refused"
        if self.has_credentials:
            return f"signed in{who}, token {what}: the next request signs in again"
        return f"the session{who} has ended: token {what}"

    def close(self) -> None:
        """Let the token be read, but not used any more."""
        with atomic:
            self.closed = True
            if self.snapshot is not None:
                # Forces every caller off the fast path, where `check_open` raises.
                self.snapshot.look = -math.inf

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
        obtained: Obtained,
        fence: int | None = None,
        *,
        replaces: Snapshot | EllipsisType | None = ...,
        begins: bool = False,
        unsaved: bool = False,
    ) -> Snapshot | KoyebSessionError:
        """
        Check a token and swap it in.

        Args:
            obtained: The token.
            fence: What ``self.fence`` was when the exchange began; `None` if that does not matter.
            replaces: The snapshot that it is to replace; left out if that does not matter.
            begins: Whether this begins a session, rather than going on with one.
            unsaved: Whether a store is still to be told of it; a later request looks whether it is.

        Returns:
            The new snapshot, or what is wrong with the token; :data:`SUPERSEDED` if the session has
            moved on.
        """
        token = obtained.token
        snapshot = self._policy.snapshot(
            token, self.clock, minted=obtained.minted, renew=self._renew
        )
        snapshot.issuer, snapshot.from_store = obtained.issuer, obtained.from_store
        if snapshot.expiry <= 0:
            return WireError("the service handed out a token that has expired")
        if unsaved:
            snapshot.look_again(self.clock)
        with atomic:
            if fence is not None and fence != self.fence:
                return SUPERSEDED
            if not isinstance(replaces, EllipsisType) and replaces is not self.snapshot:
                return SUPERSEDED  # the renewal hung, and others have gone on without it
            if obtained.minted and _is_shorter(token, self.snapshot):
                return WireError("the service handed out the same token with less time left")
            self.fence += begins
            if begins:
                self.accept()
            self._swap(snapshot)
        return snapshot

    def clear(self) -> Snapshot | None:
        """Sign out, and return what there was."""
        with atomic:
            old = self.snapshot
            self.fence += 1
            self._swap(None)
        return old

    def look_for_unsaved(self, snapshot: Snapshot) -> None:
        """Have a later request look whether the store has been told of its token."""
        if not self.closed:
            snapshot.look_again(self.clock)

    def saved(self, snapshot: Snapshot) -> None:
        """Have requests look for nothing but the token's age again."""
        if not self.closed:
            snapshot.look = snapshot.soft

    def failed(self, failed: Failed, fence: int | None = None, *, again: bool = False) -> None:
        """
        Note that a renewal has failed, so that the next one waits.

        Args:
            failed: What failed.
            fence: What ``self.fence`` was when it began.
            again: Whether those who wait try again in a moment, so that it is no news yet.
        """
        error = failed.error
        if not failed.attempted:
            look = self.look()
            if look.trouble is not None:
                from ._endings import add_last_failure  # noqa: PLC0415 - as that module says

                add_last_failure(error, look.trouble, look.now)
            return  # no request was sent, so no back-off is needed
        look = self.look()
        held = look.snapshot
        if held is not None and not held.renewable:
            return  # an API token cannot be refreshed: that says nothing about its validity
        left = math.inf if held is None else held.expiry - held.age(look.now)
        trouble = self._policy.trouble(
            error,
            look.now,
            random.random(),  # noqa: S311 - spreads load
            last=look.trouble,
            left=left if left > 0 else math.inf,
            soon=failed.soon,
        )._replace(signs_in=failed.signs_in, refused=failed.refused, about=held)
        with atomic:
            if fence is not None and fence != self.fence:  # it was another session's
                return
            self.trouble = trouble
        self._log_failure(trouble, left, again=again)

    def _log_failure(self, trouble: Trouble, left: float, *, again: bool) -> None:
        error, held = trouble.error, trouble.about
        what = "signing in failed" if held is None else "renewal failed"
        usable = self.usable is not None
        extra = fields(
            "sign_in_failed" if held is None else "renewal_failed",
            error=type(error).__name__,
            status=getattr(error, "status", None),
            request_id=getattr(error, "request_id", None),
            retry_in=trouble.wait,
            expires_in=_known(left) if usable else 0.0,
            user_id=None if held is None else held.token.user_id,
        )
        if again:
            log.debug("%s: %s; it is tried again", what, error, extra=extra)
            return
        state = f"the token is good for {spell(left)}" if usable else "no token is left"
        level = logging.WARNING if usable else logging.ERROR
        next_try = from_now(trouble.wait)
        log.log(level, "%s: %s; %s; next try %s", what, error, state, next_try, extra=extra)

    def log_new_token(self, obtained: Obtained, snapshot: Snapshot) -> None:
        """Tell an operator of a token that this session goes on with."""
        extra = fields(
            obtained.event,
            expires_in=_known(snapshot.expiry),
            user_id=snapshot.token.user_id,
        )
        log.info("%s; the token is good for %s", obtained.how, Span(snapshot.expiry), extra=extra)

    def refuse(self, snapshot: Snapshot) -> None:
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

    def accept(self) -> None:
        """Forget rejections: the service has accepted a token."""
        self.rejected = None
        self._rejections = 0

    def is_final(self, snapshot: Snapshot) -> bool:
        """Tell whether a refusal of this token is simply the answer."""
        refused, until = self.rejected or (None, 0.0)
        return not snapshot.renewable or (refused is snapshot and snapshot.age(self.clock) < until)

    def ended(self, look: Look, error: KoyebSessionError | None) -> KoyebSessionError:
        """Make the error for callers who are left without a token."""
        from ._endings import no_token  # noqa: PLC0415 - as that module says

        return no_token(look, error)

    def _swap(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and self.closed:  # by a renewal that :meth:`close` did not stop
            snapshot.look = -math.inf
        self.snapshot = snapshot
        self.trouble = None
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
