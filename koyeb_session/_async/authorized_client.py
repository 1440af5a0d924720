"""The httpx client behind ``session.http``, which signs below event hooks and redirects."""

from __future__ import annotations

from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

from .._api.operations import USER_AGENT
from .._http.event_loop import async_advance
from .auth import HEADER, AsyncSessionAuth
from .http.connections import NO_AUTH

if TYPE_CHECKING:
    from .._core.origins import Origin
    from .http.connections import AsyncConnections


class AsyncAuthorizedClient(httpx.AsyncClient):
    """
    An httpx client whose requests are signed by its transport.

    httpx runs an `httpx.Auth` above event hooks and redirects. A response hook that raises would
    hide the 401 from it; a request hook, or a redirect, could send the token elsewhere. Here the
    session's auth handles each request last, and no request that a hook sees contains the token.
    """

    def __init__(
        self, auth: AsyncSessionAuth, connections: AsyncConnections, base_url: str, timeout: float
    ) -> None:
        super().__init__(
            auth=auth,
            base_url=base_url,
            headers={"User-Agent": USER_AGENT},
            timeout=timeout,
            transport=_AsyncSigningTransport(connections),
            # No cookies are stored: one client may act for several users in turn.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request; leave a session's auth to the transport."""
        chosen = self.auth if auth is httpx.USE_CLIENT_DEFAULT else auth
        signer = _AsyncSigner(chosen, request) if isinstance(chosen, AsyncSessionAuth) else None
        before = _signer.set(signer)
        try:
            response = await super().send(
                request,
                stream=stream,
                auth=auth if signer is None else NO_AUTH,
                follow_redirects=follow_redirects,
            )
        finally:
            _signer.reset(before)
        if signer is not None:
            response.history += signer.refused
        return response


class _AsyncSigner:
    """The auth that signs one request of the user, and the rejected responses along the way."""

    def __init__(self, auth: AsyncSessionAuth, request: httpx.Request) -> None:
        _keeper, origins = auth.shared
        if HEADER in request.headers and origins.trusts(request):
            del request.headers[HEADER]  # the auth sets its own
        self._auth: AsyncSessionAuth | None = auth
        self._origin = _origin(request.url)
        self.refused: list[httpx.Response] = []

    def auth_for(self, request: httpx.Request) -> AsyncSessionAuth | None:
        """
        Return the auth while each request goes to the origin of the first one.

        Otherwise a server could redirect the token to an origin that it was not meant for. A header
        that a hook has set stays as it is.
        """
        if _origin(request.url) != self._origin:
            self._auth = None
        return None if HEADER in request.headers else self._auth


_signer: Final[ContextVar[_AsyncSigner | None]] = ContextVar("koyeb_session_signer", default=None)
"""The signer of this context. A request extension could be lost: event hooks may replace them."""


class _AsyncSigningTransport(httpx.AsyncBaseTransport):
    """Runs the auth of a request, and removes the token again before httpx sees the request."""

    def __init__(self, connections: AsyncConnections) -> None:
        self._connections = connections

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sign a request, send it, and let the auth handle a 401."""
        signer = _signer.get()
        auth = None if signer is None else signer.auth_for(request)
        if signer is None or auth is None:
            return await self._connections.handle_async_request(request)
        flow = auth.async_auth_flow(request)
        response: httpx.Response | None = None
        failure: httpx.HTTPStatusError | None = None
        try:
            while (signed := await async_advance(flow, response)) is not None:
                if response is not None:
                    signer.refused.append(response)
                response, failure = await self._answer(signed)
        except BaseException:
            if response is not None:
                await response.aclose()
            raise
        finally:
            await flow.aclose()
            request.headers.pop(HEADER, None)
        if failure is not None:
            raise failure
        return cast("httpx.Response", response)  # each flow yields a request

    async def _answer(
        self, request: httpx.Request
    ) -> tuple[httpx.Response, httpx.HTTPStatusError | None]:
        """Send a request; return the error of a hook on the user's own client as a value."""
        try:
            response = await self._connections.handle_async_request(request)
        except httpx.HTTPStatusError as exc:
            if exc.request is not request:  # about a request that the hook itself has sent
                raise
            headers = exc.response.headers  # httpx has closed the response, maybe unread
            return httpx.Response(exc.response.status_code, headers=headers, request=request), exc
        response.request = request
        return response, None


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.raw_host, url.port
