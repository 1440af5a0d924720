"""The windows in which a token is renewed, and the clocks that they are counted by."""

from __future__ import annotations

import math
import zlib
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from koyeb_session import RefreshPolicy, Token
from koyeb_session._core.snapshot import Decision, Phase, seconds_to_next_check
from koyeb_session._core.tokens import with_issue_time
from koyeb_session.testing import FakeClock

from .jwts import jwt
from .snapshots import DAY, HOUR, PLAIN, clock_after, held, issued, moment, verdict

spans = st.floats(0, 60 * DAY) | st.sampled_from([0.0, 60.0, 12 * HOUR])
lives = st.floats(0, 30 * DAY) | st.integers(0, 600).map(float)


def steady(**windows: float | None) -> RefreshPolicy:
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
    "soft None": (4 * DAY, steady(soft_window=None), (2 * DAY, 4 * DAY - 60, 10)),
    "soft 0": (DAY, steady(soft_window=0), (DAY - 60, DAY - 60, 10)),
    "hard None": (DAY, steady(hard_window=None), (DAY / 2, DAY * 0.9, 10)),
    "hard 0": (DAY, steady(hard_window=0), (DAY / 2, DAY, 10)),
    "hard beyond a tenth": (DAY, steady(hard_window=DAY), (DAY / 2, DAY * 0.9, 10)),
    "both 0": (DAY, steady(soft_window=0, hard_window=0), (DAY, DAY, 10)),
    "soft shorter than hard": (1000, steady(soft_window=1, hard_window=None), (900, 900, 10)),
    "soft beyond the whole life": (300, steady(soft_window=DAY), (150, 270, 10)),
    "no floor": (DAY, steady(min_interval=0), (DAY / 2, DAY - 60, 0)),
    "a long floor": (DAY, steady(min_interval=DAY), (DAY / 2, DAY - 60, DAY / 20)),
}


@pytest.mark.pitfall(8)
@pytest.mark.parametrize("case", LIVES)
def test_windows_are_cut_to_the_lifetime(case: str) -> None:
    """Half of a life, a tenth and a twentieth bound the windows and the floor (pitfall 8)."""
    life, policy, (soft, hard, floor) = LIVES[case]
    snapshot = issued(life, policy)
    assert snapshot.soft == pytest.approx(soft, abs=1e-9)
    assert snapshot.hard == pytest.approx(hard, abs=1e-9)
    assert snapshot.expiry == life
    assert snapshot.floor == pytest.approx(floor, abs=1e-9)
    assert snapshot.renewable


def test_life_is_whole_when_the_service_issued_the_token_on_another_clock() -> None:
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


@pytest.mark.parametrize("was_issued", [True, False])
def test_token_is_fresh_for_ever_when_its_expiry_is_unknown(was_issued: bool) -> None:  # noqa: FBT001 - a parameter
    """Only a 401 triggers the renewal of a token that says nothing of its end."""
    clock = FakeClock()
    token = Token("t", issued_at=moment(clock))
    snapshot = PLAIN.snapshot(token, clock, just_issued=was_issued)
    assert (snapshot.soft, snapshot.hard, snapshot.expiry) == (math.inf, math.inf, math.inf)
    clock.advance(1000 * DAY)
    assert snapshot.phase(clock) is Phase.FRESH


def test_token_is_renewable_unless_it_is_an_api_token_or_another_owners() -> None:
    """An API token, and another user's token, are never renewed automatically."""
    clock = FakeClock()

    def renewable(token: Token, *, renew: bool = True) -> bool:
        return PLAIN.snapshot(token, clock, just_issued=False, renew=renew).renewable

    assert not renewable(Token("x" * 64))
    assert renewable(Token(jwt({})))
    assert renewable(Token("x", issued_at=moment(clock)))
    assert renewable(Token("x", expires_at=moment(clock, 60)))
    assert not renewable(Token(jwt({})), renew=False)
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


@pytest.mark.parametrize("token_id", ["token-1", "token-2", "t"])
def test_jitter_shortens_the_soft_window_by_the_tokens_share(token_id: str) -> None:
    """
    The checksum of the id says how much of the jitter; the hard window stays.

    All who hold one token start to renew it at the same moment, and others at another.
    """
    share = zlib.crc32(token_id.encode()) / (2**32 - 1)
    snapshot = issued(DAY, RefreshPolicy(jitter=0.25), token_id=token_id)
    assert snapshot.soft == pytest.approx(DAY - 12 * HOUR * (1 - 0.25 * share), abs=1e-6)
    assert snapshot.hard == DAY - 60
    assert snapshot.expiry == DAY


def test_jitter_never_goes_beyond_the_hard_window() -> None:
    """With all of the soft window as jitter, a token is renewed when callers wait at the latest."""
    policy = RefreshPolicy(jitter=1, soft_window=100)
    for number in range(100):
        assert issued(DAY, policy, token_id=str(number)).soft <= DAY - 60


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


@pytest.mark.pitfall(22)
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


def test_token_is_dated_when_the_service_mints_it() -> None:
    """The birth is noted, in UTC, and all else that the service says stays."""
    said = ["id", "user_id", "organization_id", "expires_at"]
    fields: dict[str, Any] = {name: object() for name in said}
    at = datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    dated = with_issue_time(Token(**fields), 1.5)
    assert attrs.asdict(dated) == {**fields, "issued_at": at, "renewal": None, "provenance": None}


policies = st.builds(
    RefreshPolicy,
    soft_window=st.none() | spans,
    hard_window=st.none() | spans,
    min_interval=st.floats(0, DAY),
    jitter=st.floats(0, 1),
)


@settings(max_examples=100, deadline=None)
@given(policy=policies, life=lives, share=st.floats(0.001, 0.5))
def test_renewals_are_bounded_by_the_lifetime_whatever_the_windows(
    policy: RefreshPolicy, life: float, share: float
) -> None:
    """A token is never renewed before half of its life, however long the windows (pitfall 8)."""
    clock = FakeClock()
    snapshot = issued(life, policy, clock)
    assume(snapshot.expiry > 0.01)
    requests = min(math.ceil(8 / share), 2000)
    renewals = 0
    for number in range(requests):
        match verdict(snapshot, None, clock):
            case Decision.USE:
                assert snapshot.phase(clock) is not Phase.EXPIRED
            case Decision.RENEW_IN_BACKGROUND | Decision.RENEW_FIRST:
                snapshot = issued(life, policy, clock, token_id=f"t{number}")
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
    """Each answer with the same expiry at least halves the time left, and so the next wait."""
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
    snapshot = issued(life, policy, clock)
    looks = 0
    while verdict(snapshot, None, clock) is Decision.USE:
        assert snapshot.phase(clock) is not Phase.EXPIRED
        clock.advance(seconds_to_next_check(snapshot, None, clock))
        looks += 1
    due = max(snapshot.soft, snapshot.floor)
    assert due - 1e-3 <= snapshot.age(clock) <= due + 0.06
    assert looks <= due / 60 + 3
