"""The error tree, and which of its classes each reply of the service means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product

import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    Token,
)
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply
from koyeb_session._core.errors import error_class
from koyeb_session.testing import assert_no_secret

from .error_texts import every_operation

TOKEN = Token("canary-token")
PASSWORD = "canary password"
OPERATIONS = every_operation(PASSWORD, TOKEN)
FIELDS = {"email": "is not an address", "password": "is too short"}
LISTED = [{"field": name, "description": text} for name, text in FIELDS.items()]


def said(message: str, code: str | int | None = "some_code", **more: object) -> bytes:
    """Write an error body with this message."""
    return json.dumps({"status": 0, "code": code, "message": message, **more}).encode()


# The advice of each of them when the service has withdrawn it.
WAYS = (
    "an API access token (token=...), AccessTokenCredentials(api_token, organization_id), or a "
    "callable that brings tokens (credentials=...)"
)
INSTEAD = {
    "login": f"use {WAYS}",
    "logout": "the token works until it expires; revoke it in the control panel",
    "passwordless_login": f"Koyeb withdrew passwordless login in 2023: use {WAYS}",
    "refresh": f"use {WAYS}",
    "new_session": f"for one more session use {WAYS}",
    "login_method": f"try login(), and if that is refused use {WAYS}",
    "switch_organization": (
        "use create_access_token(), or AccessTokenCredentials(api_token, organization_id)"
    ),
    "unscope_organization_token": (
        "go on in an organization, with switch_organization() or AccessTokenCredentials"
    ),
    "create_access_token": (
        "use an API access token as it is (token=...), or a callable as credentials="
    ),
}

# The advice of some of them when the service forbids it.
NO_PASSWORDS = f"if Koyeb no longer accepts this kind of sign-in, use {WAYS}"
FORBIDDEN = {
    "login": NO_PASSWORDS,
    "passwordless_login": NO_PASSWORDS,
    "create_access_token": (
        "use a token whose user is a member of this organization and may issue tokens"
    ),
}

# The formats of an error's body, and the code of each.
MESSAGE = "what went wrong"
BODIES: dict[str, bytes] = {
    "Error": said(MESSAGE),
    "ErrorWithFields": said(MESSAGE, fields=LISTED),
    "google.rpc.Status": json.dumps({"code": 5, "message": MESSAGE, "details": []}).encode(),
    "HTML": b"<!DOCTYPE html><html><body><h1>Oops</h1></body></html>",
    "empty": b"",
}
CODES: dict[str, str | int | None] = {
    "Error": "some_code",
    "ErrorWithFields": "some_code",
    "google.rpc.Status": 5,
    "HTML": None,
    "empty": None,
}

# The class of each status, for every operation and every body, but for two exceptions.
USUAL: dict[int, type[ApiError]] = {
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308, 402, 408, 409, 422, 425, 499), ApiError),
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    **dict.fromkeys((404, 405, 410, 501), EndpointGoneError),
    429: RateLimitedError,
    **dict.fromkeys((500, 502, 503, 504, 599), ServerError),
}


def answer(
    operation: Operation[object],
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    wall: float = 0.0,
) -> ApiError:
    """Let an operation read an error reply."""
    error = operation.outcome(Reply(status, httpx.Headers(headers), body), wall)
    assert isinstance(error, ApiError)
    return error


def advice_of(error: ApiError, name: str, body: str) -> tuple[str, list[str]]:
    """Return the expected description of an error, and its advice."""
    is_koyebs = CODES[body] is not None
    message = MESSAGE if is_koyebs else "no message"
    if isinstance(error, EndpointGoneError) and is_koyebs:
        return "the service no longer has this operation", [INSTEAD[name]]
    if isinstance(error, EndpointGoneError):
        gone = "if it is right, the service no longer has this operation"
        wrong = f"base_url may be wrong; {gone}"
        return "there is no such operation at this URL", [wrong, INSTEAD[name]]
    if isinstance(error, RateLimitedError):
        what = f"too many requests: {message}" if is_koyebs else "too many requests"
        return what, ["try again later"]
    if isinstance(error, BadRequestError) and error.fields:
        return f"{message}: email: is not an address, password: is too short", []
    if 300 <= error.status < 400:
        return message, ["operations follow no redirect: base_url may be wrong"]
    is_forbidden = error.status == 403 and name in FORBIDDEN
    return message, [FORBIDDEN[name]] if is_forbidden else []


# The table


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("body", BODIES)
def test_class_of_reply_is_the_tables(body: str, name: str) -> None:
    """Each status and body means one class for each operation, and says what the body says."""
    made = OPERATIONS[name]
    for status, usual in USUAL.items():
        error = answer(made, status, BODIES[body])
        kind = usual
        if status == 401 and name == "login":
            kind = InvalidCredentialsError  # nobody is signed in yet, so the password is wrong
        if status == 404 and body in {"Error", "ErrorWithFields"}:
            kind = NotFoundError  # the API itself answers so; a router does not know its `code`
        assert type(error) is kind
        assert error.status == status
        assert error.code == CODES[body]
        assert error.request_id is None
        assert error.retry_after is None
        assert error.retryable is (status in {408, 425, 429, 500, 502, 503, 504, 599})
        if isinstance(error, BadRequestError):
            assert error.fields == (FIELDS if body == "ErrorWithFields" else {})
        what, advice = advice_of(error, name, body)
        request = f"{made.method} {made.path}: status {status}"
        assert error.message == "; ".join((f"{name}: {what} ({request})", *advice))


def test_table_has_all_operations() -> None:
    """No operation is forgotten."""
    assert set(OPERATIONS) == set(INSTEAD)
    assert len(INSTEAD) == 9


WRONG_PASSWORD = (
    "There is no Koyeb account associated with this email address or your password is incorrect"
)
SEEN: list[tuple[str, int, str, str | int | None, type[ApiError]]] = [
    # operation, status, message, code, class
    ("login", 400, WRONG_PASSWORD, "invalid_argument", InvalidCredentialsError),
    ("login", 401, WRONG_PASSWORD, None, InvalidCredentialsError),
    ("login", 404, WRONG_PASSWORD, "not_found", InvalidCredentialsError),
    ("login", 404, WRONG_PASSWORD, 5, InvalidCredentialsError),
    ("login", 400, "Validation error", "invalid_argument", BadRequestError),
    ("login", 403, "Account is locked", "authorization_error", AccountLockedError),
    ("login", 403, "ACCOUNT LOCKED", None, AccountLockedError),
    ("refresh", 403, "Account is locked", 7, AccountLockedError),
    ("login", 403, "account_locked", "forbidden", AccountLockedError),
    ("login", 403, "Your IP address has been blocked", "forbidden", PermissionDeniedError),
    ("refresh", 403, "Request BLOCKED", None, PermissionDeniedError),
    ("refresh", 401, "Token rejected", "authorization_error", AuthenticationError),
    (
        "switch_organization",
        403,
        "User is not a member of the organization",
        None,
        PermissionDeniedError,
    ),
    ("switch_organization", 404, "Organization not found", "not_found", NotFoundError),
    ("passwordless_login", 404, "Not Found", 5, EndpointGoneError),
    ("login", 400, "failed", "failed_precondition", BadRequestError),
]


@pytest.mark.parametrize(("name", "status", "message", "code", "kind"), SEEN)
def test_message_seen_in_the_wild_has_its_class(
    name: str, status: int, message: str, code: str | int | None, kind: type[ApiError]
) -> None:
    """Known messages of the service decide the class where the status is not enough."""
    error = answer(OPERATIONS[name], status, said(message, code))
    assert type(error) is kind
    assert error.code == code


@pytest.mark.parametrize(
    ("password", "shown"),
    [
        ("password", "[secret]"),
        ("incorrect", "[secret]"),
        ("is", "[secret]"),
        ("a", WRONG_PASSWORD),
        ("pass", WRONG_PASSWORD),
    ],
)
def test_class_does_not_depend_on_the_password_when_it_is_a_word_of_the_message(
    password: str, shown: str
) -> None:
    """A password that is a word of the message is no gap in it, which anybody could fill."""
    error = answer(every_operation(password, TOKEN)["login"], 400, said(WRONG_PASSWORD))
    assert type(error) is InvalidCredentialsError
    assert error.message == f"login: {shown} (POST /v1/account/login: status 400)"


def test_account_is_locked_when_the_password_is_a_part_of_that_word() -> None:
    """The words are looked at before the password is taken out of them."""
    login = every_operation("lock", TOKEN)["login"]
    assert type(answer(login, 403, said("Account is locked"))) is AccountLockedError


def test_error_class_keeps_its_rules_when_they_meet() -> None:
    """The password's rule comes first, then the lock's, then the router's, then the status."""
    codes = (None, 5, 0, "not_found", "")
    messages = ("", "locked", WRONG_PASSWORD)
    for status, code, message, signs_in in product(USUAL, codes, messages, (True, False)):
        password_error = message == WRONG_PASSWORD and status in {400, 404}
        if signs_in and (status == 401 or password_error):
            kind: type[ApiError] = InvalidCredentialsError
        elif status == 403 and message == "locked":
            kind = AccountLockedError
        elif status == 404 and isinstance(code, str):
            kind = NotFoundError
        else:
            kind = USUAL[status]
        assert error_class(status, code, message, signs_in=signs_in) is kind


# Details of a reply


def test_error_carries_request_id_and_retry_after_when_the_reply_has_them() -> None:
    """The headers that a support ticket and a back-off need are kept."""
    error = answer(OPERATIONS["refresh"], 429, b"", {"X-Request-Id": "req-1", "Retry-After": "2.5"})
    assert (error.request_id, error.retry_after) == ("req-1", 2.5)


def test_retry_after_is_counted_from_the_arrival_when_it_is_a_date() -> None:
    """A date is turned into seconds by the clock that the reply arrived at."""
    headers = {"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}
    assert answer(OPERATIONS["logout"], 503, b"", headers, wall=30.0).retry_after == 70.0
    headers |= {"Date": "Thu, 01 Jan 1970 00:00:19 GMT"}  # ours is ahead
    assert answer(OPERATIONS["logout"], 503, b"", headers, wall=30.0).retry_after == 80.0


@pytest.mark.parametrize("name", INSTEAD)
def test_no_secret_shows_when_the_service_echoes_the_request(name: str) -> None:
    """A service that repeats its request does not make us repeat it."""
    made = OPERATIONS[name]
    request = made.request("https://app.koyeb.com", 10)
    echo = f"bad request: {request.content!r} {dict(request.headers)} {PASSWORD} {TOKEN.id}"
    body = json.dumps(
        {"code": echo, "message": echo, "fields": [{"field": echo, "description": echo}]}
    ).encode()
    secrets = made.secrets or ("nothing to hide",)
    for status in USUAL:
        error = answer(made, status, body, {"x-request-id": echo})
        assert_no_secret(secrets, error, vars(error))
        if made.secrets:
            assert "[secret]" in str(error.code)
            assert "[secret]" in str(error.request_id)
