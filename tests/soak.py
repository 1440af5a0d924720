"""The switch for the long form of the tests."""

from __future__ import annotations

import os

SOAK = "KOYEB_SESSION_SOAK" in os.environ
"""Whether to run the long form: ``nox -s soak`` sets it."""
