"""The connection below each transport of a client's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any

import httpcore
import httpx
import pytest
import respx

from koyeb_session import AsyncSessionClient
from koyeb_session._http.tls import certificates
from koyeb_session.testing import FakeClock, FakeKoyeb

MODULE = AsyncSessionClient.login.__module__.replace("client", "http.connection")


@pytest.fixture
async def session(fake: FakeKoyeb, url: str, clock: FakeClock) -> AsyncIterator[AsyncSessionClient]:
    """Make a client of the service on sockets."""
    token = fake.issue_token()
    async with AsyncSessionClient(base_url=url, token=token, clock=clock) as session:
        yield session


async def network(session: AsyncSessionClient, url: str = "/v1/apps") -> object:
    """Send a request, and return the network stream that it went over."""
    reply = await session.http.get(url, auth=None)
    assert reply.status_code == 401
    return reply.extensions["network_stream"]


async def test_requests_share_an_open_connection(session: AsyncSessionClient) -> None:
    """Catches a connection that is opened anew for each request."""
    assert await network(session) is await network(session)


async def test_a_connection_that_the_service_has_closed_is_replaced(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """Catches a request that fails because the connection was closed while it was idle."""
    with fake.serve() as url:
        first = await network(session, f"{url}/v1/apps")
    with fake.serve(port=httpx.URL(url).port or 0):
        assert await network(session, f"{url}/v1/apps") is not first


async def test_an_unknown_scheme_is_refused(session: AsyncSessionClient) -> None:
    """The error is httpx's own, rather than one about a missing port."""
    for url in ("ftp://127.0.0.1/", "ftp://127.0.0.1:21/"):
        with pytest.raises(httpx.UnsupportedProtocol):
            await session.http.get(url, auth=None)
    assert (await session.http.get("/v1/apps")).status_code == 200


@pytest.mark.parametrize("opened", [False, True])
async def test_respx_answers_in_place_of_an_open_connection(
    session: AsyncSessionClient, url: str, fake: FakeKoyeb, *, opened: bool
) -> None:
    """While respx mocks, it replaces methods of httpcore; catches a request that goes past them."""
    if opened:
        assert (await session.http.get("/v1/apps")).status_code == 200
    with respx.mock:
        respx.get(f"{url}/v1/apps").pass_through()
        respx.delete(f"{url}/v1/apps").respond(418)
        for _ in range(2):
            assert (await session.http.get("/v1/apps")).status_code == 200
            assert (await session.http.delete("/v1/apps")).status_code == 418
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert [request.method for request in fake.requests] == ["GET"] * (3 + opened)


async def test_a_recorder_in_place_of_the_pool_sees_each_request(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, vcrpy 8 replaces the method of the pool alone."""
    seen: list[httpcore.Request] = []
    original = httpcore.AsyncConnectionPool.handle_async_request

    async def record(self: httpcore.AsyncConnectionPool, request: httpcore.Request) -> Any:
        seen.append(request)
        return await original(self, request)

    first = await network(session)
    monkeypatch.setattr(httpcore.AsyncConnectionPool, "handle_async_request", record)
    second = await network(session)
    assert await network(session) is second
    monkeypatch.undo()
    assert len(seen) == 2
    assert await network(session) is first


async def test_a_connection_that_is_closed_before_its_turn_is_replaced(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another task or thread closes the client meanwhile; catches an error that is not httpx's."""
    first = await network(session)
    original = httpcore.AsyncHTTP11Connection.handle_async_request

    async def close(self: httpcore.AsyncHTTP11Connection, request: httpcore.Request) -> Any:
        monkeypatch.undo()
        await self.aclose()
        return await original(self, request)

    monkeypatch.setattr(httpcore.AsyncHTTP11Connection, "handle_async_request", close)
    assert await network(session) is not first


async def test_the_pool_of_a_proxy_stays() -> None:
    """Catches a request that goes around the proxy."""
    module = import_module(MODULE)
    transport: Any = module.async_single_transport(httpx.URL("http://proxy:1"), certificates())
    assert isinstance(transport._pool, module.httpcore.AsyncHTTPProxy)
    await transport.aclose()


async def test_a_pool_under_another_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later httpx may keep it anywhere."""
    plain = httpx.AsyncBaseTransport()

    def make(_proxy: object, _certificates: object) -> httpx.AsyncBaseTransport:
        return plain

    monkeypatch.setattr(f"{MODULE}.async_http_transport", make)
    assert import_module(MODULE).async_single_transport(None, certificates()) is plain
    assert vars(plain) == {}
