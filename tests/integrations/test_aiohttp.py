"""The extra `aiohttp`: the connections of aiohttp's, for a service with very many requests."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import anyio
import httpx
import pytest
from httpx_aiohttp import AiohttpTransport

from koyeb_session import AsyncSessionClient, TransportError
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..support import ME, PASSWORD
from .conftest import NEARLY, Proxy, Serve


async def tour(session: AsyncSessionClient, client: httpx.AsyncClient, clock: FakeClock) -> None:
    """Sign in, and make two requests; the token is renewed before the second one."""
    token = await session.login(ME, PASSWORD)
    assert (await client.get("/v1/apps")).status_code == 200
    clock.advance(NEARLY)
    assert (await client.get("/v1/apps")).status_code == 200
    assert session.token != token


async def tour_over(transport: AiohttpTransport, url: str, clock: FakeClock) -> None:
    """Make the tour with a session on a transport."""
    async with AsyncSessionClient(base_url=url, transport=transport, clock=clock) as session:
        await tour(session, session.http, clock)


async def test_transport_of_the_session(koyeb: str, koyeb_clock: FakeClock) -> None:
    """Everything goes over it."""
    await tour_over(AiohttpTransport(), koyeb, koyeb_clock)


async def test_transport_of_the_users_own_client(koyeb: str, koyeb_clock: FakeClock) -> None:
    """Requests go over it, and operations over httpx's own."""
    async with (
        AsyncSessionClient(base_url=koyeb, clock=koyeb_clock) as session,
        httpx.AsyncClient(
            base_url=koyeb, auth=session.auth, transport=AiohttpTransport()
        ) as client,
    ):
        await tour(session, client, koyeb_clock)


async def test_tls(
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
    serve: Serve,
    trust: ssl.SSLContext,
    tmp_path: Path,
) -> None:
    """It trusts whom it is told to, and nobody else."""
    with serve(fake_koyeb.app, certificate=tmp_path / "server.pem") as url:
        await tour_over(AiohttpTransport(verify=trust), url, koyeb_clock)
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            await tour_over(AiohttpTransport(), url, koyeb_clock)


async def test_proxy(koyeb: str, koyeb_clock: FakeClock, proxy: Proxy) -> None:
    """It goes through the proxy that it is told of."""
    await tour_over(AiohttpTransport(proxy=httpx.Proxy(proxy.url)), koyeb, koyeb_clock)


async def test_connections_are_used_again(koyeb: str, koyeb_clock: FakeClock) -> None:
    """A login, two requests and a renewal, one after another, need one connection."""
    traced: list[str] = []

    async def note(_session: object, _context: object, params: object) -> None:
        traced.append(type(params).__name__)

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(note)
    trace.on_connection_reuseconn.append(note)
    transport = AiohttpTransport(client=lambda: aiohttp.ClientSession(trace_configs=[trace]))
    await tour_over(transport, koyeb, koyeb_clock)
    assert traced == ["TraceConnectionCreateEndParams", *["TraceConnectionReuseconnParams"] * 3]


async def test_a_cancelled_request_leaves_the_session_usable(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """Be it cancelled at the service, or while it waits for a connection."""
    transport = AiohttpTransport(limits=httpx.Limits(max_connections=1))
    async with AsyncSessionClient(
        base_url=koyeb, transport=transport, clock=koyeb_clock
    ) as session:
        await session.login(ME, PASSWORD)
        gate = Gate()
        fake_koyeb.fail("apps", Fault(gate=gate))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.http.get, "/v1/apps")
            await gate.await_arrived()
            tasks.start_soon(session.http.get, "/v1/apps")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert (await session.http.get("/v1/apps")).status_code == 200
        await session.refresh()


async def test_a_login_whose_reply_is_lost_is_not_repeated(
    koyeb: str, fake_koyeb: FakeKoyeb
) -> None:
    """Pitfall 23: its transport calls that a `ConnectTimeout`; accounts lock all the same."""
    fake_koyeb.fail("login", Fault(reset=True))
    async with AsyncSessionClient(base_url=koyeb, transport=AiohttpTransport()) as session:
        with pytest.raises(TransportError) as caught:
            await session.login(ME, PASSWORD)
    assert isinstance(caught.value.__cause__, httpx.ConnectTimeout)
    assert [request.operation for request in fake_koyeb.requests] == ["login"]


async def test_a_refresh_beside_it_whose_reply_is_lost_is_not_repeated(
    koyeb: str, fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    """Aiohttp repeats a `PUT` by itself: the operations of a session need not go over it."""
    async with (
        AsyncSessionClient(
            base_url=koyeb, token=fake_koyeb.issue_token(), clock=koyeb_clock
        ) as session,
        httpx.AsyncClient(
            base_url=koyeb, auth=session.auth, transport=AiohttpTransport()
        ) as client,
    ):
        fake_koyeb.fail("refresh", Fault(reset=True))
        koyeb_clock.advance(NEARLY)
        assert (await client.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake_koyeb.requests] == ["refresh", "apps"]
