"""Many callers, and a long time: one exchange for all of them, and no failed request."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import anyio
import attrs
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    Token,
)
from koyeb_session._core.log import log
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import Background, arrived, async_arrived, idle
from ..soak import SOAK
from .scenario import EMAIL, LIFE, PASSWORD
from .steps import rounds

TASKS: Final = 1_000 if SOAK else 240
THREADS: Final = 200 if SOAK else 50
PATIENCE: Final = 60.0
"""Seconds that a request may wait for its turn, or for the exchange, on a busy machine."""
HARD: Final = timedelta(seconds=20)
"""How long before expiry all callers wait for the exchange."""
SOFT: Final = timedelta(hours=4)
"""How long before expiry nobody does."""


def arguments(fake: FakeKoyeb, clock: FakeClock, **others: Any) -> dict[str, Any]:
    """Return the arguments of a client, in both halves."""
    return {
        "token": fake.issue_token(),
        "clock": clock,
        "retry_policy": RetryPolicy(delay=0),
        "refresh_policy": RefreshPolicy(jitter=0),
        "timeout": PATIENCE,
        **others,
    }


async def test_many_tasks_share_each_exchange(fake: FakeKoyeb, clock: FakeClock) -> None:
    """
    Pitfalls 1, 9 and 11, arriving before, in and after it.

    Catches an exchange for each caller, one in the queue of the requests, and a renewal for each
    request with the token that the exchange has revoked.
    """
    answers: Counter[int] = Counter()
    with fake.serve() as url:
        async with AsyncSessionClient(**arguments(fake, clock, base_url=url)) as session:

            async def ask() -> None:
                answers[(await session.http.get("/v1/apps")).status_code] += 1

            for left in (SOFT, HARD):
                answers.clear()
                gate = Gate()
                fake.fail("refresh", Fault(gate=gate))
                clock.advance(LIFE - left)
                async with anyio.create_task_group() as group:
                    for _ in range(TASKS // 2):
                        group.start_soon(ask)
                    await async_arrived(gate)
                    for _ in range(TASKS // 4):
                        group.start_soon(ask)
                    await rounds(5)
                    assert left is SOFT or not answers
                    gate.open()
                    for _ in range(TASKS // 4):
                        group.start_soon(ask)
                assert answers == {200: TASKS}
    assert fake.exchanges() == 2
    served = Counter(request.status for request in fake.requests if request.operation == "apps")
    assert served[200] == 2 * TASKS


@pytest.mark.pitfall(20)
@pytest.mark.parametrize("left", [HARD, SOFT], ids=["hard", "soft"])
def test_many_threads_share_one_exchange(
    fake: FakeKoyeb, clock: FakeClock, left: timedelta
) -> None:
    """
    Pitfalls 1, 11 and 20, arriving in the exchange.

    Catches a check that no lock guards, and an exchange that queues with the requests.
    """
    gate = Gate()
    fake.fail("refresh", Fault(gate=gate))
    barrier = threading.Barrier(THREADS // 2)
    with (
        fake.serve() as url,
        SessionClient(**arguments(fake, clock, base_url=url)) as session,
        Background() as background,
    ):
        clock.advance(LIFE - left)

        def at_once() -> int:
            barrier.wait(PATIENCE)
            return session.http.get("/v1/apps").status_code

        jobs = [background.start(at_once) for _ in range(THREADS // 2)]
        arrived(gate)
        jobs += [background.start(at_once) for _ in range(THREADS // 2)]
        gate.open()
        assert Counter(job.result() for job in jobs) == {200: THREADS}
    assert fake.exchanges() == 1


# A long run


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


def long_run_arguments(long_run: LongRun) -> dict[str, Any]:
    """Return the arguments of a session for a long run: the policies that users get."""
    return {
        "token": long_run.fake.issue_token(),
        "credentials": PasswordCredentials(EMAIL, PASSWORD),
        "transport": long_run.fake.transport,
        "clock": long_run.clock,
        "retry_policy": RetryPolicy(delay=0),
    }


@pytest.mark.timeout(120)
def test_session_lives_through_outages(long_run: LongRun) -> None:
    """
    Pitfalls 6, 7 and 8.

    Catches a renewal that is due at each request, a cool-down that hands out the dead, and one that
    never ends.
    """
    with SessionClient(**long_run_arguments(long_run)) as session:
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


@pytest.mark.parametrize("lasts", range(5, 135, 5 if SOAK else 25))
def test_outage_that_ends_before_the_token_does_costs_nothing(
    long_run: LongRun, lasts: int
) -> None:
    """No credentials, and only so much time; catches a back-off that outlasts the token."""
    arguments = long_run_arguments(long_run)
    del arguments["credentials"]
    with SessionClient(**arguments) as session:
        long_run.clock.advance(SHORT / 2 + timedelta(seconds=15))
        long_run.fake.fail("refresh", Fault(status=503), times=1_000)
        for moment in range(0, 600, 5):
            if moment == lasts:
                long_run.fake.recover()
            long_run.served(session.current_token())
            idle()
            long_run.clock.advance(5)
