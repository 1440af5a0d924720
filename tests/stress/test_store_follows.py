"""A store that fails and is slow at random, and a session that many tasks change at once."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    KoyebSessionError,
    RetryPolicy,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..concurrency import PATIENCE
from ..soak import SOAK

SEEDS: Final = 5_000 if SOAK else 120
ANN: Final = "ann@example.com"
BOB: Final = "bob@example.com"


class Whimsical(AsyncMemoryTokenStore):
    """Takes its time, and fails now and then; a save may fail although it was done."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.fails = 0.0

    async def _meet(self) -> None:
        if self.fails:
            await wait(self.chance, 12)
        if self.chance.random() < self.fails:
            raise OSError("a whim")

    async def load(self) -> Token | None:
        """Load the token, or fail."""
        await self._meet()
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save a token, or fail, or both."""
        await self._meet()
        await super().save(token)
        if self.chance.random() < self.fails / 2:
            raise OSError("no reply")

    async def delete(self) -> None:
        """Forget the token, or fail."""
        await self._meet()
        await super().delete()

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Hold the lock, or fail."""
        await self._meet()
        async with super().lock():
            yield


async def wait(chance: random.Random, most: int) -> None:
    """Let other tasks go first, a random number of times."""
    for _ in range(chance.randrange(most)):
        await anyio.lowlevel.checkpoint()


class Simulation:
    """One session on such a store, and the calls that it gets."""

    def __init__(self, seed: int) -> None:
        self.chance = chance = random.Random(seed)  # noqa: S311 - not for secrets
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            users={ANN: "annannann", BOB: "bobbobbob"},
            clock=self.clock,
            refresh=chance.choice(["revokes", "keeps"]),
        )
        self.store = Whimsical(chance)
        self.session = session = AsyncSessionClient(
            transport=self.fake.transport,
            store=self.store,
            clock=self.clock,
            retry_policy=RetryPolicy(delay=0),
            timeout=PATIENCE,
        )
        self.acts: tuple[Callable[[], Awaitable[Any]], ...] = (
            partial(session.login, ANN, "annannann"),
            partial(session.login, BOB, "bobbobbob"),
            session.logout,
            session.refresh,
            session.refresh,
            self._use_a_token,
            partial(session.http.get, "/v1/apps"),
            self._let_time_pass,
            partial(session.switch_organization, self.fake.organizations[ANN][0]),
        )

    async def _use_a_token(self) -> None:
        await self.session.use_token(self.fake.issue_token(BOB))

    async def _let_time_pass(self) -> None:
        self.clock.advance(self.chance.choice([5, 3600, 11 * 3600]))
        await self.session.current_token()

    async def act(self) -> None:
        """Do something, a little later."""
        await wait(self.chance, 30)
        # Somebody else may have signed out, or the store was the last hope.
        with contextlib.suppress(KoyebSessionError):
            await self.chance.choice(self.acts)()

    async def run(self) -> None:
        """Let several tasks act at once, a few times over."""
        await self.session.login(ANN, "annannann")
        self.store.fails = self.chance.choice([0.05, 0.2, 0.5])
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for _ in range(self.chance.randrange(1, 6)):
                    tasks.start_soon(self.act)


@pytest.mark.pitfall(28)
async def test_store_holds_what_the_session_is_whatever_failed_before() -> None:
    """Catches a record that a failed save, or a renewal beside a sign-out, leaves behind."""
    for seed in range(SEEDS):
        simulation = Simulation(seed)
        await simulation.run()
        simulation.store.fails = 0.0
        simulation.clock.advance(100)
        await simulation.session.aclose()
        saved, held = await simulation.store.load(), simulation.session.token
        assert (saved and saved.id) == (held and held.id), seed
