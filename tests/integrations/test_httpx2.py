"""The session's auth on httpx2 clients, and on the OpenAI client, which is built on one."""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.httpx2 import auth_for
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import PASSWORDS
from .conftest import NEARLY


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on asyncio and on trio."""
    backend: str = request.param
    return backend


def test_client_is_kept_signed_in(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """A blocking client signs in, renews, and replays a refused request whose body is in memory."""
    with (
        SessionClient(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock) as session,
        httpx2.Client(base_url=koyeb, auth=auth_for(session)) as client,
    ):
        for expiries in range(3):
            assert client.get("/v1/apps").status_code == 200
            assert fake_koyeb.exchanges() == expiries
            koyeb_clock.advance(NEARLY)
        fake_koyeb.revoke_all()
        assert client.post("/v1/apps", json={"name": "again"}).status_code == 200
        fake_koyeb.revoke_all()
        body = iter([b"once"])
        assert client.post("/v1/apps", content=body).status_code == 401
        assert client.get("/v1/apps").status_code == 200


async def test_async_client_is_kept_signed_in(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """An async client does the same."""

    async def once() -> AsyncIterator[bytes]:
        yield b"once"

    async with (
        AsyncSessionClient(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock) as session,
        httpx2.AsyncClient(base_url=koyeb, auth=auth_for(session)) as client,
    ):
        for expiries in range(3):
            assert (await client.get("/v1/apps")).status_code == 200
            assert fake_koyeb.exchanges() == expiries
            koyeb_clock.advance(NEARLY)
        fake_koyeb.revoke_all()
        assert (await client.post("/v1/apps", json={})).status_code == 200
        fake_koyeb.revoke_all()
        assert (await client.post("/v1/apps", content=once())).status_code == 401


def test_other_origin_sees_no_token(koyeb: str) -> None:
    """A request to somebody else goes out without the token."""
    other = FakeKoyeb()
    with (
        other.serve() as url,
        SessionClient(base_url=koyeb, credentials=PASSWORDS) as session,
        httpx2.Client(auth=auth_for(session)) as client,
    ):
        session.current_token()
        assert client.get(f"{url}/v1/apps").status_code == 401
    assert "authorization" not in {name.lower() for name in other.requests[0].headers}


@pytest.mark.blocks_loop
async def test_wrong_half_is_refused(koyeb: str) -> None:
    """The auth of one half does not go out unsigned on a client of the other."""
    with SessionClient(base_url=koyeb) as session:
        async with httpx2.AsyncClient(auth=auth_for(session)) as client:
            with pytest.raises(TypeError, match="AsyncSessionClient"):
                await client.get(koyeb)
    async with AsyncSessionClient(base_url=koyeb) as other:
        with (
            httpx2.Client(auth=auth_for(other)) as blocking,
            pytest.raises(TypeError, match="SessionClient"),
        ):
            blocking.get(koyeb)
    nobody: Any = None
    with pytest.raises(TypeError, match="NoneType"):
        auth_for(nobody)


def test_openai_client_sends_session_token(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """The OpenAI client reaches a service behind the session, across an expiry."""
    with (
        SessionClient(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock) as session,
        httpx2.Client(auth=auth_for(session)) as http_client,
        openai.OpenAI(
            base_url=f"{koyeb}/v1", api_key="unused", http_client=http_client, max_retries=0
        ) as client,
    ):
        for _ in range(2):
            answer: Any = client.get("/apps", cast_to=object)
            assert answer["count"] == 0
            koyeb_clock.advance(NEARLY)
    assert fake_koyeb.exchanges() == 1


def test_missing_httpx2_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without httpx2 the error says what to install."""
    real = builtins.__import__

    def fail(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "httpx2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "koyeb_session.httpx2")
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=r"koyeb-session\[httpx2\]"):
        importlib.import_module("koyeb_session.httpx2")
