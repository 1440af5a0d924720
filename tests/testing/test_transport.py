"""The transport: its replies to httpx, blocking and awaiting."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import anyio
import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..soak import SOAK

APPS = "https://app.koyeb.com/v1/apps"
TASKS = 10_000 if SOAK else 1_000


def blocking_chunks() -> Iterator[bytes]:
    """Give a body that can be read once, and not awaited."""
    yield b"{}"


async def awaited_chunks() -> AsyncIterator[bytes]:
    """Give a body that can be read once, and only awaited."""
    yield b"{"
    yield b"}"


def authorized(fake: FakeKoyeb) -> dict[str, str]:
    """Give the headers of a signed-in client."""
    return {"Authorization": f"Bearer {fake.issue_token()}"}


def test_body_is_read_from_the_stream() -> None:
    """A body that was used up cannot be sent again, as on a real connection."""
    fake = FakeKoyeb()
    with httpx.Client(transport=fake.transport, headers=authorized(fake)) as client:
        request = client.build_request("POST", APPS, content=blocking_chunks())
        assert client.send(request).json()["received"] == 2
        with pytest.raises(httpx.StreamConsumed):
            client.send(request)
    assert len(fake.requests) == 1


async def test_body_is_read_from_the_awaited_stream() -> None:
    """The same holds for a body that is awaited."""
    fake = FakeKoyeb()
    async with httpx.AsyncClient(transport=fake.transport, headers=authorized(fake)) as client:
        request = client.build_request("POST", APPS, content=awaited_chunks())
        assert (await client.send(request)).json()["received"] == 2
        with pytest.raises(httpx.StreamConsumed):
            await client.send(request)
    assert len(fake.requests) == 1


async def test_body_must_fit_the_half() -> None:
    """A body to be awaited cannot be sent blocking, nor the other way round."""
    transport = FakeKoyeb().transport
    with pytest.raises(TypeError, match="awaited"):
        transport.handle_request(httpx.Request("POST", APPS, content=awaited_chunks()))
    with pytest.raises(TypeError, match="block"):
        await transport.handle_async_request(httpx.Request("POST", APPS, content=blocking_chunks()))


def test_reply_is_a_stream_until_it_is_read() -> None:
    """Nobody has read the reply yet; that it was closed shows on the transport, once."""
    fake = FakeKoyeb()
    with (
        httpx.Client(transport=fake.transport) as client,
        client.stream("GET", APPS, headers=authorized(fake)) as reply,
    ):
        assert fake.transport.open_replies == 1
        assert repr(fake.transport) == "<FakeTransport, 1 replies open>"
        with pytest.raises(httpx.ResponseNotRead):
            _ = reply.content
        assert b'"apps"' in reply.read()
        assert fake.transport.open_replies == 0
    assert fake.transport.open_replies == 0


async def test_reply_is_closed_once() -> None:
    """To close a reply again, in whichever way, changes nothing."""
    fake = FakeKoyeb()
    reply = fake.transport.handle_request(httpx.Request("GET", APPS))
    stream = reply.stream
    assert isinstance(stream, httpx.SyncByteStream)
    assert isinstance(stream, httpx.AsyncByteStream)
    for _ in range(2):
        stream.close()
        await stream.aclose()
        assert fake.transport.open_replies == 0


async def test_reply_is_a_stream_until_it_is_awaited() -> None:
    """The awaiting half streams as well, and a reply may be closed unread."""
    fake = FakeKoyeb()
    async with httpx.AsyncClient(transport=fake.transport) as client:
        async with client.stream("GET", APPS, headers=authorized(fake)):
            assert fake.transport.open_replies == 1
        assert fake.transport.open_replies == 0
        async with client.stream("GET", APPS, headers=authorized(fake)) as reply:
            assert b'"apps"' in await reply.aread()
    assert fake.transport.open_replies == 0


async def test_truncated_reply_breaks_the_awaited_stream() -> None:
    """The bytes of a truncated body that arrived can be read before the error comes."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(truncate=3))
    async with (
        httpx.AsyncClient(transport=fake.transport) as client,
        client.stream("GET", APPS, headers=authorized(fake)) as reply,
    ):
        stream = reply.aiter_raw()
        assert await anext(stream) == b'{"a'
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(stream)


async def test_reset_breaks_the_awaited_request() -> None:
    """The awaiting half sees the same error of a broken connection."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(reset=True))
    async with httpx.AsyncClient(transport=fake.transport) as client:
        with pytest.raises(httpx.ReadError):
            await client.get(APPS)


async def test_shared_transport_survives_its_clients() -> None:
    """Clients of both halves may close the transport, and others go on using it."""
    fake = FakeKoyeb()
    for _ in range(2):
        async with httpx.AsyncClient(transport=fake.transport) as client:
            assert (await client.get(APPS)).status_code == 401
        with httpx.Client(transport=fake.transport) as client:
            assert client.get(APPS).status_code == 401


async def test_tasks_come_in_between() -> None:
    """A request gives way to other tasks, so that concurrent ones really overlap."""
    fake = FakeKoyeb()
    arrived: list[int] = []

    async with (
        httpx.AsyncClient(transport=fake.transport) as client,
        anyio.create_task_group() as t,
    ):

        async def get() -> None:
            await client.get(APPS)
            arrived.append(len(fake.requests))

        for _ in range(10):
            t.start_soon(get)
    assert arrived == [10] * 10


async def test_cancelled_task_loses_the_reply() -> None:
    """A caller that is cancelled while the reply is held goes at once; the deed is done."""
    fake, gate = FakeKoyeb(), Gate()
    fake.fail("refresh", Fault(gate=gate))
    async with (
        httpx.AsyncClient(transport=fake.transport, headers=authorized(fake)) as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(client.put, "https://app.koyeb.com/v1/account/refresh")
        await gate.await_arrived()
        tasks.cancel_scope.cancel()
    assert fake.exchanges() == 1
    assert fake.requests[-1].status is None
    assert fake.transport.open_replies == 0


async def test_thousands_of_tasks_are_served() -> None:
    """The transport takes as many tasks as a service may have."""
    fake = FakeKoyeb()
    request = httpx.Request("GET", APPS, headers=authorized(fake))
    async with anyio.create_task_group() as tasks:
        for _ in range(TASKS):
            tasks.start_soon(fake.transport.handle_async_request, request)
    assert {received.status for received in fake.requests} == {200}
    assert len(fake.requests) == fake.transport.open_replies == TASKS


def test_two_hundred_threads_are_served() -> None:
    """With ``revokes``, of many threads that refresh one token exactly one succeeds."""
    fake = FakeKoyeb()
    request = httpx.Request(
        "PUT", "https://app.koyeb.com/v1/account/refresh", headers=authorized(fake)
    )
    barrier = threading.Barrier(200)

    def refresh() -> None:
        barrier.wait()
        fake.transport.handle_request(request).close()

    threads = [threading.Thread(target=refresh) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(received.status) for received in fake.requests) == ["200"] + ["401"] * 199
    assert fake.exchanges() == 1
    assert fake.live_tokens() == []


def test_any_host_is_answered() -> None:
    """Other origins lead to the service too, so that a test sees the requests to them."""
    fake = FakeKoyeb()
    with httpx.Client(transport=fake.transport) as client:
        assert client.get("https://elsewhere.example/v1/apps").status_code == 401
    assert fake.requests[0].headers["host"] == "elsewhere.example"
