"""Operations as requests: exactly the bytes that are sent, and the arguments that are refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from koyeb_session import __version__
from koyeb_session._api import operations
from koyeb_session._api.wire import Reply
from koyeb_session._core.validation import switch_error
from koyeb_session.testing import assert_no_secret

from .sent import BASE, SENT, TOKEN, made

ID_RULE = "organization_id must be an id: 1 to 36 letters, digits, '-' and '_'"


ALWAYS = {
    "host": "app.koyeb.com",
    "accept": "application/json",
    "accept-encoding": "identity",
    "user-agent": f"koyeb-session/{__version__} python-httpx/{httpx.__version__}",
}


NAMES = set(b"Host Accept Accept-Encoding User-Agent Content-Length Content-Type".split())
NAMES.update((b"Authorization", b"seon-fp"))
"""All headers, as they are spelled on the wire."""


@pytest.mark.parametrize("case", SENT)
def test_request_is_exactly_the_promised_one(case: str) -> None:
    """Each operation sends its method, path, headers and body, and nothing else."""
    sent = SENT[case]
    operation = made(sent.make())
    request = operation.request(BASE, 7.5)
    assert operation.name == case.partition(" ")[0]
    assert operation.method == request.method
    assert f"{request.method} {request.url}" == sent.line.replace(" ", f" {BASE}")
    assert dict(request.headers) == {**ALWAYS, **sent.all_headers}
    assert len(request.headers.raw) == len(request.headers)
    assert {name for name, _ in request.headers.raw} <= NAMES
    assert request.content == sent.body
    assert request.extensions == {
        "timeout": dict.fromkeys(("connect", "read", "write", "pool"), 7.5)
    }
    assert operation.repeat == sent.repeat
    assert operation.signs_in is sent.signs_in
    assert operation.secrets == sent.secrets


def test_request_goes_below_the_base_url_when_that_has_a_path() -> None:
    """A gateway that serves the API below a path is possible."""
    request = operations.refresh(TOKEN).request("https://gate.example/koyeb", 1)
    assert str(request.url) == "https://gate.example/koyeb/v1/account/refresh"


@pytest.mark.parametrize("case", SENT)
def test_operation_hides_its_secrets_when_shown(case: str) -> None:
    """No repr of an operation shows a password or a token, and no text that quotes it does."""
    operation = made(SENT[case].make())
    secrets = [*operation.secrets, *SENT[case].headers.values()]
    assert_no_secret(secrets or ("nothing to hide",), operation)
    assert operation.name in repr(operation)
    assert [operation.redacted(secret) for secret in secrets] == ["[secret]"] * len(secrets)


def test_reply_hides_its_body_when_shown() -> None:
    """A reply's body and headers may hold a token."""
    assert_no_secret("canary", Reply(200, {"set-cookie": "canary"}, b"canary"))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"email": ""}, ValueError("email must not be empty")),
        ({"email": " \t"}, ValueError("email must not be empty")),
        ({"email": None}, TypeError("email must be a str, not NoneType")),
        ({"password": ""}, ValueError("password must not be empty")),
        ({"password": b"pw"}, TypeError("password must be a str, not bytes")),
        ({"password": "\ud800"}, ValueError("password must be text that can be written as UTF-8")),
        *(({"organization_id": bad}, ValueError(ID_RULE)) for bad in ("", "a/b", "../x")),
        ({"organization_id": 5}, TypeError("organization_id must be a str, not int")),
        *(
            ({"seon_fp": bad}, ValueError("seon_fp must be visible ASCII"))
            for bad in ("a b", "a\r\nb", "", "ü")
        ),
        ({"seon_fp": 1}, TypeError("seon_fp must be a str, not int")),
    ],
    ids=ascii,
)
def test_argument_is_refused_when_it_is_wrong(wrong: dict[str, Any], error: Exception) -> None:
    """A wrong argument comes back as the error to raise, which names it."""
    right: dict[str, Any] = dict.fromkeys(("organization_id", "seon_fp"))
    found = operations.login(**{**right, "email": "a@b.c", "password": "pw", **wrong})
    assert (type(found), str(found)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (operations.passwordless_login(""), "email must not be empty"),
        (operations.login_method(""), "email must not be empty"),
        (switch_error("", None), ID_RULE),
        (switch_error("a", "ü"), "seon_fp must be visible ASCII"),
    ],
)
def test_argument_of_another_operation_is_named_in_the_same_words(
    error: object, message: str
) -> None:
    """The rules are those of a login."""
    assert type(error) is ValueError
    assert str(error) == message
