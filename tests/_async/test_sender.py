"""Sending: repeated requests, deadlines, the limits of a reply, and the user's own client."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest

from koyeb_session import (
    ApiError,
    AsyncSessionClient,
    AuthenticationError,
    EndpointGoneError,
    InvalidCredentialsError,
    LoginMethod,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session.testing import FakeKoyeb, Fault, Gate, assert_no_secret

from ..concurrency import async_read, deadlines
from ..support import ME, PASSWORD, operations, raising
from .doubles import CALLS, Connect

LIMIT = 1 << 20
WORKOS = b'{"method": "WORKOS"}'
SWITCHES = ("switch_organization", "unscope_organization_token")


@pytest.fixture(autouse=True)
async def nothing_leaks(fake: FakeKoyeb) -> AsyncIterator[None]:
    """Each reply is closed, on each of these ways."""
    yield
    assert fake.transport.open_replies == 0


# Again


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_harmless_operation_is_sent_again(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """A harmless operation is sent again when the service is busy, three times in all."""
    fake.fail("login_method", Fault(status=status), times=2)
    assert await connect().login_method(ME) is LoginMethod.KOYEB
    assert [request.status for request in fake.requests] == [status, status, 200]


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_an_operation_is_sent_as_often_as_the_policy_says(
    fake: FakeKoyeb, connect: Connect, attempts: int
) -> None:
    """Then the last error is raised."""
    fake.fail("login_method", Fault(status=503), times=9)
    session = connect(retry_policy=RetryPolicy(attempts=attempts, delay=0))
    with pytest.raises(ServerError):
        await session.login_method(ME)
    assert len(fake.requests) == attempts


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=400), Fault(body="?")])
async def test_an_operation_that_would_fail_again_is_not_sent_again(
    fake: FakeKoyeb, connect: Connect, fault: Fault
) -> None:
    """An error that says nothing of a busy service is final."""
    fake.fail("login_method", fault)
    with pytest.raises((ApiError, WireError)):
        await connect().login_method(ME)
    assert len(fake.requests) == 1


async def test_a_lost_reply_is_not_asked_for_again(fake: FakeKoyeb, connect: Connect) -> None:
    """An operation that may have been carried out is not sent again, harmless or not."""
    fake.fail("login_method", Fault(reset=True))
    with pytest.raises(TransportError, match="Connection reset by peer") as caught:
        await connect().login_method(ME)
    assert isinstance(caught.value.__cause__, httpx.ReadError)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("name", [*("login", "passwordless_login", "new_session"), *SWITCHES])
@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_an_operation_that_must_not_be_done_twice_is_sent_once(
    fake: FakeKoyeb, session: AsyncSessionClient, name: str, status: int
) -> None:
    """Accounts lock, and sessions are issued: these are never repeated."""
    fake.fail(name, Fault(status=status))
    with pytest.raises((RateLimitedError, ServerError)):
        await getattr(session, name)(*CALLS[name])
    assert operations(fake) == [name]


@pytest.mark.parametrize(
    ("seconds", "timeout"), [("6", 15), ("86400", 15), ("31536000", 15), ("4", 3)]
)
async def test_a_long_retry_after_is_raised_rather_than_waited_for(
    fake: FakeKoyeb, connect: Connect, seconds: str, timeout: float
) -> None:
    """An error now is better than one at the deadline; it says how long the service wants."""
    fake.fail("login_method", Fault(status=429, headers={"retry-after": seconds}))
    with pytest.raises(RateLimitedError) as caught:
        await connect().login_method(ME, timeout=timeout)
    assert caught.value.retry_after == float(seconds)
    assert len(fake.requests) == 1


@pytest.mark.parametrize("value", ["nan", "-1", "soon", "", "1e400"])
async def test_a_retry_after_that_says_nothing_is_passed_over(
    fake: FakeKoyeb, connect: Connect, value: str
) -> None:
    """Nonsense is not waited for."""
    fake.fail("login_method", Fault(status=429, headers={"retry-after": value}))
    assert await connect().login_method(ME) is LoginMethod.KOYEB


# In time


async def test_a_hanging_service_costs_the_timeout(fake: FakeKoyeb, connect: Connect) -> None:
    """An operation ends with its deadline, and tells where nobody answered."""
    fake.fail("login", Fault(gate=Gate()))
    told: list[str] = []
    for timeout in deadlines(lambda: fake.requests):
        with pytest.raises(TransportTimeoutError) as caught:
            await connect(timeout=timeout).login(ME, PASSWORD)
        told.append(str(caught.value))
    assert "login: no reply to POST https://app.koyeb.com/v1" in told[-1]
    assert len(fake.requests) == 1


async def test_each_phase_may_take_the_whole_timeout(
    connect: Connect, client: httpx.AsyncClient
) -> None:
    """Connecting, sending and reading are bounded by the operation's own timeout."""
    seen: list[dict[str, float]] = []

    async def note(request: httpx.Request) -> None:
        seen.append(request.extensions["timeout"])

    client.event_hooks = {"request": [note]}
    session = connect(http_client=client, timeout=70)
    await session.login_method(ME)
    await session.login_method(ME, timeout=90)
    await session.login(ME, PASSWORD)
    await session.login(ME, PASSWORD, timeout=30)
    await session.refresh(timeout=110)
    await session.logout(timeout=130)
    for timeouts, seconds in zip(seen, (70, 90, 70, 30, 110, 130), strict=True):
        assert set(timeouts) == {"connect", "read", "write", "pool"}
        assert all(math.isclose(value, seconds, abs_tol=9) for value in timeouts.values())


# Bodies


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault(body=b" " * (LIMIT + 1)), "larger than 1048576 bytes"),
        (Fault(body=b" " * (3 * LIMIT)), "larger than 1048576 bytes"),
        (
            Fault(body=gzip.compress(b" " * (LIMIT + 1)), headers={"content-encoding": "gzip"}),
            "larger than 1048576 bytes",
        ),
        (Fault(body=b"{}", headers={"content-encoding": "gzip"}), "cannot be decompressed"),
        (Fault(body=b"{}", headers={"content-encoding": "br"}), "was not asked for"),
        (Fault(body=b'{"token": '), "not JSON"),
        (Fault(body=b"\xff"), "not UTF-8"),
        (Fault(body=b"[]"), "not a JSON object"),
        (Fault(body=b""), "not JSON"),
        (Fault(status=204), "not JSON"),
        (Fault(body={"token": {}}), "token.id: empty"),
    ],
)
async def test_a_reply_that_cannot_be_a_token_is_a_wire_error(
    fake: FakeKoyeb, session: AsyncSessionClient, fault: Fault, text: str
) -> None:
    """A success without the promised body leaves the session as it was."""
    before = session.token
    fake.fail("login", fault)
    with pytest.raises(WireError, match=f"login: .*{text}"):
        await session.login(ME, PASSWORD)
    assert session.token is before


@pytest.mark.parametrize(
    "fault",
    [
        Fault(body=WORKOS.ljust(LIMIT - 100)),
        Fault(body=WORKOS.ljust(LIMIT)),
        Fault(body=gzip.compress(WORKOS), headers={"content-encoding": "gzip"}),
    ],
    ids=["large", "of the greatest size", "compressed"],
)
async def test_a_reply_of_an_unusual_form_is_read(
    fake: FakeKoyeb, connect: Connect, fault: Fault
) -> None:
    """The limit is allowed, and so is a proxy that compresses although nobody asked for it."""
    fake.fail("login_method", fault)
    assert await connect().login_method(ME) is LoginMethod.WORKOS
    assert fake.requests[0].headers["accept-encoding"] == "identity"


async def test_a_success_that_breaks_off_is_no_reply(fake: FakeKoyeb, connect: Connect) -> None:
    """Half a token is none."""
    session = connect()
    fake.fail("login", Fault(truncate=20))
    with pytest.raises(TransportError) as caught:
        await session.login(ME, PASSWORD)
    assert isinstance(caught.value.__cause__, httpx.RemoteProtocolError)
    assert session.token is None


@pytest.mark.parametrize("rest", [{"truncate": 5}, {"body": b"x" * (3 * LIMIT)}])
async def test_an_error_that_cannot_be_read_is_told_by_its_status(
    fake: FakeKoyeb, connect: Connect, rest: dict[str, Any]
) -> None:
    """The rest of the reply can be missed: one that breaks off, or a page of any size."""
    fake.fail("login", Fault(status=401, **rest))
    with pytest.raises(InvalidCredentialsError, match="no message"):
        await connect().login(ME, PASSWORD)


# The user's own client


@pytest.mark.parametrize(
    ("reads", "told"), [(True, "password is incorrect"), (False, "no message")]
)
async def test_a_hook_that_raises_for_status_does_not_hide_the_error(
    connect: Connect, client: httpx.AsyncClient, *, reads: bool, told: str
) -> None:
    """A hook that many have keeps the class of the error, and the message if it has read it."""

    async def raise_for_status(response: httpx.Response) -> None:
        if reads:
            await async_read(response)
        response.raise_for_status()

    client.event_hooks = {"response": [raise_for_status]}
    with pytest.raises(InvalidCredentialsError, match=told):
        await connect(http_client=client).login(ME, "wrong")


async def test_a_reply_to_a_hook_is_no_reply(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """A hook that reports to another server, and is refused there, has not been refused here."""

    async def report(_: object) -> None:
        elsewhere = httpx.Request("POST", "https://reports.example")
        httpx.Response(401, request=elsewhere).raise_for_status()

    client.event_hooks = {"request": [report]}
    session = connect(http_client=client, token=fake.issue_token())
    for call in (partial(session.login, ME, PASSWORD), session.logout):
        with pytest.raises(TransportError, match=r"reports\.example"):
            await call()
    assert fake.requests == []


@pytest.mark.parametrize("kind", ["request", "response"])
async def test_an_error_of_a_hook_reaches_the_caller(
    connect: Connect, client: httpx.AsyncClient, kind: str
) -> None:
    """An error of the user's own code is not taken for one of the network."""
    client.event_hooks = {kind: [raising(LookupError("a bug"))]}
    with pytest.raises(LookupError, match="a bug") as caught:
        await connect(http_client=client).login(ME, PASSWORD)
    assert_no_secret(PASSWORD, caught.value, packages=["koyeb_session"])


async def test_http_client_sends_the_operations_through_its_event_hooks(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """Every operation passes the hooks of the user's client, whole reply included."""
    seen: list[str] = []

    async def on_request(request: httpx.Request) -> None:
        seen.append(f"{request.method} {request.url.path}")

    async def on_response(response: httpx.Response) -> None:
        await async_read(response)
        seen.append(str(response.status_code))

    client.event_hooks = {"request": [on_request], "response": [on_response]}
    session = connect(http_client=client)
    await session.login(ME, PASSWORD)
    await session.passwordless_login(ME)
    await session.refresh()
    await session.new_session()
    await session.switch_organization(fake.organizations[ME][0])
    await session.login_method(ME)
    await session.logout()
    assert seen == [
        *("POST /v1/account/login", "200"),
        *("POST /v1/account/passwordless_login", "200"),
        *("PUT /v1/account/refresh", "200"),
        *("POST /v1/account/session", "200"),
        *(f"POST /v1/organizations/{fake.organizations[ME][0]}/switch", "200"),
        *("GET /v1/account/login_method", "200"),
        *("DELETE /v1/account/logout", "200"),
    ]


async def test_http_clients_auth_and_redirects_are_not_used(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """An operation carries the headers that it must and no others, and follows no redirect."""
    location = {"location": "https://app.koyeb.com/v1/account/login_method?email=me"}
    fake.fail("login", Fault(status=307, headers=location))
    client.auth, client.follow_redirects = ("user", "pw"), True
    with pytest.raises(ApiError) as caught:
        await connect(http_client=client).login(ME, PASSWORD)
    assert caught.value.status == 307
    (request,) = fake.requests
    assert "authorization" not in request.headers


async def test_http_is_not_the_users_client(connect: Connect, client: httpx.AsyncClient) -> None:
    """`session.http` is always the session's own, with its own base URL and timeout."""
    session = connect(http_client=client, timeout=7)
    assert session.http is not client
    assert session.http.base_url == "https://app.koyeb.com"
    assert session.http.timeout == httpx.Timeout(7)
    assert session.http.auth is session.auth
    assert session.auth is session.auth


async def test_client_refuses_both_http_client_and_transport(
    fake: FakeKoyeb, client: httpx.AsyncClient
) -> None:
    """Two ways to send are one too many."""
    with pytest.raises(ValueError, match="not both"):
        AsyncSessionClient(http_client=client, transport=fake.transport)


async def test_base_url_may_have_a_path(fake: FakeKoyeb, connect: Connect) -> None:
    """A service behind a prefix is asked below it."""
    session = connect(base_url="https://gateway.example/koyeb/", transport=fake.transport)
    with pytest.raises(EndpointGoneError):
        await session.login(ME, PASSWORD)
    assert fake.requests[-1].path == "/koyeb/v1/account/login"
    assert fake.requests[-1].headers["host"] == "gateway.example"


async def test_a_refused_operation_keeps_what_the_service_said(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Status, code, message and request id are its attributes; an API token is not renewed."""
    session = connect(token=fake.issue_api_token())
    body = {"status": 401, "code": "authorization_error", "message": "Token rejected"}
    fake.fail("new_session", Fault(status=401, body=body, headers={"x-request-id": "r-7"}))
    with pytest.raises(AuthenticationError) as caught:
        await session.new_session()
    error = caught.value
    assert (error.status, error.code, error.request_id) == (401, "authorization_error", "r-7")
    assert error.message == (
        f"new_session: Token rejected (POST {fake.base_url}/v1/account/session: status 401)"
    )
    assert operations(fake) == ["new_session"]


@pytest.mark.pitfall(15)
async def test_nothing_secret_is_logged_by_the_libraries_below(
    url: str, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The URLs that httpx logs, and the headers that httpcore logs, hold none."""
    caplog.set_level(logging.DEBUG)
    session = connect(base_url=url)
    token = await session.login(ME, PASSWORD)
    new = await session.refresh()
    await session.http.get("/v1/apps")
    other = await session.new_session()
    await session.logout()
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert_no_secret([PASSWORD, token.id, new.id, other.id], caplog)
