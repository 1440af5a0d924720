"""Closing: one piece of work that any number of callers wait for."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import anyio

from koyeb_session import AsyncSessionClient, Token
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, AsyncBackground, async_arrived, async_until
from ..support import inside
from .steps import rounds


def sockets() -> int:
    """Count the process's sockets, those of the service included."""
    names: list[str] = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            names.append(str(path.readlink()))
    return sum("socket" in name for name in names)


async def test_no_socket_is_left_when_a_block_is_cancelled_during_a_renewal() -> None:
    """The connections are closed once the renewal has landed, and the block waits for that."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        async with AsyncSessionClient(base_url=url) as first:  # the memory that the process keeps
            await first.login_method("me@example.com")
        await rounds(20)
        before = sockets()
        kept: list[AsyncSessionClient] = []
        async with AsyncBackground() as background:
            for _ in range(3):
                gate = Gate()
                fake.fail("refresh", Fault(gate=gate))
                with anyio.CancelScope() as scope:
                    async with AsyncSessionClient(
                        base_url=url, token=fake.issue_token()
                    ) as session:
                        kept.append(session)
                        await session.http.get("/v1/apps")
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(session.refresh)
                            await async_arrived(gate)
                            background.start(partial(open_once_closing, gate, session))
                            scope.cancel()
        await async_until(lambda: sockets() <= before)


async def open_once_closing(gate: Gate, session: AsyncSessionClient) -> None:
    """Open a gate once a client is closing."""
    await async_until(lambda: inside(session).state.closed)
    gate.open()


async def test_close_is_bounded_when_a_listener_hangs() -> None:
    """It has the client's timeout."""
    fake = FakeKoyeb()
    session = AsyncSessionClient(transport=fake.transport, token=fake.issue_token(), timeout=0.1)

    async def hang(token: Token | None) -> None:
        await anyio.sleep_forever()

    session.on_token_change(hang)
    await session.refresh(timeout=PATIENCE)
    with anyio.fail_after(PATIENCE):
        await session.aclose()
