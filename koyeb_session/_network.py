"""
A total deadline for blocking I/O.

httpx's timeouts are for one read each: a reply that drips in, byte by byte, never ends. Here each
read and write may take only what is left of the deadline that its context has set.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import httpcore
import httpx

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Iterable

_ends: Final = ContextVar("koyeb_session_deadline", default=math.inf)
_SHORTEST: Final = 1e-6  # seconds; 0 would ask for a non-blocking socket


@contextlib.contextmanager
def deadline(seconds: float) -> Generator[None]:
    """
    Bound each read and write of the block, on connections of :func:`http_transport`.

    Looking up the host's name and each further address of it, and a TLS handshake that drips, are
    bounded by the operating system and by httpcore for each step, not in total.
    """
    reset = _ends.set(min(_ends.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _ends.reset(reset)


def http_transport(proxy: str | None) -> httpx.HTTPTransport:
    """Make httpx's own transport, on connections that keep the deadline."""
    transport = httpx.HTTPTransport(verify=tls_context(), proxy=proxy)
    # httpx has no public way to hand its pool one of httpcore's network backends, which are public.
    pool: Any = transport._pool  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001
    return transport


def read_raw(response: httpx.Response, limit: int) -> bytes:
    """
    Read a body as it comes; stop once there is more of it than ``limit`` bytes.

    On a user's own connections the deadline is kept here, between reads.
    """
    raw = bytearray()
    for chunk in response.iter_raw():
        raw += chunk
        if len(raw) > limit:
            break
        if time.monotonic() > _ends.get():
            message = "the body took too long"
            raise httpx.ReadTimeout(message)
    return bytes(raw)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Make the one TLS context of the process; reading the certificates takes 20 ms."""
    return httpx.create_ssl_context()


def _left(timeout: float | None) -> float | None:
    ends = _ends.get()
    if ends == math.inf:
        return timeout
    left = max(ends - time.monotonic(), _SHORTEST)
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(
            self._inner.connect_tcp(host, port, _left(timeout), local_address, socket_options)
        )


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout))

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout)))

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
