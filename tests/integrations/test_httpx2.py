"""The session's auth on httpx2 clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.httpx2 import auth_for
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..support import PASSWORDS
from .conftest import BOTH_LOOPS, HALVES, NEARLY, opened, use

anyio_backend = BOTH_LOOPS


async def once() -> AsyncIterator[bytes]:
    """Give a body that cannot be sent again."""
    yield b"once"


@HALVES
async def test_client_is_kept_signed_in(
    half: Any, koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """A client signs in, renews, and replays a refused request whose body is in memory."""
    is_blocking = half is SessionClient
    kind: Any = httpx2.Client if is_blocking else httpx2.AsyncClient
    session = half(base_url=koyeb, credentials=PASSWORDS, clock=koyeb_clock)
    async with opened(session), opened(kind(base_url=koyeb, auth=auth_for(session))) as client:
        for expiries in range(3):
            assert (await use(client.get("/v1/apps"))).status_code == 200
            assert fake_koyeb.exchanges() == expiries
            koyeb_clock.advance(NEARLY)
        # So begins a WebSocket of httpx2.
        assert (await use(client.get(f"{koyeb}/v1/apps".replace("http", "ws")))).status_code == 200
        fake_koyeb.revoke_all()
        assert (await use(client.post("/v1/apps", json={"name": "again"}))).status_code == 200
        fake_koyeb.revoke_all()
        body = iter([b"once"]) if is_blocking else once()
        assert (await use(client.post("/v1/apps", content=body))).status_code == 401
        assert (await use(client.get("/v1/apps"))).status_code == 200


def test_401_is_enough_if_its_body_cannot_be_read(koyeb: str, fake_koyeb: FakeKoyeb) -> None:
    """The errors of httpx2 are others than those of httpx."""
    with (
        SessionClient(base_url=koyeb, credentials=PASSWORDS, clock=fake_koyeb.clock) as session,
        httpx2.Client(base_url=koyeb, auth=auth_for(session)) as client,
    ):
        session.current_token()
        fake_koyeb.fail("apps", Fault(status=401, truncate=3))
        assert client.get("/v1/apps").status_code == 200
        fake_koyeb.fail("apps", Fault(status=401, truncate=3))
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post("/v1/apps", content=iter([b"{}"]))
    assert fake_koyeb.exchanges() == 2


def test_401_is_enough_if_a_hook_has_used_its_body(koyeb: str, fake_koyeb: FakeKoyeb) -> None:
    """Such a reply of httpx2 is replaced by one of httpx2."""

    def log_error(response: httpx2.Response) -> None:
        if response.is_error:
            list(response.iter_bytes())

    hooks = {"response": [log_error]}
    with (
        SessionClient(base_url=koyeb, credentials=PASSWORDS, clock=fake_koyeb.clock) as session,
        httpx2.Client(base_url=koyeb, auth=auth_for(session), event_hooks=hooks) as client,
    ):
        session.current_token()
        fake_koyeb.fail("apps", Fault(status=401, body="refused"))
        response = client.get("/v1/apps")
        assert response.status_code == 200
        assert [it.content for it in response.history] == [b""]


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
