"""Blocking connections with a total deadline; imported with the first one, as httpcore is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import httpcore
import httpx

from .._concurrency.forks import close_in_children
from .._concurrency.threads.deadlines import remaining

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from .tls import Certificates


_ONE: Final = httpx.Limits(max_connections=1)


def http_transport(proxy: httpx.URL | None, certificates: Certificates) -> httpx.HTTPTransport:
    """
    Make httpx's own transport, for one connection that respects the deadline.

    If a later httpx has other private names, timeouts apply to single reads, as in httpx itself.
    """
    transport = httpx.HTTPTransport(verify=certificates.context(), proxy=proxy, limits=_ONE)
    pool: Any = getattr(transport, "_pool", None)
    backend: Any = getattr(pool, "_network_backend", None)
    if backend is not None:
        pool._network_backend = _Backend(backend)  # noqa: SLF001 - a public class of httpcore
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
        close_in_children(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        given = [buffer]
        del buffer  # it contains the token, and a failed write shows this frame in its traceback
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
    """Shorten a timeout of httpcore to the deadline; `None` is no limit."""
    rest = remaining(math.inf if timeout is None else timeout)
    return None if rest == math.inf else rest
