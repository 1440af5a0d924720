"""What is known of a token at one moment, and what follows from that: pure decisions."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from ._errors import KoyebSessionError
    from ._log import Event
    from ._models import Clock, Token

SHORTEST_SLEEP: Final = 0.05
LONGEST_SLEEP: Final = 60.0
"""Seconds; after a suspend the clocks are looked at again this soon."""
SOONEST_SAVE: Final = 5.0
"""Seconds from a save that failed to the next one."""


class Phase(enum.IntEnum):
    """Where a token is in its life."""

    FRESH = 0
    """Use it."""
    SOFT = 1
    """Use it, and renew it meanwhile."""
    HARD = 2
    """Renew it first; use it if that fails."""
    EXPIRED = 3
    """Do not use it."""


class Issuer(enum.Enum):
    """Who issued a token, and so renews it."""

    KOYEB = "koyeb"
    """A login, a refresh, or another operation of the service: a refresh renews it."""
    CREDENTIALS = "credentials"
    """A callable or an API access token: they are asked for the next one, and it is never shown to
    a refresh, which may revoke what others hold."""
    GIVEN = "given"
    """Somebody else, who gave it to the session."""


class Snapshot:
    """
    What a session knows at one moment; its identity says whether the session has moved on.

    The times are ages in seconds since ``wall`` and ``mono``. The age is the larger one of what the
    two clocks say: one of them stands still in suspend, the other one may be set. Only ``look``
    ever changes. Written out, as to make such a class takes attrs a hundredth of the import.
    """

    __slots__ = (
        "expiry",
        "floor",
        "from_store",
        "hard",
        "issuer",
        "look",
        "mono",
        "renewable",
        "soft",
        "token",
        "wall",
    )

    def __init__(
        self,
        token: Token,
        wall: float,
        mono: float,
        soft: float,
        hard: float,
        *,
        expiry: float,
        floor: float,
        renewable: bool,
        issuer: Issuer = Issuer.GIVEN,
        from_store: bool = False,
    ) -> None:
        self.token: Token = token
        self.issuer: Issuer = issuer
        self.from_store: bool = from_store
        self.wall: float = wall
        self.mono: float = mono
        self.soft: float = soft
        self.hard: float = hard
        self.expiry: float = expiry
        self.floor: float = floor
        self.renewable: bool = renewable
        self.look: float = soft
        """Until this age a request has nothing to do but use the token; never after ``soft``."""

    def age(self, clock: Clock) -> float:
        """Tell how many seconds this has been held."""
        return max(clock.time() - self.wall, clock.monotonic() - self.mono)

    def is_due(self, clock: Clock) -> bool:
        """Tell whether a request has to look: ``age(clock) >= look``, for less time."""
        look = self.look
        return clock.monotonic() - self.mono >= look or clock.time() - self.wall >= look

    def phase(self, clock: Clock) -> Phase:
        """Tell where the token is in its life."""
        age = self.age(clock)
        if age < self.soft:
            return Phase.FRESH
        if age < self.hard:
            return Phase.SOFT
        return Phase.HARD if age < self.expiry else Phase.EXPIRED

    def look_again(self, clock: Clock) -> None:
        """Have a request look again before long, and after twice as long each time."""
        age = self.age(clock)
        self.look = min(age + min(max(age, SOONEST_SAVE), LONGEST_SLEEP), self.soft)

    def is_looked_at(self, clock: Clock) -> bool:
        """Tell whether a request is to look for more than whether the token is to be renewed."""
        return self.look < self.soft and self.age(clock) >= self.look


class Obtained(NamedTuple):
    """
    A token that was obtained.

    Attributes:
        token: The token.
        minted: Whether it was issued this moment, so that its whole life lies before it.
        how: How, for the log.
        event: What the log's records call it.
        issuer: Who issued it.
        from_store: Whether somebody else had saved it.
    """

    token: Token
    minted: bool
    how: str = "signed in with the credentials"
    event: Event = "signed_in"
    issuer: Issuer = Issuer.GIVEN
    from_store: bool = False


class Failed(NamedTuple):
    """
    Why a renewal brought no token.

    Attributes:
        error: What to tell callers.
        signs_in: Whether signing in failed, rather than a refresh or a store on the way to it.
        refused: Whether the service has refused the token that is held.
        attempted: Whether anything was asked; else there is nothing to renew it with.
        soon: Whether another attempt soon does no harm; passwords lock accounts.
    """

    error: KoyebSessionError
    signs_in: bool = False
    refused: bool = False
    attempted: bool = True
    soon: bool = False


class Trouble(NamedTuple):
    """The last attempt to renew has failed (see :class:`Failed`); the next one has to wait."""

    error: KoyebSessionError
    failures: int
    wall: float
    mono: float
    wait: float
    signs_in: bool = False
    refused: bool = False
    about: Snapshot | None = None
    """The snapshot that was to be replaced; once another one has taken its place, this is past."""

    def age(self, clock: Clock) -> float:
        """Tell how many seconds ago that was; never negative."""
        return max(0.0, clock.time() - self.wall, clock.monotonic() - self.mono)

    def blocks(self, clock: Clock) -> bool:
        """Tell whether it is too early for another attempt."""
        return self.age(clock) < self.wait


class Verdict(enum.Enum):
    """What to do when a token is asked for."""

    USE = enum.auto()
    """Use the one that is there."""
    RENEW = enum.auto()
    """Use it, and renew it meanwhile."""
    WAIT = enum.auto()
    """Renew it first."""
    FAIL = enum.auto()
    """There is none that can be used, and it is too early to try again."""


class Urgency(enum.IntEnum):
    """How much a caller needs a newer token."""

    AHEAD = 0
    """Not yet: the token is good for a while."""
    NEEDED = 1
    """There is none that can be used, or hardly any time left."""
    REJECTED = 2
    """The service has just refused the one that there is."""
    REQUESTED = 3
    """Somebody has called `refresh()`."""


class Moment(NamedTuple):
    """One reading of both clocks, and a clock that stands still there."""

    wall: float
    mono: float

    def time(self) -> float:
        """Give the wall clock's reading."""
        return self.wall

    def monotonic(self) -> float:
        """Give the monotonic clock's reading."""
        return self.mono


class Look(NamedTuple):
    """All that one decision is made on: a snapshot, the last failure, one reading of the clocks."""

    snapshot: Snapshot | None
    trouble: Trouble | None
    now: Moment
    has_credentials: bool = False

    @property
    def usable(self) -> Snapshot | None:
        """The snapshot, if its token may be sent: not expired, and not just refused."""
        if self.snapshot is None or self.snapshot.phase(self.now) is Phase.EXPIRED:
            return None
        return None if self._is_refused else self.snapshot

    @property
    def blocked(self) -> Trouble | None:
        """
        The last failure, while it is too early for another attempt.

        Without a usable token only a failed sign-in keeps the credentials from being asked.
        """
        trouble = self.trouble
        if trouble is None or not trouble.blocks(self.now):
            return None
        if self.has_credentials and not trouble.signs_in and self.usable is None:
            return None
        return trouble

    @property
    def verdict(self) -> Verdict:
        """What to do when a token is asked for; a back-off never makes an old one usable."""
        snapshot, usable, blocked = self.snapshot, self.usable, self.blocked
        if usable is None:
            can_renew = snapshot is None or snapshot.renewable
            return Verdict.WAIT if can_renew and blocked is None else Verdict.FAIL
        age = usable.age(self.now)
        if blocked is not None or age < max(usable.soft, usable.floor):
            return Verdict.USE
        return Verdict.RENEW if age < usable.hard else Verdict.WAIT

    @property
    def _is_refused(self) -> bool:
        trouble = self.trouble
        return trouble is not None and trouble.refused and trouble.blocks(self.now)


def next_look(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> float:
    """Tell in how many seconds there may be something to renew; a minute at most."""
    wait = LONGEST_SLEEP
    if snapshot is not None and snapshot.phase(clock) is not Phase.EXPIRED:
        wait = min(wait, max(snapshot.soft, snapshot.floor) - snapshot.age(clock))
    if trouble is not None:
        wait = max(wait, trouble.wait - trouble.age(clock))
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)
