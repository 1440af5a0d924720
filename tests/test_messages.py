"""Messages about a wrong address, a refusal, and a missing reply."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import json

import pytest

from koyeb_session import (
    ApiError,
    BadRequestError,
    EndpointGoneError,
    PermissionDeniedError,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    SessionClient,
    Token,
    TransportError,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply

from .error_texts import BASE, LOGIN, ME, PASSWORD, error_for

PAGE = b"<!doctype html><title>Welcome</title>"
REFRESH = operations.refresh(Token("canary"))
HTML = {"content-type": "text/html; charset=utf-8"}


@pytest.fixture(autouse=True)
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let waits be as long as they can be."""
    monkeypatch.setattr("random.random", lambda: 0.0)


# A wrong base_url


@pytest.mark.parametrize("base_url", [f"{BASE}/v1", f"{BASE}/v1/", f"{BASE}/api/v1"])
def test_base_url_is_refused_when_it_ends_with_v1(base_url: str) -> None:
    """Each operation's path begins with it: people copy it from the API's documentation."""
    with pytest.raises(ValueError, match="base_url") as caught:
        SessionClient(base_url=base_url)
    assert str(caught.value) == "base_url must not end with /v1: each operation adds it"


WAYS = (
    "use an API access token (token=...), AccessTokenCredentials(api_token, organization_id), or a "
    "callable that brings tokens (credentials=...)"
)


def test_a_page_in_place_of_an_operation_says_that_base_url_may_be_wrong() -> None:
    """A 404 of a web server is no word of the service's about its operation."""
    error = error_for(LOGIN, 404, PAGE, content_type="text/html; charset=utf-8")
    assert type(error) is EndpointGoneError
    assert error.message == (
        "login: there is no such operation at this URL "
        "(POST https://koyeb.example/v1/account/login: status 404, text/html); base_url may be "
        f"wrong; if it is right, the service no longer has this operation; {WAYS}"
    )


def said(message: str, code: str | int = "some_code", **more: object) -> bytes:
    """Write an error body as the service does."""
    return json.dumps({"status": 0, "code": code, "message": message, **more}).encode()


def test_a_withdrawn_operation_is_one_by_the_services_own_word() -> None:
    """Koyeb's router answers in the API's form; then base_url is right."""
    error = error_for(LOGIN, 404, said("Not Found", 5), content_type="application/json")
    assert type(error) is EndpointGoneError
    assert error.message == (
        "login: the service no longer has this operation "
        f"(POST https://koyeb.example/v1/account/login: status 404); {WAYS}"
    )


@pytest.mark.parametrize(
    ("location", "what"),
    [
        ("https://www.koyeb.example/login?next=canary", "redirected to https://www.koyeb.example"),
        ("/elsewhere", "no message"),
        ("https://[::x]/", "no message"),
        ("", "no message"),
    ],
)
def test_a_redirect_names_the_service_that_it_leads_to(location: str, what: str) -> None:
    """No operation follows one; its path and query stay out, as they may hold anything."""
    error = error_for(REFRESH, 301, PAGE, location=location, content_type="text/html")
    assert type(error) is ApiError
    assert error.message == (
        f"refresh: {what} (PUT https://koyeb.example/v1/account/refresh: status 301, text/html); "
        "operations follow no redirect: base_url may be wrong"
    )


def test_a_page_that_comes_with_success_says_that_base_url_may_be_wrong() -> None:
    """A web site answers any path with its front page."""
    error = error_for(LOGIN, 200, PAGE, content_type="text/html")
    assert type(error) is WireError
    assert error.message == (
        "login: the reply is not JSON "
        "(POST https://koyeb.example/v1/account/login: status 200, text/html); "
        "this is no reply of Koyeb's API: base_url may be wrong"
    )


def test_json_that_is_not_what_was_promised_says_nothing_of_base_url() -> None:
    """It is the service that has changed."""
    error = error_for(LOGIN, 200, b"{}", content_type="application/json")
    assert error.message == (
        "login: the reply has no token (POST https://koyeb.example/v1/account/login: status 200)"
    )


def test_a_page_that_refuses_says_that_base_url_may_be_wrong() -> None:
    """Some proxy, or another service, has answered."""
    error = error_for(REFRESH, 403, PAGE, content_type="text/html")
    assert type(error) is PermissionDeniedError
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 403, "
        "text/html); this is no reply of Koyeb's API: base_url may be wrong"
    )


def test_a_page_of_a_service_that_is_down_says_nothing_of_base_url() -> None:
    """A proxy before the service answers in HTML when the service does not answer."""
    error = error_for(REFRESH, 502, PAGE, content_type="text/html")
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 502, text/html)"
    )


@pytest.mark.parametrize("kind", ["text", "a b/c", "x" * 99 + "/x", "\x1b[31m/x", "é/x"])
def test_a_content_type_that_is_none_is_not_quoted(kind: str) -> None:
    """A header may hold anything."""
    reply = Reply(502, {"content-type": kind}, b"")
    error = REFRESH.outcome(reply, 0.0, BASE)
    assert isinstance(error, ServerError)
    assert error.message == (
        "refresh: no message (PUT https://koyeb.example/v1/account/refresh: status 502)"
    )


def test_no_message_shows_whose_login_method_is_asked_for() -> None:
    """The query holds an address: errors go into logs and trackers."""
    error = error_for(operations.login_method(ME), 401, said("no"))
    assert error.message == (
        "login_method: no (GET https://koyeb.example/v1/account/login_method: status 401)"
    )


# Refusals


def test_too_many_requests_say_when_to_try_again() -> None:
    """The reply has no JSON; its header says when."""
    error = error_for(LOGIN, 429, retry_after="90")
    assert type(error) is RateLimitedError
    assert error.retryable
    assert error.message == (
        "login: too many requests (POST https://koyeb.example/v1/account/login: status 429); "
        "try again in 1 min 30 s"
    )
    later = error_for(LOGIN, 429, said("slow down"))
    assert later.message == (
        "login: too many requests: slow down "
        "(POST https://koyeb.example/v1/account/login: status 429); try again later"
    )
    now = error_for(LOGIN, 429, retry_after="0")
    assert now.message.endswith("; try again now")


def test_a_service_that_is_down_says_when_it_asks_to_come_back() -> None:
    """A 503 may name a time as well."""
    error = error_for(REFRESH, 503, said("maintenance"), retry_after="3600")
    assert error.message == (
        "refresh: maintenance (PUT https://koyeb.example/v1/account/refresh: status 503); "
        "try again in 1 h 0 min"
    )


def test_a_bad_request_says_what_is_wrong_with_which_field() -> None:
    """The text has all that ``fields`` has, without the password."""
    fields = [
        {"field": "email", "description": "is not an address"},
        {"field": "password", "description": f"{PASSWORD} is too short"},
    ]
    error = error_for(LOGIN, 400, said("bad body", fields=fields))
    assert type(error) is BadRequestError
    assert error.message == (
        "login: bad body: email: is not an address, password: [secret] is too short "
        "(POST https://koyeb.example/v1/account/login: status 400)"
    )
    assert error.fields == {
        "email": "is not an address",
        "password": "[secret] is too short",
    }


def test_a_forbidden_sign_in_says_what_to_use_instead() -> None:
    """Koyeb refuses passwords more and more."""
    for operation in (LOGIN, operations.passwordless_login(ME)):
        assert isinstance(operation, Operation)
        error = error_for(operation, 403, said("no"), content_type="application/json")
        path = f"/v1/account/{operation.name}"
        assert error.message == (
            f"{operation.name}: no (POST https://koyeb.example{path}: status 403); "
            f"if Koyeb no longer accepts this kind of sign-in, {WAYS}"
        )


# No reply


def test_no_reply_names_the_request() -> None:
    """Nothing listens there; that is worth another try."""
    once = RetryPolicy(attempts=1)
    with (
        SessionClient(base_url="http://127.0.0.1:1", retry_policy=once) as session,
        pytest.raises(TransportError) as caught,
    ):
        session.login(ME, PASSWORD)
    assert caught.value.message.startswith(
        "login: no reply to POST http://127.0.0.1:1/v1/account/login: "
    )
    assert caught.value.retryable
