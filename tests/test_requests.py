"""Operations as requests: exactly the bytes that are sent, and the arguments that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from koyeb_session import __version__
from koyeb_session._api import operations
from koyeb_session._api.wire import Reply
from koyeb_session._core import validation as arguments
from koyeb_session.testing import assert_no_secret

from .sent import BASE, SENT, TOKEN, made

Wrong = tuple[Callable[[], object], type[Exception], str]
ID_RULE = "organization_id must be an id: letters, digits, '-' and '_', not empty"


ALWAYS = {
    "host": "app.koyeb.com",
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"koyeb-session/{__version__} python-httpx/{httpx.__version__}",
}


NAMES = set(b"Host Accept Accept-Encoding User-Agent Content-Length Content-Type".split())
NAMES.update((b"Authorization", b"seon-fp"))
"""All headers, as they are spelled on the wire."""


# Requests


@pytest.mark.parametrize("case", SENT)
def test_request_is_exactly_the_promised_one(case: str) -> None:
    """Each operation sends its method, path, headers and body, and nothing else."""
    make, (method, path, headers, body, repeat, signs_in, secrets) = SENT[case]
    operation = made(make())
    request = operation.request(BASE, 7.5)
    if body:
        headers = {**headers, "content-length": str(len(body))}
    assert operation.name == case.partition(" ")[0]
    assert operation.method == request.method == method
    assert str(request.url) == BASE + path
    assert dict(request.headers) == {**ALWAYS, **headers}
    assert len(request.headers.raw) == len(request.headers)
    assert {name for name, _ in request.headers.raw} <= NAMES
    assert request.content == body
    assert request.extensions == {
        "timeout": dict.fromkeys(("connect", "read", "write", "pool"), 7.5)
    }
    assert operation.repeat == repeat
    assert operation.signs_in is signs_in
    assert operation.secrets == secrets


def test_request_goes_below_the_base_url_when_that_has_a_path() -> None:
    """A gateway that serves the API below a path is possible."""
    request = operations.refresh(TOKEN).request("https://gate.example/koyeb", 1)
    assert str(request.url) == "https://gate.example/koyeb/v1/account/refresh"


@pytest.mark.parametrize("case", SENT)
def test_operation_hides_its_secrets_when_shown(case: str) -> None:
    """No repr of an operation shows a password or a token, and no text that quotes it does."""
    make, (_, _, headers, *_) = SENT[case]
    operation = made(make())
    secrets = [*operation.secrets, *filter(None, [headers.get("seon-fp")])]
    assert_no_secret(secrets or ("nothing to hide",), operation)
    assert operation.name in repr(operation)
    assert [operation.redacted(secret) for secret in secrets] == ["[secret]"] * len(secrets)


def test_reply_hides_its_body_when_shown() -> None:
    """A reply's body and headers may hold a token."""
    assert_no_secret("canary", Reply(200, {"set-cookie": "canary"}, b"canary"))


def odd(value: object) -> Any:
    """Hide from the type checkers that a value is of the wrong type."""
    return value


WRONG: dict[str, Wrong] = {
    "no email": (lambda: operations.login("", "pw"), ValueError, "email must not be empty"),
    "blank email": (lambda: operations.login(" \t", "pw"), ValueError, "email must not be empty"),
    "email None": (
        lambda: operations.login(odd(None), "pw"),
        TypeError,
        "email must be a str, not NoneType",
    ),
    "no password": (
        lambda: operations.login("a@b.c", ""),
        ValueError,
        "password must not be empty",
    ),
    "password in bytes": (
        lambda: operations.login("a@b.c", odd(b"pw")),
        TypeError,
        "password must be a str, not bytes",
    ),
    "password of half a character": (
        lambda: operations.login("a@b.c", "\ud800"),
        ValueError,
        "password must be text that can be written as UTF-8",
    ),
    "no organization": (lambda: operations.login("a@b.c", "pw", ""), ValueError, ID_RULE),
    "organization with a slash": (
        lambda: operations.login("a@b.c", "pw", "a/b"),
        ValueError,
        ID_RULE,
    ),
    "organization as a number": (
        lambda: operations.login("a@b.c", "pw", odd(5)),
        TypeError,
        "organization_id must be a str, not int",
    ),
    "fingerprint with a space": (
        lambda: operations.login("a@b.c", "pw", None, "a b"),
        ValueError,
        "seon_fp must be visible ASCII",
    ),
    "fingerprint with a line break": (
        lambda: operations.login("a@b.c", "pw", None, "a\r\nb"),
        ValueError,
        "seon_fp must be visible ASCII",
    ),
    "empty fingerprint": (
        lambda: operations.login("a@b.c", "pw", None, ""),
        ValueError,
        "seon_fp must be visible ASCII",
    ),
    "fingerprint as a number": (
        lambda: operations.login("a@b.c", "pw", None, odd(1)),
        TypeError,
        "seon_fp must be a str, not int",
    ),
    "passwordless without email": (
        lambda: operations.passwordless_login(""),
        ValueError,
        "email must not be empty",
    ),
    "login method without email": (
        lambda: operations.login_method(""),
        ValueError,
        "email must not be empty",
    ),
    "email of half a character": (
        lambda: operations.login_method("\udfff"),
        ValueError,
        "email must be text that can be written as UTF-8",
    ),
    "switch to nothing": (lambda: arguments.switch_error("", None), ValueError, ID_RULE),
    "switch to another path": (lambda: arguments.switch_error("../x", None), ValueError, ID_RULE),
    "switch with an odd fingerprint": (
        lambda: arguments.switch_error("a", "ü"),
        ValueError,
        "seon_fp must be visible ASCII",
    ),
}


# Mistakes before anything is sent


@pytest.mark.parametrize("case", WRONG)
def test_argument_is_refused_when_it_is_wrong(case: str) -> None:
    """A wrong argument comes back as the error to raise, which names it."""
    call, kind, message = WRONG[case]
    error = call()
    assert type(error) is kind
    assert str(error) == message


def test_switch_is_right_when_its_arguments_are() -> None:
    """Right arguments give no error."""
    assert arguments.switch_error("org-1", None) is None
    assert arguments.switch_error("org-1", "fp") is None
