"""The queue tickets of callers, in an event loop."""

from __future__ import annotations

import contextlib

import anyio

from ..runtime import current_loop


class AsyncTicket:
    """A ticket of a queue: one task waits for one call."""

    def __init__(self) -> None:
        self._home = current_loop()
        self._called = anyio.Event()

    def call(self) -> None:
        """Wake the task, if it waits in this event loop; otherwise its loop has ended."""
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            if self._home is current_loop():
                self._called.set()

    async def wait(self, seconds: float | None) -> None:
        """Wait for the call, for at most ``seconds``."""
        with anyio.move_on_after(seconds):
            await self._called.wait()
