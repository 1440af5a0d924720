"""Errors, and their texts."""

from __future__ import annotations

from typing import cast

import httpx

from koyeb_session import KoyebSessionError
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply

BASE = "https://koyeb.example"


ME, PASSWORD = "me@example.com", "correct horse"


LOGIN = operations.login(ME, PASSWORD)


def error_for(
    operation: object, status: int, body: bytes = b"", **headers: str
) -> KoyebSessionError:
    """Return the error for a reply of the service."""
    assert isinstance(operation, Operation)
    named = httpx.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    outcome: object = cast("Operation[object]", operation).outcome(
        Reply(status, named, body), 0.0, BASE
    )
    assert isinstance(outcome, KoyebSessionError)
    return outcome
