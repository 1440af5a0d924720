"""A gate that holds replies until the test opens it, so that tests need not sleep."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import anyio


class Gate:
    """
    Holds all arrivals until ``open`` is called, from any thread or event loop.

    Give it to a ``Fault``; the faulted reply stays with the service until the gate opens. A gate
    opens once and stays open.

    >>> gate = Gate()
    >>> fault = Fault(gate=gate)
    >>> gate.is_open, gate.arrived
    (False, 0)
    >>> gate.open()
    >>> gate.is_open
    True
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._is_open = False
        self._arrived = 0
        # Two lists, so that an arrival does not wake all the tasks that wait for the opening.
        self._on_open: list[_Waker] = []
        self._on_arrival: list[_Waker] = []

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._is_open else 'closed'}, {self._arrived} arrived>"

    @property
    def is_open(self) -> bool:
        """Whether the gate lets things through."""
        return self._is_open

    @property
    def arrived(self) -> int:
        """How many have arrived here so far, those that went through included."""
        return self._arrived

    def open(self) -> None:
        """Let through all that are held here, and all that come later."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()
            wakers = [*self._on_open]
        for wake in wakers:
            wake()

    def wait_arrived(self, n: int = 1, timeout: float = 5.0) -> None:
        """
        Block until ``n`` have arrived.

        Args:
            n: how many, counted from the making of the gate.
            timeout: how long to wait at most, in seconds.

        Raises:
            TimeoutError: fewer came in that time.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._arrived >= n, timeout):
                raise TimeoutError(self._too_few(n, timeout))

    async def await_arrived(self, n: int = 1, timeout: float = 5.0) -> None:
        """
        Wait until ``n`` have arrived, without blocking the event loop.

        Args:
            n: how many, counted from the making of the gate.
            timeout: how long to wait at most, in seconds.

        Raises:
            TimeoutError: fewer came in that time.
        """
        with anyio.move_on_after(timeout):
            return await self._until(lambda: self._arrived >= n, self._on_arrival)
        raise TimeoutError(self._too_few(n, timeout))

    def pass_through(self, timeout: float | None = None) -> None:
        """
        Arrive at the gate and block until it is open.

        Args:
            timeout: how long to wait at most, in seconds; ``None`` for no limit.

        Raises:
            TimeoutError: the gate stayed closed for that time.
        """
        self._arrive()
        with self._condition:
            if not self._condition.wait_for(lambda: self._is_open, timeout):
                raise TimeoutError

    async def apass_through(self) -> None:
        """Arrive at the gate and wait until it is open, without blocking the event loop."""
        self._arrive()
        await self._until(lambda: self._is_open, self._on_open)

    def _arrive(self) -> None:
        with self._condition:
            self._arrived += 1
            self._condition.notify_all()
            wakers = [*self._on_arrival]
        for wake in wakers:
            wake()

    async def _until(self, ready: Callable[[], bool], wakers: list[_Waker]) -> None:
        while True:
            waker = _Waker()
            with self._condition:
                if ready():
                    return
                wakers.append(waker)
            try:
                await waker.wait()
            finally:
                with self._condition:
                    wakers.remove(waker)

    def _too_few(self, n: int, timeout: float) -> str:
        return f"{self._arrived} of {n} arrived at the gate within {timeout:g} s"


class _Waker:
    """Wakes one waiting task; may be called from any thread."""

    def __init__(self) -> None:
        self._event = anyio.Event()
        self._call_soon = _call_soon_threadsafe()

    def __call__(self) -> None:
        # The event loop of an abandoned task may be closed by now: then there is no task to wake.
        with contextlib.suppress(RuntimeError):
            self._call_soon(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


def _call_soon_threadsafe() -> Callable[[Callable[[], None]], object]:
    try:
        return asyncio.get_running_loop().call_soon_threadsafe
    except RuntimeError:
        # Imported only where trio is running, as it is not a dependency.
        import trio  # noqa: PLC0415

        return trio.lowlevel.current_trio_token().run_sync_soon
