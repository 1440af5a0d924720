"""A session in Redis or Valkey, shared by the machines of a fleet."""

from __future__ import annotations

import contextlib
import functools
import random
import secrets
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from .. import _records as records
from .._arguments import async_wrong_client, checked, wrong_text, wrong_timeout
from .._concurrency.async_calls import async_call
from .._concurrency.async_flights import AsyncFlight, AsyncWork
from .._concurrency.async_waiting import async_sleep
from .._errors import StoreError
from .._log import log
from .._outcomes import bare, redacted_text, unwrap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from .._models import Token

_COMMAND_TIMEOUT: Final = 2.0
"""Seconds for one command; a Redis that takes longer counts as away."""
_PATIENCE: Final = 10.0
"""Seconds to wait for somebody else's renewal."""
_PAUSE: Final = 0.02
_REMEMBERED: Final = 8
_MEMORY: Final = 3_600_000
"""Milliseconds that the key outlives lock and token, so that late writers are known as such."""

_held: ContextVar[tuple[object, int] | None] = ContextVar("koyeb_session_redis_fence", default=None)
"""The store whose lock is held in this context, and the fencing value it came with."""


class AsyncRedisClient(Protocol):
    """What is asked of a client: ``redis.asyncio.Redis`` and ``valkey.asyncio.Valkey`` have it."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply."""
        ...


class AsyncRedisTokenStore:
    """
    Keeps the token under one key of Redis or Valkey, so that a whole fleet shares one session.

    The lock has a lease: a holder that dies frees it after ``lease`` seconds. Each lock comes with
    a fencing value, so that a holder that outlived its lease cannot overwrite a newer token. The
    key expires an hour after the token. A Redis that is away, or hangs, is a `StoreError` within
    2 seconds; redis-py itself tries again for longer, so give it ``retry=Retry(NoBackoff(), 0)`` to
    be told what is wrong instead. It takes Redis 5, or Valkey.

    Example:
        .. code-block:: python

            store = AsyncRedisTokenStore(redis.asyncio.Redis(), key="koyeb-session:ci")
            session = AsyncSessionClient(store=store)

    Args:
        client: A constructed client; it stays the user's to close. Not of a cluster's replica.
        key: Where the session is kept; one for each session. Anybody who may read it is signed in.
        lease: Seconds that the lock is held at most; longer than the session's ``timeout``.

    Raises:
        TypeError: ``client`` is a URL, or a client of the other kind, blocking or asynchronous.
        ValueError: ``key`` is empty, or ``lease`` is not above 0, or has no end.
    """

    def __init__(self, client: AsyncRedisClient, *, key: str, lease: float = 15.0) -> None:
        checked(
            async_wrong_client(client) or wrong_text("key", key) or wrong_timeout(lease, "lease")
        )
        self._client = client
        self._key = key
        self._lease = max(1, int(lease * 1000))
        self._left: tuple[str, ...] = ()
        """Who asked for the lock here, and may have it still without anybody's knowing."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key={self._key!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, as its client's connections "
            "cannot: make a client and a store in each process"
        )

    async def load(self) -> Token | None:
        """
        Return what was saved last; what cannot be read counts as nothing, with a warning.

        Raises:
            StoreError: Redis is away.
        """
        found = records.read_record(await self._send(records.Command("HGET", self._key, "record")))
        if isinstance(found, ValueError):
            log.warning("the record under the key %s is passed over: %s", self._key, found)
            return None
        return found

    async def save(self, token: Token) -> None:
        """
        Keep ``token`` until it expires.

        Raises:
            StoreError: Redis is away, or somebody else has saved a newer one: the lease was over.
        """
        held = _held.get()
        fence = held[1] if held is not None and held[0] is self else 0
        life = 0
        if token.expires_at is not None:
            left = token.expires_at - datetime.now(UTC)
            life = max(0, int(left.total_seconds() * 1000)) + _MEMORY
        command = self._script(records.SAVE, records.write_record(token), fence, life)
        if not await self._send(command, token=token):
            raise StoreError("the lock's lease was over, and somebody else has saved a newer token")

    async def delete(self) -> None:
        """
        Forget the token.

        Raises:
            StoreError: Redis is away.
        """
        await self._send(self._script(records.DELETE, self._lease + _MEMORY))

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """
        Keep the fleet from renewing the token, for ``lease`` seconds at most.

        Raises:
            StoreError: Redis is away, or somebody else holds it for too long.
        """
        owner = secrets.token_hex(16)
        timeout = _COMMAND_TIMEOUT
        try:
            _held.set((self, await self._fence(owner)))
            yield
        except StoreError:
            timeout = 0.0  # nobody waits for a Redis that is away once more
            raise
        finally:
            _held.set(None)
            try:
                await self._send(self._script(records.UNLOCK, owner), timeout=timeout)
            except StoreError:  # the lease ends it, or the next one to come this way
                self._left = (*self._left, owner)[-_REMEMBERED:]

    async def _fence(self, owner: str) -> int:
        gone = False

        async def release() -> None:
            if gone:  # a Redis that hung has given the lock to nobody
                await self._reply(self._script(records.UNLOCK, owner))

        waited = 0.0
        try:
            while waited < _PATIENCE:
                asked = (owner, self._lease, self._lease + _MEMORY, ",".join(self._left))
                fence = int(await self._send(self._script(records.LOCK, *asked), then=release))
                if fence:
                    return fence
                pause = _PAUSE * (0.5 + random.random())  # noqa: S311 - spreads load
                await async_sleep(pause)
                waited += pause
        except BaseException:
            gone = True
            raise
        message = f"the lock of the key {self._key} is held for over {_PATIENCE:g} s"
        raise StoreError(message) from TimeoutError()

    def _script(self, script: str, *arguments: str | int) -> records.Command:
        return records.Command("EVAL", script, 1, self._key, *arguments)

    async def _send(
        self,
        command: records.Command,
        *,
        token: Token | None = None,
        timeout: float | None = None,
        then: AsyncWork[None] | None = None,
    ) -> Any:
        """
        Send a command, as a flight: a client without a timeout of its own may hang.

        ``token`` is what the command carries: no error quotes it.
        """
        flight = AsyncFlight(functools.partial(self._reply, command, token), then)
        flight.start()
        timeout = _COMMAND_TIMEOUT if timeout is None else timeout
        late = StoreError(f"Redis did not answer within {timeout:g} s")
        return unwrap(await flight.join(timeout) or late)[0]

    async def _reply(
        self, command: records.Command, token: Token | None = None
    ) -> tuple[Any] | StoreError:
        """Return the reply, in a tuple as it may be `None`."""
        try:
            return (await async_call(command.send, self._client),)
        except Exception as exc:  # noqa: BLE001 - of whichever client library
            return _failure(exc, token)


def _failure(exc: Exception, token: Token | None) -> StoreError:
    """Say what a client library said, without its frames, which hold the command."""
    text = redacted_text(exc, token)
    error = StoreError(f"Redis cannot be used: {type(exc).__name__}: {text}")
    # A `TimeoutError` would say that another process holds the lock.
    late = isinstance(exc, TimeoutError)
    error.__cause__ = ConnectionError(text) if late else bare(exc, text)
    return error
