"""What of httpx is not the same in both halves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager
from typing import TypeAlias

import anyio
import httpx

from .tls import tls_context

AsyncAuthFlow: TypeAlias = AsyncGenerator[httpx.Request, httpx.Response]
AuthFlow: TypeAlias = Generator[httpx.Request, httpx.Response, None]


def async_deadline(seconds: float) -> AbstractContextManager[anyio.CancelScope]:
    """Raise `TimeoutError` when the block takes longer; its blocking twin is in ``deadlines``."""
    return anyio.fail_after(seconds)


def async_http_transport(proxy: str | None) -> httpx.AsyncBaseTransport:
    """Make httpx's own transport."""
    return httpx.AsyncHTTPTransport(verify=tls_context(), proxy=proxy)


def http_transport(proxy: str | None) -> httpx.BaseTransport:
    """Blocking twin, which keeps the deadline."""
    from .._network import http_transport  # noqa: PLC0415 - imports httpcore, for its first use

    return http_transport(proxy)


async def async_read_raw(response: httpx.Response, limit: int) -> bytes:
    """Read a body as it comes; stop once there is more of it than ``limit`` bytes."""
    raw = bytearray()
    chunks = response.aiter_raw()
    async for chunk in chunks:
        raw += chunk
        if len(raw) > limit:
            break
    else:
        return bytes(raw)
    # A body comes through several generators. A read that is cancelled ends them all; just leaving
    # the loop would leave the inner ones to the garbage collector, of which trio warns.
    with anyio.CancelScope() as enough:
        enough.cancel()
        await anext(chunks, None)
    return bytes(raw)


class AsyncAuthBase(httpx.Auth):
    """Refuses ``httpx.Client``, which would send unauthenticated requests."""

    def sync_auth_flow(self, request: httpx.Request) -> AuthFlow:  # noqa: ARG002 - httpx's signature
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.AsyncClient; "
            "for an httpx.Client use the auth of a SessionClient"
        )
        raise TypeError(message)


class AuthBase(httpx.Auth):
    """Blocking twin: refuses ``httpx.AsyncClient``."""

    def async_auth_flow(self, request: httpx.Request) -> AsyncAuthFlow:  # noqa: ARG002 - httpx's signature
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.Client; "
            "for an httpx.AsyncClient use the auth of an AsyncSessionClient"
        )
        raise TypeError(message)
