"""The operations, and the errors for their replies."""

from __future__ import annotations

from typing import cast

import httpx

from koyeb_session import KoyebSessionError, Token
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply

BASE = "https://koyeb.example"


ME, PASSWORD = "me@example.com", "correct horse"
LOGIN = operations.login(ME, PASSWORD)


def every_operation(password: str, token: Token) -> dict[str, Operation[object]]:
    """Make each of the operations, by its name."""
    made: tuple[object, ...] = (
        operations.login(ME, password),
        operations.logout(token),
        operations.passwordless_login(ME),
        operations.refresh(token),
        operations.new_session(token),
        operations.login_method(ME),
        operations.switch_organization(token, "org-1"),
        operations.unscope_organization_token(token),
        operations.create_access_token(token, "org-1"),
    )
    return {made.name: made for made in made if isinstance(made, Operation)}


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
