"""The service as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault


@pytest.fixture
async def client(fake: FakeKoyeb) -> AsyncIterator[httpx.AsyncClient]:
    """Connect to the application, signed in."""
    headers = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(fake.app), base_url="http://testserver", headers=headers
    ) as client:
        yield client


async def call(fake: FakeKoyeb, scope: dict[str, Any], *messages: dict[str, Any]) -> list[Any]:
    """Call the application by hand, and return the messages that it sends."""
    received, sent = iter(messages), list[Any]()

    async def receive() -> dict[str, Any]:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)

    await fake.app(scope, receive, send)
    return sent


async def test_application_serves_operations(fake: FakeKoyeb, client: httpx.AsyncClient) -> None:
    """Over ASGI the service acts as over its transport, query and body included."""
    assert (await client.post("/v1/apps", json={"name": "web"})).status_code == 200
    page = (await client.get("/v1/apps", params={"offset": 1})).json()
    assert (page["apps"], page["count"]) == ([], 1)
    assert [request.status for request in fake.requests] == [200, 200]


async def test_broken_connection_is_raised(fake: FakeKoyeb, client: httpx.AsyncClient) -> None:
    """Through httpx's own transport, a reset and a truncation are the errors that they are."""
    fake.fail("apps", Fault(reset=True))
    fake.fail("apps", Fault(truncate=3))
    for error in (httpx.ReadError, httpx.RemoteProtocolError):
        with pytest.raises(error):
            await client.get("/v1/apps")


@pytest.mark.parametrize(
    "place",
    [
        {"path": "/v1/apps"},
        {"path": "/v1/apps", "raw_path": None, "root_path": ""},
        {"path": "/mnt/v1/apps", "raw_path": b"/mnt/v1/apps", "root_path": "/mnt"},
        {"path": "/v1/apps", "raw_path": b"/v1/apps", "root_path": "/mnt"},
    ],
)
async def test_path_is_found_where_mounted(fake: FakeKoyeb, place: dict[str, Any]) -> None:
    """The application finds its paths wherever a server or a framework mounts it."""
    scope: dict[str, Any] = {"type": "http", "method": "GET", **place}
    scope |= {"query_string": b"", "headers": []}
    start, body = await call(fake, scope, {"type": "http.request"})
    assert (start["status"], body["more_body"]) == (401, False)
    assert fake.requests[0].path == "/v1/apps"


async def test_disconnected_client_is_not_answered(fake: FakeKoyeb) -> None:
    """A client that goes away while it sends leaves nothing behind."""
    scope = {"type": "http", "method": "POST", "path": "/v1/apps"}
    part = {"type": "http.request", "body": b"{", "more_body": True}
    assert await call(fake, scope, part, {"type": "http.disconnect"}) == []
    assert fake.requests == []


async def test_lifespan_is_acknowledged() -> None:
    """A server that announces start and end is answered."""
    events = ["lifespan.startup", "lifespan.shutdown"]
    sent = await call(FakeKoyeb(), {"type": "lifespan"}, *({"type": event} for event in events))
    assert [message["type"] for message in sent] == [f"{event}.complete" for event in events]


async def test_websocket_is_refused() -> None:
    """There is nothing to talk about over a websocket."""
    sent = await call(FakeKoyeb(), {"type": "websocket"}, {"type": "websocket.connect"})
    assert [message["type"] for message in sent] == ["websocket.close"]
