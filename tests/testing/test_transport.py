"""The transport: its replies to httpx, blocking and awaiting."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..concurrency import gather

APPS = "https://app.koyeb.com/v1/apps"


def blocking_chunks() -> Iterator[bytes]:
    """Give a body that can be read once, and not awaited."""
    yield b"{}"


async def awaited_chunks() -> AsyncIterator[bytes]:
    """Give a body that can be read once, and only awaited."""
    yield b"{"
    yield b"}"


def test_body_is_read_from_the_stream(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A body that was used up cannot be sent again, as on a real connection."""
    request = client.build_request("POST", APPS, content=blocking_chunks())
    assert client.send(request).json()["received"] == 2
    with pytest.raises(httpx.StreamConsumed):
        client.send(request)
    assert len(fake.requests) == 1


async def test_body_is_read_from_the_awaited_stream(
    fake: FakeKoyeb, async_client: httpx.AsyncClient
) -> None:
    """The same holds for a body that is awaited."""
    request = async_client.build_request("POST", APPS, content=awaited_chunks())
    assert (await async_client.send(request)).json()["received"] == 2
    with pytest.raises(httpx.StreamConsumed):
        await async_client.send(request)
    assert len(fake.requests) == 1


async def test_body_must_fit_the_half(fake: FakeKoyeb) -> None:
    """A body to be awaited cannot be sent blocking, nor the other way round."""
    send, send_async = fake.transport.handle_request, fake.transport.handle_async_request
    with pytest.raises(TypeError, match="awaited"):
        send(httpx.Request("POST", APPS, content=awaited_chunks()))
    with pytest.raises(TypeError, match="block"):
        await send_async(httpx.Request("POST", APPS, content=blocking_chunks()))


def test_reply_is_a_stream_until_it_is_read(fake: FakeKoyeb, client: httpx.Client) -> None:
    """Nobody has read the reply yet; that it was closed shows on the transport, once."""
    with client.stream("GET", APPS) as reply:
        assert fake.transport.open_replies == 1
        assert repr(fake.transport) == "<FakeTransport, 1 replies open>"
        with pytest.raises(httpx.ResponseNotRead):
            _ = reply.content
        assert b'"apps"' in reply.read()
        assert fake.transport.open_replies == 0
    assert fake.transport.open_replies == 0


async def test_reply_is_a_stream_until_it_is_awaited(
    fake: FakeKoyeb, async_client: httpx.AsyncClient
) -> None:
    """The awaiting half streams as well, and a reply may be closed unread, and again."""
    async with async_client.stream("GET", APPS) as reply:
        assert fake.transport.open_replies == 1
    stream = reply.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    await stream.aclose()
    assert fake.transport.open_replies == 0
    async with async_client.stream("GET", APPS) as reply:
        assert b'"apps"' in await reply.aread()
    assert fake.transport.open_replies == 0


async def test_truncated_reply_breaks_the_awaited_stream(
    fake: FakeKoyeb, async_client: httpx.AsyncClient
) -> None:
    """The bytes of a truncated body that arrived can be read before the error comes."""
    fake.fail("apps", Fault(truncate=3))
    async with async_client.stream("GET", APPS) as reply:
        stream = reply.aiter_raw()
        assert await anext(stream) == b'{"a'
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(stream)


async def test_shared_transport_survives_its_clients(fake: FakeKoyeb) -> None:
    """Clients of both halves may close the transport, and others go on using it."""
    for _ in range(2):
        async with httpx.AsyncClient(transport=fake.transport) as client:
            assert (await client.get(APPS)).status_code == 401
        with httpx.Client(transport=fake.transport) as client:
            assert client.get(APPS).status_code == 401


async def test_tasks_come_in_between(fake: FakeKoyeb, async_client: httpx.AsyncClient) -> None:
    """A request gives way to other tasks, so that concurrent ones really overlap."""
    arrived: list[int] = []

    async def get() -> None:
        await async_client.get(APPS)
        arrived.append(len(fake.requests))

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(get)
    assert arrived == [10] * 10


async def test_cancelled_task_loses_the_reply(
    fake: FakeKoyeb, async_client: httpx.AsyncClient
) -> None:
    """A caller that is cancelled while the reply is held goes at once; the deed is done."""
    fake.fail("refresh", Fault(gate=(gate := Gate())))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(async_client.put, "/v1/account/refresh")
        await gate.await_arrived()
        tasks.cancel_scope.cancel()
    assert fake.exchanges() == 1
    assert fake.requests[-1].status is None
    assert fake.transport.open_replies == 0


def test_two_hundred_threads_are_served(fake: FakeKoyeb, client: httpx.Client) -> None:
    """With ``revokes``, of many threads that refresh one token exactly one succeeds."""
    request = client.build_request("PUT", "/v1/account/refresh")
    barrier = threading.Barrier(200)

    def refresh() -> httpx.Response:
        barrier.wait()
        return fake.transport.handle_request(request)

    replies = gather(*[refresh] * 200)
    assert sorted(reply.status_code for reply in replies) == [200] + [401] * 199
    assert fake.exchanges() == 1
    assert fake.live_tokens() == []


def test_any_host_is_answered(fake: FakeKoyeb, client: httpx.Client) -> None:
    """Other origins lead to the service too, so that a test sees the requests to them."""
    assert client.get("https://elsewhere.example/v1/apps").status_code == 200
    assert fake.requests[0].headers["host"] == "elsewhere.example"
