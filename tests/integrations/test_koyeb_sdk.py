"""The official SDK, as it is on PyPI, with a session's token."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    NotSignedInError,
    SessionClient,
    SessionExpiredError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..support import PASSWORDS, held, inside
from .conftest import NEARLY

# A slow import is done by the first test of a process that needs it.


@pytest.fixture(scope="session")
def sdk() -> Any:
    """Import the SDK's blocking half."""
    return importlib.import_module("koyeb.api")


@pytest.fixture(scope="session")
def async_sdk() -> Any:
    """Import the SDK's async half."""
    return importlib.import_module("koyeb.api_async")


@pytest.fixture(scope="session")
def bind() -> Any:
    """Import the function under test."""
    return importlib.import_module("koyeb_session.koyeb_sdk").bind


@pytest.fixture
def bound(
    bind: Any, sdk: Any, koyeb: str, koyeb_clock: FakeClock
) -> Iterator[tuple[SessionClient, Any]]:
    """Bind a session to the SDK's blocking half, and give its class for apps."""
    configuration: Any = sdk.Configuration(host=koyeb)
    with SessionClient(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock) as session:
        bind(session, configuration)
        with sdk.ApiClient(configuration) as client:
            yield session, sdk.AppsApi(client)


def test_sync_sdk_sends_current_token(
    bound: tuple[SessionClient, Any], fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """The SDK's calls are accepted before, at and after each expiry."""
    _, apps = bound
    for _ in range(3):
        assert apps.list_apps().count == 0
        koyeb_clock.advance(NEARLY)
    koyeb_clock.advance(timedelta(days=2))
    assert apps.list_apps().count == 0
    assert fake_koyeb.exchanges() == 2
    assert {request.status for request in fake_koyeb.requests} == {200}


def test_sync_sdk_waits_for_renewal_ahead_of_need(
    bound: tuple[SessionClient, Any], fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """The SDK does not replay: a call does not go out with a token that is being exchanged."""
    session, apps = bound
    for day in range(3):
        old = session.current_token()
        koyeb_clock.advance(timedelta(hours=20))
        assert apps.list_apps().count == 0
        assert fake_koyeb.exchanges() == day + 1
        assert held(session) != old.id
        assert fake_koyeb.requests[-1].bearer == held(session)
    fake_koyeb.fail("refresh", Fault(status=503), times=9)
    koyeb_clock.advance(timedelta(hours=20))
    assert apps.list_apps().count == 0


async def test_async_sdk_sends_what_the_session_holds(
    bind: Any, async_sdk: Any, koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """The async SDK sends the token that the session keeps current, and never an expired one."""
    configuration: Any = async_sdk.Configuration(host=koyeb)
    async with AsyncSessionClient(base_url=koyeb, clock=koyeb_clock) as session:
        bind(session, configuration)
        async with async_sdk.ApiClient(configuration) as client:
            apps = async_sdk.AppsApi(client)
            with pytest.raises(NotSignedInError):
                await apps.list_apps()
            await session.login("me@example.com", "correct horse")
            for _ in range(3):
                assert (await apps.list_apps()).count == 0
                koyeb_clock.advance(NEARLY)
                await session.current_token()  # as keep_current() does
            koyeb_clock.advance(timedelta(days=2))
            with pytest.raises(SessionExpiredError, match="keep_current"):
                await apps.list_apps()
    assert {request.status for request in fake_koyeb.requests} == {200}
    with pytest.raises(RuntimeError, match="closed"):
        configuration.auth_settings()


@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
def test_error_names_the_session_that_has_no_token(
    bind: Any, sdk: Any, koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock, *, kind: Any
) -> None:
    """An application is not blamed for the token of its caller, nor told to renew it."""
    configuration: Any = sdk.Configuration(host=koyeb)
    session = kind(base_url=koyeb, clock=koyeb_clock)
    caller = session.for_token(fake_koyeb.issue_token(lifetime=timedelta(seconds=10)))
    koyeb_clock.advance(20)
    for who, error in ((caller, SessionExpiredError), (session.guest(), NotSignedInError)):
        bind(who, configuration)
        with pytest.raises(error) as info:
            configuration.auth_settings()
        assert info.value.raised_by is inside(who).state.mark
        assert "keep_current" not in str(info.value)


async def test_async_sdk_on_the_auth_of_a_session(
    async_sdk: Any, koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """With an httpx client of its user's the async SDK waits for renewals, and replays."""
    configuration: Any = async_sdk.Configuration(host=koyeb)
    async with (
        AsyncSessionClient(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock) as session,
        async_sdk.ApiClient(configuration) as client,
    ):
        client.rest_client.pool_manager = http = httpx.AsyncClient(auth=session.auth)
        apps = async_sdk.AppsApi(client)
        for day in range(3):
            assert (await apps.list_apps()).count == 0
            assert fake_koyeb.exchanges() == day
            koyeb_clock.advance(NEARLY)
        koyeb_clock.advance(timedelta(days=2))
        assert (await apps.list_apps()).count == 0
        assert {request.status for request in fake_koyeb.requests} == {200}
        fake_koyeb.revoke_all()
        assert (await apps.list_apps()).count == 0
        new: Any = {"name": "an-app"}
        assert (await apps.create_app(new)).app is not None
    assert http.is_closed


def test_configuration_of_another_kind_is_refused(bind: Any, sdk: Any) -> None:
    """The client that is made with a configuration is easily taken for it."""
    with SessionClient() as session:
        with pytest.raises(TypeError, match=r"not ApiClient: give its \.configuration$"):
            bind(session, sdk.ApiClient())
        with pytest.raises(TypeError, match=r"a Configuration of the SDK, not NoneType$"):
            bind(session, None)


def test_token_goes_to_trusted_hosts_only(bind: Any, sdk: Any) -> None:
    """A configuration for another host is refused, at once or when it is used."""
    with SessionClient(transport=FakeKoyeb().transport, credentials=PASSWORDS) as session:
        hosts = ("https://app.koyeb.com.evil.example", "http://app.koyeb.com", "nonsense", None)
        for host in hosts:
            configuration: Any = sdk.Configuration()
            configuration.host = host
            with pytest.raises(ValueError, match="trusts"):
                bind(session, configuration)
            assert configuration.refresh_api_key_hook is None
        configuration = sdk.Configuration(api_key={"Bearer": "old"})
        bind(session, configuration)
        copied = copy.deepcopy(configuration)
        assert session.current_token().id in copied.auth_settings()["Bearer"]["value"]
        configuration.host = "https://evil.example"
        with pytest.raises(ValueError, match="trusts"):
            configuration.auth_settings()
        with pytest.raises(TypeError, match="session"):
            bind(configuration, configuration)
