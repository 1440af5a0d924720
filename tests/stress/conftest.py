"""The state machine for longer: ``pytest tests/stress --hypothesis-profile=stress``."""

from __future__ import annotations

import pytest
from hypothesis import settings

from koyeb_session.testing import FakeClock, FakeKoyeb

from .world import LIFE

settings.register_profile("stress", deadline=None, max_examples=3_000, stateful_step_count=60)


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for an hour, and die when they are refreshed."""
    return FakeKoyeb(clock=clock, token_lifetime=LIFE)
