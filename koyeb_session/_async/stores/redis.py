"""A session in Redis or Valkey, shared by the machines of a fleet."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Protocol
from weakref import WeakKeyDictionary

from ..._concurrency.event_loop.calls import async_call
from ..._concurrency.event_loop.shared_task import AsyncSharedTask, AsyncWork
from ..._concurrency.event_loop.waiting import AsyncLock, async_sleep
from ..._core.deadline import Deadline
from ..._core.errors import StoreError
from ..._core.log import log
from ..._core.models import Token
from ..._core.results import (
    frameless,
    redacted_text,
    sanitized_copy,
    text_of,
    unwrap,
    with_cause,
)
from ..._core.validation import async_client_error, text_error, timeout_error
from ..._storage import redis_scripts as scripts
from ..._storage.records import ForeignRecordError, read_record, write_record

_COMMAND_TIMEOUT: Final = 2.0
"""Seconds for one command; a Redis that takes longer counts as unavailable."""
_LOCK_TIMEOUT: Final = 10.0
"""Seconds to wait for the renewal of another process."""
_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.64
"""The longest pause between two attempts at a lock, in seconds; the pauses double."""
_AT_ONCE: Final = 50
"""The limit for concurrent commands of one client, whose pool raises when it is exhausted."""
_REMEMBERED: Final = 8
_TOMBSTONE_MS: Final = 3_600_000
"""Milliseconds that the key outlives lock and token, so that a late writer is recognized."""


_blocks: ContextVar[tuple[scripts.Block, ...]] = ContextVar(
    "koyeb_session_redis_blocks", default=()
)
"""The ``lock()`` blocks of this context, the innermost last."""
_lanes: Final[WeakKeyDictionary[object, tuple[AsyncLock, ...]]] = WeakKeyDictionary()
"""The locks that commands queue for, by client: all stores on one client share its connections."""


def _lanes_of(client: object) -> tuple[AsyncLock, ...]:
    most = getattr(getattr(client, "connection_pool", None), "max_connections", None)
    most = most if isinstance(most, int) else 2 * _AT_ONCE
    count = max(1, min(_AT_ONCE, most // 2))  # the user's own commands need the other half
    lanes = tuple(AsyncLock() for _ in range(count))
    try:
        return _lanes.setdefault(client, lanes)
    except TypeError:  # the user's own client class is unhashable
        return lanes


class AsyncRedisClient(Protocol):
    """The method that a client needs; ``redis.asyncio`` and ``valkey.asyncio`` provide it."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command and return its reply."""
        ...


class AsyncRedisTokenStore:
    """
    Keeps the token under one key of Redis or Valkey, so that a whole fleet shares one session.

    ```python
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    client = redis.asyncio.Redis(retry=Retry(NoBackoff(), 0))
    store = AsyncRedisTokenStore(client, key="koyeb-session:ci")
    session = AsyncSessionClient(store=store, credentials=credentials)
    ```

    The lock has a lease: a holder that dies frees it after ``lease`` seconds. Each lock comes with
    a fencing value, so that a holder that outlived its lease cannot overwrite a newer token. The
    key expires an hour after the token; with a `Token.renewal`, which lives longer, it stays. A
    Redis that is away, or hangs, is a `StoreError` within 2 seconds. By default, redis-py tries
    again for longer, and its own error is not seen: hence the ``retry=`` above. It works with Redis
    5 and later, and with Valkey.

    Args:
        client: A constructed client; it stays yours to close. Not of a cluster's replica. One for
            asyncio serves a single event loop, and so does its store.
        key: Where the session is kept; one for each session. Everybody who may read it is signed
            in.
        lease: Seconds that the lock is held at most; longer than twice the session's ``timeout``,
            and twice the longest ``timeout=`` of a `refresh`: a callable that keeps a one-time
            secret has that time for its answer.

    Raises:
        TypeError: ``client`` is no client, or one of the other kind, blocking or asynchronous;
            ``key`` is no text, or ``lease`` no number.
        ValueError: ``key`` is empty, or ``lease`` is not above 0, or has no end.
    """

    def __init__(self, client: AsyncRedisClient, *, key: str, lease: float = 30.0) -> None:
        unwrap(
            async_client_error(client) or text_error("key", key) or timeout_error(lease, "lease")
        )
        self._client = client
        self._key = key
        self._lease = max(1, int(lease * 1000))
        self._unreleased: tuple[str, ...] = ()
        """Owners of earlier blocks that may still have the lock, as their release has failed."""
        self._known: scripts.Known | None = None
        self._lanes = _lanes_of(client)
        self._turn = itertools.count(random.randrange(len(self._lanes)))  # noqa: S311 - spreads load

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key={self._key!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be pickled or copied, as its client's connections "
            "cannot: make a client and a store in each process"
        )

    async def load(self) -> Token | None:
        """
        Return the token that was saved last; `None`: there is none.

        A damaged record counts as none, with a warning in the log.

        Raises:
            StoreError: Redis is away, or the key holds something else than a session.
        """
        found = self._learn(await self._record(self._own_block()))
        if isinstance(found, ForeignRecordError):
            raise self._not_a_session()
        if isinstance(found, ValueError):
            log.warning("the record under the key %s is passed over: %s", self._key, found)
            return None
        return found

    async def save(self, token: Token) -> None:
        """
        Keep ``token`` until it expires; one with a ``renewal``, which lives longer, for good.

        Raises:
            StoreError: Redis is away, another process has saved a newer token after the lease, or
                the key holds something else than a session.
        """
        block = await self._locked_block()
        fence = 0 if block is None else block.fence
        life = 0
        if token.expires_at is not None and not token.renewal:
            left = token.expires_at - datetime.now(UTC)
            life = max(0, int(left.total_seconds() * 1000)) + _TOMBSTONE_MS
        self._known = None  # a lost reply would leave one that is older than the store's own token
        command = self._script(scripts.SAVE, write_record(token), fence, life)
        if not await self._send(command, token=token):
            raise StoreError("the lock's lease was over, and somebody else has saved a newer token")
        self._learn(write_record(token))

    async def delete(self) -> None:
        """
        Forget the token; something else than a session stays.

        Raises:
            StoreError: Redis is away.
        """
        await self._locked_block()
        await self._send(self._script(scripts.DELETE, self._lease + _TOMBSTONE_MS))
        self._known = None

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        """
        Keep the fleet from renewing the token, for ``lease`` seconds at most.

        While another process holds the lock, and has saved a new token, the block begins without
        it: the first `load` returns that token. For any other call the block takes the lock first.

        Raises:
            StoreError: Redis is away, another process holds the lock for 10 seconds, or the key
                holds something else than a session.
        """
        outer, block = _blocks.get(), scripts.Block(self)
        timeout = _COMMAND_TIMEOUT
        try:
            await self._enter(block, self._known)
            _blocks.set((*outer, block))
            yield
        except StoreError:
            timeout = 0.0  # do not wait again for a Redis that is unavailable
            raise
        finally:
            _blocks.set(outer)
            if block.may_hold:
                await self._unlock(block, Deadline(timeout))

    async def _unlock(self, block: scripts.Block, deadline: Deadline) -> None:
        """Release the lock, if the block may hold it."""
        unlock = self._script(scripts.UNLOCK, block.owner)
        try:
            try:
                await self._send(unlock, timeout=deadline.left(), at_once=True)
            except StoreError:
                if deadline.passed:
                    raise
                # All connections may have been in use: queue for one.
                await self._send(unlock, timeout=deadline.left())
        except StoreError:  # the lease ends the lock, or the next `lock` here releases it
            self._unreleased = (*self._unreleased, block.owner)[-_REMEMBERED:]

    def _own_block(self) -> scripts.Block | None:
        return next((block for block in reversed(_blocks.get()) if block.store is self), None)

    async def _locked_block(self) -> scripts.Block | None:
        """Return the block of this context, and acquire its lock if it is without."""
        block = self._own_block()
        if block is not None:
            if not block.fence:
                await self._enter(block, None)
            block.unread = False  # the record that came with the lock is about to be replaced
        return block

    async def _record(self, block: scripts.Block | None) -> Any:
        if block is not None:
            # A second read may lead to a refresh, so the block needs the lock from now on.
            if not block.unread and not block.fence:
                await self._enter(block, None)
            if block.unread:
                return block.take()
        return await self._send(scripts.Command("HGET", self._key, "record"))

    @frameless
    def _learn(self, record: Any) -> Token | ValueError | None:
        """Read a record, and remember it as the last one known."""
        found = read_record(record)
        self._known = None
        if isinstance(found, Token):
            self._known = scripts.Known(scripts.digest(record), found.provenance, found.user_id)
        return found

    async def _enter(self, block: scripts.Block, known: scripts.Known | None) -> None:
        """
        Wait for the lock, or for a token that another process saves in place of ``known``.

        Each command is a shared task, which goes on when this caller is cancelled or gives up. If
        it acquires the lock after that, its ``on_done`` releases the lock.
        """
        gone = False

        async def release() -> None:
            if gone:  # the lock came after its caller had left
                await self._reply(self._script(scripts.UNLOCK, block.owner))

        waited, pause = 0.0, _PAUSE
        seen = "" if known is None else known.digest
        try:
            while waited < _LOCK_TIMEOUT:
                block.may_hold = True
                asked = (
                    block.owner,
                    self._lease,
                    self._lease + _TOMBSTONE_MS,
                    # Its own, too: the client may send a command again whose reply was lost.
                    ",".join((block.owner, *self._unreleased)),
                    seen,
                )
                command = self._script(scripts.LOCK, *asked)
                if block.enter(await self._send(command, then=release), known):
                    return
                some = pause * (0.5 + random.random())  # noqa: S311 - spreads load
                await async_sleep(some)
                waited += some
                pause = min(2 * pause, _LONGEST_PAUSE)
        except BaseException:
            gone = True
            raise
        message = f"the lock of the key {self._key} is held for over {_LOCK_TIMEOUT:g} s"
        raise StoreError(message) from TimeoutError()

    def _script(self, script: str, *arguments: str | int) -> scripts.Command:
        return scripts.Command("EVAL", script, 1, self._key, *arguments)

    async def _send(
        self,
        command: scripts.Command,
        *,
        token: Token | None = None,
        timeout: float | None = None,
        then: AsyncWork[None] | None = None,
        at_once: bool = False,
    ) -> Any:
        """
        Send a command in a shared task, as a client without its own timeout may hang.

        Other commands queue for a connection; one ``at_once`` starts before any wait, so that it is
        sent even if the caller is cancelled. No error quotes ``token``, which the command contains.
        """
        task = AsyncSharedTask(functools.partial(self._reply, command, token), then)
        timeout = _COMMAND_TIMEOUT if timeout is None else timeout
        outcome: tuple[Any] | StoreError | None = None
        lane = self._lanes[next(self._turn) % len(self._lanes)]
        async with contextlib.nullcontext() if at_once else lane.held():
            task.start()
            outcome = await task.join(timeout)
        late = StoreError(
            f"Redis did not answer within {timeout:g} s (its client may still be trying: with "
            "retry=Retry(NoBackoff(), 0) it says why)"
        )
        reply: tuple[Any] = unwrap(outcome or late)
        if reply[0] == scripts.FOREIGN:
            raise self._not_a_session()
        return reply[0]

    def _not_a_session(self) -> StoreError:
        return StoreError(
            f"the key {self._key} holds no session, and is left as it is: give another key"
        )

    async def _reply(
        self, command: scripts.Command, token: Token | None = None
    ) -> tuple[Any] | StoreError:
        """Return the reply in a tuple, as the reply itself may be `None`."""
        try:
            return (await async_call(command.send, self._client),)
        except Exception as exc:  # noqa: BLE001 - any client library may raise anything
            # Redis's own word for a key that is no hash.
            wrong_type = text_of(exc).startswith("WRONGTYPE")
            return (scripts.FOREIGN,) if wrong_type else _failure(exc, token)


def _failure(exc: Exception, token: Token | None) -> StoreError:
    """Make a `StoreError` of a library's error, without its frames, which hold the command."""
    text = redacted_text(exc, token)
    error = StoreError(f"Redis cannot be used: {type(exc).__name__}: {text}")
    # A `TimeoutError` would say that another process holds the lock.
    late = isinstance(exc, TimeoutError)
    return with_cause(error, ConnectionError(text) if late else sanitized_copy(exc, text))
