"""The policy of renewals: every boundary, and the sum of all its rules."""

from __future__ import annotations

import base64
import json
import math
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RateLimitedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core.snapshot import (
    Decision,
    FrozenClock,
    LastFailure,
    Observation,
    Phase,
    Snapshot,
    seconds_to_next_check,
)
from koyeb_session._core.tokens import with_issue_time
from koyeb_session.testing import FakeClock

HOUR = 3600.0
DAY = 24 * HOUR
PLAIN = RefreshPolicy(jitter=0)
JWT = ".".join(
    base64.urlsafe_b64encode(json.dumps(part).encode()).decode()
    for part in ({"a": 1}, {"b": 2}, [3])
)


def moment(clock: FakeClock, seconds: float = 0) -> datetime:
    """Return the wall time after so many seconds."""
    return datetime.fromtimestamp(clock.time(), UTC) + timedelta(seconds=seconds)


def minted(
    life: float, policy: RefreshPolicy = PLAIN, clock: FakeClock | None = None, token_id: str = "t"
) -> Snapshot:
    """Make the snapshot of a token that the service issues now."""
    clock = clock or FakeClock()
    token = Token(token_id, expires_at=moment(clock, life), issued_at=moment(clock))
    return policy.snapshot(token, clock, just_issued=True)


def held(
    soft: float = 10,
    hard: float = 20,
    expiry: float = 30,
    *,
    floor: float = 0,
    renewable: bool = True,
    clock: FakeClock | None = None,
) -> Snapshot:
    """Make a snapshot of a token that begins to be held now."""
    clock = clock or FakeClock()
    token = Token("t")
    wall, mono = clock.time(), clock.monotonic()
    return Snapshot(token, wall, mono, soft, hard, expiry=expiry, floor=floor, renewable=renewable)


def clock_after(seconds: float) -> FakeClock:
    """Make a clock that is ahead of those that begin now."""
    clock = FakeClock()
    clock.advance(seconds)
    return clock


def failed(
    error: KoyebSessionError, wait: float = 5, *, signs_in: bool = False, refused: bool = False
) -> LastFailure:
    """Make the record of a renewal that fails now."""
    clock = FakeClock()
    return LastFailure(error, 1, clock.time(), clock.monotonic(), wait, signs_in, refused)


def seen(
    snapshot: Snapshot | None,
    trouble: LastFailure | None,
    clock: FakeClock,
    *,
    has_credentials: bool = False,
) -> Observation:
    """Read all that one decision is made on."""
    return Observation(
        snapshot, trouble, FrozenClock(clock.time(), clock.monotonic()), has_credentials
    )


def verdict(
    snapshot: Snapshot | None,
    trouble: LastFailure | None,
    clock: FakeClock,
    *,
    has_credentials: bool = False,
) -> Decision:
    """Tell what to do when a token is asked for at this moment."""
    return seen(snapshot, trouble, clock, has_credentials=has_credentials).decision


def usable(snapshot: Snapshot | None, trouble: LastFailure | None, clock: FakeClock) -> bool:
    """Tell whether the token may be sent at this moment."""
    found = seen(snapshot, trouble, clock).usable
    assert found is None or found is snapshot
    return found is not None


# The windows


def steady(**windows: float | timedelta | None) -> RefreshPolicy:
    """Make a policy without jitter."""
    make: type[Any] = RefreshPolicy
    policy: RefreshPolicy = make(jitter=0, **windows)
    return policy


LIVES: dict[str, tuple[float, RefreshPolicy, tuple[float, float, float]]] = {
    # life, policy: when soft and hard begin, and the floor
    "a day": (DAY, PLAIN, (12 * HOUR, DAY - 60, 10)),
    "a month, of which twelve hours are soft": (30 * DAY, PLAIN, (29.5 * DAY, 30 * DAY - 60, 10)),
    "ten minutes, a tenth is a minute": (600, PLAIN, (300, 540, 10)),
    "less than ten minutes": (590, PLAIN, (295, 531, 10)),
    "five minutes": (300, PLAIN, (150, 270, 10)),
    "two hundred seconds, a twentieth is the floor": (200, PLAIN, (100, 180, 10)),
    "less than two hundred seconds": (160, PLAIN, (80, 144, 8)),
    "ten seconds": (10, PLAIN, (5, 9, 0.5)),
    "no time at all": (0, PLAIN, (0, 0, 0)),
    "soft by number": (DAY, steady(soft_window=HOUR), (23 * HOUR, DAY - 60, 10)),
    "soft by timedelta": (
        DAY,
        steady(soft_window=timedelta(hours=1)),
        (23 * HOUR, DAY - 60, 10),
    ),
    "soft None": (4 * DAY, steady(soft_window=None), (2 * DAY, 4 * DAY - 60, 10)),
    "soft 0": (DAY, steady(soft_window=0), (DAY - 60, DAY - 60, 10)),
    "soft 0.0": (DAY, steady(soft_window=0.0), (DAY - 60, DAY - 60, 10)),
    "soft timedelta(0)": (
        DAY,
        steady(soft_window=timedelta(0)),
        (DAY - 60, DAY - 60, 10),
    ),
    "hard None": (DAY, steady(hard_window=None), (DAY / 2, DAY * 0.9, 10)),
    "hard 0": (DAY, steady(hard_window=0), (DAY / 2, DAY, 10)),
    "hard 0.0": (DAY, steady(hard_window=0.0), (DAY / 2, DAY, 10)),
    "hard timedelta(0)": (DAY, steady(hard_window=timedelta(0)), (DAY / 2, DAY, 10)),
    "hard beyond a tenth": (DAY, steady(hard_window=DAY), (DAY / 2, DAY * 0.9, 10)),
    "both 0": (DAY, steady(soft_window=0, hard_window=0), (DAY, DAY, 10)),
    "both None": (
        DAY,
        steady(soft_window=None, hard_window=None),
        (DAY / 2, DAY * 0.9, 10),
    ),
    "soft shorter than hard": (
        1000,
        steady(soft_window=1, hard_window=None),
        (900, 900, 10),
    ),
    "soft beyond the whole life": (300, steady(soft_window=DAY), (150, 270, 10)),
    "no floor": (DAY, steady(min_interval=0), (DAY / 2, DAY - 60, 0)),
    "a long floor": (
        DAY,
        steady(min_interval=timedelta(days=1)),
        (DAY / 2, DAY - 60, DAY / 20),
    ),
}


@pytest.mark.parametrize("case", LIVES)
def test_windows_are_cut_to_the_lifetime(case: str) -> None:
    """Half of a life, a tenth and a twentieth bound the windows and the floor (pitfall 8)."""
    life, policy, (soft, hard, floor) = LIVES[case]
    snapshot = minted(life, policy)
    assert snapshot.soft == pytest.approx(soft, abs=1e-9)
    assert snapshot.hard == pytest.approx(hard, abs=1e-9)
    assert snapshot.expiry == life
    assert snapshot.floor == pytest.approx(floor, abs=1e-9)
    assert snapshot.renewable


def test_defaults_are_the_documented_ones() -> None:
    """Twelve hours, a minute, ten seconds, a tenth, and back-offs from one second to sixty."""
    assert attrs.asdict(RefreshPolicy()) == {
        "soft_window": 43_200.0,
        "hard_window": 60.0,
        "min_interval": 10.0,
        "jitter": 0.1,
        "backoff": 1.0,
        "backoff_max": 60.0,
    }
    assert attrs.asdict(RetryPolicy()) == {
        "attempts": 3,
        "delay": 0.2,
        "delay_max": 2.0,
        "retry_after_max": 5.0,
    }


def test_life_is_whole_when_the_service_minted_the_token_on_another_clock() -> None:
    """A new token's life begins now, even if the local wall clock is wrong (pitfall 22)."""
    clock = FakeClock()
    for skew in (-HOUR, HOUR):
        token = Token("t", expires_at=moment(clock, DAY + skew), issued_at=moment(clock, skew))
        assert PLAIN.snapshot(token, clock, just_issued=True).expiry == DAY
        assert PLAIN.snapshot(token, clock, just_issued=False).expiry == DAY + skew


def test_life_is_what_is_left_when_a_token_is_adopted() -> None:
    """The windows come from the whole life, and the end from our wall clock."""
    clock = FakeClock()
    token = Token("t", expires_at=moment(clock, 100), issued_at=moment(clock, -200))
    snapshot = PLAIN.snapshot(token, clock, just_issued=False)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry) == (100 - 150, 100 - 30, 100)
    assert snapshot.floor == 10 - 200  # from the issue on
    assert snapshot.phase(clock) is Phase.SOFT


def test_life_begins_with_the_adoption_when_its_birth_is_unknown() -> None:
    """Without a time of issue, the remaining time counts as the whole life."""
    clock = FakeClock()
    snapshot = PLAIN.snapshot(Token("t", expires_at=moment(clock, 300)), clock, just_issued=False)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry) == (150, 270, 300)


def test_life_is_none_when_the_token_is_born_after_its_end() -> None:
    """Nonsense has no windows: it is used until its end, and not renewed all the time."""
    clock = FakeClock()
    token = Token("t", expires_at=moment(clock, 100), issued_at=moment(clock, 200))
    snapshot = PLAIN.snapshot(token, clock, just_issued=False)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry, snapshot.floor) == (100, 100, 100, 0)
    assert PLAIN.snapshot(token, clock, just_issued=True).expiry == 0


def test_snapshot_remembers_both_clocks() -> None:
    """Ages are counted from this moment on either clock."""
    clock = clock_after(5)
    clock.step_wall(7)
    token = Token("t", expires_at=moment(clock, 300))
    for known in (token, Token("t")):
        snapshot = PLAIN.snapshot(known, clock, just_issued=False)
        assert snapshot.token is known
        assert (snapshot.wall, snapshot.mono) == (clock.time(), clock.monotonic())


@pytest.mark.parametrize("was_minted", [True, False])
def test_token_is_fresh_for_ever_when_its_expiry_is_unknown(was_minted: bool) -> None:  # noqa: FBT001 - a parameter
    """Only a 401 triggers the renewal of a token that says nothing of its end."""
    clock = FakeClock()
    token = Token("t", issued_at=moment(clock))
    snapshot = RefreshPolicy(min_interval=3).snapshot(token, clock, just_issued=was_minted)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry) == (math.inf, math.inf, math.inf)
    assert snapshot.floor == 3
    clock.advance(1000 * DAY)
    assert snapshot.phase(clock) is Phase.FRESH


def test_token_is_renewable_unless_it_is_an_api_token_or_another_owners() -> None:
    """An API token, and another user's token, are never renewed automatically."""
    clock = FakeClock()

    def renewable(token: Token, *, renew: bool = True) -> bool:
        return PLAIN.snapshot(token, clock, just_issued=False, renew=renew).renewable

    assert not renewable(Token("x" * 64))
    assert renewable(Token(JWT))
    assert renewable(Token("x", issued_at=moment(clock)))
    assert renewable(Token("x", expires_at=moment(clock, 60)))
    assert not renewable(Token(JWT), renew=False)
    assert not renewable(Token("x", expires_at=moment(clock, 60)), renew=False)


def test_token_is_fresh_to_its_end_when_it_is_not_renewable() -> None:
    """Without a renewal there are no windows."""
    clock = FakeClock()
    token = Token("t", expires_at=moment(clock, 300))
    snapshot = PLAIN.snapshot(token, clock, just_issued=False, renew=False)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry, snapshot.floor) == (300, 300, 300, 0)
    assert snapshot.token is token
    assert snapshot.renewable is False
    clock.advance(299)
    assert verdict(snapshot, None, clock) is Decision.USE
    clock.advance(1)
    assert verdict(snapshot, None, clock) is Decision.FAIL


# Jitter


def test_jitter_comes_from_the_token_when_processes_share_it() -> None:
    """All who hold one token start to renew it at the same moment, and others at another."""
    policy = RefreshPolicy(jitter=0.5)
    starts = {minted(DAY, policy, token_id=f"token-{n}").soft for n in range(200)}
    assert len(starts) == 200
    assert all(DAY / 2 <= start <= DAY * 0.75 for start in starts)
    assert min(starts) < DAY * 0.52
    assert max(starts) > DAY * 0.73
    again = {minted(DAY, RefreshPolicy(jitter=0.5), token_id=f"token-{n}").soft for n in range(200)}
    assert again == starts


def test_jitter_shortens_the_soft_window_by_the_tokens_share() -> None:
    """The checksum of the id says how much of the jitter; the hard window stays."""
    share = zlib.crc32(b"token-1") / (2**32 - 1)
    snapshot = minted(DAY, RefreshPolicy(jitter=0.25), token_id="token-1")
    assert snapshot.soft == pytest.approx(DAY - 12 * HOUR * (1 - 0.25 * share), abs=1e-6)
    assert snapshot.hard == DAY - 60
    assert snapshot.expiry == DAY


def test_jitter_never_goes_beyond_the_hard_window() -> None:
    """With all of the soft window as jitter, a token is renewed when callers wait at the latest."""
    policy = RefreshPolicy(jitter=1, soft_window=100)
    for number in range(100):
        assert minted(DAY, policy, token_id=str(number)).soft <= DAY - 60


# The clocks


def test_phase_changes_at_each_boundary() -> None:
    """A phase begins in the very moment that is its boundary."""
    snapshot = held(10, 20, 30)
    phases = {
        0: Phase.FRESH,
        9.999: Phase.FRESH,
        10: Phase.SOFT,
        19.999: Phase.SOFT,
        20: Phase.HARD,
        29.999: Phase.HARD,
        30: Phase.EXPIRED,
        1e9: Phase.EXPIRED,
    }
    for age, phase in phases.items():
        assert snapshot.phase(clock_after(age)) is phase
    assert list(Phase) == [0, 1, 2, 3]


def test_age_is_the_larger_one_when_the_clocks_disagree() -> None:
    """Neither a clock that is set back nor a suspend makes a token young (pitfall 22)."""
    snapshot = held()
    for step, age in ((0, 100), (HOUR, HOUR + 100), (-HOUR, 100)):
        clock = clock_after(100)
        clock.step_wall(step)
        assert snapshot.age(clock) == age
    slow = FakeClock()
    slow.step_wall(50)  # a suspend: the monotonic clock stands still
    assert snapshot.age(slow) == 50


def test_token_expires_when_the_machine_was_suspended() -> None:
    """After a night in suspend the token of last evening is not sent."""
    clock = FakeClock()
    snapshot = minted(300, clock=clock)
    clock.step_wall(301)
    assert snapshot.phase(clock) is Phase.EXPIRED
    clock.step_wall(-301 - HOUR)
    assert snapshot.phase(clock) is Phase.FRESH
    clock.advance(300)
    assert snapshot.phase(clock) is Phase.EXPIRED


def test_trouble_is_not_in_the_future_when_a_clock_is_set_back() -> None:
    """A back-off ends by the monotonic clock, too, and its age is never negative."""
    trouble = failed(ServerError(), wait=5)
    clock = FakeClock()
    clock.step_wall(-HOUR)
    assert trouble.age(clock) == 0
    clock.advance(4.5)
    assert trouble.age(clock) == 4.5
    assert trouble.in_backoff(clock)
    clock.advance(0.5)
    assert not trouble.in_backoff(clock)
    clock.step_wall(2 * HOUR)
    assert trouble.age(clock) == HOUR + 5
    backwards = LastFailure(ServerError(), 1, clock.time() + 9, clock.monotonic() + 9, 5)
    assert backwards.age(clock) == 0


def test_trouble_blocks_until_its_wait_is_over() -> None:
    """The very moment of its end is late enough."""
    trouble = failed(ServerError(), wait=5)
    assert trouble.in_backoff(clock_after(0))
    assert trouble.in_backoff(clock_after(4.999))
    assert not trouble.in_backoff(clock_after(5))
    assert not failed(ServerError(), wait=0).in_backoff(clock_after(0))


# Trouble


def waits(
    error: KoyebSessionError, count: int, chance: float, policy: RefreshPolicy
) -> list[float]:
    """Let a renewal fail so many times, and give the waits."""
    clock = FakeClock()
    trouble: LastFailure | None = None
    found: list[float] = []
    for _ in range(count):
        trouble = policy.failure(error, clock, chance, last=trouble)
        found.append(trouble.wait)
    return found


def test_back_off_doubles_to_its_limit_when_the_service_is_down() -> None:
    """One second, then twice as long each time, up to a minute; a random half is taken off."""
    policy = RefreshPolicy()
    expected = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits(ServerError(), 9, 0, policy) == expected
    assert waits(ServerError(), 9, 1, policy) == [wait / 2 for wait in expected]
    assert waits(ServerError(), 9, 0.5, policy) == [wait * 0.75 for wait in expected]
    assert waits(TransportError(), 3, 0, RefreshPolicy(backoff=3, backoff_max=5)) == [3, 5, 5]
    assert waits(TransportError(), 2, 0, RefreshPolicy(backoff=timedelta(minutes=2))) == [60, 60]
    assert waits(TransportError(), 3, 0, RefreshPolicy(backoff=0)) == [0, 0, 0]
    assert waits(TransportError(), 3, 0, RefreshPolicy(backoff_max=0)) == [0, 0, 0]


def test_back_off_stays_finite_when_the_outage_is_endless() -> None:
    """The exponent has a limit of its own, or a float would overflow after a thousand failures."""
    policy = RefreshPolicy(backoff=1, backoff_max=1e300)
    clock = FakeClock()
    last = LastFailure(ServerError(), 5000, 0, 0, 1)
    trouble = policy.failure(ServerError(), clock, 0, last=last)
    assert trouble.failures == 5001
    assert trouble.wait == 2.0**32
    earlier = LastFailure(ServerError(), 32, 0, 0, 1)
    assert policy.failure(ServerError(), clock, 0, last=earlier).wait == 2.0**32
    earlier = LastFailure(ServerError(), 31, 0, 0, 1)
    assert policy.failure(ServerError(), clock, 0, last=earlier).wait == 2.0**31


REFUSALS: dict[type[KoyebSessionError], bool] = {
    # whether the wait is sixty times as long
    TransportError: False,
    TransportTimeoutError: False,
    RateLimitedError: False,
    ServerError: False,
    StoreError: False,
    WireError: False,
    KoyebSessionError: True,
    ApiError: True,
    BadRequestError: True,
    AuthenticationError: True,
    InvalidCredentialsError: True,
    SessionExpiredError: True,
    PermissionDeniedError: True,
    AccountLockedError: True,
    NotFoundError: True,
    EndpointGoneError: True,
    NotSignedInError: True,
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_back_off_is_sixty_times_as_long_when_the_service_refuses(
    kind: type[KoyebSessionError],
) -> None:
    """The service would refuse it again, and repeated refusals lock accounts."""
    long = REFUSALS[kind]
    expected = [60.0, 120.0, 240.0] if long else [1.0, 2.0, 4.0]
    assert waits(kind(), 3, 0, RefreshPolicy()) == expected
    assert waits(kind(), 8, 0, RefreshPolicy())[-1] == (HOUR if long else 60)


def test_back_off_is_short_when_another_attempt_does_no_harm() -> None:
    """A user's callable locks no account, even if it raises."""
    clock = FakeClock()
    for kind in REFUSALS:
        trouble = RefreshPolicy().failure(kind(), clock, 0, last=None, soon=True)
        assert trouble.wait == 1


@pytest.mark.parametrize("kind", REFUSALS)
def test_token_is_refused_when_the_renewal_says_so_and_not_by_an_error_s_class(
    kind: type[KoyebSessionError],
) -> None:
    """Credentials may be refused with the same error; the token is good for all that."""
    assert usable(held(), failed(kind()), clock_after(4))
    assert not usable(held(), failed(kind(), refused=True), clock_after(4))
    assert usable(held(), failed(kind(), refused=True), clock_after(5))


@pytest.mark.parametrize(("left", "wait"), [(200, 60), (100, 50), (3, 1.5), (1, 1), (0.1, 1)])
def test_back_off_leaves_time_for_another_try_while_the_token_is_good(
    left: float, wait: float
) -> None:
    """The longest wait is half of the token's remaining time, and the shortest the first wait."""
    last = failed(ServerError(status=500))._replace(failures=20)
    trouble = RefreshPolicy().failure(ServerError(status=500), FakeClock(), 0, last=last, left=left)
    assert trouble.wait == wait


def test_back_off_is_short_when_the_end_of_a_session_was_an_outage() -> None:
    """An error that carries another one's `retryable` is treated like that one."""
    ended = SessionExpiredError()
    ended.retryable = True
    assert waits(ended, 1, 0, RefreshPolicy()) == [1]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        (None, 1),
        (0.0, 1),
        (0.5, 1),
        (1.0, 1),
        (1.5, 1.5),
        (60.5, 60.5),
        (3599.0, 3599),
        (3600.0, 3600),
        (3601.0, 3600),
        (31_536_000.0, 3600),
    ],
)
def test_back_off_is_what_the_service_asks_when_that_is_longer(
    asked: float | None, wait: float
) -> None:
    """`Retry-After` is honoured up to an hour, and not shortened by chance (pitfall 23)."""
    assert waits(RateLimitedError(retry_after=asked), 1, 0, RefreshPolicy()) == [wait]
    if wait > 1:
        assert waits(RateLimitedError(retry_after=asked), 1, 1, RefreshPolicy()) == [wait]


def test_trouble_remembers_what_failed_and_when() -> None:
    """It keeps the error for callers without a token, and the times of both clocks."""
    clock = clock_after(5)
    clock.step_wall(7)
    error = ServerError("down")
    first = PLAIN.failure(error, clock, 0, last=None)
    assert first == LastFailure(error, 1, clock.time(), clock.monotonic(), 1)
    assert PLAIN.failure(error, clock, 0, last=first).failures == 2


# Verdicts

OUTAGE = failed(ServerError(), wait=1000)
REFUSAL = failed(AuthenticationError(), wait=1000, refused=True)
SIGN_IN = failed(ServerError(), wait=1000, signs_in=True)
REFUSED_CREDENTIALS = failed(AuthenticationError(), wait=1000, signs_in=True, refused=True)
OVER = failed(AuthenticationError(), wait=0, signs_in=True, refused=True)
AGES = {Phase.FRESH: 5.0, Phase.SOFT: 15.0, Phase.HARD: 25.0, Phase.EXPIRED: 35.0}
USE, RENEW, WAIT, FAIL = (
    Decision.USE,
    Decision.RENEW_IN_BACKGROUND,
    Decision.RENEW_FIRST,
    Decision.FAIL,
)

Verdicts = tuple[Decision, Decision, Decision, Decision]

VERDICTS: dict[str, tuple[LastFailure | None, bool, Verdicts, Verdicts]] = {
    # failure, renewable: fresh, soft, hard, expired; the same with credentials
    "all is well": (None, True, (USE, RENEW, WAIT, WAIT), (USE, RENEW, WAIT, WAIT)),
    "an outage": (OUTAGE, True, (USE, USE, USE, FAIL), (USE, USE, USE, WAIT)),
    "a refusal": (REFUSAL, True, (FAIL, FAIL, FAIL, FAIL), (WAIT, WAIT, WAIT, WAIT)),
    "no sign-in": (SIGN_IN, True, (USE, USE, USE, FAIL), (USE, USE, USE, FAIL)),
    "a refusal, no sign-in": (
        REFUSED_CREDENTIALS, True, (FAIL, FAIL, FAIL, FAIL), (FAIL, FAIL, FAIL, FAIL)
    ),
    "the back-off is over": (OVER, True, (USE, RENEW, WAIT, WAIT), (USE, RENEW, WAIT, WAIT)),
    # such a token has no windows
    "not renewable": (None, False, (USE, RENEW, WAIT, FAIL), (USE, RENEW, WAIT, FAIL)),
    "not renewable, an outage": (OUTAGE, False, (USE, USE, USE, FAIL), (USE, USE, USE, FAIL)),
    "not renewable, refused": (REFUSAL, False, (FAIL, FAIL, FAIL, FAIL), (FAIL, FAIL, FAIL, FAIL)),
}  # fmt: skip


@pytest.mark.parametrize("case", VERDICTS)
def test_verdict_is_the_tables(case: str) -> None:
    """A back-off never makes an old token usable, and an outage never a good one useless."""
    trouble, renewable, alone, with_credentials = VERDICTS[case]
    for has_credentials, expected in ((False, alone), (True, with_credentials)):
        snapshot = held(renewable=renewable)
        found = tuple(
            verdict(snapshot, trouble, clock_after(age), has_credentials=has_credentials)
            for age in AGES.values()
        )
        assert found == expected


def test_verdict_is_to_sign_in_when_there_is_no_token() -> None:
    """Without a token there is nothing to use, and a back-off is kept."""
    assert verdict(None, None, FakeClock()) is Decision.RENEW_FIRST
    assert verdict(None, OVER, FakeClock()) is Decision.RENEW_FIRST
    assert verdict(None, OUTAGE, FakeClock()) is Decision.FAIL
    assert verdict(None, REFUSAL, FakeClock()) is Decision.FAIL
    assert verdict(None, OUTAGE, FakeClock(), has_credentials=True) is Decision.RENEW_FIRST
    assert verdict(None, SIGN_IN, FakeClock(), has_credentials=True) is Decision.FAIL


def test_verdict_is_to_use_when_the_floor_is_not_reached() -> None:
    """A service that hands out the same token again is not asked on every request (pitfall 8)."""
    snapshot = held(0, 0, 30, floor=10)
    assert verdict(snapshot, None, clock_after(0)) is Decision.USE
    assert verdict(snapshot, None, clock_after(9.999)) is Decision.USE
    assert verdict(snapshot, None, clock_after(10)) is Decision.RENEW_FIRST
    soft = held(0, 20, 30, floor=10)
    assert verdict(soft, None, clock_after(9.999)) is Decision.USE
    assert verdict(soft, None, clock_after(10)) is Decision.RENEW_IN_BACKGROUND
    assert verdict(held(0, 0, 5, floor=10), None, clock_after(5)) is Decision.RENEW_FIRST


def test_token_is_usable_until_it_expires_or_is_refused() -> None:
    """An expired one is never usable, a refused one not before it may be tried again."""
    for phase, age in AGES.items():
        good = phase is not Phase.EXPIRED
        assert usable(held(), None, clock_after(age)) is good
        assert usable(held(), OUTAGE, clock_after(age)) is good
        assert usable(held(), OVER, clock_after(age)) is good
        assert usable(held(), REFUSAL, clock_after(age)) is False
    assert usable(None, None, FakeClock()) is False
    assert usable(None, OVER, FakeClock()) is False


# When to look again


@pytest.mark.parametrize(
    ("age", "seconds"),
    [(0, 60), (39.9, 60), (40, 60), (50, 50), (99, 1), (99.95, 0.05), (99.99, 0.05), (100, 0.05)],
)
def test_next_look_is_when_the_soft_window_begins(age: float, seconds: float) -> None:
    """A minute at most, as a suspend stops the timer, and 50 ms at least."""
    assert seconds_to_next_check(held(100, 200, 300), None, clock_after(age)) == pytest.approx(
        seconds
    )


@pytest.mark.parametrize(
    ("age", "seconds"), [(150, 0.05), (250, 0.05), (299, 0.05), (300, 60), (999, 60)]
)
def test_next_look_is_at_once_when_a_renewal_is_due(age: float, seconds: float) -> None:
    """In the windows a renewal is due; after the expiry only the last failure counts."""
    assert seconds_to_next_check(held(100, 200, 300), None, clock_after(age)) == seconds


def test_next_look_waits_for_the_floor_when_that_is_later() -> None:
    """A token that may not be renewed yet is looked at when it may be."""
    assert seconds_to_next_check(held(5, 200, 300, floor=30), None, clock_after(10)) == 20
    assert seconds_to_next_check(held(30, 200, 300, floor=5), None, clock_after(10)) == 20


def test_next_look_is_in_a_minute_when_there_is_nothing_to_renew() -> None:
    """Nobody is signed in, or the expiry is unknown."""
    assert seconds_to_next_check(None, None, FakeClock()) == 60
    assert seconds_to_next_check(held(math.inf, math.inf, math.inf), None, clock_after(5)) == 60


def test_next_look_waits_for_the_back_off_when_there_is_trouble() -> None:
    """A renewal that has to wait is tried when the wait is over."""
    soft = held(1, 200, 300)
    assert seconds_to_next_check(soft, failed(ServerError(), 30), clock_after(10)) == 20
    assert seconds_to_next_check(soft, failed(ServerError(), 30), clock_after(30)) == 0.05
    assert seconds_to_next_check(soft, failed(ServerError(), 9999), clock_after(10)) == 60
    assert (
        seconds_to_next_check(held(50, 200, 300), failed(ServerError(), 30), clock_after(10)) == 40
    )
    assert seconds_to_next_check(None, failed(ServerError(), 30), clock_after(10)) == 60


# What policies refuse

SPANS = ["soft_window", "hard_window", "min_interval", "backoff", "backoff_max"]
Policies = type[RefreshPolicy | RetryPolicy]
RETRY_SPANS = ["delay", "delay_max", "retry_after_max"]
FIELDS: list[tuple[Policies, str]] = [
    *((RefreshPolicy, name) for name in SPANS),
    *((RetryPolicy, name) for name in RETRY_SPANS),
]


@pytest.mark.parametrize(("policy", "name"), FIELDS)
def test_policy_refuses_a_span_when_it_is_no_time(policy: Policies, name: str) -> None:
    """The message names the attribute and says what it may be."""
    make: type[Any] = policy
    wanted = f"{name} must be seconds or a timedelta, finite and not negative, not"
    for value in ("60", True, False, [60]):
        with pytest.raises(TypeError) as type_error:
            make(**{name: value})
        assert str(type_error.value) == f"{wanted} {type(value).__name__}"
    for number in (-1, -1e-9, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"finite") as value_error:
            make(**{name: number})
        assert str(value_error.value) == f"{wanted} {number}"
    with pytest.raises(ValueError, match=r"not negative, not -1\.0$"):
        make(**{name: timedelta(seconds=-1)})


@pytest.mark.parametrize(("policy", "name"), FIELDS)
def test_policy_takes_a_span_in_seconds_or_as_a_timedelta(policy: Policies, name: str) -> None:
    """Both units mean the same, and zero is a value."""
    make: type[Any] = policy
    half = timedelta(seconds=0.5)
    for span, kept in ((0, 0), (0.0, 0), (timedelta(0), 0), (1, 1), (half, 0.5)):
        assert getattr(make(**{name: span}), name) == kept


@pytest.mark.parametrize(("policy", "name"), FIELDS)
def test_policy_takes_none_for_the_windows_only(policy: Policies, name: str) -> None:
    """`None` has a meaning of its own there, and is a mistake elsewhere."""
    make: type[Any] = policy
    if name in {"soft_window", "hard_window"}:
        assert getattr(make(**{name: None}), name) is None
    else:
        with pytest.raises(
            TypeError, match=rf"^{name} must be seconds or a timedelta, .* not NoneType$"
        ):
            make(**{name: None})


def test_policy_refuses_a_jitter_when_it_is_no_share() -> None:
    """A share is a number from 0 to 1, and no span of time."""
    for share in (0, 0.0, 0.5, 1, 1.0):
        assert RefreshPolicy(jitter=share).jitter == share
    for number in (-0.001, 1.001, math.nan, math.inf, -math.inf):
        with pytest.raises(
            ValueError, match=r"^jitter must be a number from 0 to 1, not "
        ) as wrong:
            RefreshPolicy(jitter=number)
        assert str(wrong.value).endswith(f", not {number}")
    for value in ("1", True, None, timedelta(0)):
        with pytest.raises(TypeError) as type_error:
            RefreshPolicy(jitter=value)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
        name = type(value).__name__
        assert str(type_error.value) == f"jitter must be a number from 0 to 1, not {name}"


def test_policy_refuses_attempts_when_they_are_no_count() -> None:
    """One attempt is the least there is."""
    assert RetryPolicy(attempts=1).attempts == 1
    for count in (0, -1):
        with pytest.raises(ValueError, match="attempts") as wrong:
            RetryPolicy(attempts=count)
        assert str(wrong.value) == f"attempts must be a whole number, 1 at least, not {count}"
    for value in (1.5, "3", None, True):
        with pytest.raises(TypeError) as type_error:
            RetryPolicy(attempts=value)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - on purpose
        name = type(value).__name__
        assert str(type_error.value) == f"attempts must be a whole number, 1 at least, not {name}"


@pytest.mark.parametrize("policy", [RefreshPolicy, RetryPolicy])
def test_policy_is_a_frozen_value_of_named_parts(policy: type[attrs.AttrsInstance]) -> None:
    """Nobody has to remember an order, and clients can share a policy."""
    assert policy() == policy()
    with pytest.raises(TypeError):
        policy(1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue] - on purpose
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        policy().jitter = 1  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue] - on purpose


# Sending again


def repeatable(error: KoyebSessionError) -> KoyebSessionError:
    """Mark an error as the sender does where sending again is safe."""
    error._repeatable = True
    return error


@pytest.mark.parametrize("error", [kind() for kind in REFUSALS], ids=repr)
def test_operation_is_sent_again_only_when_that_is_safe(error: KoyebSessionError) -> None:
    """A request that may have been carried out is repeated only if harmless (pitfall 23)."""
    assert RetryPolicy().wait(error, 1, 1.0) is None
    assert RetryPolicy().wait(repeatable(error), 1, 1.0) == 0.2


def test_operation_is_sent_as_often_as_the_policy_says() -> None:
    """The first time counts, and with one attempt there is no second."""
    error = repeatable(TransportError())
    for attempts, expected in ((1, [None]), (2, [0.2, None]), (3, [0.2, 0.4, None, None])):
        policy = RetryPolicy(attempts=attempts)
        assert [policy.wait(error, n, 1) for n in range(1, len(expected) + 1)] == expected


def test_wait_doubles_to_its_limit_and_is_shortened_by_chance() -> None:
    """Full jitter: a share of the wait, from nothing to all of it."""
    policy = RetryPolicy(attempts=9)
    error = repeatable(TransportError())
    assert [policy.wait(error, n, 1) for n in range(1, 7)] == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert [policy.wait(error, n, 0.5) for n in range(1, 7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert [policy.wait(error, n, 0) for n in range(1, 7)] == [0] * 6
    slow = RetryPolicy(delay=timedelta(seconds=9), delay_max=timedelta(seconds=7))
    assert slow.wait(error, 1, 1) == 7


@pytest.mark.parametrize(
    ("asked", "wait"),
    [(None, 0.2), (0.0, 0.2), (0.1, 0.2), (0.3, 0.3), (5.0, 5.0), (5.001, None), (1e9, None)],
)
def test_wait_is_what_the_service_asks_when_that_is_short(
    asked: float | None, wait: float | None
) -> None:
    """Up to five seconds are waited for; beyond that the error says how long."""
    for error in (RateLimitedError(retry_after=asked), ServerError(status=503, retry_after=asked)):
        assert RetryPolicy().wait(repeatable(error), 1, 1) == wait


# What it adds up to


def test_token_is_dated_when_the_service_mints_it() -> None:
    """The birth is noted, in UTC, and all else that the service says stays."""
    said = ["id", "user_id", "organization_id", "expires_at"]
    fields: dict[str, Any] = {name: object() for name in said}
    at = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    dated = with_issue_time(Token(**fields), 1.5)
    assert attrs.asdict(dated) == {
        **fields,
        "issued_at": at,
        "renewal": None,
        "provenance": None,
    }


spans = st.floats(0, 60 * DAY) | st.sampled_from([0.0, 60.0, 12 * HOUR])
policies = st.builds(
    RefreshPolicy,
    soft_window=st.none() | spans,
    hard_window=st.none() | spans,
    min_interval=st.floats(0, DAY),
    jitter=st.floats(0, 1),
)
lives = st.floats(0, 30 * DAY) | st.integers(0, 600).map(float)


@settings(max_examples=100, deadline=None)
@given(policy=policies, life=lives, share=st.floats(0.001, 0.5))
def test_renewals_are_bounded_by_the_lifetime_whatever_the_windows(
    policy: RefreshPolicy, life: float, share: float
) -> None:
    """A token is never renewed before half of its life, however long the windows (pitfall 8)."""
    clock = FakeClock()
    snapshot = minted(life, policy, clock)
    assume(snapshot.expiry > 0.01)
    requests = min(math.ceil(8 / share), 2000)
    renewals = 0
    for number in range(requests):
        match verdict(snapshot, None, clock):
            case Decision.USE:
                assert snapshot.phase(clock) is not Phase.EXPIRED
            case Decision.RENEW_IN_BACKGROUND | Decision.RENEW_FIRST:
                snapshot = minted(life, policy, clock, token_id=f"t{number}")
                assert verdict(snapshot, None, clock) is Decision.USE
                renewals += 1
            case Decision.FAIL:
                raise AssertionError
        clock.advance(life * share)
    assert renewals <= requests * share / 0.5 + 1
    if share <= 0.04:  # often enough to see every window
        assert renewals >= math.floor(requests * share / 1.1)


@settings(max_examples=100, deadline=None)
@given(policy=policies, life=st.floats(1, 30 * DAY), share=st.floats(0.001, 0.1))
def test_renewals_are_few_when_the_service_returns_the_same_token(
    policy: RefreshPolicy, life: float, share: float
) -> None:
    """Each answer with the same expiry at least halves what is left, and so the next wait."""
    clock = FakeClock()
    token = Token("t", expires_at=moment(clock, life))
    snapshot = policy.snapshot(with_issue_time(token, clock.time()), clock, just_issued=True)
    renewals = 0
    while snapshot.phase(clock) is not Phase.EXPIRED:
        if verdict(snapshot, None, clock) in {Decision.RENEW_IN_BACKGROUND, Decision.RENEW_FIRST}:
            snapshot = policy.snapshot(
                with_issue_time(token, clock.time()), clock, just_issued=True
            )
            renewals += 1
        clock.advance(life * share)
    assert renewals <= math.log2(1 / share) + 2


@settings(max_examples=50, deadline=None)
@given(policy=policies, life=st.floats(1, 2 * DAY), chance=st.floats(0, 1))
def test_looks_are_few_when_a_session_is_kept_current(
    policy: RefreshPolicy, life: float, chance: float
) -> None:
    """`keep_current` sleeps to the next moment of interest: it neither spins nor oversleeps."""
    clock = clock_after(chance * DAY)
    snapshot = minted(life, policy, clock)
    looks = 0
    while verdict(snapshot, None, clock) is Decision.USE:
        assert snapshot.phase(clock) is not Phase.EXPIRED
        clock.advance(seconds_to_next_check(snapshot, None, clock))
        looks += 1
    due = max(snapshot.soft, snapshot.floor)
    assert due - 1e-3 <= snapshot.age(clock) <= due + 0.06
    assert looks <= due / 60 + 3


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_attempts_are_bounded_when_the_service_is_down_for_half_a_day(chance: float) -> None:
    """From the soft window to the expiry a token is used, and tried for twice a minute at most."""
    clock = FakeClock()
    snapshot = minted(DAY, clock=clock)
    clock.advance(12 * HOUR)
    trouble: LastFailure | None = None
    attempts = 0
    while snapshot.phase(clock) is not Phase.EXPIRED:
        if verdict(snapshot, trouble, clock) is Decision.USE:
            assert usable(snapshot, trouble, clock)
        else:
            attempts += 1
            trouble = PLAIN.failure(TransportError(), clock, chance, last=trouble)
        clock.advance(1)
    assert 12 * 60 <= attempts <= 12 * 60 * 2 + 8
    assert verdict(snapshot, trouble, clock) is Decision.FAIL
