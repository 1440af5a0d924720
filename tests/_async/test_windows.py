"""When a token is renewed: ahead of need, or before anything else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from koyeb_session import AsyncSessionClient, RefreshPolicy
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import async_idle
from ..support import DAY, ME, PASSWORD, count, held
from .doubles import AsyncUnderWay, Connect


async def test_nobody_waits_for_a_renewal_in_the_soft_window(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """The old token is handed out at once, while one exchange runs by itself."""
    old = held(session)
    clock.advance(DAY / 2)
    async with AsyncUnderWay(fake, "refresh", session.current_token) as background:
        assert (await background.job.result()).id == old
        for _ in range(2):
            assert (await session.current_token()).id == old
        background.gate.open()
    await async_idle()
    assert (await session.current_token()).id == held(session) != old
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [held(session)]


@pytest.mark.pitfall(1)
async def test_everybody_waits_for_one_renewal_in_the_hard_window(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """All who come share one exchange, and get its token."""
    old = held(session)
    clock.advance(DAY - timedelta(seconds=60))
    async with AsyncUnderWay(fake, "refresh", session.current_token) as background:
        jobs = [background.job, *(background.start(session.current_token) for _ in range(19))]
        await background.settled()
        background.gate.open()
        tokens = [await job.result() for job in jobs]
    assert {token.id for token in tokens} == {held(session)} != {old}
    assert fake.exchanges() == 1


@pytest.mark.parametrize(
    ("policy", "left", "what"),
    [
        (RefreshPolicy(jitter=0), DAY / 2 + timedelta(seconds=1), "use"),
        (RefreshPolicy(jitter=0), DAY / 2, "renew"),
        (RefreshPolicy(jitter=0), timedelta(seconds=60), "wait"),
        (RefreshPolicy(jitter=0, soft_window=3600), timedelta(seconds=3601), "use"),
        (RefreshPolicy(jitter=0, soft_window=3600), timedelta(seconds=3600), "renew"),
        (RefreshPolicy(jitter=0, soft_window=0), timedelta(seconds=61), "use"),
        (RefreshPolicy(jitter=0, soft_window=0), timedelta(seconds=60), "wait"),
        (RefreshPolicy(jitter=0, hard_window=None), DAY / 10, "wait"),
        (RefreshPolicy(jitter=0, hard_window=0), timedelta(seconds=1), "renew"),
    ],
)
async def test_windows_are_those_of_the_policy(
    fake: FakeKoyeb,
    clock: FakeClock,
    connect: Connect,
    *,
    policy: RefreshPolicy,
    left: timedelta,
    what: str,
) -> None:
    """So long before its expiry a token is used, renewed meanwhile, or renewed first."""
    session = connect(token=fake.issue_token(), refresh_policy=policy)
    old = held(session)
    clock.advance(DAY - left)
    token = await session.current_token()
    assert (token.id == old) is (what != "wait")
    await async_idle()
    assert fake.exchanges() == (what != "use")


async def test_a_renewed_token_has_its_life_before_it(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A request begins the next renewal half a lifetime after the one before, to the second."""
    for exchange in range(1, 5):
        for seconds, exchanges in ((DAY / 2 - timedelta(seconds=1), exchange - 1), (1, exchange)):
            clock.advance(seconds)
            assert (await session.http.get("/v1/apps")).status_code == 200
            await async_idle()
            assert fake.exchanges() == exchanges


@pytest.mark.pitfall(8)
async def test_a_short_token_is_not_renewed_at_every_turn(
    clock: FakeClock, connect: Connect
) -> None:
    """Windows give way to the lifetime: half of it is soft, a tenth of it hard."""
    fake = FakeKoyeb(clock=clock, token_lifetime=timedelta(seconds=20))
    session = connect(token=fake.issue_token(), transport=fake.transport)
    for _ in range(100):
        clock.advance(1)
        assert (await session.http.get("/v1/apps")).status_code == 200
        await async_idle()
    assert 5 <= fake.exchanges() <= 12


async def test_an_unknown_expiry_is_renewed_on_refusal_only(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A token that does not say how long it lives is used until it is refused."""
    session = connect()
    fake.fail("login", Fault(body={"token": {"id": "opaque"}}))
    await session.login(ME, PASSWORD)
    clock.advance(DAY * 365)
    assert (await session.current_token()).id == "opaque"
    good = fake.issue_token()
    fake.fail("refresh", Fault(body={"token": {"id": good}}))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert held(session) == good


async def test_an_adopted_token_that_is_nearly_expired_is_renewed_at_once(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The floor between two renewals counts from the token's issue: no old one is lost to it."""
    old = fake.issue_token()
    clock.advance(DAY - timedelta(seconds=8))
    token = await connect(token=old).current_token()
    assert fake.live_tokens() == [token.id] != [old]


async def test_the_same_token_again_is_not_renewed_before_the_floor(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A service that hands out a token that it had before is not asked again at every request."""
    assert session.token is not None
    expires = f"{session.token.expires_at:%Y-%m-%dT%H:%M:%SZ}"
    body = {"token": {"id": session.token.id, "expires_at": expires}}
    fake.fail("refresh", Fault(body=body), times=100)
    clock.advance(DAY - timedelta(seconds=30))
    for _ in range(30):
        assert (await session.http.get("/v1/apps")).status_code == 200
        clock.advance(0.99)
    assert 2 <= count(fake, "refresh") <= 30
