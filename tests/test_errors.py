"""The error tree, and which of its classes each reply of the service means."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
from collections.abc import Iterator, Mapping
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
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply
from koyeb_session._core import errors
from koyeb_session._core.errors import error_class
from koyeb_session._core.results import sanitized_copy, unwrap, with_cause
from koyeb_session.testing import assert_no_secret

TOKEN = Token("canary-token")
PASSWORD = "canary password"


def operation_table() -> dict[str, Operation[object]]:
    """Make each of the seven operations."""
    made: tuple[object, ...] = (
        operations.login("me@example.com", PASSWORD),
        operations.logout(TOKEN),
        operations.passwordless_login("me@example.com"),
        operations.refresh(TOKEN),
        operations.new_session(TOKEN),
        operations.login_method("me@example.com"),
        operations.switch_organization(TOKEN, "org-1"),
        operations.unscope_organization_token(TOKEN),
        operations.create_access_token(TOKEN, "org-1"),
    )
    return {made.name: made for made in made if isinstance(made, Operation)}


def operation(name: str) -> Operation[object]:
    """Make one operation by its name."""
    return operation_table()[name]


# What each of them says when the service has withdrawn it.
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

# What some of them say when the service forbids it.
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
FIELDS = {"email": "is not an address", "password": "is too short"}
ERROR = {"status": 0, "code": "some_code", "message": MESSAGE}
LISTED = [{"field": name, "description": text} for name, text in FIELDS.items()]
BODIES: dict[str, bytes] = {
    "Error": json.dumps(ERROR).encode(),
    "ErrorWithFields": json.dumps({**ERROR, "fields": LISTED}).encode(),
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

# The class of each status, for every operation and every body...
USUAL: dict[int, type[ApiError]] = {
    **dict.fromkeys((300, 301, 302, 303, 304, 307, 308), ApiError),
    400: BadRequestError,
    401: AuthenticationError,
    402: ApiError,
    403: PermissionDeniedError,
    404: EndpointGoneError,
    405: EndpointGoneError,
    408: ApiError,
    409: ApiError,
    410: EndpointGoneError,
    422: ApiError,
    429: RateLimitedError,
    499: ApiError,
    500: ServerError,
    501: EndpointGoneError,
    502: ServerError,
    503: ServerError,
    504: ServerError,
    599: ServerError,
}


def usual_or_exception(operation: str, status: int, body: str) -> type[ApiError]:
    """Return the expected class of a reply: the usual one, with two exceptions."""
    if status == 401 and operation == "login":
        return InvalidCredentialsError  # nobody is signed in yet, so the password is wrong
    if status == 404 and body in {"Error", "ErrorWithFields"}:
        return NotFoundError  # the API itself answers so; a router does not know its `code`
    return USUAL[status]


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


def said(message: str, code: str | int | None = "some_code") -> bytes:
    """Write an error body with this message."""
    return json.dumps({"status": 0, "code": code, "message": message}).encode()


# The table


@pytest.mark.parametrize("name", INSTEAD)
@pytest.mark.parametrize("body", BODIES)
def test_class_of_reply_is_the_tables(body: str, name: str) -> None:
    """Each status and body means one class for each operation, and says what the body says."""
    for status in USUAL:
        check_error(name, status, body)


def check_error(name: str, status: int, body: str) -> None:
    """Check all that there is to know of an error."""
    error = answer(operation(name), status, BODIES[body])
    assert type(error) is usual_or_exception(name, status, body)
    assert error.status == status
    assert error.code == CODES[body]
    assert error.request_id is None
    assert error.retry_after is None
    assert error.retryable is (status in {429, 500, 502, 503, 504, 599})
    if isinstance(error, BadRequestError):
        assert error.fields == (FIELDS if body == "ErrorWithFields" else {})
    made = operation(name)
    what, advice = told(error, name, body)
    request = f"{made.method} {made.path}: status {status}"
    assert error.message == "; ".join((f"{name}: {what} ({request})", *advice))


def told(error: ApiError, name: str, body: str) -> tuple[str, list[str]]:
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


def test_table_has_all_operations() -> None:
    """No operation is forgotten."""
    assert set(operation_table()) == set(INSTEAD)
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
    ("login", 403, WRONG_PASSWORD, "authorization_error", PermissionDeniedError),
    ("login", 500, WRONG_PASSWORD, None, ServerError),
    ("login", 400, "Validation error", "invalid_argument", BadRequestError),
    ("passwordless_login", 400, WRONG_PASSWORD, "invalid_argument", BadRequestError),
    ("login", 403, "Account is locked", "authorization_error", AccountLockedError),
    ("login", 403, "ACCOUNT LOCKED", None, AccountLockedError),
    ("refresh", 403, "Account is locked", 7, AccountLockedError),
    ("login", 401, "Account is locked", None, InvalidCredentialsError),
    ("login", 400, "Account is locked", None, BadRequestError),
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
    error = answer(operation(name), status, said(message, code))
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
    made = operations.login("me@example.com", password)
    assert isinstance(made, Operation)
    error = answer(made, 400, said(WRONG_PASSWORD))
    assert type(error) is InvalidCredentialsError
    assert error.message == f"login: {shown} (POST /v1/account/login: status 400)"


def test_account_is_locked_when_the_password_is_a_part_of_that_word() -> None:
    """The words are looked at before the password is taken out of them."""
    made = operations.login("me@example.com", "lock")
    assert isinstance(made, Operation)
    assert type(answer(made, 403, said("Account is locked"))) is AccountLockedError


def every_case() -> Iterator[tuple[int, str | int | None, str, bool]]:
    """Yield all combinations of the inputs that decide an error's class."""
    codes: tuple[str | int | None, ...] = (None, 5, 0, "not_found", "")
    yield from product(USUAL, codes, ("", "locked", WRONG_PASSWORD), (True, False))


def test_error_class_keeps_its_rules_when_they_meet() -> None:
    """The password's rule comes first, then the lock's, then the router's, then the status."""
    for status, code, message, signs_in in every_case():
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


# The tree

TREE: dict[type[KoyebSessionError], type[Exception]] = {
    KoyebSessionError: Exception,
    TransportError: KoyebSessionError,
    TransportTimeoutError: TransportError,
    ApiError: KoyebSessionError,
    BadRequestError: ApiError,
    AuthenticationError: ApiError,
    InvalidCredentialsError: AuthenticationError,
    SessionExpiredError: AuthenticationError,
    PermissionDeniedError: ApiError,
    AccountLockedError: PermissionDeniedError,
    NotFoundError: ApiError,
    EndpointGoneError: ApiError,
    RateLimitedError: ApiError,
    ServerError: ApiError,
    WireError: KoyebSessionError,
    NotSignedInError: KoyebSessionError,
    StoreError: KoyebSessionError,
}
RETRYABLE = {
    *(TransportError, TransportTimeoutError, RateLimitedError, ServerError, StoreError),
}
DEFAULT_STATUS: dict[type[ApiError], int] = {
    ApiError: 0,
    BadRequestError: 400,
    AuthenticationError: 401,
    InvalidCredentialsError: 401,
    SessionExpiredError: 401,
    PermissionDeniedError: 403,
    AccountLockedError: 403,
    NotFoundError: 404,
    EndpointGoneError: 404,
    RateLimitedError: 429,
    ServerError: 500,
}


def test_tree_is_complete_and_as_drawn() -> None:
    """The module's drawing shows each class below its base, and no class is missing."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: base.__name__ for kind, base in TREE.items()}
    defined = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined == set(TREE)


@pytest.mark.parametrize("kind", TREE)
def test_class_has_its_base_and_says_whether_to_retry(kind: type[KoyebSessionError]) -> None:
    """Each class has one base, a docstring, and a plain answer to "may it help to retry"."""
    assert kind.__bases__ == (TREE[kind],)
    assert kind.__doc__
    assert kind.retryable is (kind in RETRYABLE)
    assert kind().message == ""
    assert str(kind("said")) == kind("said").message == "said"


def sample(kind: type[KoyebSessionError]) -> KoyebSessionError:
    """Make an error with every attribute that its class has."""
    if issubclass(kind, BadRequestError):
        return kind("m", status=499, code="c", request_id="r", retry_after=1.5, fields=FIELDS)
    if issubclass(kind, ApiError):
        return kind("m", status=499, code=7, request_id="r", retry_after=1.5)
    return kind("m")


@pytest.mark.parametrize("kind", TREE)
def test_error_keeps_its_attributes_when_pickled_or_copied(kind: type[KoyebSessionError]) -> None:
    """An error goes through a process pool and back, with all that it says."""
    error = sample(kind)
    error.retryable = not kind.retryable
    error.add_note("a note")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(twin) is kind
        assert twin is not error
        assert str(twin) == twin.message == "m"
        assert vars(twin) == vars(error)
    if isinstance(error, ApiError):
        assert (error.status, error.request_id, error.retry_after) == (499, "r", 1.5)
        assert error.code == ("c" if isinstance(error, BadRequestError) else 7)


@pytest.mark.parametrize("kind", DEFAULT_STATUS)
def test_api_error_has_its_usual_status_when_none_is_given(kind: type[ApiError]) -> None:
    """A user who makes an error in a test need not say its status; `0` is a status too."""
    error = kind()
    assert error.status == DEFAULT_STATUS[kind]
    assert (error.code, error.request_id, error.retry_after) == (None, None, None)
    assert kind(status=0).status == 0


def test_fields_are_the_errors_own_when_given() -> None:
    """A later change to the caller's mapping does not change the error."""
    given = {"email": "bad"}
    error = BadRequestError(fields=given)
    given["email"] = "changed"
    assert error.fields == {"email": "bad"}
    assert BadRequestError().fields == {}


# What a reply adds


def test_error_carries_request_id_and_retry_after_when_the_reply_has_them() -> None:
    """The headers that a support ticket and a back-off need are kept."""
    error = answer(operation("refresh"), 429, b"", {"X-Request-Id": "req-1", "Retry-After": "2.5"})
    assert (error.request_id, error.retry_after) == ("req-1", 2.5)


def test_retry_after_is_counted_from_the_arrival_when_it_is_a_date() -> None:
    """A date is turned into seconds by the clock that the reply arrived at."""
    headers = {"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}
    assert answer(operation("logout"), 503, b"", headers, wall=30.0).retry_after == 70.0


@pytest.mark.parametrize("name", INSTEAD)
def test_no_secret_shows_when_the_service_echoes_the_request(name: str) -> None:
    """A service that repeats what it was sent does not make us repeat it."""
    made = operation(name)
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


# The small tools


def test_caused_gives_the_cause_without_raising() -> None:
    """An error that is only a value so far has its cause, and no traceback."""
    error, cause = KoyebSessionError("e"), ValueError("c")
    assert with_cause(error, cause) is error
    assert error.__cause__ is cause
    assert error.__traceback__ is None
    assert with_cause(error, None).__cause__ is None


def test_bare_copies_class_and_text_when_it_can() -> None:
    """The copy of a foreign error is of its class, without its request and its frames."""
    original = httpx.ConnectError("secret", request=httpx.Request("GET", "https://x"))
    original.__cause__ = ValueError("more")
    copied = sanitized_copy(original, "refused")
    assert type(copied) is httpx.ConnectError
    assert copied.args == ("refused",)
    assert copied.__cause__ is None
    assert copied.__traceback__ is None


def test_bare_names_the_class_when_it_cannot_be_made_of_a_text() -> None:
    """A class that wants more than a text is named in its place."""
    response = httpx.Response(500, request=httpx.Request("GET", "https://x"))
    original = httpx.HTTPStatusError("m", request=response.request, response=response)
    copied = sanitized_copy(original, "refused")
    assert type(copied) is Exception
    assert copied.args == ("HTTPStatusError: refused",)


def test_unwrap_returns_what_is_no_error() -> None:
    """A result comes through as it is, `None` and foreign exceptions as values included."""
    value = KeyError("a value")
    assert unwrap("result") == "result"
    assert unwrap(None) is None
    assert unwrap(value) is value


def test_unwrap_raises_a_copy_when_it_is_an_error() -> None:
    """Each caller gets an error of its own, with the same cause; the shared one stays clean."""
    outcome = with_cause(ServerError("down", status=503, retry_after=2.0), ValueError("why"))
    raised: list[ServerError] = []
    for _ in range(2):
        with pytest.raises(ServerError) as info:
            unwrap(outcome)
        raised.append(info.value)
    first, second = raised
    assert first is not outcome
    assert first is not second
    assert vars(first) == vars(second) == vars(outcome)
    assert first.__cause__ is outcome.__cause__
    assert outcome.__traceback__ is None


def test_unwrap_raises_without_a_cause_when_there_is_none() -> None:
    """An error that came of nothing else shows no context either."""
    try:
        raise LookupError  # noqa: TRY301 - a context to be hidden
    except LookupError:
        with pytest.raises(WireError) as info:
            unwrap(WireError("odd"))
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__
