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

FIELDS: list[tuple[Any, str]] = [
    *((RefreshPolicy, name) for name in ("soft_window", "hard_window", "min_interval")),
    *((RefreshPolicy, name) for name in ("backoff", "backoff_max")),
    *((RetryPolicy, name) for name in ("delay", "delay_max", "retry_after_max")),
]
NO_NUMBERS = (math.nan, math.inf, -math.inf)
MINUS = timedelta(seconds=-1)
SPAN = "seconds or a timedelta, finite and not negative"
NO_SPANS = (("60", True, False, [60]), (-1, -1e-9, MINUS, 10**309, *NO_NUMBERS))
NO_SHARES = (("1", True, None, timedelta(0)), (-0.001, 1.001, *NO_NUMBERS))


@pytest.mark.parametrize(
    ("policy", "name", "wanted", "kinds", "values"),
    [
        *((policy, name, SPAN, *NO_SPANS) for policy, name in FIELDS),
        (RefreshPolicy, "jitter", "a number from 0 to 1", *NO_SHARES),
        (RetryPolicy, "attempts", "a whole number, 1 at least", (1.5, "3", None, True), (0, -1)),
    ],
)
def test_policy_refuses_what_is_of_another_kind_or_out_of_range(
    policy: Any, name: str, wanted: str, kinds: tuple[object, ...], values: tuple[object, ...]
) -> None:
    """The message names the attribute and says what it may be."""
    for value in kinds:
        with pytest.raises(TypeError) as wrong_kind:
            policy(**{name: value})
        assert str(wrong_kind.value) == f"{name} must be {wanted}, not {type(value).__name__}"
    for value in values:
        with pytest.raises(ValueError, match=wanted) as wrong_value:
            policy(**{name: value})
        shown = -1.0 if value is MINUS else value  # 10**309 is larger than any float
        assert str(wrong_value.value) == f"{name} must be {wanted}, not {shown}"


@pytest.mark.parametrize(("policy", "name"), FIELDS)
def test_policy_takes_a_span_in_seconds_or_as_a_timedelta(policy: Any, name: str) -> None:
    """Both units mean the same, and zero is a value."""
    half = timedelta(seconds=0.5)
    for span, kept in ((0, 0), (0.0, 0), (timedelta(0), 0), (1, 1), (half, 0.5)):
        assert getattr(policy(**{name: span}), name) == kept


def test_policy_takes_the_least_and_the_most_of_a_share_or_a_count() -> None:
    """Their ends are values: all of the jitter, none of it, and a single attempt."""
    for share in (0, 0.0, 0.5, 1, 1.0):
        assert RefreshPolicy(jitter=share).jitter == share
    assert RetryPolicy(attempts=1).attempts == 1


@pytest.mark.parametrize(("policy", "name"), FIELDS)
def test_policy_takes_none_for_the_windows_only(policy: Any, name: str) -> None:
    """`None` has a meaning of its own there, and is a mistake elsewhere."""
    if name in {"soft_window", "hard_window"}:
        assert getattr(policy(**{name: None}), name) is None
    else:
        with pytest.raises(TypeError, match=rf"^{name} must be seconds .* not NoneType$"):
            policy(**{name: None})


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
