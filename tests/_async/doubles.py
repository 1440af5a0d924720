"""Stores, transports and credentials with faults, and calls that stand at a gate."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Final, Generic, Self, TypeAlias, TypeVar

import httpx

from koyeb_session import AsyncMemoryTokenStore, AsyncSessionClient, StoreError, Token
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..concurrency import AsyncBackground, AsyncJob, AsyncWork, async_arrived, async_pass_through
from ..support import ME, PASSWORD

Connect: TypeAlias = Callable[..., AsyncSessionClient]
"""A function that makes clients of the fake service."""
T = TypeVar("T")
CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "login": (ME, PASSWORD),
    "passwordless_login": (ME,),
    "refresh": (),
    "logout": (),
    "new_session": (),
    "switch_organization": ("a",),
    "unscope_organization_token": (),
    "create_access_token": ("a",),
    "login_method": (ME,),
}
"""The methods that send an operation, and arguments for them."""


class AsyncUnderWay(AsyncBackground, Generic[T]):
    """Runs a call whose request for ``operation`` stands at a gate, and other work beside it."""

    job: AsyncJob[T]

    def __init__(self, fake: FakeKoyeb, operation: str, call: AsyncWork[T], **fault: Any) -> None:
        super().__init__()
        self._call = call
        self.gate = Gate()
        fake.fail(operation, Fault(gate=self.gate, **fault))

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self.job = self.start(self._call)
        try:
            await async_arrived(self.gate)
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self


class InterceptedStore(AsyncMemoryTokenStore):
    """A store with a double's own code before each call."""

    async def intercept(self, call: str) -> None:
        """Wait, or raise."""
        raise NotImplementedError

    async def load(self) -> Token | None:
        """Load the token."""
        await self.intercept("load")
        return await super().load()

    async def save(self, token: Token) -> None:
        """Save a token."""
        await self.intercept("save")
        await super().save(token)

    async def delete(self) -> None:
        """Forget the token."""
        await self.intercept("delete")
        await super().delete()

    def lock(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock."""
        return self._lock_intercepted()

    @contextlib.asynccontextmanager
    async def _lock_intercepted(self) -> AsyncGenerator[None]:
        await self.intercept("lock")
        async with super().lock():
            yield


class BrokenStore(InterceptedStore):
    """Fails where it is told to."""

    def __init__(self, *broken: str, error: Exception | None = None) -> None:
        super().__init__()
        self.broken = set(broken)
        self.error = error or OSError("disk full")

    def fail(self, name: str) -> None:
        """Raise, if this is to fail."""
        if name in self.broken:
            raise self.error

    async def intercept(self, call: str) -> None:
        """Fail, if this is to."""
        self.fail(call)


class Troubled(InterceptedStore):
    """A store of which single calls fail, or stand at a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, int] = {}
        self.gates: dict[str, Gate] = {}
        self.calls: list[str] = []

    async def intercept(self, call: str) -> None:
        """Note it, pass its gate, and raise, if this is to fail."""
        self.calls.append(call)
        if gate := self.gates.get(call):
            await async_pass_through(gate)
        if self.fails.get(call, 0):
            self.fails[call] -= 1
            raise OSError(f"{call} failed")


class AsyncBuggy(httpx.AsyncBaseTransport):
    """A transport with a mistake."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raise."""
        raise LookupError("a bug")


class Grants:
    """Credentials whose tokens have a secret that brings the next one; it notes those that came."""

    def __init__(self, fake: FakeKoyeb) -> None:
        self._fake = fake
        self.asked: list[str | None] = []
        self.lifetime: timedelta | None = None
        self.seconds = 0.0
        """How long the provider takes to answer."""
        self.quotes: list[object] = []

    def __call__(self, before: Token | None) -> Token:
        """Bring a token, unless there is something to quote in an error."""
        if self.seconds:
            time.sleep(self.seconds)
        self.asked.append(None if before is None else before.renewal)
        if self.quotes:
            raise ConnectionError(self.quotes + self.asked)
        token = self._fake.issue_token(lifetime=self.lifetime)
        return Token(token, renewal=f"secret-grant-{len(self.asked)}")


class BucketError(StoreError):
    """An error of a user's own store, with arguments of its own."""

    def __init__(self, bucket: str, status: int) -> None:
        super().__init__(f"bucket {bucket}: {status}")


class BusyError(TimeoutError):
    """An error of a user's own lock, with arguments of its own."""

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(f"{key} is locked for {seconds} s")


class UnspeakableError(OSError):
    """An error whose text cannot be had."""

    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    def __str__(self) -> str:
        """Raise."""
        raise self.kind


async def saved(store: AsyncMemoryTokenStore) -> str | None:
    """Give the id of the token that a store holds."""
    token = await AsyncMemoryTokenStore.load(store)
    return None if token is None else token.id


class Held(AsyncMemoryTokenStore):
    """A store whose lock somebody else holds for good."""

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """Give up."""
        raise TimeoutError
        yield
