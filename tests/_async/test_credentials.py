"""Signing in again, with a password or with a callable of the user."""

from __future__ import annotations

import contextvars
import gc
import weakref
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NoReturn

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    RateLimitedError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionExpiredError,
    Token,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._core.deadline import Deadline
from koyeb_session._core.snapshot import FailedAttempt
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import async_idle, deadlines
from ..jwts import jwt
from ..support import DAY, ME, PASSWORD, PASSWORDS, count, held, inside, log, operations, raising
from .doubles import BucketError, BusyError, Connect


@pytest.mark.parametrize("begins", [True, False], ids=["at the first request", "after expiry"])
async def test_credentials_sign_in_where_there_is_no_good_token(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, begins: bool
) -> None:
    """A session that has credentials needs no login, and refreshes no expired token."""
    session = connect(token=None if begins else fake.issue_token(), credentials=PASSWORDS)
    clock.advance(DAY)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("login", 200), ("apps", 200)]
    assert fake.requests[0].json == {"email": ME, "password": PASSWORD}


async def test_credentials_name_their_organization(fake: FakeKoyeb, connect: Connect) -> None:
    """A session signs in to the organization of its credentials."""
    organization = fake.organizations[ME][1]
    session = connect(credentials=PasswordCredentials(ME, PASSWORD, organization))
    assert (await session.refresh()).organization_id == organization


@pytest.mark.pitfall(25)
@pytest.mark.parametrize("status", [300, 401, 403, 404, 405, 410, 501])
async def test_credentials_sign_in_when_a_refresh_is_refused(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """An error that says that no refresh will help leads to a sign-in, in the same exchange."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", Fault(status=status))
    await session.refresh()
    assert log(fake) == [("refresh", status), ("login", 200)]


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(reset=True), Fault(body="?")])
async def test_credentials_are_not_used_when_the_refresh_was_not_refused(
    fake: FakeKoyeb, connect: Connect, fault: Fault
) -> None:
    """An outage is no reason to sign in."""
    session = connect(token=fake.issue_token(), credentials=PASSWORDS)
    fake.fail("refresh", fault)
    with pytest.raises(KoyebSessionError):
        await session.refresh()
    assert operations(fake) == ["refresh"]


@pytest.mark.pitfall(23)
async def test_credentials_that_are_refused_are_not_tried_again_soon(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Repeating a wrong password locks the account: the wait is sixty times as long."""
    policy = RefreshPolicy(backoff=2, backoff_max=2)
    session = connect(credentials=PasswordCredentials(ME, "wrong"), refresh_policy=policy)
    for _ in range(3):
        with pytest.raises(InvalidCredentialsError):
            await session.current_token()
        clock.advance(29)
    assert log(fake) == [("login", 401)]
    clock.advance(34)
    with pytest.raises(InvalidCredentialsError):
        await session.current_token()
    assert log(fake) == [("login", 401)] * 2


@pytest.mark.parametrize("begins", [True, False], ids=["at the first request", "after expiry"])
async def test_sign_in_that_is_not_answered_in_time_is_not_sent_again_soon(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, *, begins: bool
) -> None:
    """Otherwise each request would sign in at a service that is slow, and accounts lock."""
    gate = Gate()
    fake.fail("login", Fault(gate=gate))
    for seconds in deadlines(lambda: count(fake, "login")):
        token = None if begins else fake.issue_token()
        session = connect(credentials=PASSWORDS, token=token, timeout=seconds)
        clock.advance(DAY)
        for _ in range(3):
            with pytest.raises((TransportTimeoutError, SessionExpiredError)):
                await session.current_token()
    assert operations(fake) == ["login"]
    gate.open()


@pytest.mark.parametrize("kind", [LookupError, TimeoutError])
async def test_sign_in_whose_transport_raises_is_not_sent_again_soon(
    connect: Connect, kind: type[Exception]
) -> None:
    """The request may have arrived before the user's hook or transport raised."""
    sent: list[httpx.Request] = []

    def raise_late(request: httpx.Request) -> NoReturn:
        sent.append(request)
        raise kind("a bug")

    session = connect(transport=httpx.MockTransport(raise_late), credentials=PASSWORDS)
    for _ in range(3):
        with pytest.raises((kind, TransportError)):
            await session.current_token()
    assert len(sent) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_sign_in_is_never_sent_twice(
    fake: FakeKoyeb, connect: Connect, status: int
) -> None:
    """Accounts lock: a login that may have arrived is not repeated."""
    session = connect(credentials=PASSWORDS)
    fake.fail("login", Fault(status=status))
    with pytest.raises((RateLimitedError, ServerError)):
        await session.http.get("/v1/apps")
    assert log(fake) == [("login", status)]


async def test_a_callable_brings_tokens(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """Any callable without arguments can sign in, as often as it is needed."""
    session = connect(credentials=lambda: fake.issue_token(lifetime=timedelta(hours=1)))
    first = await session.current_token()
    assert first.expires_at is not None
    assert first.expires_at.timestamp() == clock.time() + 3600
    clock.advance(timedelta(hours=1))
    second = await session.current_token()
    assert second.id != first.id
    assert fake.requests == []


async def test_a_callable_may_return_a_token(clock: FakeClock, connect: Connect) -> None:
    """The fields that the provider knows of a token are kept."""
    expires = datetime.fromtimestamp(clock.time() + 600, UTC)
    given = Token("opaque", "user", "organization", expires)
    assert await connect(credentials=lambda: given).current_token() == given


async def test_an_opaque_token_from_a_callable_is_fetched_again_when_refused(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A provider's token is not an API token: after a refusal the provider is asked again."""
    tokens = iter([fake.issue_api_token(), fake.issue_api_token()])
    session = connect(credentials=lambda: next(tokens))
    first = await session.current_token()
    fake.revoke(first.id)
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert log(fake) == [("apps", 401), ("apps", 200)]
    assert held(session) != first.id


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("", ValueError),
        ("a b", ValueError),
        (jwt({"exp": 1_000_000_000}), ValueError),
        (None, TypeError),
        (7, TypeError),
        (Token("t", expires_at=datetime(2020, 1, 1, tzinfo=UTC)), ValueError),
        (Token("t", expires_at=datetime(2030, 1, 1)), ValueError),  # noqa: DTZ001 - naive
        (Token("t", expires_at="tomorrow"), Exception),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - as a careless provider might
    ],
)
async def test_a_callable_that_returns_nonsense_is_told(
    connect: Connect, given: object, cause: type[Exception]
) -> None:
    """The error says that the provider gave no usable token; the provider is asked once."""
    answers = iter([given])
    with pytest.raises(NotSignedInError, match="the credentials gave no token") as caught:
        await connect(credentials=lambda: next(answers)).current_token()
    assert isinstance(caught.value.__cause__, cause)


async def test_an_error_of_a_callable_is_the_cause(connect: Connect) -> None:
    """The provider's own error is kept, without the frames that may hold its secrets."""
    session = connect(credentials=raising(PermissionError("the vault is sealed")))
    with pytest.raises(NotSignedInError, match="PermissionError: the vault is sealed") as caught:
        await session.current_token()
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, PermissionError)
    assert str(caught.value.__cause__) == "the vault is sealed"
    assert caught.value.__cause__.__traceback__ is None


async def test_class_of_a_callables_error_tells_whether_to_retry(connect: Connect) -> None:
    """It does so also where the class cannot be made of a text; the message names it once."""
    session = connect(credentials=raising(BusyError("kv", 2)))
    text = "the credentials gave no token: BusyError: kv is locked for 2 s;"
    with pytest.raises(NotSignedInError, match=text) as caught:
        await session.current_token()
    assert caught.value.retryable


async def test_an_error_of_ours_from_a_callable_is_raised_as_it_is(connect: Connect) -> None:
    """A provider that uses another session need not translate its errors."""
    session = connect(credentials=raising(RateLimitedError("busy", retry_after=7)))
    with pytest.raises(RateLimitedError, match="busy") as caught:
        await session.current_token()
    assert caught.value.retry_after == 7
    session = connect(credentials=raising(BucketError("b", 503)))
    with pytest.raises(BucketError, match=r"^bucket b: 503; it tries again"):
        await session.current_token()


@pytest.mark.parametrize("by", ["credentials", "http_client", "another session"])
async def test_code_that_a_renewal_calls_cannot_wait_for_that_renewal(
    fake: FakeKoyeb, connect: Connect, by: str
) -> None:
    """A callable, or a hook, that uses its own session is told so, long before its time is up."""

    async def use(*_: object) -> str:
        return (await session.current_token()).id

    hooked = httpx.AsyncClient(transport=fake.transport, event_hooks={"request": [use]})
    if by == "credentials":
        session = connect(credentials=use)
    elif by == "http_client":
        session = connect(credentials=PASSWORDS, http_client=hooked)
    else:
        session = connect(credentials=connect(credentials=use).current_token)
    with pytest.raises(TransportError, match=r"^try again once this function has returned"):
        await session.current_token()
    await hooked.aclose()


async def test_a_context_that_credentials_keep_does_not_keep_the_session(
    fake: FakeKoyeb, clock: FakeClock
) -> None:
    """A connection that they open does; catches a mark of the renewal that refers to it."""
    kept: list[contextvars.Context] = []

    async def source() -> str:
        kept.append(contextvars.copy_context())
        return fake.issue_token()

    session = AsyncSessionClient(transport=fake.transport, credentials=source, clock=clock)
    await session.current_token()
    await session.aclose()
    gone = weakref.ref(inside(session).keeper)
    del session
    await async_idle()
    gc.collect()
    assert gone() is None
    assert kept


async def test_credentials_that_were_changed_to_nonsense_are_told(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A password that cannot be sent is found before it is, and counts as a failed sign-in."""
    credentials = PasswordCredentials(ME, PASSWORD)
    session = connect(credentials=credentials)
    object.__setattr__(credentials, "password", "")
    for kind in (NotSignedInError, SessionExpiredError):
        wanted = "ValueError: password must not be empty; it tries again in"
        with pytest.raises(kind, match=wanted) as caught:
            await session.current_token()
        assert isinstance(caught.value.__cause__, ValueError)
        await session.use_token(fake.issue_token())
        clock.advance(DAY)
    assert fake.requests == []


async def test_token_of_a_refresh_is_refreshed_again_beside_a_callable(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Its issuer is Koyeb, which renews it; catches a callable that is asked for the next one."""
    session = connect(credentials=raising(AssertionError("not to be asked")))
    await session.login(ME, PASSWORD)
    for _ in range(3):
        await session.refresh()
    assert operations(fake) == ["login", *["refresh"] * 3]


@pytest.mark.pitfall(8)
@pytest.mark.parametrize("left", [timedelta(hours=11), timedelta(seconds=40)], ids=["soft", "hard"])
async def test_a_callable_with_the_same_token_again_is_not_asked_at_each_request(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, left: timedelta
) -> None:
    """A vault may keep a token until shortly before its end; it is asked once every ten seconds."""
    cached = fake.issue_token()
    asked = list[float]()

    async def vault() -> str:  # in no thread of its own, so that it reads the clock in time
        asked.append(clock.monotonic())
        return cached

    session = connect(credentials=vault)
    await session.current_token()
    clock.advance(DAY - left)
    for _ in range(30):
        assert (await session.http.get("/v1/apps")).status_code == 200
        await async_idle()
        clock.advance(1)
    first, *later = asked
    gaps = [after - before for before, after in pairwise(later)]
    assert len(gaps) >= 1
    assert min(gaps) >= 10
    assert later[0] - first >= DAY.total_seconds() / 2


async def test_credentials_rest_after_a_logout(fake: FakeKoyeb, connect: Connect) -> None:
    """Signed out stays signed out, until somebody asks for more."""
    session = connect(credentials=PASSWORDS)
    await session.current_token()
    await session.logout()
    fake.requests.clear()
    for call in (session.current_token, session.new_session):
        with pytest.raises(NotSignedInError, match="signed out"):
            await call()
    assert fake.requests == []
    await session.refresh()
    assert log(fake) == [("login", 200)]
    assert (await session.http.get("/v1/apps")).status_code == 200


async def test_a_refused_token_is_not_refreshed_in_a_back_off(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """The credentials bring the next one at once."""
    session = connect(
        token=fake.issue_token(), credentials=PASSWORDS, retry_policy=RetryPolicy(attempts=1)
    )
    fake.fail("refresh", Fault(status=503))
    with pytest.raises(ServerError):
        await session.refresh()
    fake.revoke_all()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert operations(fake)[1:] == ["apps", "login", "apps"]


async def test_credentials_that_meet_the_deadline_are_its_end(connect: Connect) -> None:
    """A timeout of their own is another matter, as long as there is time."""
    source = inside(connect(credentials=raising(TimeoutError()))).source
    with pytest.raises(TimeoutError):
        await source.sign_in(None, None, Deadline(0))
    assert isinstance(await source.sign_in(None, None, Deadline(60)), FailedAttempt)


async def test_credentials_are_asked_once_when_the_clock_is_far_ahead(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """Each new token looks nearly expired; catches asking without end for a better one."""
    ahead, tokens = FakeClock(), [fake.issue_token() for _ in range(9)]
    ahead.step_wall(DAY - timedelta(seconds=30))
    session = connect(credentials=tokens.pop, clock=ahead)
    assert (await session.current_token()).id not in tokens
    assert len(tokens) == 8
