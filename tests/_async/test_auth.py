"""The auth hook: what it signs, where the token goes, and what it does about a refusal."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    AuthenticationError,
    NotSignedInError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    deadlines,
)

ME = "me@example.com"
PASSWORD = "correct horse"
DAY = timedelta(hours=24)
Connect = Callable[..., AsyncSessionClient]


def count(fake: FakeKoyeb, operation: str) -> int:
    """Count the requests for an operation."""
    return sum(request.operation == operation for request in fake.requests)


def log(fake: FakeKoyeb) -> list[tuple[str | None, int | None]]:
    """List what was asked for and how that was answered, in order."""
    return [(request.operation, request.status) for request in fake.requests]


# Signing


async def test_request_carries_the_token_and_costs_nothing_more(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """While the token is fresh, a request is signed and sent, and that is all."""
    session = connect(token=fake.issue_token())
    assert session.token is not None
    response = await session.http.get("/v1/apps")
    assert response.status_code == 200
    (request,) = fake.requests
    assert request.headers["authorization"] == f"Bearer {session.token.id}"
    assert response.history == []


async def test_any_client_can_use_the_hook(
    fake: FakeKoyeb, connect: Connect, client: httpx.AsyncClient
) -> None:
    """The hook signs the requests of the user's own client."""
    session = connect(token=fake.issue_token())
    response = await client.get("/v1/apps", auth=session.auth)
    assert response.status_code == 200


async def test_nothing_is_sent_when_not_signed_in(fake: FakeKoyeb, connect: Connect) -> None:
    """A request that cannot be signed does not go out."""
    with pytest.raises(NotSignedInError):
        await connect().http.get("/v1/apps")
    assert fake.requests == []


async def test_a_request_is_signed_without_a_lookup_until_the_very_window(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """One instant before the soft window nothing is started; at the window it is."""
    session = connect(token=fake.issue_token())
    clock.advance(timedelta(hours=12, seconds=-1))
    await session.http.get("/v1/apps")
    await async_idle()
    assert fake.exchanges() == 0
    clock.advance(1)
    await session.http.get("/v1/apps")
    await async_idle()
    assert fake.exchanges() == 1


# Where the token goes

TRUSTED = [
    "https://app.koyeb.com/v1/apps",
    "https://APP.koyeb.COM/v1/apps",
    "https://app.koyeb.com:443/v1/apps",
    "https://api.example/v1/apps",
    "https://api.example:8443/v1/apps",
    "http://127.0.0.1:8000/v1/apps",
    "/v1/apps",
]
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
ALLOWED = ["https://api.example", "https://api.example:8443/", "http://127.0.0.1:8000"]


@pytest.mark.parametrize("url", TRUSTED)
async def test_token_goes_to_its_own_origins(fake: FakeKoyeb, connect: Connect, url: str) -> None:
    """The service's origin and the allowed ones see the token, however they are written."""
    session = connect(token=fake.issue_token(), allowed_origins=ALLOWED)
    assert (await session.http.get(url)).status_code == 200


@pytest.mark.pitfall(10)
@pytest.mark.parametrize("url", UNTRUSTED)
async def test_token_goes_nowhere_else(fake: FakeKoyeb, connect: Connect, url: str) -> None:
    """Any other origin gets the request without the token, and its 401 is its own affair."""
    session = connect(token=fake.issue_token(), allowed_origins=ALLOWED)
    assert (await session.http.get(url)).status_code == 401
    (request,) = fake.requests
    assert session.token is not None
    assert not any(session.token.id.encode() in value for _, value in request.raw_headers)


async def test_an_untrusted_request_needs_no_session(fake: FakeKoyeb, connect: Connect) -> None:
    """What goes elsewhere goes out as it is, signed in or not."""
    assert (await connect().http.get("https://evil.example/v1/apps")).status_code == 401
    assert log(fake) == [("apps", 401)]


async def test_token_does_not_go_out_under_another_host_header(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A ``Host`` header of somebody else could route the token to them."""
    session = connect(token=fake.issue_token())
    await session.http.get("/v1/apps", headers={"Host": "evil.example"})
    assert fake.requests[0].bearer is None


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/v1/apps",
        "http://app.koyeb.com/v1/apps",
        "https://app.koyeb.com:1/v1/apps",
    ],
)
async def test_a_redirect_elsewhere_loses_the_token_and_its_401_is_not_ours(
    fake: FakeKoyeb, connect: Connect, location: str
) -> None:
    """A redirect to another origin goes without the token, and a 401 from there renews nothing."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=302, headers={"location": location}))
    response = await session.http.get("/v1/apps", follow_redirects=True)
    assert response.status_code == 401
    assert log(fake) == [("apps", 302), ("apps", 401)]
    assert fake.requests[1].bearer is None
    assert fake.exchanges() == 0


async def test_a_redirect_elsewhere_and_back_goes_without_the_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A 401 is no refusal of a token that was not sent: it renews nothing, and doubts nothing."""
    session = connect(token=fake.issue_token())
    for location in ("https://evil.example/v1/apps", "https://app.koyeb.com/v1/apps"):
        fake.fail("apps", Fault(status=302, headers={"location": location}))
    response = await session.http.get("/v1/apps", follow_redirects=True)
    assert response.status_code == 401
    assert log(fake) == [("apps", 302), ("apps", 302), ("apps", 401)]
    assert [request.bearer is None for request in fake.requests] == [False, True, True]
    assert fake.exchanges() == 0


async def test_a_redirect_within_the_origin_keeps_the_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Who is trusted stays trusted."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=302, headers={"location": "/v1/account/profile"}))
    response = await session.http.get("/v1/apps", follow_redirects=True)
    assert response.status_code == 200
    assert log(fake) == [("apps", 302), ("profile", 200)]


async def test_a_redirect_from_elsewhere_gets_no_token(fake: FakeKoyeb, connect: Connect) -> None:
    """Nobody else can have a request of theirs signed."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=302, headers={"location": "https://app.koyeb.com/v1/apps"}))
    response = await session.http.get("https://evil.example/v1/apps", follow_redirects=True)
    assert response.status_code == 401
    assert fake.requests[1].bearer is None
    assert fake.exchanges() == 0


# Refusals


async def test_a_revoked_token_is_renewed_and_the_request_replayed(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A 401 renews once and sends the request once more, with the new token."""
    session = connect(token=fake.issue_token())
    old = session.token
    fake.fail("apps", Fault(status=401))
    response = await session.http.post("/v1/apps", json={"name": "mine"})
    assert response.status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]
    assert session.token is not None
    assert old is not None
    first, refresh, second = fake.requests
    assert (first.bearer, refresh.bearer, second.bearer) == (old.id, old.id, session.token.id)
    assert first.json == second.json == {"name": "mine"}
    assert [reply.status_code for reply in response.history] == [401]
    assert fake.transport.open_replies == 0


@pytest.mark.pitfall(9)
async def test_a_late_401_is_replayed_without_another_renewal(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """When the session has moved on since the request was signed, the newer token is used."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("apps", Fault(gate=gate, hold="request"))
    async with AsyncBackground() as background:
        job = background.start(lambda: session.http.get("/v1/apps"))
        await async_arrived(gate)
        await session.refresh()
        gate.open()
        response = await job.result()
    assert response.status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]


@pytest.mark.pitfall(9)
async def test_a_permanent_401_costs_two_requests_and_one_renewal(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A token that is refused when it is new is remembered: later refusals are the answer."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401), times=4)
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 401)]
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert fake.exchanges() == 1
    assert len(fake.requests) == 5


async def test_a_refusal_is_understood_without_what_the_request_was_marked_with(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An event hook may put other extensions in the place of those that say who signed it."""

    async def unmark(request: httpx.Request) -> None:
        request.extensions = {"timeout": request.extensions["timeout"]}

    session = connect(token=fake.issue_token())
    session.http.event_hooks = {"request": [unmark]}
    fake.fail("apps", Fault(status=401), times=3)
    for _ in range(2):
        assert (await session.http.get("/v1/apps")).status_code == 401
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 401), ("apps", 401)]


async def test_the_memory_of_a_refusal_ends_with_the_token(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """What was remembered of one token does not hold for the next."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401), times=3)
    await session.http.get("/v1/apps")
    await session.login(ME, PASSWORD)
    fake.requests.clear()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]


async def test_a_token_minted_by_others_and_refused_is_not_remembered(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Only a token that this very flow had minted says that another one will not help."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("apps", Fault(gate=gate, status=401))
    fake.fail("apps", Fault(status=401), times=2)
    async with AsyncBackground() as background:
        job = background.start(lambda: session.http.get("/v1/apps"))
        await async_arrived(gate)
        await session.refresh()
        gate.open()
        assert (await job.result()).status_code == 401
    assert fake.exchanges() == 1
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 2


async def test_a_replay_that_succeeds_is_not_remembered(fake: FakeKoyeb, connect: Connect) -> None:
    """A token that works is renewed again when it is refused later."""
    session = connect(token=fake.issue_token())
    for _ in range(3):
        fake.fail("apps", Fault(status=401))
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 3


@pytest.mark.parametrize("status", [400, 403, 404, 407, 500])
async def test_other_errors_renew_nothing(fake: FakeKoyeb, connect: Connect, status: int) -> None:
    """Only a 401 is about the token."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=status))
    assert (await session.http.get("/v1/apps")).status_code == status
    assert log(fake) == [("apps", status)]


async def test_a_401_on_an_api_token_is_the_answer(fake: FakeKoyeb, connect: Connect) -> None:
    """An API token is never renewed."""
    session = connect(token=fake.issue_api_token())
    assert (await session.http.get("/v1/apps")).status_code == 200
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert log(fake) == [("apps", 200), ("apps", 401)]


async def test_an_api_token_that_cannot_be_renewed_goes_on_to_work(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The service refuses to refresh it, which says nothing about its other uses."""
    session = connect(token=fake.issue_api_token())
    with pytest.raises(SessionExpiredError):
        await session.refresh()
    assert await session.current_token() == session.token
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("refresh", 401), ("apps", 200)]


async def test_a_401_after_logout_is_the_answer(fake: FakeKoyeb, connect: Connect) -> None:
    """A request that the logout overtook is refused, and nothing brings the session back."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("apps", Fault(gate=gate, hold="request"))
    async with AsyncBackground() as background:
        job = background.start(lambda: session.http.get("/v1/apps"))
        await async_arrived(gate)
        await session.logout()
        gate.open()
        assert (await job.result()).status_code == 401
    assert fake.exchanges() == 0
    assert session.token is None


async def test_a_refused_token_that_cannot_be_renewed_ends_the_session(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """When the refresh is refused as well, the error says so, and the refusal is its cause."""
    session = connect(token=fake.issue_token())
    fake.revoke_all()
    with pytest.raises(SessionExpiredError) as caught:
        await session.http.get("/v1/apps")
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert not caught.value.retryable
    assert log(fake) == [("apps", 401), ("refresh", 401)]


async def test_a_refused_token_is_not_renewed_again_during_the_back_off(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A failed renewal answers for further refusals, until it may be tried again."""
    session = connect(token=fake.issue_token(), refresh_policy=RefreshPolicy(jitter=0, backoff=10))
    fake.fail("apps", Fault(status=401), times=3)
    fake.fail("refresh", Fault(status=500))
    for _ in range(2):
        with pytest.raises(SessionExpiredError, match="could not be renewed") as caught:
            await session.http.get("/v1/apps")
        assert isinstance(caught.value.__cause__, ServerError)
        assert caught.value.retryable
        clock.advance(4.9)
    assert log(fake) == [("apps", 401), ("refresh", 500), ("apps", 401)]
    clock.advance(0.2)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake)[3:] == [("apps", 401), ("refresh", 200), ("apps", 200)]


# Bodies


async def stream() -> AsyncIterator[bytes]:
    """Yield a body that is gone once it is sent."""
    yield b'{"name": '
    yield b'"mine"}'


@pytest.mark.pitfall(12)
@pytest.mark.parametrize("kind", ["stream", "multipart", "file"])
async def test_a_body_that_cannot_be_sent_twice_is_not_replayed(
    fake: FakeKoyeb, connect: Connect, kind: str
) -> None:
    """The refusal is handed out as it is; the token is renewed for the requests that follow."""
    session = connect(token=fake.issue_token())
    old = session.token
    fake.fail("apps", Fault(status=401))
    if kind == "stream":
        response = await session.http.post("/v1/apps", content=stream())
    elif kind == "multipart":
        response = await session.http.post("/v1/apps", files={"file": io.BytesIO(b"content")})
    else:
        request = session.http.build_request("POST", "/v1/apps", content=stream())
        response = await session.http.send(request)
    assert response.status_code == 401
    assert log(fake) == [("apps", 401), ("refresh", 200)]
    assert session.token is not old
    assert (await session.http.get("/v1/apps")).status_code == 200


@pytest.mark.parametrize("kind", ["content", "json", "form", "none"])
async def test_a_body_in_memory_is_replayed_as_it_was(
    fake: FakeKoyeb, connect: Connect, kind: str
) -> None:
    """The second request has the same body as the first, byte by byte."""
    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401))
    if kind == "content":
        response = await session.http.post("/v1/apps", content=b"\x00\xff")
    elif kind == "json":
        response = await session.http.post("/v1/apps", json={"name": "mine"})
    elif kind == "form":
        response = await session.http.post("/v1/apps", data={"name": "mine"})
    else:
        response = await session.http.post("/v1/apps")
    assert response.status_code == 200
    first, _, second = fake.requests
    assert first.content == second.content
    assert first.headers["content-length"] == second.headers["content-length"]


async def test_a_body_that_cannot_be_sent_twice_waits_for_a_renewal_that_is_due(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """In the soft window such a request does not carry a token that is being exchanged."""
    session = connect(token=fake.issue_token())
    clock.advance(timedelta(hours=12))
    response = await session.http.post("/v1/apps", content=stream())
    assert response.status_code == 200
    assert log(fake) == [("refresh", 200), ("apps", 200)]
    assert session.token is not None
    assert fake.requests[1].bearer == session.token.id


async def test_a_body_that_cannot_be_sent_twice_joins_a_renewal_under_way(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """It waits for the exchange that another request has started."""
    session = connect(token=fake.issue_token())
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    clock.advance(timedelta(hours=12))
    await session.current_token()
    await async_arrived(gate)
    async with AsyncBackground() as background:
        job = background.start(lambda: session.http.post("/v1/apps", content=stream()))
        if not job.done:
            gate.open()
        assert (await job.result()).status_code == 200
    assert fake.exchanges() == 1
    assert log(fake)[-1] == ("apps", 200)


async def test_a_body_that_cannot_be_sent_twice_goes_out_when_the_renewal_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A renewal that was only ahead of need keeps nobody from working."""
    session = connect(token=fake.issue_token())
    fake.fail("refresh", Fault(status=500))
    clock.advance(timedelta(hours=12))
    response = await session.http.post("/v1/apps", content=stream())
    assert response.status_code == 200
    assert log(fake) == [("refresh", 500), ("apps", 200)]


# The renewal that a request waits for


@pytest.mark.pitfall(11)
async def test_a_refresh_is_no_part_of_the_users_request(fake: FakeKoyeb, connect: Connect) -> None:
    """Catches a refresh that the flow yields: hooks see it, and ``history`` keeps the token."""
    seen: list[str] = []

    async def note(response: httpx.Response) -> None:
        seen.append(response.request.url.path)

    session = connect(token=fake.issue_token())
    fake.fail("apps", Fault(status=401))
    async with httpx.AsyncClient(
        transport=fake.transport,
        base_url=fake.base_url,
        auth=session.auth,
        event_hooks={"response": [note]},
    ) as client:
        response = await client.get("/v1/apps")
    assert fake.exchanges() == 1
    assert seen == ["/v1/apps"] * 2
    assert [reply.request.url.path for reply in response.history] == ["/v1/apps"]


@pytest.mark.pitfall(11)
async def test_a_refresh_has_a_deadline_of_its_own(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Catches a refresh that the flow yields: it has no timeout, and hangs with the service."""
    fake.fail("refresh", Fault(gate=Gate(), hold="request"))
    for timeout in deadlines(lambda: count(fake, "refresh")):
        fake.requests.clear()
        session = connect(token=fake.issue_token(), timeout=timeout)
        clock.advance(DAY - timedelta(seconds=30))
        async with httpx.AsyncClient(
            transport=fake.transport,
            base_url=fake.base_url,
            auth=session.auth,
            timeout=None,  # noqa: S113 - what the session has to do without
        ) as client:
            assert (await client.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests] == ["refresh", "apps"]


@pytest.mark.pitfall(24)
async def test_all_hooks_of_a_session_are_one(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Catches an auth object for each client, each with a token of its own: ten exchanges."""
    session = connect(token=fake.issue_token())
    clock.advance(DAY - timedelta(seconds=30))
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=fake.transport, base_url=fake.base_url, auth=session.auth
                )
            )
            for _ in range(10)
        ]
        works: Iterator[Any] = (
            lambda client=client: client.get("/v1/apps") for client in [*clients, session.http]
        )
        responses = await async_gather(*works)
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
