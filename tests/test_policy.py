"""The policies: their arguments, and when an operation is sent again."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import attrs
import pytest

from koyeb_session import (
    KoyebSessionError,
    RateLimitedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    TransportError,
)

from .snapshots import REFUSALS

SPANS = ["soft_window", "hard_window", "min_interval", "backoff", "backoff_max"]
Policies = type[RefreshPolicy | RetryPolicy]
RETRY_SPANS = ["delay", "delay_max", "retry_after_max"]


FIELDS: list[tuple[Policies, str]] = [
    *((RefreshPolicy, name) for name in SPANS),
    *((RetryPolicy, name) for name in RETRY_SPANS),
]


# Arguments that policies refuse


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
    with pytest.raises(ValueError, match=r"finite"):  # the largest float is about 1e308
        make(**{name: 10**309})


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


def repeatable(error: KoyebSessionError) -> KoyebSessionError:
    """Mark an error as the sender does where sending again is safe."""
    error._repeatable = True
    return error


# Sending again


@pytest.mark.parametrize("kind", REFUSALS)
def test_operation_is_sent_again_only_when_that_is_safe(kind: type[KoyebSessionError]) -> None:
    """A request that may have been carried out is repeated only if harmless (pitfall 23)."""
    assert RetryPolicy().wait(kind(), 1, 1.0) is None
    assert RetryPolicy().wait(repeatable(kind()), 1, 1.0) == 0.2


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
