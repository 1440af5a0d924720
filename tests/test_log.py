"""How a span of time is said in the log, and where the log is."""

from __future__ import annotations

import logging
import math

import pytest

from koyeb_session._log import log, spell


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (1e-9, "1 s"),
        (-5, "0 s"),
        (0.9, "1 s"),
        (1, "1 s"),
        (59.999, "1 min 0 s"),
        (60, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (3661, "1 h 1 min"),
        (42_720, "11 h 52 min"),
        (86_399, "23 h 59 min"),
        (86_400, "1 d 0 h"),
        (90_061, "1 d 1 h"),
        (30 * 86_400, "30 d 0 h"),
        (math.inf, "an unknown time"),
    ],
)
def test_span_is_said_in_its_two_largest_units(seconds: float, words: str) -> None:
    """Two units are as exact as anybody wants to know; a wait never seems over before it is."""
    assert spell(seconds) == words


def test_logger_is_named_after_the_package() -> None:
    """An operator configures it by that name."""
    assert log is logging.getLogger("koyeb_session")
