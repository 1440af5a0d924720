"""The service and the two clocks of a session, and a transport that sees its requests."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from datetime import timedelta
from typing import Final

import anyio
import anyio.lowlevel
import attrs
import httpx

from koyeb_session import Token
from koyeb_session.testing import FakeClock, FakeKoyeb

from .scenario import EXCHANGE, SHARED

LIFE: Final = timedelta(hours=1)


RESOLUTION: Final = 2.0
"""Seconds that two clocks differ without anybody noticing: a `Date` header knows no better."""


ELSEWHERE: Final = "https://elsewhere.example/v1/apps"


ISSUING: Final = {EXCHANGE, "/v1/account/login", f"/v1/organizations/{SHARED}/switch"}


@attrs.define
class Committed:
    """How our clock stood when a token was taken over."""

    skew: float
    suspended: float
    adopted: bool


class Simulation:
    """
    The service and the two clocks; a transport that sees the bytes on the wire.

    Attributes:
        expired: Requests that carried a token for longer than the clocks excuse.
        leaks: Requests to somebody else that carried a token.
        most: How many exchanges were under way at once, at most.
        issued: The ids of the tokens that arrived here, in order.
        provided: How often the credentials were asked.
    """

    def __init__(self) -> None:
        self.service_clock = FakeClock()
        self.clock = FakeClock()
        self.fake = FakeKoyeb(clock=self.service_clock, token_lifetime=LIFE)
        self.skew = 0.0
        self.suspended = 0.0
        self.committed: dict[str, Committed] = {}
        self.expired: list[str] = []
        self.leaks: list[str] = []
        self.exchanging = 0
        self.most = 0
        self.issued: list[str] = []
        self.provided = 0

    # The passing of time

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.service_clock.advance(seconds)
        self.clock.advance(seconds)

    def jump(self, seconds: float) -> None:
        """Set our wall clock."""
        self.clock.step_wall(seconds)
        self.skew += seconds

    def suspend(self, seconds: float) -> None:
        """Let time pass without our monotonic clock."""
        self.service_clock.advance(seconds)
        self.clock.step_wall(seconds)
        self.suspended += seconds

    # The session's own calls

    def note(self, token: Token | None) -> None:
        """Remember how our clock stood when a token was taken over."""
        if token is not None:
            adopted = token.id not in self.issued
            self.committed[token.id] = Committed(self.skew, self.suspended, adopted)

    @contextlib.contextmanager
    def exchange(self) -> Generator[None]:
        """Count an exchange."""
        self.exchanging += 1
        self.most = max(self.most, self.exchanging)
        try:
            yield
        finally:
            self.exchanging -= 1

    def provide(self) -> str:
        """Sign in again, as the credentials of the session."""
        with self.exchange():
            self.provided += 1
            return self.fake.issue_token()

    async def async_provide(self) -> str:
        """Sign in again, after a while."""
        with self.exchange():
            self.provided += 1
            await anyio.lowlevel.checkpoint()
            return self.fake.issue_token()

    def look_at(self, request: httpx.Request) -> httpx.Response | None:
        """Check a request; answer it if it is not for the service."""
        authorization = request.headers.get("authorization", "")
        if request.url.host != "app.koyeb.com" or request.url.scheme != "https":
            if authorization:
                self.leaks.append(str(request.url))
            return httpx.Response(401)
        if request.url.path == "/v1/away":
            return httpx.Response(302, headers={"location": ELSEWHERE})
        token = self.fake._registry.find(authorization.removeprefix("Bearer "))
        if token is not None:
            late = self.service_clock.time() - token.expires_at / 1e9
            if late >= 0 and late >= self._excuse(token.id, logs_out=request.method == "DELETE"):
                self.expired.append(f"{request.method} {request.url.path}, {late} s late")
        return None

    def arrived(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        """Note a token that has come whole; return the reply as it was read."""
        if request.url.path in ISSUING and response.status_code == 200:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                token_id = json.loads(response.content)["token"]["id"]
                if self.fake._registry.find(token_id) is not None:
                    self.issued.append(token_id)
        headers = [(k, v) for k, v in response.headers.items() if k != "content-length"]
        return httpx.Response(response.status_code, headers=headers, content=response.content)

    def _excuse(self, token_id: str, *, logs_out: bool) -> float:
        """Tell how many seconds late our clocks may have us send a token."""
        known = self.committed.get(token_id)
        if known is None:  # never taken over: it is revoked at once
            return LIFE.total_seconds()
        # The age is the larger one on two clocks: both have to be wrong.
        lag = max(0.0, min(known.skew - self.skew, self.suspended - known.suspended))
        if known.adopted:
            lag -= known.skew
        elif known.skew:
            lag += RESOLUTION
        return max(lag, -self.skew) if logs_out else lag


class Wire(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """The way on, for both halves."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._inner = simulation.fake.transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of the blocking half."""
        answer = self._simulation.look_at(request)
        if answer is not None:
            return answer
        with self._counted(request):
            response = self._inner.handle_request(request)
            try:
                response.read()
            finally:
                response.close()
        return self._simulation.arrived(request, response)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request of the async half."""
        answer = self._simulation.look_at(request)
        if answer is not None:
            return answer
        with self._counted(request):
            response = await self._inner.handle_async_request(request)
            try:
                await response.aread()
            finally:
                await response.aclose()
        return self._simulation.arrived(request, response)

    def _counted(self, request: httpx.Request) -> contextlib.AbstractContextManager[None]:
        is_exchange = request.url.path == EXCHANGE
        return self._simulation.exchange() if is_exchange else contextlib.nullcontext()
