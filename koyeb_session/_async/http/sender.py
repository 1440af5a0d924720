"""Send operations and read their replies; return every failure as a value."""

from __future__ import annotations

import logging
import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx

from ..._api.wire import BODY_LIMIT, Reply, decoded
from ..._concurrency.event_loop.deadlines import async_read_raw, async_remaining, async_within
from ..._concurrency.event_loop.waiting import async_sleep
from ..._core.errors import (
    KoyebSessionError,
    RateLimitedError,
    ServerError,
    TransportError,
    TransportTimeoutError,
)
from ..._core.log import fields, log
from ..._core.results import without_frames, without_wire_frames
from ..._http.event_loop import ASYNC_NETWORK_ERRORS

if TYPE_CHECKING:
    from ..._api.operations import Operation
    from ..._core.deadline import Deadline
    from ..._core.errors import WireError
    from ..._core.models import Clock
    from ..._core.policy import RetryPolicy

T = TypeVar("T")

_NEVER_SENT = (httpx.ConnectError, httpx.PoolTimeout, httpx.ProxyError)
"""Without `ConnectTimeout`: httpx-aiohttp raises it for a lost reply too, and no time is left."""


class AsyncSender:
    """
    Sends one operation at a time, each with its own deadline.

    It uses ``transport`` directly: an `httpx.AsyncClient` would add cookies, redirects and auth,
    none of which an operation may have.
    """

    __slots__ = ("_base_url", "_clock", "_transport", "retry", "timeout")

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
        self.retry: RetryPolicy = retry
        self._clock = clock
        self.timeout: float = timeout

    async def send(self, operation: Operation[T], deadline: Deadline) -> T | KoyebSessionError:
        """
        Send an operation, repeat it where the policy allows, and return its result or error.

        The deadline is for all attempts together. Nothing is sent when no time is left: nobody
        would read the reply, which might contain a token.

        Raises:
            Exception: The user's transport or event hook raised it, or a signal handler.
        """
        attempt = 1
        while True:
            if deadline.passed:
                return self._too_late(operation)
            outcome = await self._attempt(operation, deadline.left())
            if not isinstance(outcome, KoyebSessionError):
                return outcome
            chance = random.random()  # noqa: S311 - spreads load
            wait = self.retry.wait(outcome, attempt, chance)
            if wait is None or wait >= async_remaining(deadline.left()):
                return outcome
            await async_sleep(wait)
            attempt += 1

    async def send_once(self, operation: Operation[T], deadline: Deadline) -> T | KoyebSessionError:
        """
        Send an operation once; the caller enforces the deadline.

        Nothing is sent when no time is left: see `send`.

        Raises:
            Exception: See `send`.
        """
        if deadline.passed:
            return self._too_late(operation)
        return await self._attempt(operation, deadline.left(), limited=False)

    async def _attempt(
        self, operation: Operation[T], seconds: float, *, limited: bool = True
    ) -> T | KoyebSessionError:
        """Send an operation once; ``limited`` bounds the whole of it, not each phase alone."""
        request = operation.request(self._base_url, seconds)
        reply: Reply | None = None
        begun = time.monotonic()
        try:
            if limited:
                reply = await async_within(seconds, partial(self._exchange, request))
            else:
                reply = await self._exchange(request)
        except TransportError as exc:  # the certificates cannot be read, for example
            outcome: T | KoyebSessionError = without_frames(exc)
        except ASYNC_NETWORK_ERRORS as exc:
            outcome = self._failure(operation, exc)
        else:
            outcome = operation.outcome(reply, self._clock.time(), self._base_url)
            if isinstance(outcome, RateLimitedError | ServerError):
                outcome._repeatable = outcome.status in operation.repeat  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        if log.isEnabledFor(logging.DEBUG):
            error = outcome if isinstance(outcome, KoyebSessionError) else None
            _log_operation(operation, reply, error, time.monotonic() - begun)
        return outcome

    def _too_late(self, operation: Operation[Any]) -> TransportTimeoutError:
        """Make the error for an operation that was not sent, as no time was left."""
        request = f"{operation.method} {self._base_url}{operation.path}"
        return TransportTimeoutError(f"{operation.name}: no time was left for {request}")

    def _failure(self, operation: Operation[T], exc: Exception) -> TransportError:
        """Make the error for a request without a reply."""
        from ..._http.failures import final, transport_error  # noqa: PLC0415 - rarely needed

        request = f"{operation.method} {self._base_url}{operation.path}"
        what = f"{operation.name}: no reply to {request}"
        if getattr(self._transport, "shut_down", False):
            return final(f"{what}: the client was closed meanwhile")
        error = transport_error(exc, what, operation.redacted)
        error._repeatable = error.retryable and isinstance(exc, _NEVER_SENT)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        return error

    async def _exchange(self, request: httpx.Request) -> Reply:
        try:
            response = await self._dispatch(request)
            try:
                # Wrapped in a `Reply` at once: no frame may hold a body, which may contain a token.
                reply = Reply(response.status_code, response.headers, await _body(response))
            except httpx.TransportError as exc:
                if response.is_success or isinstance(exc, httpx.TimeoutException):
                    raise
                # The status is enough for an error, if its body cannot be read.
                reply = Reply(response.status_code, response.headers, b"")
            finally:
                await response.aclose()
        except BaseException as exc:
            # Any other exception reaches the caller as well. These frames hold the request and the
            # reply, so the traceback must not contain them.
            exc.__traceback__ = without_wire_frames(exc.__traceback__)
            raise
        return reply

    async def _dispatch(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._transport.handle_async_request(request)
        except httpx.HTTPStatusError as exc:  # a hook of the user's client: raise_for_status()
            if exc.request is not request:  # about a request that the hook itself has sent
                raise
            return exc.response


def _log_operation(
    operation: Operation[Any], reply: Reply | None, error: KoyebSessionError | None, seconds: float
) -> None:
    """Log one request for operators, without its query, which may name the user."""
    header = None if reply is None else reply.headers.get("x-request-id")
    request_id = None if header is None else operation.redacted(header)
    kind = None if error is None else type(error).__name__
    milliseconds = round(seconds * 1000, 1)
    extra = fields(
        "operation",
        operation=operation.name,
        method=operation.method,
        path=operation.path,
        status=None if reply is None else reply.status,
        milliseconds=milliseconds,
        request_id=request_id,
        error=kind,
    )
    log.debug(
        "%s: %s %s: %s in %g ms%s",
        operation.name,
        operation.method,
        operation.path,
        kind if reply is None else reply.status,
        milliseconds,
        f" (request {request_id})" if request_id else "",
        extra=extra,
    )


async def _body(response: httpx.Response) -> bytes | WireError:
    """Read a body, up to the largest size that a reply of this API can have."""
    if response.is_stream_consumed or response.is_closed:  # by an event hook, or one that raised
        from ..._http.bodies import content  # noqa: PLC0415 - rarely needed

        return decoded(content(response) or b"", None)
    stream = cast("httpx.AsyncByteStream", response.stream)
    # No variable holds the bytes: a signal handler may raise, and tools show this frame.
    return decoded(
        await async_read_raw(stream, BODY_LIMIT), response.headers.get("content-encoding")
    )
