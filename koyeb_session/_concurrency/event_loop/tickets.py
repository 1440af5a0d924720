"""A caller's place in a queue, in an event loop."""

from __future__ import annotations

import contextlib

import anyio

from ..runtime import current_loop


class AsyncTicket:
    """A place in a queue: one task waits, and is called once."""

    def __init__(self) -> None:
        self._home = current_loop()
        self._called = anyio.Event()

    def call(self) -> None:
        """Wake the task, if it waits in this event loop; one of another loop has ended."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            if self._home is current_loop():
                self._called.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait to be called, or until ``seconds`` have passed."""
        with anyio.move_on_after(seconds):
            await self._called.wait()
