"""What a session knows, and how that changes: one swap of one immutable snapshot."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from ._concurrency.places import atomic
from ._errors import KoyebSessionError, NotSignedInError, SessionExpiredError, WireError
from ._log import log, spell
from ._outcomes import caused, nothing_sent, unasked
from ._snapshot import Obtained, Snapshot, Verdict, next_look, usable, verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._models import Clock, Token
    from ._policy import RefreshPolicy
    from ._snapshot import Trouble

SUPERSEDED: Final = NotSignedInError("the session was signed out, or in again, meanwhile")
"""Stands for a token that came too late to be used."""
_FINAL: Final = 60.0
"""Seconds for which a refusal is an endpoint's own affair; then the token itself is doubted."""


class SessionState:
    """
    Holds a session's snapshot; knows nothing of how a newer one is had.

    ``snapshot`` is read without a lock, and only ever replaced as a whole. ``fence`` counts
    sign-ins and sign-outs: a renewal that began before one may not commit.
    """

    __slots__ = (
        "_missed",
        "_policy",
        "_refused",
        "_renew",
        "clock",
        "closed",
        "fence",
        "mark",
        "on_change",
        "signed_out",
        "snapshot",
        "taken_over",
        "trouble",
    )

    def __init__(self, policy: RefreshPolicy, clock: Clock, *, renew: bool = True) -> None:
        self._missed: Snapshot | None = None
        self._policy = policy
        self._renew = renew
        self._refused: tuple[Snapshot, float] | None = None
        self.clock: Clock = clock
        self.closed: bool = False
        self.fence: int = 0
        self.mark: object = object()
        """Stands for this session in the errors that it raises; another one out of a pickle."""
        self.on_change: Callable[[Token | None], None] | None = None
        self.signed_out: bool = False
        self.snapshot: Snapshot | None = None
        self.taken_over: Snapshot | None = None
        """The last one that was had from the store."""
        self.trouble: Trouble | None = None

    @property
    def verdict(self) -> Verdict:
        """What to do when a token is asked for."""
        return verdict(self.snapshot, self.trouble, self.clock)

    @property
    def next_look(self) -> float:
        """In how many seconds there may be something to renew."""
        return next_look(self.snapshot, self.trouble, self.clock)

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent."""
        snapshot = self.snapshot
        return snapshot if usable(snapshot, self.trouble, self.clock) else None

    @property
    def summary(self) -> str:
        """Say for a person where the session stands; no secret."""
        snapshot = self.snapshot
        if self.closed:
            return "closed"
        if snapshot is None:
            return "not signed in"
        who = f" as {snapshot.token.user_id}" if snapshot.token.user_id else ""
        left = snapshot.expiry - snapshot.age(self.clock)
        return f"signed in{who}, token " + (f"good for {spell(left)}" if left > 0 else "expired")

    def close(self) -> None:
        """Let the token be read, but not used any more."""
        with atomic:
            self.closed = True
            if self.snapshot is not None:
                self.snapshot.look = -math.inf  # whoever asks for it is told

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
        self, obtained: Obtained, fence: int | None = None, *, begins: bool = False
    ) -> Snapshot | KoyebSessionError:
        """
        Check a token and swap it in.

        Args:
            obtained: The token.
            fence: What ``self.fence`` was when the exchange began; `None` if that does not matter.
            begins: Whether this begins a session, rather than going on with one.

        Returns:
            The new snapshot, or what is wrong with the token; :data:`SUPERSEDED` if the fence has
            moved.
        """
        token = obtained.token
        snapshot = self._policy.snapshot(
            token, self.clock, minted=obtained.minted, renew=self._renew
        )
        if snapshot.expiry <= 0:
            return WireError("the service handed out a token that has expired")
        with atomic:
            if fence is not None and fence != self.fence:
                return SUPERSEDED
            if obtained.minted and _is_shorter(token, self.snapshot):
                return WireError("the service handed out the same token with less time left")
            self.fence += begins
            self._swap(snapshot)
        return snapshot

    def clear(self) -> Snapshot | None:
        """Sign out, and return what there was."""
        with atomic:
            old = self.snapshot
            self.fence += 1
            self._swap(None)
        return old

    def missed(self, snapshot: Snapshot | None) -> None:
        """Note what the store could not be told of, so that a later request has it told."""
        self._missed = snapshot
        if snapshot is not None and not self.closed:
            snapshot.look_again(self.clock)

    def take_missed(self) -> Snapshot | None:
        """Return what the store is still to be told of, once, if it is the session's token."""
        missed, self._missed = self._missed, None
        if missed is None or missed is not self.snapshot:
            return None
        if not self.closed:
            missed.look = missed.soft
        return missed

    def failed(self, error: KoyebSessionError, fence: int | None = None) -> None:
        """Note that a renewal has failed that began at ``fence``, so that the next one waits."""
        if nothing_sent(error):
            if self.trouble is not None:
                error.__cause__ = self.trouble.error
            return  # there is nobody to spare
        held = self.snapshot
        if held is not None and not held.renewable:
            return  # somebody asked all the same; its use is another matter
        chance = random.random()  # noqa: S311 - spreads load
        left = math.inf if held is None else held.expiry - held.age(self.clock)
        trouble = self._policy.trouble(
            error, self.clock, chance, last=self.trouble, left=left if left > 0 else math.inf
        )
        with atomic:
            if fence is not None and fence != self.fence:  # it was another session's
                return
            self.trouble = trouble
        if self.usable is None:
            log.error(
                "renewal failed: %s; no token is left; next try in %s", error, spell(trouble.wait)
            )
        else:
            log.warning(
                "renewal failed: %s; the token is good for %s; next try in %s",
                error,
                spell(left),
                spell(trouble.wait),
            )

    def refuse(self, minted: Snapshot) -> None:
        """
        Remember for a while that a token was refused when it was new: another may not help.

        One that was taken over may have been dead before: it is doubted at once.
        """
        if minted is not self.taken_over:
            self._refused = (minted, minted.age(self.clock) + _FINAL)

    def is_final(self, snapshot: Snapshot) -> bool:
        """Tell whether a refusal of this token is simply the answer."""
        refused, until = self._refused or (None, 0.0)
        return not snapshot.renewable or (refused is snapshot and snapshot.age(self.clock) < until)

    def blocked(self, *, patient: bool = False) -> KoyebSessionError | None:
        """Return the last failure, while it is too early for another attempt; see `unasked`."""
        trouble = self.trouble
        if trouble is None or not trouble.blocks(self.clock):
            return None
        return None if patient and unasked(trouble.error) else trouble.error

    def ended(self, old: Snapshot | None, error: KoyebSessionError | None) -> KoyebSessionError:
        """Make the error for callers who are left without a token."""
        if error is None:
            return SessionExpiredError("the token has expired, and is not renewed by this session")
        if old is None or isinstance(error, SessionExpiredError | NotSignedInError):
            return error
        ago = "" if self.trouble is None else f" {spell(self.trouble.age(self.clock))} ago"
        ended = SessionExpiredError(f"the token could not be renewed{ago}: {error.message}")
        ended.retryable = error.retryable
        return caused(ended, error)

    def _swap(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and self.closed:  # by a renewal that :meth:`close` did not stop
            snapshot.look = -math.inf
        self.snapshot = snapshot
        self.trouble = self._refused = None
        self.signed_out = snapshot is None
        if self.on_change is not None:
            self.on_change(None if snapshot is None else snapshot.token)


def _is_shorter(token: Token, old: Snapshot | None) -> bool:
    """Tell whether this is the old token again with an earlier expiry."""
    if old is None or token.id != old.token.id:
        return False
    if token.expires_at is None or old.token.expires_at is None:
        return False
    return token.expires_at < old.token.expires_at
