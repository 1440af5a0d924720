"""How long a failed renewal keeps from another attempt."""

from __future__ import annotations

from datetime import timedelta

import pytest

from koyeb_session import (
    ApiError,
    KoyebSessionError,
    RateLimitedError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    TransportError,
)
from koyeb_session._core.snapshot import LastFailure
from koyeb_session.testing import FakeClock

from .snapshots import (
    HOUR,
    PLAIN,
    REFUSALS,
    clock_after,
    failed,
    held,
    usable,
)

# The clocks


def test_trouble_is_not_in_the_future_when_a_clock_is_set_back() -> None:
    """A back-off ends by the monotonic clock, too, and its age is never negative."""
    trouble = failed(ServerError(), wait=5)
    clock = FakeClock()
    assert trouble.in_backoff(clock)
    clock.step_wall(-HOUR)
    assert trouble.age(clock) == 0
    clock.advance(4.5)
    assert trouble.age(clock) == 4.5
    assert trouble.in_backoff(clock)
    clock.advance(0.5)  # the very moment of its end is late enough
    assert not trouble.in_backoff(clock)
    assert not failed(ServerError(), wait=0).in_backoff(FakeClock())
    clock.step_wall(2 * HOUR)
    assert trouble.age(clock) == HOUR + 5
    backwards = LastFailure(ServerError(), 1, clock.time() + 9, clock.monotonic() + 9, 5)
    assert backwards.age(clock) == 0


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


# Trouble


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
    for failures, wait in ((31, 2.0**31), (32, 2.0**32), (5000, 2.0**32)):
        last = LastFailure(ServerError(), failures, 0, 0, 1)
        trouble = policy.failure(ServerError(), FakeClock(), 0, last=last)
        assert (trouble.failures, trouble.wait) == (failures + 1, wait)


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


@pytest.mark.parametrize(("left", "wait"), [(200, 100), (100, 50), (3, 1.5), (1, 1), (0.1, 1)])
@pytest.mark.parametrize("status", [302, 401, 403, 409, 421])
def test_back_off_leaves_time_for_another_try_after_a_refusal(
    status: int, left: float, wait: float
) -> None:
    """A gateway that refuses may be mended before the token expires; a refused login waits."""
    error, clock, last = ApiError(status=status), FakeClock(), failed(ServerError())
    last = last._replace(failures=20)
    assert RefreshPolicy().failure(error, clock, 0, last=last, left=left).wait == wait
    login = RefreshPolicy().failure(error, clock, 0, last=last, left=left, signs_in=True)
    assert login.wait == max(wait, 60)


def test_back_off_is_short_when_the_end_of_a_session_was_an_outage() -> None:
    """An error that carries another one's `retryable` is treated like that one."""
    ended = SessionExpiredError()
    ended.retryable = True
    assert waits(ended, 1, 0, RefreshPolicy()) == [1]


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        *((None, 1), (0.0, 1), (0.5, 1), (1.0, 1), (1.5, 1.5), (60.5, 60.5)),
        *((3599.0, 3599), (3600.0, 3600), (3601.0, 3600), (31_536_000.0, 3600)),
    ],
)
def test_back_off_is_what_the_service_asks_when_that_is_longer(
    asked: float | None, wait: float
) -> None:
    """`Retry-After` is honored up to an hour, and not shortened by chance (pitfall 23)."""
    error = RateLimitedError(retry_after=asked)
    assert waits(error, 1, 0, RefreshPolicy()) == [wait]
    if wait > 1:
        assert waits(error, 1, 1, RefreshPolicy()) == [wait]
    short = RefreshPolicy().failure(error, FakeClock(), 0, last=None, left=100)
    assert short.wait == min(wait, 50)  # half of the token's remaining life


def test_trouble_remembers_what_failed_and_when() -> None:
    """It keeps the error for callers without a token, and the times of both clocks."""
    clock = clock_after(5)
    clock.step_wall(7)
    error = ServerError("down")
    first = PLAIN.failure(error, clock, 0, last=None)
    assert first == LastFailure(error, 1, clock.time(), clock.monotonic(), 1)
    assert PLAIN.failure(error, clock, 0, last=first).failures == 2
