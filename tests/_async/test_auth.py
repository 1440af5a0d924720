"""The auth hook: the requests that it signs, and the origins that get the token."""

from __future__ import annotations

import contextlib
import copy
from datetime import timedelta
from functools import partial

import httpx
import pytest

from koyeb_session import AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import AsyncBackground, async_arrived, deadlines
from ..support import DAY, count, held, log, operations
from .doubles import AsyncUnderWay, Connect

ALLOWED = ["https://api.example", "https://api.example:8443/", "http://127.0.0.1:8000"]


# Signing


async def test_request_carries_the_token_and_costs_nothing_more(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """While the token is fresh, a request is signed and sent, and that is all."""
    response = await session.http.get("/v1/apps")
    assert response.status_code == 200
    (request,) = fake.requests
    assert request.headers["authorization"] == f"Bearer {held(session)}"
    assert response.history == []


TRUSTED = [
    "https://app.koyeb.com/v1/apps",
    "https://APP.koyeb.COM/v1/apps",
    "https://app.koyeb.com:443/v1/apps",
    "https://api.example/v1/apps",
    "https://api.example:8443/v1/apps",
    "http://127.0.0.1:8000/v1/apps",
    "/v1/apps",
]


# Where the token goes


@pytest.mark.parametrize("url", TRUSTED)
async def test_token_goes_to_its_own_origins(fake: FakeKoyeb, connect: Connect, url: str) -> None:
    """The service's origin and the allowed ones see the token, however they are written."""
    session = connect(token=fake.issue_token(), allowed_origins=ALLOWED)
    assert (await session.http.get(url)).status_code == 200


UNTRUSTED = [
    "http://app.koyeb.com/v1/apps",
    "https://app.koyeb.com:8443/v1/apps",
    "http://app.koyeb.com:443/v1/apps",
    "https://app.koyeb.com./v1/apps",
    "https://app.koyeb.com.evil.example/v1/apps",
    "https://koyeb.com/v1/apps",
    "https://evil.app.koyeb.com/v1/apps",
    "https://аpp.koyeb.com/v1/apps",  # noqa: RUF001 - the first letter is Cyrillic
    "https://me@app.koyeb.com/v1/apps",
    "https://me:pw@app.koyeb.com/v1/apps",
    "https://app.koyeb.com@evil.example/v1/apps",
    "https://api.example:9443/v1/apps",
    "http://127.0.0.1:8001/v1/apps",
    "https://127.0.0.1:8000/v1/apps",
]


@pytest.mark.pitfall(10)
@pytest.mark.parametrize("url", UNTRUSTED)
async def test_token_goes_nowhere_else(fake: FakeKoyeb, connect: Connect, url: str) -> None:
    """
    Any other origin gets the request without the token, and its 401 is its own affair.

    It goes out unchanged, signed in or not.
    """
    token = fake.issue_token()
    for held_token in (token, None):
        session = connect(token=held_token, allowed_origins=ALLOWED)
        assert (await session.http.get(url)).status_code == 401
    assert log(fake) == [("apps", 401)] * 2
    assert token not in str([request.raw_headers for request in fake.requests])


async def test_token_does_not_go_out_under_another_host_header(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A ``Host`` header of somebody else could route the token to them."""
    await session.http.get("/v1/apps", headers={"Host": "evil.example"})
    assert fake.requests[0].bearer is None


APPS = "https://app.koyeb.com/v1/apps"


@pytest.mark.parametrize(
    ("url", "locations", "signed"),
    [
        (APPS, ["https://evil.example/v1/apps"], [True, False]),
        (APPS, ["http://app.koyeb.com/v1/apps"], [True, False]),
        (APPS, ["https://app.koyeb.com:1/v1/apps"], [True, False]),
        (APPS, ["https://evil.example/v1/apps", APPS], [True, False, False]),
        ("https://evil.example/v1/apps", [APPS], [False, False]),
    ],
)
async def test_a_redirect_elsewhere_loses_the_token_and_its_401_is_not_ours(
    fake: FakeKoyeb, session: AsyncSessionClient, url: str, locations: list[str], signed: list[bool]
) -> None:
    """
    A 401 is no refusal of a token that was not sent: it renews nothing, and doubts nothing.

    Nor can anybody else have a request of theirs signed, by a redirect to the service.
    """
    for location in locations:
        fake.fail("apps", Fault(status=302, headers={"location": location}))
    response = await session.http.get(url, follow_redirects=True)
    assert response.status_code == 401
    assert log(fake) == [*[("apps", 302)] * len(locations), ("apps", 401)]
    assert [request.bearer is not None for request in fake.requests] == signed
    assert fake.exchanges() == 0


async def test_a_redirect_within_the_origin_keeps_the_token(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A trusted origin stays trusted."""
    fake.fail("apps", Fault(status=302, headers={"location": "/v1/account/profile"}))
    response = await session.http.get("/v1/apps", follow_redirects=True)
    assert response.status_code == 200
    assert log(fake) == [("apps", 302), ("profile", 200)]


# The renewal that a request waits for


@pytest.mark.pitfall(11)
async def test_a_refresh_is_no_part_of_the_users_request(
    fake: FakeKoyeb, session: AsyncSessionClient, client: httpx.AsyncClient
) -> None:
    """Catches a refresh that the flow yields: hooks see it, and ``history`` keeps the token."""
    seen: list[str] = []

    async def note(response: httpx.Response) -> None:
        seen.append(response.request.url.path)

    client.event_hooks = {"response": [note]}
    fake.fail("apps", Fault(status=401))
    response = await client.get("/v1/apps", auth=session.auth)
    assert fake.exchanges() == 1
    assert seen == ["/v1/apps"] * 2
    assert [reply.request.url.path for reply in response.history] == ["/v1/apps"]


@pytest.mark.pitfall(11)
async def test_a_refresh_has_a_deadline_of_its_own(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, client: httpx.AsyncClient
) -> None:
    """Catches a refresh that the flow yields: it has no timeout, and hangs with the service."""
    fake.fail("refresh", Fault(gate=Gate(), hold="request"))
    client.timeout = None
    for timeout in deadlines(lambda: count(fake, "refresh")):
        fake.requests.clear()
        session = connect(token=fake.issue_token(), timeout=timeout)
        clock.advance(DAY - timedelta(seconds=30))
        assert (await client.get("/v1/apps", auth=session.auth)).status_code == 200
    assert operations(fake) == ["refresh", "apps"]


@pytest.mark.pitfall(24)
async def test_all_hooks_of_a_session_are_one(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """Catches an auth object for each client, each with a token of its own: ten exchanges."""
    clock.advance(DAY - timedelta(seconds=30))
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            httpx.AsyncClient(transport=fake.transport, base_url=fake.base_url, auth=session.auth)
            for _ in range(10)
        ]
        for client in clients:
            await stack.enter_async_context(client)
        first, *others = (partial(it.get, "/v1/apps") for it in [*clients, session.http])
        async with AsyncUnderWay(fake, "refresh", first) as background:
            jobs = [background.job, *map(background.start, others)]
            await background.settled()
            background.gate.open()
            responses = [await job.result() for job in jobs]
    assert {response.status_code for response in responses} == {200}
    assert fake.exchanges() == 1
    with pytest.raises(TypeError):
        copy.deepcopy(session)


@pytest.mark.pitfall(27)
async def test_refused_requests_do_not_hold_the_connections_that_the_refresh_needs(
    url: str, fake: FakeKoyeb, connect: Connect
) -> None:
    """Each connection of the user's own pool has a request that is refused at the same time."""
    gate = Gate()
    fake.fail("apps", Fault(status=401, gate=gate), times=2)
    limits = httpx.Limits(max_connections=2)
    async with httpx.AsyncClient(base_url=url, limits=limits) as client:
        session = connect(token=fake.issue_token(), base_url=url, http_client=client)
        async with AsyncBackground() as background:
            jobs = [background.start(lambda: session.http.get("/v1/apps")) for _ in range(2)]
            await async_arrived(gate, 2)
            gate.open()
            assert [(await job.result()).status_code for job in jobs] == [200] * 2
        await session.aclose()
    assert fake.exchanges() == 1
