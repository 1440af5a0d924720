"""The connections of a client: proxies from the environment, places, and their end."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, TransportError
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import AsyncBackground, async_arrived, async_gather
from ..support import ME, PASSWORD, inside
from .doubles import Connect

pytestmark = pytest.mark.usefixtures("no_proxies")


async def test_requests_and_operations_go_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, fake: FakeKoyeb, url: str
) -> None:
    """The service plays the proxy: the client asks it for a URL of another host."""
    monkeypatch.setenv("http_proxy", url)
    async with AsyncSessionClient(base_url="http://127.0.0.2:9", clock=clock) as session:
        await session.login(ME, PASSWORD)
        assert (await session.http.get("/v1/apps")).status_code == 200
        (slots,) = inside(session).opened.values()
        assert [route[0] for route, _ in slots._idle.values()] == [url]
    assert [request.headers["host"] for request in fake.requests] == ["127.0.0.2:9"] * 2


async def test_a_given_transport_knows_no_proxies(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    """A user's own transport decides where it leads."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    session = connect()
    await session.login(ME, PASSWORD)
    assert not inside(session).connections.opened


async def test_connections_are_made_once_for_all(url: str, clock: FakeClock) -> None:
    """Callers share the connections of their place, and the exchange has its own."""
    async with AsyncSessionClient(base_url=url, clock=clock) as session:
        await session.login(ME, PASSWORD)
        assert inside(session).operation_connections is not inside(session).connections
        before = dict(inside(session).operations_opened)
        await async_gather(*[lambda: session.http.get("/v1/apps")] * 8)
        await session.refresh()
        assert inside(session).operations_opened == before
        assert len(inside(session).opened) == 1


async def test_connections_of_a_dead_place_are_dropped(url: str, clock: FakeClock) -> None:
    """A transport of another place is neither used nor closed."""
    async with AsyncSessionClient(base_url=url, clock=clock) as session:
        assert (await session.http.get(f"{url}/v1/nothing", auth=None)).status_code == 404
        (old,) = inside(session).opened.values()
        inside(session).opened = {(object(), object()): old}
        assert (await session.http.get(f"{url}/v1/nothing", auth=None)).status_code == 404
        (new,) = inside(session).opened.values()
        assert new is not old
        await old.aclose()


async def test_of_two_threads_that_open_the_first_one_counts(url: str, clock: FakeClock) -> None:
    """The slower one uses the connections that the other one has opened."""
    async with AsyncSessionClient(base_url=url, clock=clock) as session:
        assert (await session.http.get(f"{url}/v1/nothing", auth=None)).status_code == 404
        ((place, opened),) = inside(session).opened.items()

        class Slower(dict[object, Any]):
            """Shows a thread the transports from before the other one opened its own."""

            def get(self, _key: object, _default: Any = None) -> Any:
                """Find nothing."""

        inside(session).opened = Slower({place: opened})
        assert (await session.http.get(f"{url}/v1/nothing", auth=None)).status_code == 404
        assert inside(session).opened == {place: opened}
        inside(session).opened = {place: opened}


async def test_closing_in_another_place_closes_nothing(url: str, clock: FakeClock) -> None:
    """A client that is closed elsewhere leaves alone the transport that it opened here."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    await session.login(ME, PASSWORD)
    (transport,) = inside(session).operations_opened.values()
    inside(session).operations_opened = {(object(), object()): transport}
    operating = inside(session).operation_connections
    await session.aclose()
    assert not operating.opened
    response = await transport.handle_async_request(httpx.Request("GET", f"{url}/v1/apps"))
    assert response.status_code == 401
    await response.aclose()
    await transport.aclose()


class Stuck(httpx.AsyncBaseTransport):
    """A transport that is interrupted when it is closed first."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        """Raise, the first time."""
        self.closed += 1
        if self.closed == 1:
            raise InterruptedError


async def test_a_second_close_closes_the_rest(url: str, clock: FakeClock) -> None:
    """A close that was interrupted leaves no connection open for good."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    await session.login(ME, PASSWORD)
    operating = inside(session).operation_connections
    (slots,) = inside(session).operations_opened.values()
    stuck = [Stuck() for _ in range(3)]
    slots._made.update(stuck)
    for _ in stuck:
        with pytest.raises(InterruptedError):
            await session.aclose()
    await session.aclose()
    assert [transport.closed for transport in stuck] == [1, 1, 1]
    assert not slots._made
    assert not operating.opened


async def test_an_operation_that_is_cut_off_by_a_close_says_so(
    fake: FakeKoyeb, url: str, clock: FakeClock
) -> None:
    """Catches a network that is blamed, and another attempt that is advised."""
    session = AsyncSessionClient(base_url=url, clock=clock)
    fake.fail("login", Fault(gate=(gate := Gate())))
    async with AsyncBackground() as background:
        job = background.start(lambda: session.login(ME, PASSWORD))
        await async_arrived(gate)
        await session.aclose()
        gate.open()  # a thread that reads notices the end of its socket only now
        with pytest.raises(TransportError, match="the client was closed meanwhile") as info:
            await job.result()
    assert not info.value.retryable


async def test_a_transport_that_cannot_be_closed_keeps_nobody_running(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """`keep_current` of a session of the client's returns even so."""
    stuck = Stuck()
    session = AsyncSessionClient(transport=stuck, clock=clock)
    other = session.for_token(fake.issue_token())
    async with AsyncBackground() as background:
        job = background.start(other.keep_current)
        await background.settled()
        with pytest.raises(InterruptedError):
            await session.aclose()
        await job.result()


async def test_a_closed_http_client_leaves_the_connections_open(
    session: AsyncSessionClient,
) -> None:
    """An httpx client only borrows them."""
    await session.http.aclose()
    token = await session.login(ME, PASSWORD)
    assert session.token is token


async def test_a_refused_connection_is_tried_again(connect: Connect) -> None:
    """Nothing was sent: even a login is sent again, and the cause is httpx's error."""
    tries: list[str] = []

    async def count(request: httpx.Request) -> None:
        tries.append(request.url.path)

    async with httpx.AsyncClient(event_hooks={"request": [count]}) as client:
        session = connect(base_url="http://127.0.0.1:1", http_client=client)
        with pytest.raises(TransportError, match="no reply to POST http://127") as caught:
            await session.login(ME, PASSWORD)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert tries == ["/v1/account/login"] * 3
