"""Messages about a wrong address, and about a service that asks to come back later."""

from __future__ import annotations

import pytest

from koyeb_session import (
    ApiError,
    EndpointGoneError,
    KoyebSessionError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SessionClient,
    Token,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import Reply

from .error_texts import BASE, LOGIN, ME, error_for

PAGE = b"<!doctype html><title>Welcome</title>"
REFRESH = operations.refresh(Token("canary"))
HTML = {"content_type": "text/html; charset=utf-8"}
JSON = {"content_type": "application/json"}
NO = b'{"status": 0, "code": "some_code", "message": "no"}'
AT_LOGIN = f"POST {BASE}/v1/account/login"
AT_REFRESH = f"PUT {BASE}/v1/account/refresh"
NOT_KOYEBS = "this is no reply of Koyeb's API: base_url may be wrong"


@pytest.mark.parametrize("base_url", [f"{BASE}/v1", f"{BASE}/v1/", f"{BASE}/api/v1"])
def test_base_url_is_refused_when_it_ends_with_v1(base_url: str) -> None:
    """Each operation's path begins with it: people copy it from the API's documentation."""
    with pytest.raises(ValueError, match="base_url") as caught:
        SessionClient(base_url=base_url)
    assert str(caught.value) == "base_url must not end with /v1: each operation adds it"


GONE = (
    "; base_url may be wrong; if it is right, the service no longer has this operation; use an API "
    "access token (token=...), AccessTokenCredentials(api_token, organization_id), or a callable "
    "that brings tokens (credentials=...)"
)
REPLIES: dict[str, tuple[object, int, bytes, dict[str, str], type[KoyebSessionError], str]] = {
    # a web server's 404 is no word of the service's about its operation
    "a page in place of an operation": (
        *(LOGIN, 404, PAGE, HTML, EndpointGoneError),
        f"login: there is no such operation at this URL ({AT_LOGIN}: status 404, text/html){GONE}",
    ),
    # a web site answers any path with its front page
    "a page with success": (
        *(LOGIN, 200, PAGE, HTML, WireError),
        f"login: the reply is not JSON ({AT_LOGIN}: status 200, text/html); {NOT_KOYEBS}",
    ),
    # it is the service that has changed
    "JSON without what was promised": (
        *(LOGIN, 200, b"{}", JSON, WireError),
        f"login: the reply has no token ({AT_LOGIN}: status 200)",
    ),
    # some proxy, or another service, has answered
    "a page that refuses": (
        *(REFRESH, 403, PAGE, HTML, PermissionDeniedError),
        f"refresh: no message ({AT_REFRESH}: status 403, text/html); {NOT_KOYEBS}",
    ),
    # a proxy before the service answers in HTML when the service does not answer
    "a page of a service that is down": (
        *(REFRESH, 502, PAGE, HTML, ServerError),
        f"refresh: no message ({AT_REFRESH}: status 502, text/html)",
    ),
    # the query holds an address: errors go into logs and trackers
    "an operation with a query": (
        *(operations.login_method(ME), 403, NO, JSON, PermissionDeniedError),
        f"login_method: no (GET {BASE}/v1/account/login_method: status 403)",
    ),
    "too many requests for a while": (
        *(LOGIN, 429, b"", {"retry_after": "90"}, RateLimitedError),
        f"login: too many requests ({AT_LOGIN}: status 429); try again in 1 min 30 s",
    ),
    "too many requests until now": (
        *(LOGIN, 429, b"", {"retry_after": "0"}, RateLimitedError),
        f"login: too many requests ({AT_LOGIN}: status 429); try again now",
    ),
    "maintenance": (
        *(REFRESH, 503, NO, {"retry_after": "3600"}, ServerError),
        f"refresh: no ({AT_REFRESH}: status 503); try again in 1 h 0 min",
    ),
}


@pytest.mark.parametrize("case", REPLIES)
def test_message_names_the_url_and_says_what_to_do(case: str) -> None:
    """The address is doubted where something else than the API has answered, and only there."""
    operation, status, body, headers, kind, message = REPLIES[case]
    error = error_for(operation, status, body, **headers)
    assert type(error) is kind
    assert error.message == message


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
    error = error_for(REFRESH, 301, PAGE, location=location, **HTML)
    assert type(error) is ApiError
    assert error.message == (
        f"refresh: {what} ({AT_REFRESH}: status 301, text/html); "
        "operations follow no redirect: base_url may be wrong"
    )


@pytest.mark.parametrize("kind", ["text", "a b/c", "x" * 99 + "/x", "\x1b[31m/x", "é/x"])
def test_a_content_type_that_is_none_is_not_quoted(kind: str) -> None:
    """A header may hold anything."""
    assert isinstance(REFRESH, Operation)
    error = REFRESH.outcome(Reply(502, {"content-type": kind}, b""), 0.0, BASE)
    assert isinstance(error, ServerError)
    assert error.message == f"refresh: no message ({AT_REFRESH}: status 502)"
