"""Replies to operations: the meaning of a success, and the text of an error."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

import attrs
import httpx
import pytest

from koyeb_session import ApiError, BadRequestError, LoginMethod, Token, WireError
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply
from koyeb_session._core.origins import address

from .jwts import jwt
from .sent import BASE, SENT, TOKEN, made

WALL = 1_800_000_000.0
NOW = datetime.fromtimestamp(WALL, UTC)
EXPIRES = NOW + timedelta(hours=24)
REPLY = json.dumps({"token": {"id": "new", "user_id": "u", "expires_at": EXPIRES.isoformat()}})


def outcome(
    operation: object, body: bytes | WireError, status: int = 200, **headers: str
) -> object:
    """Let an operation read a reply that arrived at `WALL`."""
    return made(operation).outcome(Reply(status, httpx.Headers(headers), body), WALL)


ISSUING = [
    *("login", "refresh", "new_session", "switch_organization", "unscope_organization_token")
]


# Successes


@pytest.mark.parametrize("name", ISSUING)
def test_token_is_read_when_an_operation_mints_one(name: str) -> None:
    """These operations answer with a token, which is young from its arrival."""
    token = outcome(SENT[name].make(), REPLY.encode())
    assert token == Token("new", "u", None, EXPIRES)
    assert isinstance(token, Token)
    assert token.issued_at == NOW


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_reply_is_a_success_when_its_status_is_2xx(status: int) -> None:
    """Any 2xx is success; the body decides the result."""
    assert isinstance(outcome(SENT["login"].make(), REPLY.encode(), status), Token)


@pytest.mark.parametrize("status", [199, 300, 304])
def test_reply_is_an_error_when_its_status_is_beside_2xx(status: int) -> None:
    """No redirect is followed, and nothing else is success either."""
    assert type(outcome(SENT["login"].make(), REPLY.encode(), status)) is ApiError


@pytest.mark.parametrize(
    ("date", "issued"),
    [
        ("Fri, 15 Jan 2027 07:59:59 GMT", NOW),
        ("Fri, 15 Jan 2027 09:00:00 GMT", NOW + timedelta(hours=1, seconds=1)),
        ("yesterday", NOW),
    ],
)
def test_token_is_dated_by_the_service_when_it_says_its_time(date: str, issued: datetime) -> None:
    """A wall clock that is wrong here does not make a new token's life longer or shorter."""
    token = outcome(SENT["refresh"].make(), REPLY.encode(), date=date)
    assert isinstance(token, Token)
    assert token.issued_at == issued


def hint(problem: str) -> str:
    """Return the advice of an error whose body is not JSON."""
    is_json = problem not in {"the reply is not JSON", "the reply is not UTF-8"}
    is_json &= problem != "the reply is not a JSON object"
    return "" if is_json else "; this is no reply of Koyeb's API: base_url may be wrong"


GARBAGE = [
    *((body, "the reply is not JSON") for body in (b"", b"{", b"<html>")),
    *((body, "the reply has no token") for body in (b"{}", b'{"Token": {"id": "t"}}')),
    (b'[{"token": {"id": "t"}}]', "the reply is not a JSON object"),
    (b"\xff", "the reply is not UTF-8"),
]
NO_TOKENS = [
    *((body, "token: not an object") for body in (b'{"token": null}', b'{"token": "eyJ"}')),
    (b'{"token": [{"id": "t"}]}', "token: not an object"),
    (b'{"token": {}}', "token.id: empty, or not fit for a header"),
]
NO_ACCESS_TOKENS = [
    (b'{"token": null}', "the reply has no token that is a string"),
    (b'{"token": {"id": "t"}}', "the reply has no token that is a string"),
    (b'{"token": ""}', "token: empty, or not fit for a header"),
    (b'{"token": "a b"}', "token: empty, or not fit for a header"),
]


@pytest.mark.pitfall(13)
@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        *((name, *garbage) for name in ISSUING for garbage in (*GARBAGE, *NO_TOKENS)),
        *(("create_access_token", *garbage) for garbage in (*GARBAGE, *NO_ACCESS_TOKENS)),
    ],
)
def test_garbage_is_a_wire_error_when_a_token_was_promised(
    name: str, body: bytes, problem: str
) -> None:
    """A 2xx that holds no token never becomes one, and the error says which operation it was."""
    operation = made(SENT[name].make())
    error = outcome(operation, body)
    assert type(error) is WireError
    assert error.message == (
        f"{name}: {problem} ({operation.method} {operation.path}: status 200){hint(problem)}"
    )


@pytest.mark.parametrize("validity", [None, timedelta(hours=1), timedelta(seconds=1.5)])
@pytest.mark.parametrize("date", [None, "Fri, 15 Jan 2027 09:00:00 GMT"])
def test_access_token_expires_by_the_services_clock(
    validity: timedelta | None, date: str | None
) -> None:
    """A wall clock that is wrong here makes its life neither longer nor shorter."""
    operation = operations.create_access_token(TOKEN, "o", validity)
    headers = {} if date is None else {"date": date}
    token = outcome(operation, b'{"token": "opaque"}', 200, **headers)
    now = NOW if date is None else NOW + timedelta(hours=1, seconds=1)
    assert token == Token("opaque", None, "o", now + (validity or timedelta(hours=1)))
    assert isinstance(token, Token)
    assert token.issued_at == now


def test_access_token_expires_as_it_says_itself() -> None:
    """The service may issue a token with a shorter life than requested, as its JWT shows."""
    operation = operations.create_access_token(TOKEN, "o", timedelta(hours=24))
    token = outcome(operation, json.dumps({"token": jwt({"exp": WALL + 60})}).encode())
    assert isinstance(token, Token)
    assert token.expires_at == NOW + timedelta(minutes=1)
    expired = outcome(operation, json.dumps({"token": jwt({"exp": WALL})}).encode())
    assert isinstance(expired, WireError)
    assert "has expired" in expired.message
    endless = outcome(operation, json.dumps({"token": jwt({})}).encode())
    assert isinstance(endless, Token)
    assert endless.expires_at == NOW + timedelta(hours=24)


def test_access_token_has_no_known_expiry_when_the_calendar_ends() -> None:
    """A clock at the end of time is no reason to fail."""
    operation = operations.create_access_token(TOKEN, "o", timedelta(hours=24))
    end = datetime(9999, 12, 31, 12, tzinfo=UTC).timestamp()
    token = operation.outcome(Reply(200, {}, b'{"token": "opaque"}'), end)
    assert isinstance(token, Token)
    assert token.expires_at is None


@pytest.mark.parametrize("case", SENT)
def test_body_is_not_read_when_it_could_not_be_decoded(case: str) -> None:
    """A failed transfer of a successful reply is reported as such."""
    operation = made(SENT[case].make())
    error = outcome(operation, WireError("the reply is larger than 1048576 bytes"))
    assert type(error) is WireError
    assert error.message == (
        f"{operation.name}: the reply is larger than 1048576 bytes "
        f"({operation.method} {operation.path}: status 200)"
    )


@pytest.mark.parametrize("name", ["logout", "passwordless_login"])
def test_nothing_is_promised_when_an_operation_only_acts(name: str) -> None:
    """Logout and passwordless login take ``{}`` and an empty body, and no page of HTML."""
    operation = made(SENT[name].make())
    for body in (b"{}", b"", b" \r\n", b'{"more": []}'):
        assert outcome(operation, body) is None
    assert outcome(operation, b"", 204) is None
    for body, problem in (
        (b"<html>", "the reply is not JSON"),
        (b"null", "the reply is not a JSON object"),
        (b"\xff", "the reply is not UTF-8"),
    ):
        error = outcome(operation, body)
        assert type(error) is WireError
        assert error.message == (
            f"{name}: {problem} ({operation.method} {operation.path}: status 200){hint(problem)}"
        )


def test_no_url_is_kept_that_says_who_signs_in() -> None:
    """The URL of each operation is parsed once, without the user's address in the query."""
    address.cache_clear()
    for email in ("me@example.com", "you@example.com"):
        operation = operations.login_method(email)
        assert isinstance(operation, Operation)
        assert operation.request(BASE, 10.0).url.params["email"] == email
    assert address.cache_info().currsize == 1


@pytest.mark.parametrize(
    ("body", "method"),
    [
        (b'{"method": "KOYEB"}', LoginMethod.KOYEB),
        (b'{"method": "WORKOS", "more": 1}', LoginMethod.WORKOS),
        (b"{}", LoginMethod.KOYEB),
        (b'{"method": null}', LoginMethod.KOYEB),
        (b'{"method": ""}', LoginMethod.KOYEB),
    ],
)
def test_login_method_is_read_when_the_service_names_it(body: bytes, method: LoginMethod) -> None:
    """The two methods that there are; a missing one is the default of the description."""
    assert outcome(SENT["login_method"].make(), body) is method


@pytest.mark.parametrize("value", ["koyeb", "SAML", 1, True, ["KOYEB"], {"KOYEB": 1}])
def test_login_method_is_refused_when_it_is_unknown(value: object) -> None:
    """A method that came after this version is said to be one."""
    body = json.dumps({"method": value}).encode()
    error = outcome(operations.login_method("me@example.com"), body)
    assert type(error) is WireError
    assert error.message == (
        "login_method: method: not a login method that is known here "
        "(GET /v1/account/login_method: status 200)"
    )


# Errors


def test_texts_are_cut_when_the_service_is_verbose() -> None:
    """500 characters of a text are kept, after its secrets are out."""
    operation = operations.refresh(TOKEN)
    for length, kept in ((499, 499), (500, 500), (501, 500)):
        long = "m" * length
        entries = [{"field": long, "description": long}]
        body = json.dumps({"message": long, "code": long, "fields": entries}).encode()
        error = outcome(operation, body, 400, **{"x-request-id": long})
        assert isinstance(error, BadRequestError)
        assert error.message == (
            f"refresh: {'m' * kept}: {f'{long[:kept]}: {long}'[:500]} "
            "(PUT /v1/account/refresh: status 400)"
        )
        assert error.code == error.request_id == "m" * kept
        assert error.fields == {"m" * kept: "m" * kept}


def test_secret_is_out_when_the_cut_would_go_through_it() -> None:
    """Half a secret at the cut is a secret too."""
    body = json.dumps({"message": "m" * 495 + TOKEN.id}).encode()
    error = outcome(operations.refresh(TOKEN), body, 500)
    assert isinstance(error, ApiError)
    assert "canar" not in error.message
    assert error.message == f"refresh: {'m' * 495}[secr (PUT /v1/account/refresh: status 500)"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"code": 16, "message": "m"}', 16, "m"),
        (b'{"code": "", "message": "m"}', "", "m"),
        (b'{"code": "c", "message": ""}', "c", "no message"),
        (b'["message"]', None, "no message"),
        (gzip.compress(b'{"message": "m"}', mtime=0), None, "no message"),
    ],
)
def test_error_says_what_it_can_when_its_body_is_odd(
    body: bytes, code: str | int | None, message: str
) -> None:
    """An invalid code or message is ignored, and the status stays."""
    error = outcome(operations.refresh(TOKEN), body, 500)
    assert isinstance(error, ApiError)
    assert (error.code, error.message) == (
        code,
        f"refresh: {message} (PUT /v1/account/refresh: status 500)",
    )


def test_operations_are_frozen() -> None:
    """An operation may be sent more than once: nothing of it changes."""
    operation = operations.refresh(TOKEN)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        operation.name = "other"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue] - on purpose


@pytest.mark.parametrize(("wall", "good"), [(1_899_999_999.0, True), (1_900_000_000.0, False)])
def test_token_is_refused_when_it_has_expired_on_arrival(wall: float, good: bool) -> None:  # noqa: FBT001
    """A token has to have a life before it, be it of a moment."""
    body = b'{"token": {"id": "t", "expires_at": "2030-03-17T17:46:40Z"}}'
    outcome = operations.new_session(Token("old")).outcome(Reply(200, {}, body), wall)
    if good:
        assert outcome == Token("t", expires_at=datetime.fromtimestamp(1_900_000_000, UTC))
    else:
        assert isinstance(outcome, WireError)
        assert outcome.message == (
            "new_session: the token that the service handed out has expired "
            "(POST /v1/account/session: status 200)"
        )
