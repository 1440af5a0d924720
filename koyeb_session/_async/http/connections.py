"""The connections of a client, in each event loop or process that uses it."""

from __future__ import annotations

from typing import Final

import httpx

from ..._api.operations import USER_AGENT, user_agent
from ..._concurrency.runtime import current_loop, current_process, is_running
from ..._core.results import unwrap
from ..._http.event_loop import async_tls_ready
from ..._http.proxies import Proxies, environment_proxies
from ..._http.tls import certificates
from .queue import AsyncQueuedTransport

NO_AUTH: Final = httpx.Auth()
"""An auth that adds nothing; with `None`, httpx would use the user information of the URL."""


class AsyncConnections(httpx.AsyncBaseTransport):
    """
    httpx's own transports, one for each event loop or process, or the user's transport.

    Each has its own limit, as no connection can serve two of them. Those of an event loop that has
    ended, or of the parent of a fork, are dropped when another one begins: nothing can close them
    here but the garbage collector. The user's transport is used everywhere.

    Raises:
        TransportError: The environment's proxies or certificates cannot be used.
    """

    def __init__(self, given: httpx.AsyncBaseTransport | None = None) -> None:
        self._given = given
        self._opened: dict[tuple[object, object], AsyncQueuedTransport] = {}
        self._process = current_process()
        self.shut_down = False
        if given is None:
            self._proxies: Proxies = unwrap(environment_proxies())
            self._certificates = certificates()

    @property
    def opened(self) -> bool:
        """Whether there is anything to close in the process that created this object."""
        return bool(self._opened) and self._process is current_process()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection of this event loop or process."""
        if self._given is None and not self._opened:
            await async_tls_ready(self._certificates)
        if self.shut_down:
            message = "the session client that owns these connections is closed"
            raise RuntimeError(message)
        transport = self._given or self._here()
        return await transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Do nothing: an httpx client only borrows the connections."""

    async def shut(self) -> None:
        """Close the connections of this loop or process, or the user's transport, for good."""
        self.shut_down = True
        if self._given is not None:
            await self._given.aclose()
        if self._opened:
            here = self._opened.get(_place())
            if here is not None:
                await here.aclose()
            # Cleared only after closing: a cancelled `shut` is finished by the next call.
            self._opened = {}

    def _here(self) -> AsyncQueuedTransport:
        now = _place()
        here = self._opened.get(now)
        if here is None:
            # setdefault: if two threads make one, both use the same.
            here = self._opened.setdefault(
                now, AsyncQueuedTransport(self._proxies, self._certificates)
            )
            for other in list(self._opened):
                process, loop = other
                # In a child, an event loop of the parent seems to be running still.
                if other != now and not (process is now[0] and is_running(loop)):
                    self._opened.pop(other, None)
        return here


def _place() -> tuple[object, object]:
    """Return the identity of this process and of the running event loop."""
    return current_process(), current_loop()


class AsyncBorrowedClient(httpx.AsyncBaseTransport):
    """
    The user's own client as a transport; the user closes it.

    Its event hooks, proxies, mounts, limits and TLS settings apply. The request is sent unchanged:
    the client's auth, cookies and redirects are not used.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._check_open()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send a request with the client.

        Raises:
            TransportError: The client is closed.
            httpx.HTTPStatusError: A hook of the client has called `raise_for_status`.
        """
        self._check_open()
        if request.headers.get("User-Agent") == USER_AGENT:  # the user has set none
            request.headers["User-Agent"] = user_agent(self._client.headers.get("User-Agent"))
        return await self._client.send(request, auth=NO_AUTH, follow_redirects=False, stream=True)

    def _check_open(self) -> None:
        if self._client.is_closed:
            from ..._http.failures import final  # noqa: PLC0415 - rarely needed

            unwrap(final("http_client is closed: give one that is open"))
