"""The reaction of the auth hook to a refusal."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import Any, Final

import httpx
import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    AuthenticationError,
    InvalidCredentialsError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import async_read, async_use_up
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, log
from .doubles import AsyncUnderWay, Connect

YOU: Final = "you@example.com"


# httpx leaves its own generators to the collector when it cannot decode.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("by_auth", [False, True])
@pytest.mark.parametrize(
    "fault",
    [Fault(status=401, truncate=3), Fault(status=401, headers={"content-encoding": "gzip"})],
    ids=["truncated", "not encoded as it says"],
)
async def test_a_401_is_enough_if_its_body_cannot_be_read(
    fake: FakeKoyeb, url: str, clock: FakeClock, fault: Fault, *, by_auth: bool
) -> None:
    """The token is renewed; where it cannot be, the error of the reply is the answer."""
    async with (
        AsyncSessionClient(base_url=url, token=fake.issue_token(), clock=clock) as session,
        httpx.AsyncClient(base_url=url, auth=session.auth, trust_env=False) as own,
    ):
        client = own if by_auth else session.http
        fake.fail("apps", fault)
        assert (await client.get("/v1/apps")).status_code == 200
        assert fake.exchanges() == 1
        fake.fail("apps", fault)
        with pytest.raises((httpx.RemoteProtocolError, httpx.DecodingError)):
            await client.post("/v1/apps", content=stream())  # cannot be sent again
        assert fake.exchanges() == 2
        await session.use_token(fake.issue_api_token())
        fake.fail("apps", fault)
        with pytest.raises((httpx.RemoteProtocolError, httpx.DecodingError)):
            await client.get("/v1/apps")


@pytest.mark.parametrize("by_auth", [False, True])
@pytest.mark.parametrize("headers", [{}, {"content-encoding": "gzip"}], ids=["plain", "gzip"])
async def test_a_401_that_is_the_answer_is_yet_to_be_read(
    fake: FakeKoyeb,
    session: AsyncSessionClient,
    client: httpx.AsyncClient,
    headers: dict[str, str],
    *,
    by_auth: bool,
) -> None:
    """A proxy that hands on each reply as it is can do so with this one."""
    client.auth = session.auth
    own = client if by_auth else session.http
    body = gzip.compress(b"refused") if headers else b"refused"
    fake.fail("apps", Fault(status=401, headers=headers, body=body))
    request = own.build_request("POST", "/v1/apps", content=stream())
    response = await own.send(request, stream=True)
    assert fake.exchanges() == 1
    assert not response.is_closed
    assert not response.is_stream_consumed
    assert await async_read(response) == b"refused"
    assert response.is_closed


@pytest.mark.parametrize("by_auth", [False, True])
@pytest.mark.parametrize("use", [async_read, async_use_up, httpx.Response.aclose])
async def test_a_hook_that_has_used_the_401_hides_no_refusal(
    fake: FakeKoyeb,
    connect: Connect,
    client: httpx.AsyncClient,
    use: Callable[[httpx.Response], Any],
    *,
    by_auth: bool,
) -> None:
    """A hook of the user's own client may log the bodies of errors, or close them unread."""

    async def log_error(response: httpx.Response) -> None:
        if response.is_error:
            await use(response)

    client.event_hooks = {"response": [log_error]}
    session = connect(http_client=client, token=fake.issue_token())
    client.auth = session.auth
    own = client if by_auth else session.http
    fake.fail("apps", Fault(status=401, body={"message": "refused"}))
    response = await own.get("/v1/apps")
    assert response.status_code == 200
    is_kept = use is async_read
    assert [bool(it.content) for it in response.history] == [is_kept]
    fake.fail("login", Fault(status=401, body={"message": "wrong"}))
    with pytest.raises(InvalidCredentialsError, match="wrong" if is_kept else "no message"):
        await session.login(ME, PASSWORD)


async def test_a_revoked_token_is_renewed_and_the_request_replayed(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A 401 renews once and sends the request once more, with the new token."""
    old = held(session)
    fake.fail("apps", Fault(status=401))
    response = await session.http.post("/v1/apps", json={"name": "mine"})
    assert response.status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]
    assert [request.bearer for request in fake.requests] == [old, old, held(session)]
    assert fake.requests[0].json == fake.requests[2].json == {"name": "mine"}
    assert [reply.status_code for reply in response.history] == [401]
    assert fake.transport.open_replies == 0


@pytest.mark.pitfall(9)
async def test_a_late_401_is_replayed_without_another_renewal(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """When the session has moved on since the request was signed, the newer token is used."""
    async with AsyncUnderWay(
        fake, "apps", lambda: session.http.get("/v1/apps"), hold="request"
    ) as background:
        await session.refresh()
        background.gate.open()
        response = await background.job.result()
    assert response.status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]


@pytest.mark.parametrize("by", ["http", "operation"])
@pytest.mark.parametrize(
    ("change", "arguments", "is_replayed"),
    [
        ("login", (ME, PASSWORD), True),
        ("use_token", ("another-token",), True),
        ("login", (YOU, PASSWORD), False),
        ("switch_organization", ("two",), False),
    ],
)
async def test_late_401_is_the_answer_when_the_session_is_of_another(
    connect: Connect, *, by: str, change: str, arguments: tuple[str, ...], is_replayed: bool
) -> None:
    """Catches a request of one user, or in one organization, that is sent again as another."""
    fake = FakeKoyeb(users=dict.fromkeys((ME, YOU), PASSWORD))
    fake.organizations[ME] = fake.organizations[YOU] = ["one", "two"]
    session = connect(transport=fake.transport)
    old = await session.login(ME, PASSWORD)
    operation = "create_access_token"
    call: partial[Any] = partial(session.create_access_token, "one")
    if by == "http":
        operation, call = "apps", partial(session.http.post, "/v1/apps", json={"name": "mine"})
    async with AsyncUnderWay(fake, operation, call, hold="request") as background:
        await getattr(session, change)(*arguments)
        fake.revoke(old.id)
        background.gate.open()
        with contextlib.suppress(AuthenticationError):
            await background.job.result()
    assert count(fake, operation) == 1 + is_replayed


@pytest.mark.pitfall(9)
@pytest.mark.parametrize("marked", [True, False])
async def test_a_permanent_401_costs_two_requests_and_one_renewal(
    fake: FakeKoyeb, session: AsyncSessionClient, client: httpx.AsyncClient, *, marked: bool
) -> None:
    """
    A token that is refused when it is new is remembered: later refusals are the answer.

    An event hook, which runs once a request is signed, may put other extensions in their place.
    """

    async def unmark(request: httpx.Request) -> None:
        request.extensions = {"timeout": request.extensions["timeout"]}

    client.event_hooks = {"request": [] if marked else [unmark]}
    fake.fail("apps", Fault(status=401), times=4)
    for _ in range(3):
        assert (await client.get("/v1/apps", auth=session.auth)).status_code == 401
    assert log(fake) == [("apps", 401), ("refresh", 200), *[("apps", 401)] * 3]


async def test_operations_remember_a_refusal_as_requests_do(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Catches a renewal for each call of a loop over an operation that is always refused."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("new_session", Fault(status=401), times=100)
    for _ in range(5):
        with pytest.raises(AuthenticationError):
            await session.new_session()
    assert log(fake).count(("refresh", 200)) == 1
    fake.recover("new_session")
    await session.new_session()
    for renewals in (2, 3):  # the tokens after them were accepted
        fake.fail("new_session", Fault(status=401))
        await session.new_session()
        assert log(fake).count(("refresh", 200)) == renewals


ELSEWHERE = Fault(status=302, headers={"location": "https://elsewhere.example/v1/apps"})


@pytest.mark.parametrize(
    ("faults", "status", "renewals"),
    [
        *[
            ([], status, renewals)
            for status, renewals in ((200, 1), (403, 1), (408, 0), (429, 0), (503, 0))
        ],
        ([ELSEWHERE], 200, 0),
    ],
)
async def test_only_a_token_that_is_accepted_ends_the_memory_of_a_refusal(
    fake: FakeKoyeb,
    session: AsyncSessionClient,
    client: httpx.AsyncClient,
    *,
    faults: list[Fault],
    status: int,
    renewals: int,
) -> None:
    """A gateway's outage between two refusals is no acceptance; catches renewals without end."""
    fake.fail("apps", Fault(status=401), times=2)
    assert (await session.http.get("/v1/apps")).status_code == 401
    for fault in (*faults, Fault(status=status)):
        fake.fail("apps", fault)
    reply = await client.get("/v1/apps", auth=session.auth, follow_redirects=True)
    assert reply.status_code == status
    fake.requests.clear()
    fake.fail("apps", Fault(status=401))
    await session.http.get("/v1/apps")
    assert log(fake).count(("refresh", 200)) == renewals


async def test_the_memory_of_a_refusal_ends_with_the_token(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """The memory of one rejected token does not hold for the next."""
    fake.fail("apps", Fault(status=401), times=3)
    await session.http.get("/v1/apps")
    await session.login(ME, PASSWORD)
    fake.requests.clear()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 401), ("refresh", 200), ("apps", 200)]


@pytest.mark.parametrize("operation", ["apps", "new_session"])
async def test_a_token_issued_by_others_and_refused_is_not_remembered(
    fake: FakeKoyeb, session: AsyncSessionClient, operation: str
) -> None:
    """Only a token that this very flow had issued says that another one will not help."""

    async def ask() -> int:
        if operation == "apps":
            return (await session.http.get("/v1/apps")).status_code
        try:
            await session.new_session()
        except AuthenticationError as error:
            return error.status
        return 200

    async with AsyncUnderWay(fake, operation, ask, status=401) as background:
        fake.fail(operation, Fault(status=401), times=2)
        await session.refresh()
        background.gate.open()
        assert await background.job.result() == 401
    assert fake.exchanges() == 1
    assert await ask() == 200
    assert fake.exchanges() == 2


async def test_a_replay_that_succeeds_is_not_remembered(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A token that works is renewed again when it is refused later."""
    for _ in range(3):
        fake.fail("apps", Fault(status=401))
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 3


@pytest.mark.parametrize("status", [400, 403, 404, 407, 500])
async def test_other_errors_renew_nothing(
    fake: FakeKoyeb, session: AsyncSessionClient, status: int
) -> None:
    """Only a 401 is about the token."""
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
    with pytest.raises(SessionExpiredError) as caught:
        await session.refresh()
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert await session.current_token() == session.token
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("refresh", 401), ("apps", 200)]


@pytest.mark.parametrize("operation", ["apps", "new_session"])
async def test_a_refused_token_that_cannot_be_renewed_ends_the_session(
    fake: FakeKoyeb, session: AsyncSessionClient, operation: str
) -> None:
    """When the refresh is refused as well, the error says so, and the refusal is its cause."""
    fake.revoke_all()
    ask = partial(session.http.get, "/v1/apps") if operation == "apps" else session.new_session
    with pytest.raises(SessionExpiredError) as caught:
        await ask()
    assert isinstance(caught.value.__cause__, AuthenticationError)
    assert not caught.value.retryable
    assert log(fake) == [(operation, 401), ("refresh", 401)]


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


@pytest.mark.parametrize("ending", ["revoked", "expired"])
@pytest.mark.parametrize("fault", [{"status": 500}, {"reset": True}, {"body": "?"}], ids=repr)
async def test_request_is_signed_in_for_when_a_renewal_ahead_of_need_fails(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, fault: dict[str, Any], ending: str
) -> None:
    """It tries no credentials, as its token was good; the request that joins it needs them."""
    policy = RefreshPolicy(jitter=0)
    session = connect(token=fake.issue_token(), credentials=PASSWORDS, refresh_policy=policy)
    clock.advance(DAY * 0.6)
    request = partial(session.http.get, "/v1/apps")
    async with AsyncUnderWay(fake, "refresh", request, **fault) as background:
        assert (await background.job.result()).status_code == 200
        if ending == "revoked":
            fake.revoke_all()
        else:
            clock.advance(DAY * 0.5)
        job = background.start(request)
        await background.settled()
        background.gate.open()
        assert (await job.result()).status_code == 200
    assert [count(fake, "refresh"), count(fake, "login")] == [1, 1]


async def stream() -> AsyncIterator[bytes]:
    """Yield a body that is gone once it is sent."""
    yield b'{"name": '
    yield b'"mine"}'


# Bodies


@pytest.mark.pitfall(12)
@pytest.mark.parametrize("kind", ["stream", "multipart"])
async def test_a_body_that_cannot_be_sent_twice_is_not_replayed(
    fake: FakeKoyeb, session: AsyncSessionClient, kind: str
) -> None:
    """The refusal is handed out as it is; the token is renewed for the requests that follow."""
    old = session.token
    files = {"file": io.BytesIO(b"content")}
    body: dict[str, Any] = {"content": stream()} if kind == "stream" else {"files": files}
    fake.fail("apps", Fault(status=401))
    assert (await session.http.post("/v1/apps", **body)).status_code == 401
    assert log(fake) == [("apps", 401), ("refresh", 200)]
    assert session.token is not old
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_a_body_that_was_read_is_replayed(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A request that has read its files keeps them in memory, and can be sent twice."""
    files = {"file": io.BytesIO(b"content")}
    request = session.http.build_request("POST", "/v1/apps", files=files)
    request.read()
    fake.fail("apps", Fault(status=401))
    assert (await session.http.send(request)).status_code == 200
    assert fake.requests[0].content == fake.requests[2].content


@pytest.mark.parametrize("issuer", ["refresh", "login", "create_access_token"])
@pytest.mark.parametrize("others", [0, 1])
async def test_bodies_that_cannot_be_sent_twice_start_no_renewal_each(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, issuer: str, others: int
) -> None:
    """A token that was issued for one refused upload is remembered, also if others accept it."""
    organization = fake.organizations[ME][0]
    access = AccessTokenCredentials(fake.issue_api_token(), organization)
    given: dict[str, dict[str, Any]] = {
        "refresh": {"token": fake.issue_token()},
        "login": {"credentials": PASSWORDS},
        "create_access_token": {"credentials": access},
    }
    session = connect(**given[issuer])
    await session.current_token()
    if issuer == "login":
        fake.fail("refresh", Fault(status=410), times=100)
    fake.requests.clear()
    for _ in range(30):
        fake.fail("apps", Fault(status=401))
        assert (await session.http.post("/v1/apps", content=stream())).status_code == 401
        for _ in range(others):
            assert (await session.http.get("/v1/apps")).status_code == 200
        clock.advance(1)
    assert count(fake, issuer) == 1 + others


async def test_revocations_hours_apart_are_no_refusals_in_a_row(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """Catches a session that renews no more, as uploads have met a revoked token now and then."""
    for _ in range(4):
        clock.advance(timedelta(hours=3))
        fake.fail("apps", Fault(status=401))
        assert (await session.http.post("/v1/apps", content=stream())).status_code == 401
        assert (await session.http.get("/v1/apps")).status_code == 200
    fake.fail("apps", Fault(status=401))
    assert (await session.http.get("/v1/apps")).status_code == 200


@pytest.mark.parametrize(
    "body",
    [{"content": b"\x00\xff"}, {"json": {"name": "mine"}}, {"data": {"name": "mine"}}, {}],
    ids=["content", "json", "form", "none"],
)
async def test_a_body_in_memory_is_replayed_as_it_was(
    fake: FakeKoyeb, session: AsyncSessionClient, body: dict[str, Any]
) -> None:
    """The second request has the same body as the first, byte by byte."""
    fake.fail("apps", Fault(status=401))
    assert (await session.http.post("/v1/apps", **body)).status_code == 200
    first, _, second = fake.requests
    assert first.content == second.content
    assert first.headers["content-length"] == second.headers["content-length"]


@pytest.mark.parametrize("status", [200, 503])
async def test_a_body_that_cannot_be_sent_twice_waits_for_a_renewal_that_is_due(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient, status: int
) -> None:
    """
    In the soft window such a request does not carry a token that is being exchanged.

    A renewal that fails keeps it from nothing, as that was ahead of need, and is not repeated.
    """
    if status != 200:
        fake.fail("refresh", Fault(status=status))
    clock.advance(timedelta(hours=12))
    response = await session.http.post("/v1/apps", content=stream())
    assert response.status_code == 200
    assert log(fake) == [("refresh", status), ("apps", 200)]
    assert fake.requests[1].bearer == held(session)
