"""The parts of httpx that differ between the halves, for threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Final, TypeAlias

import httpx

if TYPE_CHECKING:
    from types import ModuleType

    from .tls import Certificates

AuthFlow: TypeAlias = Generator[httpx.Request, httpx.Response, None]

NETWORK_ERRORS: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError)
"""The exceptions of httpx and the system for a request without a reply."""


def http_transport(proxy: httpx.URL | None, certificates: Certificates) -> httpx.BaseTransport:
    """Make httpx's own transport, for one connection that respects the deadline."""
    from .deadline_network import http_transport  # noqa: PLC0415 - imports httpcore, on first use

    return http_transport(proxy, certificates)


def tls_ready(certificates: Certificates) -> None:  # noqa: ARG001 - `context` waits for them
    """Import the module that the connection needs, while a thread loads the certificates."""
    # Unlike its awaited twin, this need not wait.
    import httpcore  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport]


def advance(flow: AuthFlow, response: httpx.Response | None) -> httpx.Request | None:
    """
    Advance an auth flow to its next request; return `None` when it has ended.

    The reply before it is read, as httpx does it.
    """
    try:
        request = next(flow) if response is None else flow.send(response)
    except StopIteration:
        return None
    if response is not None:
        response.read()
    return request


def read_reply(response: httpx.Response, library: ModuleType = httpx) -> Exception | None:
    """
    Read the rest of a reply to release its connection, and put it back: it may be the answer.

    Return the error if it cannot be read: the status is enough to go on.
    """
    from .bodies import check_encoding, content, put_back  # noqa: PLC0415 - rarely needed

    if content(response) is not None:
        return None
    error: Exception | None = None
    body: bytes | None = None
    try:
        if not (response.is_stream_consumed or response.is_closed):  # by an event hook
            body = b"".join(response.iter_raw())
            check_encoding(response, body, library)
    except library.HTTPError as exc:
        error, body = exc, None
    response.close()
    put_back(response, body, library)
    return error


class AuthBase(httpx.Auth):
    """An `httpx.Auth` that refuses ``httpx.AsyncClient``, which would send unsigned requests."""

    def async_auth_flow(
        self,
        request: httpx.Request,  # noqa: ARG002 - httpx's signature
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Raise `TypeError`."""
        message = (
            f"{type(self).__name__} needs an httpx.Client; "
            "for an httpx.AsyncClient use the auth of an AsyncSessionClient"
        )
        raise TypeError(message)
