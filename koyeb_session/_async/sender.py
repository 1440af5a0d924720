"""Sends operations and reads their replies; every failure comes back as a value."""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar, cast

import httpx

from .._concurrency.async_deadlines import async_deadline, async_read_raw, async_remaining
from .._concurrency.async_waiting import async_sleep
from .._errors import KoyebSessionError, TransportError
from .._wire import BODY_LIMIT, Reply, decoded

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .._errors import WireError
    from .._models import Clock
    from .._operations import Operation
    from .._policy import RetryPolicy

T = TypeVar("T")

_NEVER_SENT = (httpx.ConnectError, httpx.PoolTimeout, httpx.ProxyError)
"""No `ConnectTimeout`: httpx-aiohttp raises it for a lost reply, too, and no time would be left."""


class AsyncSender:
    """
    Sends one operation at a time, each with its own deadline.

    It sends on ``transport`` itself: an `httpx.AsyncClient` around it would add cookies, redirects
    and its own auth, none of which an operation may have.
    """

    __slots__ = ("_base_url", "_clock", "_retry", "_transport", "timeout")

    def __init__(
        self,
        base_url: str,
        transport: httpx.AsyncBaseTransport,
        *,
        retry: RetryPolicy,
        timeout: float,
        clock: Clock,
    ) -> None:
        self._base_url = base_url
        self._transport = transport
        self._retry = retry
        self._clock = clock
        self.timeout: float = timeout

    async def send(
        self,
        operation: Operation[T],
        *,
        timeout: float | None = None,
        retry: bool = True,
        bounded: bool = False,
    ) -> T | KoyebSessionError:
        """
        Send an operation, again where the policy allows it, and tell what came of it.

        Args:
            operation: What to send.
            timeout: Seconds for all of it; `None`: the client's.
            retry: Whether it may be sent more than once.
            bounded: Whether a deadline of the caller's ends it: a second one would be for nothing.
        """
        seconds = self.timeout if timeout is None else timeout
        ends = time.monotonic() + (async_remaining(seconds) if bounded else seconds)
        attempt = 1
        while True:
            left = ends - time.monotonic()
            bound = nullcontext() if bounded else async_deadline(left)
            outcome = await self._attempt(operation, left, bound)
            if not retry or not isinstance(outcome, KoyebSessionError) or _is_final(outcome):
                return outcome
            wait = self._retry.wait(
                outcome,
                attempt,
                random.random(),  # noqa: S311 - spreads load
                sent=not isinstance(outcome.__cause__, _NEVER_SENT),
                repeat=operation.repeat,
            )
            if wait is None or wait >= async_remaining(ends - time.monotonic()):
                return outcome
            await async_sleep(wait)
            attempt += 1

    async def _attempt(
        self, operation: Operation[T], seconds: float, bound: AbstractContextManager[object]
    ) -> T | KoyebSessionError:
        """Send it once, within ``bound``."""
        request = operation.request(self._base_url, seconds)
        try:
            with bound:
                reply = await self._exchange(request)
        except Exception as exc:  # noqa: BLE001 - transports and event hooks may be the user's
            failure = exc
        else:
            return operation.outcome(reply, self._clock.time())
        from .._failures import transport_error  # noqa: PLC0415 - most replies come

        return transport_error(failure, operation.name, self._base_url, operation.secrets)

    async def _exchange(self, request: httpx.Request) -> Reply:
        response = await self._dispatch(request)
        try:
            body = await _body(response)
        except httpx.TransportError as exc:
            if response.is_success or isinstance(exc, httpx.TimeoutException):
                raise
            body = b""  # an error is told by its status; what else it says can be missed
        finally:
            await response.aclose()
        return Reply(response.status_code, response.headers, body)

    async def _dispatch(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(request)
        except httpx.HTTPStatusError as exc:  # a hook of the user's client: raise_for_status()
            if exc.request is not request:  # on a response of its own affairs
                raise
            return exc.response


def _is_final(error: KoyebSessionError) -> bool:
    """Tell whether no retry can heal what kept a request from its reply."""
    return isinstance(error, TransportError) and not error.retryable


async def _body(response: httpx.Response) -> bytes | WireError:
    """Read a body, and no more of it than a reply of this API can have."""
    if response.is_stream_consumed:  # by an event hook, or made with its content
        return decoded(response.content, None)
    if response.is_closed:  # by httpx, after an event hook has raised
        return b""
    stream = cast("httpx.AsyncByteStream", response.stream)
    raw = await async_read_raw(stream, BODY_LIMIT)
    return decoded(raw, response.headers.get("content-encoding"))
