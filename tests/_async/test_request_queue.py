"""Many requests of `session.http` at once: the order of the queue, and the token of each turn."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, AuthenticationError
from koyeb_session._concurrency.event_loop.tickets import AsyncTicket
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    AsyncBackground,
    AsyncJob,
    async_arrived,
    async_gather,
    async_read,
    async_until,
)
from ..support import DAY, PASSWORDS, inside, operations, raising
from .doubles import Connect

QUEUE = AsyncSessionClient.login.__module__.replace("client", "http.queue")
CONNECTION = AsyncSessionClient.login.__module__.replace("client", "http.connection")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let two requests through at a time."""
    monkeypatch.setattr(f"{QUEUE}.MAX_CONNECTIONS", 2)
    return 2


@pytest.fixture
async def session(
    limit: int, fake: FakeKoyeb, url: str, clock: FakeClock
) -> AsyncIterator[AsyncSessionClient]:
    """Make a client of the service on sockets."""
    async with AsyncSessionClient(
        base_url=url, token=fake.issue_token(), credentials=PASSWORDS, clock=clock
    ) as session:
        yield session


def slots(session: AsyncSessionClient) -> Any:
    """Give the connections of the client's requests."""
    (opened,) = inside(session).opened.values()
    return opened


def is_open(transport: Any) -> bool:
    """Return whether a transport has a connection."""
    connection = transport._pool.connection
    return connection is not None and not connection.is_closed()


async def hold(session: AsyncSessionClient, fake: FakeKoyeb, background: AsyncBackground) -> Gate:
    """Have requests take all turns, and keep them until the gate opens."""
    gate = Gate()
    fake.fail("apps", Fault(gate=gate), times=2)
    for _ in range(2):
        background.start(lambda: session.http.get("/v1/apps"))
    await async_arrived(gate, 2)
    return gate


async def in_queue(session: AsyncSessionClient, n: int = 1) -> None:
    """Wait until ``n`` requests wait for their turn."""
    await async_until(lambda: len(slots(session)._request_queue._queue) == n)


@asynccontextmanager
async def waiting_request(
    session: AsyncSessionClient, fake: FakeKoyeb, **arguments: Any
) -> AsyncGenerator[tuple[Gate, AsyncJob[httpx.Response]]]:
    """Let requests take all turns until the gate opens, and another one wait for its turn."""
    async with AsyncBackground() as background:
        gate = await hold(session, fake, background)
        waiting = background.start(lambda: session.http.get("/v1/apps", **arguments))
        await in_queue(session)
        yield gate, waiting


# Turns


async def test_requests_are_served_in_order(session: AsyncSessionClient, fake: FakeKoyeb) -> None:
    """More requests than turns wait in the queue, and go out in the order in which they came."""
    gates = [Gate(), Gate()]
    async with AsyncBackground() as background:
        for gate in gates:
            fake.fail("apps", Fault(gate=gate))
            background.start(lambda: session.http.get("/v1/apps"))
            await async_arrived(gate)
        for n in range(5):
            background.start(partial(session.http.get, "/v1/apps", headers={"number": str(n)}))
            await in_queue(session, n + 1)
        gates[0].open()  # one turn goes round
        await async_until(lambda: len(fake.requests) == 2 + 5)
        gates[1].open()
    assert [it.headers["number"] for it in fake.requests[2:]] == ["0", "1", "2", "3", "4"]
    assert len(slots(session)._made) == 2


async def test_a_request_waits_for_no_longer_than_it_says(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """Its pool timeout counts, as in httpx; a request that gives up leaves the queue."""
    async with AsyncBackground() as background:
        gate = await hold(session, fake, background)
        with pytest.raises(httpx.PoolTimeout) as caught:
            await session.http.get("/v1/apps", timeout=httpx.Timeout(5, pool=0.001))
        assert caught.value.request.url.path == "/v1/apps"
        await in_queue(session, 0)
        gate.open()
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_each_turn_is_released(session: AsyncSessionClient, fake: FakeKoyeb) -> None:
    """However a request ends; catches a turn that is lost with a failure."""
    for _ in range(3):
        with pytest.raises(httpx.ConnectError):
            await session.http.get("http://127.0.0.1:1", auth=None)
        fake.fail("apps", Fault(reset=True))
        with pytest.raises(httpx.TransportError):
            await session.http.get("/v1/apps")
        fake.fail("apps", Fault(truncate=3))
        request = session.http.build_request("GET", "/v1/apps")
        with pytest.raises(httpx.RemoteProtocolError):  # and nobody closes the response
            await async_read(await session.http.send(request, stream=True))
        async with session.http.stream("GET", "/v1/apps"):
            """Leave the body where it is."""
    assert len(slots(session)._request_queue._free) == 2


async def test_a_turn_is_released_when_there_can_be_no_connection(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one may fail, with the certificates for example."""
    monkeypatch.setattr(f"{CONNECTION}.async_single_transport", raising(OSError()))
    for _ in range(3):
        with pytest.raises(OSError):  # noqa: PT011 - there is no more to it
            await session.http.get("/v1/apps")
    assert len(slots(session)._request_queue._free) == 2


async def test_a_turn_for_nobody_stays_free(session: AsyncSessionClient) -> None:
    """The last one in the queue was called by another thread meanwhile."""
    assert (await session.http.get("/v1/apps")).status_code == 200
    turns = slots(session)._request_queue

    class Emptied(deque[object]):
        """A queue that another thread empties."""

        def popleft(self) -> object:
            self.clear()
            return super().popleft()

    turns._queue = Emptied(["somebody"])
    turns._wake_first()
    assert len(turns._free) == 2


@pytest.mark.parametrize("called", [False, True])
async def test_a_request_interrupted_in_the_queue_keeps_no_turn(
    session: AsyncSessionClient, monkeypatch: pytest.MonkeyPatch, *, called: bool
) -> None:
    """Be it that its turn has just come."""
    assert (await session.http.get("/v1/apps")).status_code == 200
    turns = slots(session)._request_queue
    await turns.acquire(0)
    await turns.acquire(0)
    turns._queue.append(first := AsyncTicket())

    async def wait(_self: AsyncTicket, _seconds: float | None) -> None:
        for _ in range(2 * called):
            turns.release()
        raise KeyboardInterrupt

    monkeypatch.setattr(AsyncTicket, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        await turns.acquire(None)
    assert [*turns._queue] == ([] if called else [first])
    assert len(turns._free) == called


async def test_a_given_transport_is_used_as_it_is(
    limit: int, fake: FakeKoyeb, connect: Connect
) -> None:
    """A user's own transport decides how many requests it takes at a time."""
    gate = Gate()
    fake.fail("apps", Fault(gate=gate), times=limit + 1)
    session = connect(token=fake.issue_token())
    async with AsyncBackground() as background:
        for _ in range(limit + 1):
            background.start(lambda: session.http.get("/v1/apps"))
        await async_arrived(gate, limit + 1)
        gate.open()


async def test_the_exchange_does_not_wait_for_requests(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """Pitfall 11: all turns are taken, a request waits, and the token is renewed all the same."""
    async with waiting_request(session, fake) as (gate, waiting):
        await session.refresh()
        assert fake.exchanges() == 1
        gate.open()
        assert (await waiting.result()).status_code == 200


# Connections


async def test_idle_connections_are_not_kept_for_ever(
    session: AsyncSessionClient, fake: FakeKoyeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that has been idle for long is closed with the next request."""
    async with AsyncBackground() as background:
        (await hold(session, fake, background)).open()
    old = slots(session)._made.copy()
    assert len(old) == 2
    resting = next(iter(slots(session)._idle.items()))
    for _ in range(2):
        await session.http.get("/v1/apps")
    assert next(iter(slots(session)._idle.items())) == resting  # as one after another need one
    assert slots(session)._made == old
    monkeypatch.setattr(f"{QUEUE}.KEEPALIVE_EXPIRY", -1)
    await session.http.get("/v1/apps")
    assert slots(session)._made == set()
    assert not any(map(is_open, old))


async def test_closing_ends_requests(session: AsyncSessionClient, fake: FakeKoyeb) -> None:
    """Those that are under way fail, those in the queue do not go out, and nothing is left open."""
    gate = Gate()
    fake.fail("apps", Fault(gate=gate), times=2)
    async with AsyncBackground() as background:
        under_way = [background.start(lambda: session.http.get("/v1/apps")) for _ in range(2)]
        await async_arrived(gate, 2)
        in_vain = [
            background.start(partial(session.http.get, "/v1/apps", auth=auth))
            for auth in (session.auth, None)
        ]
        await in_queue(session, 2)
        closed, made = slots(session), slots(session)._made.copy()
        await session.aclose()
        gate.open()
        for job in under_way:
            with pytest.raises(httpx.TransportError):
                await job.result()
        for job in in_vain:
            with pytest.raises(RuntimeError, match="closed"):
                await job.result()
    assert closed._made == set()
    assert not any(map(is_open, made))
    assert len(fake.requests) == 2


@pytest.mark.pitfall(42)
async def test_all_origins_share_one_bound(
    session: AsyncSessionClient, fake: FakeKoyeb, limit: int
) -> None:
    """The connection that has been idle for longest makes room for one to another origin."""
    with ExitStack() as stack:
        others = [stack.enter_context(fake.serve()) for _ in range(3)]
        for url in [*others, others[2], others[1]]:
            assert (await session.http.get(f"{url}/v1/apps", auth=None)).status_code == 401
            assert len(slots(session)._made) <= limit
        ports = [route[3] for route, _ in slots(session)._idle.values()]
        assert ports == [httpx.URL(url).port for url in (others[2], others[1])]


async def test_many_requests_to_many_origins_at_once_share_one_bound(
    session: AsyncSessionClient, fake: FakeKoyeb, limit: int
) -> None:
    """Pitfall 42: each takes the place of one that has just become idle."""
    with ExitStack() as stack:
        others = [stack.enter_context(fake.serve()) for _ in range(4)]
        asks = [partial(session.http.get, f"{url}/v1/apps", auth=None) for url in others]
        replies = await async_gather(*asks * 6)
        assert {reply.status_code for reply in replies} == {401}
        assert len(slots(session)._made) <= limit
        assert len(slots(session)._idle) == len(slots(session)._made)
        assert sum(map(is_open, slots(session)._made)) <= limit


async def test_a_connection_is_used_again_for_its_own_origin(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """Of those that are idle, the one used last for the origin is taken."""
    with fake.serve() as other:
        for url in (other, "", other, "", other):
            assert (await session.http.get(f"{url}/v1/apps", auth=None)).status_code == 401
        made = slots(session)._made
        assert len(made) == 2
        assert all(map(is_open, made))  # each has kept its one socket


async def test_a_request_interrupted_while_it_makes_room_leaves_nothing(
    session: AsyncSessionClient, fake: FakeKoyeb, limit: int
) -> None:
    """The transport that was to be made is none of those that count."""

    class Stuck(httpx.AsyncBaseTransport):
        """Is interrupted when it makes room."""

        async def aclose(self) -> None:
            """Raise, until the client is closed."""
            if not pool._closed:
                raise InterruptedError

    assert (await session.http.get("/v1/apps")).status_code == 200
    pool = slots(session)
    for _ in range(limit):
        pool._made.add(stuck := Stuck())
        pool._idle = {stuck: (("elsewhere",), float("inf"))} | pool._idle
    with fake.serve() as other, pytest.raises(InterruptedError):
        await session.http.get(other, auth=None)
    assert len(pool._made) == limit
    assert len(pool._request_queue._free) == limit


async def test_another_request_may_take_what_was_to_be_closed(session: AsyncSessionClient) -> None:
    """Nobody closes a connection that is in use again."""
    assert (await session.http.get("/v1/apps")).status_code == 200
    pool = slots(session)
    ((transport, used),) = pool._idle.items()
    pool._idle.clear()
    await pool._discard(transport)
    assert pool._made == {transport}

    class Late(dict[Any, Any]):
        """Another thread takes the waiter from the queue while this one looks at it."""

        def pop(self, key: Any, _default: Any = None) -> Any:
            """Find nothing."""
            return super().pop(key) and None

    pool._idle = Late({transport: used})
    assert pool._kept(used[0]) is None


# Tokens


@pytest.mark.parametrize("ending", ["revoked", "expired"])
async def test_a_request_whose_token_died_in_the_queue_is_refused_once_and_sent_again(
    session: AsyncSessionClient, fake: FakeKoyeb, clock: FakeClock, ending: str
) -> None:
    """It goes out as it was signed; the auth answers for the refusal, as for any other."""
    async with waiting_request(session, fake) as (gate, waiting):
        if ending == "revoked":
            await session.refresh()
        else:
            clock.advance(DAY)
        gate.open()
        assert (await waiting.result()).status_code == 200
    assert [it.status for it in fake.requests if it.operation == "apps"] == [200, 200, 401, 200]
    assert session.token is not None
    assert fake.requests[-1].headers["authorization"] == f"Bearer {session.token.id}"


async def test_a_renewal_that_was_refused_meanwhile_keeps_nobody(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """A token that is not due is used, by requests that waited in the queue and by all others."""
    async with waiting_request(session, fake) as (gate, waiting):
        for operation in ("refresh", "login"):
            fake.fail(operation, Fault(status=401))
        with pytest.raises(AuthenticationError):
            await session.refresh()
        gate.open()
        assert (await waiting.result()).status_code == 200
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_a_request_that_waited_until_the_logout_is_refused(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """Nobody is signed in any more when its turn comes, and nobody is signed in for it."""
    async with waiting_request(session, fake) as (gate, waiting):
        await session.logout()
        gate.open()
        assert (await waiting.result()).status_code == 401
    assert operations(fake) == ["apps", "apps", "logout", "apps"]
