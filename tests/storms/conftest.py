"""The state machine for longer: ``pytest tests/storms --hypothesis-profile=storm``."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("storm", deadline=None, max_examples=3_000, stateful_step_count=60)
