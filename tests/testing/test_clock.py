"""The clock that tests move by hand."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from koyeb_session.testing import FakeClock, FakeKoyeb


def test_clock_stands_still_at_a_known_time() -> None:
    """A new clock tells the same wall time in every run."""
    clock = FakeClock()
    assert datetime.fromtimestamp(clock.time(), UTC) == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.time() == clock.time()
    assert repr(clock) == "<FakeClock 2026-01-01T00:00:00+00:00>"


def test_clock_starts_at_a_given_time() -> None:
    """A test may choose the wall time to begin at."""
    assert FakeClock(datetime(2030, 6, 1, tzinfo=UTC)).time() == 1_906_502_400


def test_clock_does_not_start_at_a_naive_time() -> None:
    """It would be local time to some and UTC to others."""
    with pytest.raises(ValueError, match="start must be aware: give it a time zone"):
        FakeClock(datetime(2030, 6, 1))  # noqa: DTZ001 - the mistake


@pytest.mark.parametrize("by", [90, 90.0, timedelta(seconds=90)])
def test_advance_moves_both_times(by: float | timedelta) -> None:
    """Time that passes shows on the wall clock and on the monotonic one."""
    clock = FakeClock()
    wall, monotonic = clock.time(), clock.monotonic()
    clock.advance(by)
    assert (clock.time() - wall, clock.monotonic() - monotonic) == (90, 90)


def test_many_small_steps_add_up() -> None:
    """A thousand steps of a tenth of a second are a hundred seconds."""
    clock = FakeClock()
    begin = clock.monotonic()
    for _ in range(1_000):
        clock.advance(0.1)
    assert clock.monotonic() - begin == 100


def test_advance_refuses_to_go_back() -> None:
    """Time that passes cannot be negative, and the error names the way to set the wall clock."""
    with pytest.raises(ValueError, match="step_wall"):
        FakeClock().advance(-1)


@pytest.mark.parametrize("by", [3_600, -3_600, timedelta(hours=-1)])
def test_step_wall_leaves_monotonic_time_alone(by: float | timedelta) -> None:
    """A correction of the wall clock, or a suspend, does not show on the monotonic one."""
    clock = FakeClock()
    wall, monotonic = clock.time(), clock.monotonic()
    clock.step_wall(by)
    assert abs(clock.time() - wall) == 3_600
    assert clock.monotonic() == monotonic


def test_fake_uses_the_machines_clock_unless_told() -> None:
    """Without a clock the service lives in the present; the time module itself fits as one."""
    fake = FakeKoyeb(clock=time)
    assert fake.live_tokens() == []
    assert [fake.issue_token()] == fake.live_tokens()
    assert len(FakeKoyeb().issue_token().split(".")) == 3
