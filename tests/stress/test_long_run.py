"""A long time at a service that breaks down: no failed request while the token is good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import attrs
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    Token,
)
from koyeb_session._core.log import log
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..concurrency import idle
from ..soak import SOAK
from ..support import PASSWORDS
from .steps import rounds_until, tasks

SHORT: Final = timedelta(minutes=5)
STEP: Final = 60.0
"""Seconds between two requests; while signing in fails, a third of it."""
OUTAGES: Final = (60.0, 240.0, 720.0)
"""Seconds that they last, in turns: the first ends before the token does."""
HOURS: Final = 24 * (30 if SOAK else 1)
"""A multiple of three, so that there are as many outages of each kind."""
LONGEST_WAIT: Final = RefreshPolicy().backoff_max


@attrs.define
class LongRun:
    """
    Days of a service with short-lived tokens, whose sign-in breaks down every hour.

    Attributes:
        fake: The service.
        clock: Its clock, and the session's.
        failures: How many callers got no token.
        answers: Operation and status -> how many requests got that answer.
    """

    fake: FakeKoyeb
    clock: FakeClock
    failures: int = 0
    answers: Counter[tuple[str | None, int | None]] = attrs.field(
        factory=Counter[tuple[str | None, int | None]]
    )
    _good_until: float = 0.0
    _back_since: float | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a session: the policies that users get."""
        return {
            "token": self.fake.issue_token(),
            "credentials": PASSWORDS,
            "transport": self.fake.transport,
            "clock": self.clock,
            "retry_policy": RetryPolicy(delay=0),
        }

    def moments(self) -> Iterator[bool]:
        """Let the time pass; tell at each moment whether to send a request or get a token."""
        n = 0
        for hour in range(HOURS):
            outage = OUTAGES[hour % len(OUTAGES)]
            self._break_down()
            for lasts, step in ((outage, STEP / 3), (3600 - outage, STEP)):
                for _ in range(int(lasts / step)):
                    n += 1
                    yield n % 10 == 0
                    self.clock.advance(step)
                self._count(outage)

    def served(self, token: Token | None) -> None:
        """Check a token that a caller got."""
        assert token is not None
        assert token.expires_at is not None
        self._good_until = token.expires_at.timestamp()
        assert self.clock.time() < self._good_until
        self._back_since = None

    def failed(self, error: KoyebSessionError) -> None:
        """Check that nothing could have been done: no token, and no service, or just now."""
        now = self.clock.time()
        assert now >= self._good_until, "a caller got nothing while the token was good"
        assert isinstance(error, SessionExpiredError)
        assert isinstance(error.__cause__, ServerError)
        if self._back_since is not None:
            assert now < self._back_since + LONGEST_WAIT, "no recovery after an outage"
        self.failures += 1

    def check(self) -> None:
        """Check that there were no more exchanges than the lifetime asks for."""
        life, whole = SHORT.total_seconds(), HOURS * 3600
        assert whole / life <= self.fake.exchanges() <= whole / (life / 2)
        assert self.answers["refresh", 200] == self.fake.exchanges()
        # A token dies in an outage that outlasts it, as two in three do; and, seldom, after a short
        # one, when nobody asks in the time that is left.
        assert HOURS / 3 <= self.answers["login", 200] <= HOURS * 3 / 4
        # A 401 is for a request that was overtaken by the exchange, and was sent again.
        assert {status for what, status in self.answers if what == "apps"} <= {200, 401}
        assert {status for what, status in self.answers if what != "apps"} == {200, 503}
        assert self.failures

    def _break_down(self) -> None:
        for operation in ("refresh", "login"):
            self.fake.fail(operation, Fault(status=503), times=1_000_000)

    def _count(self, outage: float) -> None:
        now = Counter((request.operation, request.status) for request in self.fake.requests)
        # The wait doubles from a second on, and is half a minute at least in the end. A refresh
        # that somebody waits for is sent three times, and a login once.
        tried = now["refresh", 503] / 3 + now["login", 503]
        assert tried <= 8 + outage / (LONGEST_WAIT / 2)
        self.answers += now
        self.fake.requests.clear()
        self.fake.recover()
        self._back_since = self.clock.time()


@pytest.fixture
def long_run(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> LongRun:
    """Give a long run, without its thousands of log records."""
    monkeypatch.setattr(log, "disabled", True)
    return LongRun(FakeKoyeb(clock=clock, token_lifetime=SHORT), clock)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # it is all in the engine
async def test_session_lives_through_outages(long_run: LongRun) -> None:
    """Pitfalls 6, 7 and 8; catches a cool-down that hands out the dead, and one that never ends."""
    alone = tasks()
    async with AsyncSessionClient(**long_run.arguments()) as session:
        for sends in long_run.moments():
            try:
                if sends:
                    assert (await session.http.get("/v1/apps")).status_code == 200
                else:
                    await session.current_token()
            except KoyebSessionError as exc:
                long_run.failed(exc)
            else:
                long_run.served(session.token)
            await rounds_until(lambda: tasks() == alone)
    long_run.check()


@pytest.mark.timeout(120)
def test_blocking_session_lives_through_outages(long_run: LongRun) -> None:
    """Pitfalls 6, 7 and 8, in threads; catches a renewal that is due at each request."""
    with SessionClient(**long_run.arguments()) as session:
        for sends in long_run.moments():
            try:
                if sends:
                    assert session.http.get("/v1/apps").status_code == 200
                else:
                    session.current_token()
            except KoyebSessionError as exc:
                long_run.failed(exc)
            else:
                long_run.served(session.token)
            idle()
    long_run.check()
