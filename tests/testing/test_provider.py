"""The fake identity provider: devices wait for people, and refresh tokens rotate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeClock, FakeIdentityProvider, FakeKoyeb, Fault

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
Connect = Callable[..., httpx.Client]


@pytest.fixture
def koyeb(clock: FakeClock) -> FakeKoyeb:
    """Give the service that the tokens are for."""
    return FakeKoyeb(users={"me@example.com": "a", "you@example.com": "b"}, clock=clock)


@pytest.fixture
def provider(koyeb: FakeKoyeb) -> FakeIdentityProvider:
    """Give a provider."""
    return FakeIdentityProvider(koyeb)


@pytest.fixture
def client(provider: FakeIdentityProvider) -> Iterator[httpx.Client]:
    """Connect to the provider."""
    with httpx.Client(transport=provider.transport, base_url=provider.base_url) as client:
        yield client


def begin(client: httpx.Client) -> dict[str, Any]:
    """Begin to sign a device in."""
    reply = client.post("/oauth2/device_authorization", data={"client_id": "cli"})
    assert reply.status_code == 200
    answer: dict[str, Any] = reply.json()
    return answer


def ask(client: httpx.Client, **form: str) -> dict[str, Any]:
    """Ask for a token, and check that only errors come as errors."""
    reply = client.post("/oauth2/token", data={"client_id": "cli", **form})
    answer: dict[str, Any] = reply.json()
    assert reply.status_code == (400 if "error" in answer else 200)
    return answer


def poll(client: httpx.Client, device: dict[str, Any]) -> dict[str, Any]:
    """Ask whether the person has decided."""
    return ask(client, grant_type=DEVICE_CODE, device_code=device["device_code"])


def refresh(client: httpx.Client, token: str) -> dict[str, Any]:
    """Exchange a refresh token."""
    return ask(client, grant_type="refresh_token", refresh_token=token)


def user_of(connect: Connect, koyeb: FakeKoyeb, token: str) -> str:
    """Ask Koyeb whose token it is."""
    reply = connect(koyeb, token).get("/v1/account/profile")
    return str(reply.json()["user"]["email"])


def test_device_waits_for_a_person(
    koyeb: FakeKoyeb,
    provider: FakeIdentityProvider,
    client: httpx.Client,
    clock: FakeClock,
    connect: Connect,
) -> None:
    """The device polls until the person has approved, and gets a token for Koyeb once."""
    device = begin(client)
    assert device["verification_uri"] == "https://login.example.com/device"
    assert device["user_code"] in device["verification_uri_complete"]
    assert (device["expires_in"], device["interval"]) == (600, 5)
    assert poll(client, device) == {"error": "authorization_pending"}
    clock.advance(5)
    provider.approve(device["user_code"], "you@example.com")
    answer = poll(client, device)
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 300)
    assert user_of(connect, koyeb, answer["access_token"]) == "you@example.com"
    assert refresh(client, answer["refresh_token"])["refresh_token"] != answer["refresh_token"]
    clock.advance(5)
    assert poll(client, device) == {"error": "invalid_grant"}


def test_device_that_polls_too_fast_has_to_slow_down(
    provider: FakeIdentityProvider, client: httpx.Client, clock: FakeClock
) -> None:
    """Each time it is too fast, it has to wait five seconds longer."""
    device = begin(client)
    provider.approve(device["user_code"])
    errors = list[str]()
    other = begin(client)
    for seconds in (0, 4.9, 9.9, 15):
        clock.advance(seconds)
        errors.append(poll(client, other)["error"])
    assert errors == ["authorization_pending", *["slow_down"] * 2, "authorization_pending"]
    assert "access_token" in poll(client, device)


def test_person_may_refuse(provider: FakeIdentityProvider, client: httpx.Client) -> None:
    """The device is told so; a decision is made once."""
    device = begin(client)
    provider.deny(device["user_code"])
    assert poll(client, device) == {"error": "access_denied"}
    with pytest.raises(ValueError, match="no device waits"):
        provider.approve(device["user_code"])


def test_person_may_be_late(client: httpx.Client, clock: FakeClock) -> None:
    """After ten minutes the device has to begin anew."""
    device = begin(client)
    clock.advance(timedelta(minutes=10))
    assert poll(client, device) == {"error": "expired_token"}


def test_page_approves_for_the_first_user(
    koyeb: FakeKoyeb, client: httpx.Client, connect: Connect
) -> None:
    """A browser that opens the page signs the device in."""
    device = begin(client)
    assert client.get(device["verification_uri_complete"]).status_code == 200
    assert client.get(device["verification_uri_complete"]).status_code == 400
    assert client.get(device["verification_uri"]).status_code == 400
    assert user_of(connect, koyeb, poll(client, device)["access_token"]) == "me@example.com"


def test_refresh_tokens_rotate_and_reuse_ends_the_sign_in(
    koyeb: FakeKoyeb, provider: FakeIdentityProvider, client: httpx.Client
) -> None:
    """A refresh token that is used again ends all that came of its sign-in, and of no other."""
    first, other = provider.sign_in(), provider.sign_in("you@example.com")
    second = refresh(client, first)["refresh_token"]
    third = refresh(client, second)["refresh_token"]
    kept = refresh(client, other)
    assert len(koyeb.live_tokens()) == 3
    assert refresh(client, first) == {"error": "invalid_grant"}
    assert refresh(client, third) == {"error": "invalid_grant"}
    assert koyeb.live_tokens() == [kept["access_token"]]
    assert (provider.exchanges(), provider.reuses) == (3, 1)


def test_refresh_token_may_be_kept(koyeb: FakeKoyeb) -> None:
    """A provider that does not rotate takes the same one each time."""
    provider = FakeIdentityProvider(koyeb, rotate=False, token_lifetime=timedelta(hours=1))
    token = provider.sign_in()
    with httpx.Client(transport=provider.transport, base_url=provider.base_url) as client:
        for _ in range(2):
            answer = refresh(client, token)
            assert "refresh_token" not in answer
            assert answer["expires_in"] == 3600
    assert (provider.exchanges(), provider.reuses) == (2, 0)


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({}, "unsupported_grant_type"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "x"}, "invalid_grant"),
        ({"grant_type": DEVICE_CODE, "device_code": "x"}, "invalid_grant"),
        ({"grant_type": "refresh_token", "client_id": ""}, "invalid_request"),
    ],
)
def test_wrong_request_is_an_oauth_error(
    client: httpx.Client, form: dict[str, str], error: str
) -> None:
    """Errors have the form of RFC 6749."""
    assert ask(client, **form) == {"error": error}


def test_impossible_sign_in_is_an_error_where_it_is_written(
    provider: FakeIdentityProvider, client: httpx.Client
) -> None:
    """Nobody signs in whom Koyeb does not know."""
    device = begin(client)
    with pytest.raises(ValueError, match="no such user"):
        provider.approve(device["user_code"], "who@example.com")
    with pytest.raises(ValueError, match="no such user"):
        provider.sign_in("who@example.com")
    with pytest.raises(ValueError, match="no device waits"):
        provider.deny("XXXX-XXXX")


def test_provider_fails_on_demand_and_is_served(provider: FakeIdentityProvider) -> None:
    """It has faults, a log and a server, as the service has."""
    provider.fail("token", Fault(status=503))
    with provider.serve() as url, httpx.Client(base_url=url, trust_env=False) as client:
        form = {"client_id": "c", "grant_type": "refresh_token"}
        token = provider.sign_in()
        replies = [
            client.post("/oauth2/token", data={**form, "refresh_token": token}) for _ in range(2)
        ]
        assert [reply.status_code for reply in replies] == [503, 200]
        page = begin(client)["verification_uri_complete"]
        assert page.startswith(f"{url}/device?user_code=")
        assert client.get(page).status_code == 200
        assert client.get("/oauth2/token").status_code == 405
        assert client.get("/").status_code == 404
    names = [request.operation for request in provider.requests]
    assert names == ["token", "token", "device_authorization", "verification", None, None]
    assert repr(provider) == "<FakeIdentityProvider, 6 requests>"
