"""`session.http`: its last signature, its cookies and headers, and a user's own client below it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, TransportError
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import async_advance, async_read
from ..support import held
from .doubles import Connect

ELSEWHERE = "https://elsewhere.example/v1/apps"


async def test_a_reply_of_elsewhere_is_not_answered_for(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A user's client follows a redirect: the request that is refused there carried no token."""
    for url, headers in ((ELSEWHERE, {"Authorization": "Bearer x"}), (f"{fake.base_url}/v1", {})):
        request = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
        flow = session.auth.async_auth_flow(request)
        assert await async_advance(flow) is request
        refused = httpx.Response(401, request=httpx.Request("GET", url, headers=headers))
        assert await async_advance(flow, refused) is None
    assert fake.requests == []


@pytest.fixture
async def session(fake: FakeKoyeb, connect: Connect) -> AsyncSessionClient:
    """Make a session that is signed in."""
    return connect(token=fake.issue_token(), allowed_origins=["https://trusted.example"])


def on_request(session: AsyncSessionClient, change: Callable[[httpx.Request], None]) -> None:
    """Let an event hook of `session.http` change each request."""

    async def hook(request: httpx.Request) -> None:
        change(request)

    session.http.event_hooks = {"request": [hook]}


async def test_a_closed_http_client_is_replaced(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A user of httpx writes ``async with session.http``: the session goes on after that block."""
    for _ in range(2):
        async with session.http as client:
            assert (await client.get("/v1/apps")).status_code == 200
    assert (await session.http.get("/v1/apps")).status_code == 200
    await session.aclose()
    assert session.http.is_closed
    assert len(fake.requests) == 3


# The last look


@pytest.mark.parametrize(
    ("url", "operation"),
    [
        (ELSEWHERE, "apps"),
        ("https://trusted.example", None),
        ("http://app.koyeb.com/", None),
        ("https://app.koyeb.com/v1/account/profile", "profile"),
    ],
)
async def test_a_hook_that_rewrites_the_url_takes_no_token_along(
    session: AsyncSessionClient, fake: FakeKoyeb, url: str, operation: str | None
) -> None:
    """The request goes where the hook says, as nobody's; another path of the service is its own."""

    def rewrite(request: httpx.Request) -> None:
        request.url = httpx.URL(url)

    on_request(session, rewrite)
    response = await session.http.get("/v1/apps")
    (request,) = fake.requests
    assert request.operation == operation
    assert (request.bearer is not None) is (operation == "profile")
    assert response.status_code == {"apps": 401, None: 404, "profile": 200}[operation]


async def test_a_header_that_a_hook_has_set_stays(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """It takes the token's place; its refusal renews nothing."""
    on_request(session, lambda request: request.headers.update({"authorization": "Bearer mine"}))
    assert (await session.http.get("/v1/apps")).status_code == 401
    assert [request.bearer for request in fake.requests] == ["mine"]


class Gateway(httpx.AsyncBaseTransport):
    """A user's own transport, for a mount."""

    def __init__(self, fake: FakeKoyeb) -> None:
        self.transport = fake.transport
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Note it and send it on."""
        self.paths.append(request.url.path)
        return await self.transport.handle_async_request(request)


@pytest.fixture
async def gateway(fake: FakeKoyeb) -> Gateway:
    """Make one."""
    return Gateway(fake)


@pytest.fixture
async def own(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Make a client of a user's, with everything that one can have."""
    async with httpx.AsyncClient(
        mounts={"https://app.koyeb.com": gateway},
        auth=("user", "password"),
        cookies={"own": "1"},
        follow_redirects=True,
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("target", "trusted"),
    [(b"/v1/apps", True), (b"https://elsewhere.example/", False), (b"*", False), ("/v1", False)],
)
async def test_a_target_that_is_no_path_gets_no_token(
    session: AsyncSessionClient, fake: FakeKoyeb, target: Any, *, trusted: bool
) -> None:
    """A proxy would take an absolute URL in place of the path for where the request is to go."""
    await session.http.get("/v1/apps", extensions={"target": target})
    async with httpx.AsyncClient(transport=fake.transport, auth=session.auth) as own:
        await own.get("https://app.koyeb.com/v1/apps", extensions={"target": target})
    assert [request.bearer is not None for request in fake.requests] == [trusted] * 2


@pytest.mark.parametrize("location", ["https://127.0.0.1/v1/apps", "https://trusted.example/"])
async def test_a_redirect_to_another_origin_takes_no_token_along(
    fake: FakeKoyeb, connect: Connect, location: str
) -> None:
    """Httpx takes a header from a port of loopback to https on it: that is another service."""
    session = connect(
        base_url="http://127.0.0.1",
        transport=fake.transport,
        token=fake.issue_token(),
        allowed_origins=["https://trusted.example"],
    )
    fake.fail("apps", Fault(status=307, headers={"location": location}))
    await session.http.get("/v1/apps", follow_redirects=True)
    assert [request.bearer is not None for request in fake.requests] == [True, False]


async def test_no_hook_and_no_response_holds_the_token(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """It is in the request only while that is on its way."""
    seen: list[bool] = []
    on_request(session, lambda request: seen.append("authorization" in request.headers))
    fake.fail("apps", Fault(status=401))
    response = await session.http.get("/v1/apps", headers={"authorization": "mine"})
    assert response.status_code == 200
    assert seen == [False]
    assert [it.status_code for it in response.history] == [401]
    for it in (response, *response.history):
        assert "authorization" not in it.request.headers
    assert None not in {request.bearer for request in fake.requests}


@pytest.mark.parametrize("auth", [None, ("user", "password"), httpx.Auth()])
async def test_another_auth_stands_in_the_place_of_the_session(
    session: AsyncSessionClient, fake: FakeKoyeb, auth: Any
) -> None:
    """As in any httpx client."""
    assert (await session.http.get("/v1/apps", auth=auth)).status_code == 401
    assert [request.bearer for request in fake.requests] == [None]


async def test_the_auth_of_another_session_signs(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """It looks at the request last, too."""
    other = session.for_token(fake.issue_token())
    assert (await session.http.get("/v1/apps", auth=other.auth)).status_code == 200
    assert fake.requests[0].bearer == held(other)


async def test_a_request_that_a_hook_makes_has_an_auth_of_its_own(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """One within another is signed as it says, and the outer one as before."""

    async def ask(request: httpx.Request) -> None:
        if request.url.path == "/v1/apps":
            assert (await session.http.get("/v1/account/profile", auth=None)).status_code == 401

    session.http.event_hooks = {"request": [ask]}
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert [request.bearer is None for request in fake.requests] == [True, False]


# Refusals below hooks


async def test_a_hook_that_raises_hides_no_refusal(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """The token is renewed below the hooks of `session.http`; they see the answer."""

    async def raise_for_status(response: httpx.Response) -> None:
        response.raise_for_status()

    session.http.event_hooks = {"response": [raise_for_status]}
    fake.fail("apps", Fault(status=401))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 1
    fake.fail("apps", Fault(status=500))
    with pytest.raises(httpx.HTTPStatusError):
        await session.http.get("/v1/apps")


async def test_a_failure_after_a_refusal_is_raised(
    session: AsyncSessionClient, fake: FakeKoyeb
) -> None:
    """The replay may meet with anything; no connection is left behind."""
    fake.fail("apps", Fault(status=401))
    fake.fail("apps", Fault(reset=True))
    with pytest.raises(httpx.TransportError):
        await session.http.get("/v1/apps")
    assert fake.exchanges() == 1
    assert fake.transport.open_replies == 0


# Cookies


async def test_no_cookie_is_kept(session: AsyncSessionClient, fake: FakeKoyeb) -> None:
    """One user's cookie goes along with no other request; one that a caller sends does."""
    cookie = {"set-cookie": "sid=of-somebody; Path=/"}
    fake.fail("apps", Fault(status=200, body="{}", headers=cookie), times=2)
    response = await session.http.get("/v1/apps")
    assert response.cookies["sid"] == "of-somebody"
    await session.http.get("/v1/apps", headers={"cookie": "own=1"})
    await session.http.get("/v1/apps")
    await session.for_token(fake.issue_token()).http.get("/v1/apps")
    sent = [request.headers.get("cookie") for request in fake.requests]
    assert sent == [None, "own=1", None, None]
    assert not session.http.cookies


# A user's own client


async def test_a_users_own_client_sends_everything(
    connect: Connect, fake: FakeKoyeb, own: httpx.AsyncClient, gateway: Gateway
) -> None:
    """Its mounts count; its auth, its cookies and its redirects do not; it stays open."""
    async with connect(http_client=own, token=fake.issue_token()) as session:
        fake.fail("apps", Fault(status=302, headers={"location": "/v1/account/profile"}))
        assert (await session.http.get("/v1/apps")).status_code == 302
        fake.fail("apps", Fault(status=401))
        assert (await session.http.get("/v1/apps")).status_code == 200
        assert (await session.for_token(fake.issue_token()).http.get("/v1/apps")).status_code == 200
    assert [path.rsplit("/")[-1] for path in gateway.paths] == [
        *("apps", "apps", "refresh", "apps", "apps")
    ]
    assert {request.headers.get("cookie") for request in fake.requests} == {None}
    assert None not in {request.bearer for request in fake.requests}
    assert (await own.get("https://app.koyeb.com/v1/apps")).status_code == 401
    assert fake.requests[-1].headers["cookie"] == "own=1"


async def test_user_information_in_a_url_signs_nothing(
    connect: Connect, fake: FakeKoyeb, own: httpx.AsyncClient
) -> None:
    """Httpx would make an auth of it."""
    session = connect(http_client=own, token=fake.issue_token())
    await session.http.get("https://me:secret@app.koyeb.com/v1/apps")
    assert "authorization" not in fake.requests[0].headers


@pytest.mark.parametrize("reads", [True, False])
async def test_hooks_of_a_users_own_client_count_below_the_renewal(
    connect: Connect, fake: FakeKoyeb, own: httpx.AsyncClient, *, reads: bool
) -> None:
    """A transport that raises hides no refusal; any other error of it reaches the caller."""

    async def check(response: httpx.Response) -> None:
        if reads:
            await async_read(response)
        response.raise_for_status()

    own.event_hooks = {"response": [check]}
    session = connect(http_client=own, token=fake.issue_token())
    fake.fail("apps", Fault(status=401))
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert fake.exchanges() == 1
    for status in (500, 403):
        fake.fail("apps", Fault(status=status))
        with pytest.raises(httpx.HTTPStatusError) as caught:
            await session.http.get("/v1/apps")
        assert caught.value.response.status_code == status
    fake.fail("apps", Fault(status=401), times=2)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        await session.http.get("/v1/apps")
    assert fake.transport.open_replies == 0


async def test_a_hook_that_fails_at_something_else_is_not_understood_as_an_answer(
    connect: Connect, fake: FakeKoyeb, own: httpx.AsyncClient
) -> None:
    """It has asked another server, and raises that server's error."""

    async def ask(_response: httpx.Response) -> None:
        request = httpx.Request("GET", ELSEWHERE)
        httpx.Response(401, request=request).raise_for_status()

    own.event_hooks = {"response": [ask]}
    session = connect(http_client=own, token=fake.issue_token())
    with pytest.raises(httpx.HTTPStatusError, match=r"elsewhere\.example"):
        await session.http.get("/v1/apps")
    assert fake.exchanges() == 0


async def test_a_closed_client_is_told_once_and_is_final(
    connect: Connect, fake: FakeKoyeb, own: httpx.AsyncClient, gateway: Gateway
) -> None:
    """A bad origin is refused when the session is made, and by each later call that takes one."""
    session = connect(http_client=own, token=fake.issue_token())
    await own.aclose()
    for ask in (
        lambda: session.login_method("me@example.com"),
        lambda: session.http.get("/v1/apps"),
    ):
        with pytest.raises(TransportError, match="http_client is closed") as caught:
            await ask()
        assert not caught.value.retryable
    with pytest.raises(TransportError, match="http_client is closed"):
        connect(http_client=own)
    assert gateway.paths == []


async def test_requests_go_to_several_services_on_sockets(
    fake: FakeKoyeb, url: str, clock: FakeClock
) -> None:
    """Each origin that is named is trusted; the replies of one stay with it."""
    with ExitStack() as stack:
        other = stack.enter_context(fake.serve())
        async with AsyncSessionClient(
            base_url=url, allowed_origins=[other], token=fake.issue_token(), clock=clock
        ) as session:
            for place in ("", other):
                assert (await session.http.get(f"{place}/v1/apps")).status_code == 200
                fake.fail("apps", Fault(status=401))
                assert (await session.http.get(f"{place}/v1/apps")).status_code == 200
    assert fake.exchanges() == 2
