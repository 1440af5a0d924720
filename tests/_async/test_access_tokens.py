"""Tokens that a secret brings: API access tokens, and callables that rotate theirs."""

from __future__ import annotations

import contextlib
import logging
from datetime import timedelta

import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncMemoryTokenStore,
    KoyebSessionError,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Gate, assert_no_secret

from ..concurrency import (
    AsyncBackground,
    async_arrived,
    async_gather,
    async_idle,
    async_pass_through,
)
from ..support import DAY, ME, PASSWORD, count
from .doubles import Connect, Troubled


@pytest.fixture
def api_token(fake: FakeKoyeb) -> str:
    """Give an API access token."""
    return fake.issue_api_token()


def access(fake: FakeKoyeb, api_token: str, minutes: int = 60) -> AccessTokenCredentials:
    """Make credentials of the user's organization."""
    return AccessTokenCredentials(api_token, fake.organizations[ME][0], timedelta(minutes=minutes))


async def test_access_tokens_are_renewed_by_the_api_token_alone(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """A token is renewed by its issuer: none of these is ever refreshed."""
    session = connect(credentials=access(fake, api_token))
    for _ in range(25):
        await session.refresh()
        clock.advance(3599)
        assert (await session.http.get("/v1/apps")).status_code == 200
    assert count(fake, "refresh") == 0
    issued = [r for r in fake.requests if r.operation == "create_access_token"]
    assert len(issued) >= 25
    assert {request.bearer for request in issued} == {api_token}


async def test_revoked_api_token_is_one_clear_error_and_no_storm(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """It says what is refused; an hour of requests asks no more than now and then."""
    session = connect(credentials=access(fake, api_token))
    fake.revoke(api_token)
    for _ in range(120):
        with pytest.raises(KoyebSessionError, match="API access token is refused"):
            await session.http.get("/v1/apps")
        clock.advance(30)
    assert count(fake, "create_access_token") <= 70


async def test_two_sessions_share_five_minute_tokens_for_an_hour(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """One exchange serves both, and nothing is refused."""
    store = AsyncMemoryTokenStore()
    sessions = [connect(store=store, credentials=access(fake, api_token, 5)) for _ in range(2)]
    for _ in range(120):
        replies = await async_gather(
            *[lambda s=session: s.http.get("/v1/apps") for session in sessions]
        )
        assert {reply.status_code for reply in replies} == {200}
        await async_idle()
        clock.advance(30)
    assert count(fake, "refresh") == 0
    assert {request.status for request in fake.requests} == {200}
    assert count(fake, "create_access_token") <= 26


@pytest.mark.pitfall(46)
async def test_issuer_is_remembered_when_a_program_starts_anew(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, api_token: str
) -> None:
    """A restart does not show another's token to a refresh."""
    store = AsyncMemoryTokenStore()
    given = access(fake, api_token)
    await connect(store=store, credentials=given).current_token()
    clock.advance(3590)
    session = connect(store=store, credentials=given)
    await session.current_token()
    await session.refresh()
    assert count(fake, "refresh") == 0


async def test_callable_is_told_what_it_replaces(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """`None` first, then each token before, also the expired one of the run before."""
    store = AsyncMemoryTokenStore()
    asked: list[Token | None] = []

    def grant(before: Token | None) -> Token:
        asked.append(before)
        return Token(fake.issue_token(), renewal=f"secret-grant-{len(asked)}")

    session = connect(store=store, credentials=grant)
    await session.current_token()
    await session.refresh()
    clock.advance(DAY * 2)
    again = connect(store=store, credentials=grant)
    await again.current_token()
    assert asked[0] is None
    assert [token and token.renewal for token in asked[1:]] == ["secret-grant-1", "secret-grant-2"]
    assert count(fake, "refresh") == 0
    assert "secret-grant" not in f"{again!r} {again.token!r} {asked!r}"


async def test_rotating_secret_is_saved_before_its_token_is_used(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """A program that is killed at once finds the new secret: the provider has forgotten the old."""
    saved: list[tuple[Token, Token | None]] = []

    class Watching(Troubled):
        async def save(self, token: Token) -> None:
            saved.append((token, session.token))
            await super().save(token)

    session = connect(
        store=Watching(), credentials=lambda: Token(fake.issue_token(), renewal="secret-grant")
    )
    used = await session.current_token()
    (first, held), *_ = saved
    assert held is None
    assert (first.id, first.renewal) == (used.id, "secret-grant")


@pytest.mark.parametrize("fails", [0, 1])
async def test_rotating_secret_is_forgotten_when_the_session_ends_meanwhile(
    fake: FakeKoyeb, connect: Connect, fails: int
) -> None:
    """No store keeps a token that a logout has overtaken, saved ahead of need or not."""
    store = Troubled()
    gate = store.gates["save"] = Gate()
    session = connect(
        store=store, credentials=lambda: Token(fake.issue_token(), renewal="secret-grant")
    )
    store.fails["save"] = fails
    async with AsyncBackground() as background:
        asking = background.start(session.current_token)
        await async_arrived(gate)
        leaving = background.start(session.logout)
        await background.settled()
        gate.open()
        with pytest.raises(KoyebSessionError):
            await asking.result()
        await leaving.result()
    assert session.token is None
    assert await store.load() is None


@pytest.mark.parametrize("act", ["login", "logout"])
async def test_rotating_secret_is_not_saved_once_the_session_has_moved_on(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect, act: str
) -> None:
    """Not even for a moment: a program that ends then would leave it to the next run."""
    secrets: list[str | None] = []

    class Recording(AsyncMemoryTokenStore):
        async def save(self, token: Token) -> None:
            secrets.append(token.renewal)
            await super().save(token)

    async def grant() -> Token:
        await async_pass_through(gate)
        return Token(fake.issue_token(), renewal="secret-grant")

    gate = Gate()
    gate.open()
    store = Recording()
    session = connect(store=store, credentials=grant)
    await session.current_token()
    clock.advance(DAY / 2)
    gate = Gate()
    secrets.clear()
    async with AsyncBackground() as background:
        renewal = background.start(session.refresh)
        await async_arrived(gate)
        if act == "login":
            await session.login(ME, PASSWORD)
        else:
            background.start(session.logout)  # it waits for the provider, too
            await background.settled()
        gate.open()
        with contextlib.suppress(KoyebSessionError):
            await renewal.result()
    await session.aclose()
    assert "secret-grant" not in secrets
    stored = await store.load()
    assert (stored and stored.id) == (session.token and session.token.id)


async def test_rotating_secret_shows_nowhere(
    fake: FakeKoyeb, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a provider nor a store that quotes it brings it into an error, a log or a frame."""
    caplog.set_level(logging.DEBUG)
    secret = "secret-grant-0123456789"

    class Quoting(Troubled):
        async def save(self, token: Token) -> None:
            raise OSError(f"cannot write {token.renewal}")

    def grant(before: Token | None) -> Token:
        if before is not None:
            raise LookupError(f"{before.renewal} is unknown")
        return Token(fake.issue_token(), renewal=secret)

    session = connect(store=Quoting(), credentials=grant)
    await session.current_token()
    with pytest.raises(KoyebSessionError, match="LookupError") as caught:
        await session.refresh()
    assert_no_secret(secret, session, session.token, caplog.records)
    assert_no_secret(secret, caught.value, packages=["koyeb_session"])
    assert all(secret not in str(request.headers) for request in fake.requests)
