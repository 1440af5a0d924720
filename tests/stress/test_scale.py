"""Many callers: one exchange for all of them, and no failed request."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta
from typing import Final

import anyio
import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import Background, arrived, async_arrived
from ..soak import SOAK
from .scenario import LIFE, arguments
from .steps import rounds

ON_SOCKETS: Final = 1_000 if SOAK else 240
WITHOUT: Final = 10_000 if SOAK else 400
THREADS: Final = 200 if SOAK else 50
PATIENCE: Final = 60.0
"""Seconds that a request may wait for its turn, or for the exchange, on a busy machine."""
HARD: Final = timedelta(seconds=20)
"""How long before expiry all callers wait for the exchange."""
SOFT: Final = timedelta(hours=4)
"""How long before expiry nobody does."""


@pytest.mark.parametrize("tasks", [ON_SOCKETS, WITHOUT], ids=["on sockets", "without"])
async def test_many_tasks_share_each_exchange(
    fake: FakeKoyeb, clock: FakeClock, tasks: int
) -> None:
    """
    Pitfalls 1, 9 and 11, arriving before, in and after it.

    Catches an exchange for each caller, one in the queue of the requests, and a renewal for each
    request with the token that the exchange has revoked.
    """
    answers: Counter[int] = Counter()
    with fake.serve() as url:
        way = {"base_url": url} if tasks is ON_SOCKETS else {"transport": fake.transport}
        given = arguments(fake, clock, timeout=PATIENCE, **way)
        async with AsyncSessionClient(**given) as session:

            async def ask() -> None:
                answers[(await session.http.get("/v1/apps")).status_code] += 1

            for left in (SOFT, HARD):
                answers.clear()
                gate = Gate()
                fake.fail("refresh", Fault(gate=gate))
                clock.advance(LIFE - left)
                async with anyio.create_task_group() as group:
                    for _ in range(tasks // 2):
                        group.start_soon(ask)
                    await async_arrived(gate)
                    for _ in range(tasks // 4):
                        group.start_soon(ask)
                    await rounds(5)
                    assert left is SOFT or not answers
                    gate.open()
                    for _ in range(tasks // 4):
                        group.start_soon(ask)
                assert answers == {200: tasks}
    assert fake.exchanges() == 2
    served = Counter(request.status for request in fake.requests if request.operation == "apps")
    assert served[200] == 2 * tasks


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
        SessionClient(**arguments(fake, clock, base_url=url, timeout=PATIENCE)) as session,
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
