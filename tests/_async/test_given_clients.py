"""The user's own httpx client or transport."""

from __future__ import annotations

import httpx
import pytest

from koyeb_session import ApiError, AsyncSessionClient, EndpointGoneError
from koyeb_session.testing import FakeKoyeb, Fault

from ..concurrency import async_read
from ..support import ME, PASSWORD
from .doubles import Connect


async def test_client_refuses_both_http_client_and_transport(
    fake: FakeKoyeb, client: httpx.AsyncClient
) -> None:
    """Two ways to send are one too many."""
    with pytest.raises(ValueError, match="not both"):
        AsyncSessionClient(http_client=client, transport=fake.transport)


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


async def test_base_url_may_have_a_path(fake: FakeKoyeb, connect: Connect) -> None:
    """A service behind a prefix is asked below it."""
    session = connect(base_url="https://gateway.example/koyeb/", transport=fake.transport)
    with pytest.raises(EndpointGoneError):
        await session.login(ME, PASSWORD)
    assert fake.requests[-1].path == "/koyeb/v1/account/login"
    assert fake.requests[-1].headers["host"] == "gateway.example"
