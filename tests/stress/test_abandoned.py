"""Auth flows driven by hand and left at their yields: pitfall 2, nothing is held there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

import anyio
import httpx
import pytest

from koyeb_session import RefreshPolicy, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import AsyncFlow, Background, Flow, advance, arrived, async_advance, idle
from .scenario import LIFE, Scenario
from .steps import rounds, rounds_until

# trio says so of every async generator that is left to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected")

AGES: Final = {
    "fresh": timedelta(0),
    "soft": timedelta(hours=20),
    "hard": LIFE - timedelta(seconds=30),
}
ENDINGS: Final = ["closed", "dropped", "thrown"]
PATIENCE: Final = 30.0


def request_for(scenario: Scenario) -> httpx.Request:
    """Make a request to the service."""
    return httpx.Request("GET", f"{scenario.fake.base_url}/v1/apps")


def bearer(request: httpx.Request | None) -> str:
    """Read the token that a request is signed with."""
    assert request is not None
    return request.headers["authorization"].removeprefix("Bearer ")


async def end(flow: AsyncFlow, ending: str) -> None:
    """Leave a flow in one of the ways that there are; the caller drops it."""
    if ending == "closed":
        await flow.aclose()
    elif ending == "thrown":
        with pytest.raises(httpx.ReadError):
            await flow.athrow(httpx.ReadError("the connection broke"))


async def check(scenario: Scenario, exchanges: int) -> None:
    """Check that the next request goes out as if nothing had been."""
    await scenario.settle()
    with anyio.fail_after(PATIENCE):
        assert (await scenario.session.http.get("/v1/apps")).status_code == 200
    await scenario.settle()
    assert scenario.fake.exchanges() == exchanges
    assert scenario.count("login") == 0
    await scenario.session.aclose()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("age", AGES)
async def test_flow_left_at_its_first_yield_holds_nothing(age: str, ending: str) -> None:
    """A signed request that is never sent; catches a lock that is held until the reply."""
    scenario = Scenario(AGES[age])
    flow: AsyncFlow | None = scenario.session.auth.async_auth_flow(request_for(scenario))
    assert flow is not None
    assert bearer(await async_advance(flow))
    await end(flow, ending)
    flow = None
    gc.collect()
    await check(scenario, exchanges=age != "fresh")


@pytest.mark.parametrize("ending", ENDINGS)
async def test_flow_left_at_its_second_yield_holds_nothing(ending: str) -> None:
    """A replay that is never sent; catches a renewal that is finished by the flow that began it."""
    scenario = Scenario()
    request = request_for(scenario)
    flow: AsyncFlow | None = scenario.session.auth.async_auth_flow(request)
    assert flow is not None
    refused = bearer(await async_advance(flow))
    replay = await async_advance(flow, httpx.Response(401, request=request))
    assert bearer(replay) != refused
    await end(flow, ending)
    flow = None
    gc.collect()
    await check(scenario, exchanges=1)


@pytest.mark.pitfall(2)
@pytest.mark.parametrize("age", AGES)
async def test_flows_go_on_beside_a_parked_one(age: str) -> None:
    """Two flows in turns, the first parked at each yield; catches a lock around a yield."""
    scenario = Scenario(AGES[age])
    requests = [request_for(scenario), request_for(scenario)]
    parked, other = [scenario.session.auth.async_auth_flow(request) for request in requests]
    with anyio.fail_after(PATIENCE):
        first = bearer(await async_advance(parked))
        second = bearer(await async_advance(other))
        # Both are refused; the second one comes first, and the first one takes over its token.
        newer = bearer(await async_advance(other, httpx.Response(401, request=requests[1])))
        assert newer not in (first, second)
        assert bearer(await async_advance(parked, httpx.Response(401, request=requests[0]))) == (
            newer
        )
        assert await async_advance(parked, httpx.Response(200, request=requests[0])) is None
        assert await async_advance(other, httpx.Response(200, request=requests[1])) is None
    await check(scenario, exchanges=scenario.fake.exchanges())
    assert scenario.transport.most == 1


async def test_flow_may_be_closed_by_another_task() -> None:
    """Another task may end a flow than began it; catches a cancel scope around a yield."""
    scenario = Scenario(AGES["hard"])
    flow = scenario.session.auth.async_auth_flow(request_for(scenario))

    async def close() -> None:
        await flow.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(async_advance, flow)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
    assert await async_advance(flow) is None
    await check(scenario, exchanges=1)


async def test_flow_that_waits_cannot_be_closed_and_loses_nothing() -> None:
    """A close from outside while the exchange is under way; catches an exchange inside the flow."""
    scenario, gate = Scenario(AGES["hard"]), Gate()
    scenario.fake.fail("refresh", Fault(gate=gate))
    flow = scenario.session.auth.async_auth_flow(request_for(scenario))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(async_advance, flow)
        await gate.await_arrived()
        with pytest.raises(RuntimeError, match="already running"):
            await flow.aclose()
        gate.open()
    await flow.aclose()
    await check(scenario, exchanges=1)


async def test_flow_left_by_a_cancelled_task_leaves_the_exchange_to_others() -> None:
    """The task that drives a flow dies in the exchange; catches a lock that dies with its owner."""
    scenario, gate = Scenario(AGES["hard"]), Gate()
    scenario.fake.fail("refresh", Fault(gate=gate))
    statuses: list[int] = []

    async def follow() -> None:
        statuses.append((await scenario.session.http.get("/v1/apps")).status_code)

    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as tasks:
            flow: AsyncFlow | None = scenario.session.auth.async_auth_flow(request_for(scenario))
            assert flow is not None
            tasks.start_soon(async_advance, flow)
            await gate.await_arrived()
            others.start_soon(follow)
            await rounds(3)
            tasks.cancel_scope.cancel()
        flow = None
        gc.collect()
        assert statuses == []
        gate.open()
        await rounds_until(lambda: statuses == [200])
    await check(scenario, exchanges=1)


# The blocking half


@pytest.fixture
def session(fake: FakeKoyeb, clock: FakeClock) -> Iterator[SessionClient]:
    """Give a blocking session."""
    with SessionClient(
        token=fake.issue_token(),
        transport=fake.transport,
        clock=clock,
        refresh_policy=RefreshPolicy(jitter=0),
    ) as session:
        yield session


def parked(session: SessionClient, fake: FakeKoyeb) -> tuple[Flow, httpx.Request]:
    """Make a flow, and take it to its first yield."""
    request = httpx.Request("GET", f"{fake.base_url}/v1/apps")
    flow = session.auth.sync_auth_flow(request)
    assert advance(flow) is request
    return flow, request


def end_blocking(flow: Flow, ending: str) -> None:
    """Leave a flow in one of the ways that there are; the caller drops it."""
    if ending == "closed":
        flow.close()
    elif ending == "thrown":
        with pytest.raises(httpx.ReadError):
            flow.throw(httpx.ReadError("the connection broke"))


def check_blocking(session: SessionClient, fake: FakeKoyeb, exchanges: int) -> None:
    """Check that the next request goes out as if nothing had been, from any thread."""
    idle()
    with Background() as background:
        for job in [background.start(lambda: session.http.get("/v1/apps")) for _ in range(2)]:
            assert job.result().status_code == 200
    idle()
    assert fake.exchanges() == exchanges
    assert fake.transport.open_replies == 0


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("age", AGES)
def test_blocking_flow_left_at_its_first_yield_holds_nothing(
    session: SessionClient, fake: FakeKoyeb, clock: FakeClock, age: str, ending: str
) -> None:
    """The blocking half; catches a `threading.Lock` that is held until the reply."""
    clock.advance(AGES[age])
    flow: Flow | None = parked(session, fake)[0]
    assert flow is not None
    end_blocking(flow, ending)
    flow = None
    gc.collect()
    check_blocking(session, fake, exchanges=age != "fresh")


@pytest.mark.parametrize("ending", ENDINGS)
def test_blocking_flow_left_at_its_second_yield_holds_nothing(
    session: SessionClient, fake: FakeKoyeb, ending: str
) -> None:
    """The blocking half; catches a renewal that is finished by the flow that began it."""
    flow: Flow | None
    flow, request = parked(session, fake)
    refused = bearer(request)
    assert bearer(advance(flow, httpx.Response(401, request=request))) != refused
    end_blocking(flow, ending)
    flow = None
    gc.collect()
    check_blocking(session, fake, exchanges=1)


@pytest.mark.pitfall(2)
@pytest.mark.parametrize("age", AGES)
def test_blocking_flows_go_on_beside_a_parked_one(
    session: SessionClient, fake: FakeKoyeb, clock: FakeClock, age: str
) -> None:
    """The blocking half, two threads in turns; catches a lock around a yield."""
    clock.advance(AGES[age])
    first, request = parked(session, fake)
    idle()
    with Background() as background:
        second, other = background.start(lambda: parked(session, fake)).result()
        refused = {bearer(request), bearer(other)}
        newer = background.start(
            lambda: bearer(advance(second, httpx.Response(401, request=other)))
        ).result()
        assert newer not in refused
        assert bearer(advance(first, httpx.Response(401, request=request))) == newer
        assert advance(first, httpx.Response(200, request=request)) is None
        assert advance(second, httpx.Response(200, request=other)) is None
    check_blocking(session, fake, exchanges=fake.exchanges())


def test_blocking_flow_may_be_closed_by_another_thread(
    session: SessionClient, fake: FakeKoyeb, clock: FakeClock
) -> None:
    """Another task may end a flow than began it; catches a lock that only its owner can release."""
    clock.advance(AGES["hard"])
    flow, _ = parked(session, fake)
    with Background() as background:
        background.start(flow.close).result()
    assert advance(flow) is None
    check_blocking(session, fake, exchanges=1)


def test_blocking_flow_that_waits_cannot_be_closed_and_loses_nothing(
    session: SessionClient, fake: FakeKoyeb, clock: FakeClock
) -> None:
    """A close by another thread in the exchange; catches an exchange that a close takes along."""
    clock.advance(AGES["hard"])
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    flow = session.auth.sync_auth_flow(httpx.Request("GET", f"{fake.base_url}/v1/apps"))
    with Background() as background:
        job = background.start(lambda: advance(flow))
        arrived(gate)
        with pytest.raises(ValueError, match="already executing"):
            flow.close()
        gate.open()
        assert bearer(job.result()) in fake.live_tokens()
        flow.close()
    check_blocking(session, fake, exchanges=1)
