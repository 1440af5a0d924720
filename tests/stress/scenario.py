"""A session in the middle of its life, at a service that revokes a token when it is refreshed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from itertools import product
from operator import methodcaller
from typing import Any, Final, TypeAlias

import anyio
import anyio.lowlevel
import httpx

from koyeb_session import (
    AsyncSessionClient,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
    Token,
)
from koyeb_session._concurrency.runtime import is_in_step
from koyeb_session._core.provenance import account_of, read_provenance
from koyeb_session.stores import AsyncMemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import PATIENCE
from .steps import rounds_until, tasks

EMAIL: Final = "me@example.com"
PASSWORD: Final = "correct horse"
LIFE: Final = timedelta(days=1)
EXCHANGE: Final = "/v1/account/refresh"
SHARED: Final = FakeKoyeb().organizations[EMAIL][1]
"""The organization that everybody belongs to."""

PHASES: Final = {
    "fresh": timedelta(0),
    "soft": LIFE / 2,
    "hard": LIFE - timedelta(seconds=20),
    "expired": LIFE + timedelta(seconds=1),
}
"""The age of a token in each of the states that decide about it."""


def arguments(fake: FakeKoyeb, clock: FakeClock, **others: Any) -> dict[str, Any]:
    """Return the arguments of a client of either half, which tries again at once."""
    if "token" not in others:
        others["token"] = fake.issue_token()
    policies = {"retry_policy": RetryPolicy(delay=0), "refresh_policy": RefreshPolicy(jitter=0)}
    return {"clock": clock, **policies, **others}


def is_saved_for(saved: Token | None, beginning: PasswordCredentials | Token) -> bool:
    """Return whether a record is one of the account of these credentials or this first token."""
    provenance = None if saved is None else read_provenance(saved)
    return provenance is not None and provenance.account == account_of(beginning)


class WatchedTransport(httpx.AsyncBaseTransport):
    """
    A transport that notes the facts that no log of the service shows.

    Attributes:
        exchanging: How many refreshes are under way.
        most: How many were under way at once, at most.
        closed: How often it was closed to the end.
        refuses: A token that is good for an exchange only.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self.exchanging = 0
        self.most = 0
        self.closed = 0
        self.refuses: Token | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        if request.url.path != EXCHANGE:
            if self.refuses and request.headers["authorization"] == f"Bearer {self.refuses.id}":
                await anyio.lowlevel.checkpoint()
                return httpx.Response(401)
            return await self._inner.handle_async_request(request)
        self.exchanging += 1
        self.most = max(self.most, self.exchanging)
        try:
            return await self._inner.handle_async_request(request)
        finally:
            self.exchanging -= 1

    async def aclose(self) -> None:
        """Close it; this takes a while."""
        await anyio.lowlevel.checkpoint()
        self.closed += 1


class SlowStore(AsyncMemoryTokenStore):
    """A store that gives way in each of its methods."""

    async def load(self) -> Token | None:
        """Load the token."""
        await anyio.lowlevel.checkpoint()
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save a token."""
        await anyio.lowlevel.checkpoint()
        await super().save(token)
        await anyio.lowlevel.checkpoint()

    async def delete(self) -> None:
        """Forget the token."""
        await anyio.lowlevel.checkpoint()
        await super().delete()

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Hold the lock."""
        async with super().lock():
            yield
            await anyio.lowlevel.checkpoint()


class Scenario:
    """A service, a store, a listener, and a session that has been signed in for ``age`` seconds."""

    def __init__(self, age: timedelta = timedelta(0)) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(clock=self.clock, token_lifetime=LIFE)
        self.transport = WatchedTransport(self.fake.transport)
        self.store = SlowStore()
        self.heard: list[Token | None] = []
        self.session = self.connect(token=self.fake.issue_token())
        self.session.on_token_change(self._listen)
        self.clock.advance(age)
        self.tasks = tasks()

    def connect(self, **overrides: Any) -> AsyncSessionClient:
        """Make a client of the service on the same store."""
        given = {"store": self.store, "transport": self.transport, **overrides}
        return AsyncSessionClient(**arguments(self.fake, self.clock, **given))

    def count(self, operation: str) -> int:
        """Count the requests for one operation."""
        return sum(request.operation == operation for request in self.fake.requests)

    async def settle(self) -> None:
        """Wait until no task is left, and check that nothing else is."""
        await rounds_until(lambda: tasks() <= self.tasks)
        assert not is_in_step()
        assert self.transport.exchanging == 0
        assert self.fake.transport.open_replies == 0
        with anyio.fail_after(PATIENCE):
            async with self.store.lock():
                pass

    async def _listen(self, token: Token | None) -> None:
        await anyio.lowlevel.checkpoint()
        self.heard.append(token)


class AgedSession:
    """
    A session of either half, with credentials, at some age, and one call of it.

    Attributes:
        held: The ids of the tokens that it has held.
        result: The status that the call was answered with, or the id of its token.
        error: The error that the call raised.
        after: The status of a request after it.
    """

    def __init__(
        self, client: Callable[..., Any], phase: str, *, keeps: bool, **others: Any
    ) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            clock=self.clock, token_lifetime=LIFE, refresh="keeps" if keeps else "revokes"
        )
        others.setdefault("credentials", PasswordCredentials(EMAIL, PASSWORD))
        others["transport"] = self.fake.transport
        self.session: Any = client(**arguments(self.fake, self.clock, **others))
        self.held: list[str] = [self.session.token.id]
        self.session.on_token_change(self._note)
        self.phase = phase
        self.clock.advance(PHASES[phase])
        self._started = self.clock.time()
        self.result: Any = None
        self.error: Exception | None = None
        self.after = 0

    def keep(self, result: Token | httpx.Response) -> None:
        """Keep the result of the call; a token that comes is good."""
        if isinstance(result, Token):
            assert result.expires_at is not None
            assert result.expires_at.timestamp() > self._started, "an expired token was handed out"
            self.result = result.id
        else:
            self.result = result.status_code

    def check(self, call: str, act: str, at: int) -> None:
        """Check that no expired token was handed out or sent, and that nothing failed."""
        where = f"{call}, {self.phase}, {act} at {at}"
        assert self.error is None, (where, self.error)
        if act == "expire" and self.result == 401:
            # Signed before it expired and sent after it, with no other one to be sent.
            assert call == "streamed_request" or (call, self.phase) == ("replay", "fresh"), where
        elif call == "current_token":
            assert self.result in self.held, where
        elif call != "new_session":
            assert self.result == 200, where
        assert self.after == 200, where
        assert self.session.token.id in self.fake.live_tokens(), where

    def _note(self, token: Token | None) -> None:
        if token is not None:
            self.held.append(token.id)


Work: TypeAlias = Callable[[Any], Any]
"""A call of a client, or of an aged session, of either half."""
login: Final[Work] = methodcaller("login", EMAIL, PASSWORD)
refresh: Final[Work] = methodcaller("refresh")
switch: Final[Work] = methodcaller("switch_organization", SHARED)
current_token: Final[Work] = methodcaller("current_token")
logout: Final[Work] = methodcaller("logout")
keep_current: Final[Work] = methodcaller("keep_current")


def get(session: Any) -> Any:
    """Send a request."""
    return session.http.get("/v1/apps")


def post(session: Any) -> Any:
    """Send a request whose body cannot be sent again."""

    async def body() -> AsyncGenerator[bytes]:
        yield b"{}"

    content = iter([b"{}"]) if isinstance(session, SessionClient) else body()
    return session.http.post("/v1/apps", content=content)


def replay(scenario: AgedSession) -> Any:
    """Send a request that is refused once."""
    scenario.fake.fail("apps", Fault(status=401))
    return get(scenario.session)


def expire(scenario: AgedSession) -> None:
    """Let the token expire that the session began with."""
    scenario.clock.advance(max(PHASES["expired"] - PHASES[scenario.phase], timedelta(0)))


CALLS: Final[dict[str, Work]] = {
    "current_token": lambda scenario: scenario.session.current_token(),
    "request": lambda scenario: get(scenario.session),
    "streamed_request": lambda scenario: post(scenario.session),
    "replay": replay,
    "new_session": lambda scenario: scenario.session.new_session(),
}
"""Calls that ask for a token."""
ACTS: Final[dict[str, Work]] = {
    "renew": lambda scenario: scenario.session.refresh(),
    "sign_in": lambda scenario: scenario.session.login(EMAIL, PASSWORD),
    "expire": expire,
}
"""The acts of others in the middle of a call."""
CASES: Final = list(product(CALLS, PHASES, ACTS))
