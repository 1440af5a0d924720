"""Fixtures for each test suite of an environment that contains this package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from . import FakeClock, FakeKoyeb


@pytest.fixture
def koyeb_clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    # Imported here: pytest loads this module in every run, and most runs do not use it.
    from . import FakeClock  # noqa: PLC0415

    return FakeClock()


@pytest.fixture
def fake_koyeb(koyeb_clock: FakeClock) -> FakeKoyeb:
    """A Koyeb sign-in service on ``koyeb_clock``, with the user me@example.com, "correct horse"."""
    from . import FakeKoyeb  # noqa: PLC0415

    return FakeKoyeb(clock=koyeb_clock)
