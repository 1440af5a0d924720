"""Auth flows driven by hand and left at their yields: nothing is held there."""

from __future__ import annotations

import gc
from datetime import timedelta
from functools import partial
from typing import Final

import httpx
import pytest

from koyeb_session import AsyncMemoryTokenStore, AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..concurrency import (
    AsyncBackground,
    AsyncFlow,
    async_advance,
    async_gather,
    async_idle,
    async_throw,
)
from ..support import DAY
from .doubles import AsyncUnderWay, Connect

# trio says so of every async generator that is left to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator .* was garbage collected")

HARD: Final = DAY - timedelta(seconds=30)
AGES: Final = {"fresh": timedelta(0), "soft": timedelta(hours=20), "hard": HARD}


@pytest.fixture
def session(fake: FakeKoyeb, connect: Connect) -> AsyncSessionClient:
    """Make a session whose token is in a store."""
    return connect(token=fake.issue_token(), store=AsyncMemoryTokenStore())


def flow_of(session: AsyncSessionClient) -> tuple[AsyncFlow, httpx.Request]:
    """Make a flow for a request to the service."""
    request = session.http.build_request("GET", "/v1/apps")
    return session.auth.async_auth_flow(request), request


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
            await async_throw(flow, httpx.ReadError("the connection broke"))


async def check(session: AsyncSessionClient, fake: FakeKoyeb, exchanges: int) -> None:
    """Check that the next requests, and a renewal, go out as if nothing had been."""
    gc.collect()
    await async_idle()
    answers = await async_gather(*[partial(session.http.get, "/v1/apps")] * 2)
    assert [answer.status_code for answer in answers] == [200, 200]
    await async_idle()
    assert fake.exchanges() == exchanges
    assert fake.transport.open_replies == 0
    await session.refresh()


@pytest.mark.parametrize("ending", ["closed", "dropped", "thrown"])
@pytest.mark.parametrize(
    ("age", "refused"), [("fresh", False), ("soft", False), ("hard", False), ("fresh", True)]
)
async def test_flow_left_at_a_yield_holds_nothing(
    session: AsyncSessionClient,
    fake: FakeKoyeb,
    clock: FakeClock,
    age: str,
    ending: str,
    *,
    refused: bool,
) -> None:
    """
    A signed request, or its replay, is never sent.

    Catches a lock that is held until the reply, and a renewal that the flow has to finish.
    """
    clock.advance(AGES[age])
    flow, request = flow_of(session)
    first = bearer(await async_advance(flow))
    if refused:
        assert bearer(await async_advance(flow, httpx.Response(401, request=request))) != first
    await end(flow, ending)
    del flow
    await check(session, fake, exchanges=refused or age != "fresh")


@pytest.mark.pitfall(2)
@pytest.mark.parametrize("age", AGES)
async def test_flows_go_on_beside_a_parked_one(
    session: AsyncSessionClient, fake: FakeKoyeb, clock: FakeClock, age: str
) -> None:
    """Two flows in turns, the first parked at each yield; catches a lock around a yield."""
    clock.advance(AGES[age])
    parked, request = flow_of(session)
    first = bearer(await async_advance(parked))
    await async_idle()
    other, others = flow_of(session)
    async with AsyncBackground() as background:
        second = bearer(await background.start(lambda: async_advance(other)).result())
        # Both are refused; the second one comes first, and the first one takes over its token.
        refused = httpx.Response(401, request=others)
        newer = bearer(await background.start(lambda: async_advance(other, refused)).result())
    assert newer not in {first, second}
    assert bearer(await async_advance(parked, httpx.Response(401, request=request))) == newer
    for flow, sent in ((parked, request), (other, others)):
        assert await async_advance(flow, httpx.Response(200, request=sent)) is None
    await check(session, fake, exchanges=fake.exchanges())


async def test_flow_may_be_closed_elsewhere(
    session: AsyncSessionClient, fake: FakeKoyeb, clock: FakeClock
) -> None:
    """
    Another task or thread may end a flow than began it.

    Catches a cancel scope around a yield, and a lock that only its owner can release.
    """
    clock.advance(HARD)
    flow, _ = flow_of(session)
    async with AsyncBackground() as background:
        await background.start(lambda: async_advance(flow)).result()
        await background.start(lambda: end(flow, "closed")).result()
    assert await async_advance(flow) is None
    await check(session, fake, exchanges=1)


async def test_flow_that_waits_cannot_be_closed_and_loses_nothing(
    session: AsyncSessionClient, fake: FakeKoyeb, clock: FakeClock
) -> None:
    """A close from outside while the exchange is under way; catches an exchange inside the flow."""
    clock.advance(HARD)
    flow, _ = flow_of(session)
    async with AsyncUnderWay(fake, "refresh", lambda: async_advance(flow)) as background:
        with pytest.raises((RuntimeError, ValueError), match=r"already (running|executing)"):
            await flow.aclose()
        background.gate.open()
        assert bearer(await background.job.result()) in fake.live_tokens()
    await flow.aclose()
    await check(session, fake, exchanges=1)
