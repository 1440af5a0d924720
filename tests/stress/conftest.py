"""The state machine for longer: ``pytest tests/stress --hypothesis-profile=stress``."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("stress", deadline=None, max_examples=3_000, stateful_step_count=60)
