"""What is known of a token at one moment, and what follows from that: pure decisions."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, NamedTuple

from ._errors import AuthenticationError, KoyebSessionError

if TYPE_CHECKING:
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


class Snapshot:
    """
    What a session knows at one moment; its identity says whether the session has moved on.

    The times are ages in seconds since ``wall`` and ``mono``. The age is the larger one of what the
    two clocks say: one of them stands still in suspend, the other one may be set. Only ``look``
    ever changes. Written out, as to make such a class takes attrs a hundredth of the import.
    """

    __slots__ = ("expiry", "floor", "hard", "look", "mono", "renewable", "soft", "token", "wall")

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
    ) -> None:
        self.token: Token = token
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
    """A token that was had; whether the service minted it for us this moment; how, for the log."""

    token: Token
    minted: bool
    how: str = "signed in with the credentials"


class Trouble(NamedTuple):
    """The last attempt to renew has failed; the next one has to wait."""

    error: KoyebSessionError
    failures: int
    wall: float
    mono: float
    wait: float

    def age(self, clock: Clock) -> float:
        """Tell how many seconds ago that was; never negative."""
        return max(0.0, clock.time() - self.wall, clock.monotonic() - self.mono)

    def blocks(self, clock: Clock) -> bool:
        """Tell whether it is too early for another attempt."""
        return self.age(clock) < self.wait

    @property
    def is_refusal(self) -> bool:
        """Whether the service has said that the token is no good, rather than nothing useful."""
        return isinstance(self.error, AuthenticationError)


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


def usable(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> bool:
    """Tell whether a token may be sent: not expired, and not just refused by the service."""
    if snapshot is None or snapshot.phase(clock) is Phase.EXPIRED:
        return False
    return trouble is None or not (trouble.is_refusal and trouble.blocks(clock))


def verdict(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> Verdict:
    """Decide what to do when a token is asked for; a back-off never makes an old one usable."""
    blocked = trouble is not None and trouble.blocks(clock)
    refused = trouble is not None and blocked and trouble.is_refusal
    if snapshot is None:
        return Verdict.FAIL if blocked else Verdict.WAIT
    age = snapshot.age(clock)
    if age >= snapshot.expiry or refused:
        return Verdict.WAIT if snapshot.renewable and not blocked else Verdict.FAIL
    if blocked or age < max(snapshot.soft, snapshot.floor):
        return Verdict.USE
    return Verdict.RENEW if age < snapshot.hard else Verdict.WAIT


def next_look(snapshot: Snapshot | None, trouble: Trouble | None, clock: Clock) -> float:
    """Tell in how many seconds there may be something to renew; a minute at most."""
    wait = LONGEST_SLEEP
    if snapshot is not None and snapshot.phase(clock) is not Phase.EXPIRED:
        wait = min(wait, max(snapshot.soft, snapshot.floor) - snapshot.age(clock))
    if trouble is not None:
        wait = max(wait, trouble.wait - trouble.age(clock))
    return min(max(wait, SHORTEST_SLEEP), LONGEST_SLEEP)
