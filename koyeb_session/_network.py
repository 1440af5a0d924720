"""Blocking connections that keep a total deadline; imported with the first one, as httpcore is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import httpcore
import httpx

from ._concurrency.deadlines import remaining
from ._concurrency.tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable


def http_transport(proxy: str | None) -> httpx.HTTPTransport:
    """Make httpx's own transport, on connections that keep the deadline."""
    transport = httpx.HTTPTransport(verify=tls_context(), proxy=proxy)
    # httpx has no public way to hand its pool one of httpcore's network backends, which are public.
    pool: Any = transport._pool  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    pool._network_backend = _Backend(pool._network_backend)  # noqa: SLF001
    return transport


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
        given = [buffer]
        del buffer  # it holds the token, and this frame shows in the traceback of a broken write
        self._inner.write(given.pop(), _left(timeout))

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


def _left(timeout: float | None) -> float | None:
    """Shorten a timeout of httpcore's, for which `None` is no limit."""
    rest = remaining(math.inf if timeout is None else timeout)
    return None if rest == math.inf else rest
