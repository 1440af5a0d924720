# Generated from koyeb_session/_async/authorized.py by .ci/generate_sync.py: edit that, not this.

"""The client behind ``session.http``, which signs below event hooks and redirects."""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, cast

import httpx

from .._concurrency.deadlines import read_raw
from .._concurrency.http import advance
from .auth import SessionAuth
from .transport import NO_AUTH

if TYPE_CHECKING:
    from .transport import Connections

_AUTH: Final = "koyeb_session.auth"
"""The extension of a request that names the auth to sign it with."""
_HEADER: Final = "Authorization"
_REFUSAL_LIMIT: Final = 1 << 16
"""Bytes to read of a refusal so that its connection can be used again; beyond, it is closed."""


class AuthorizedClient(httpx.Client):
    """
    An httpx client whose requests are signed by its transport.

    httpx runs an `httpx.Auth` above event hooks and redirects. A response hook that raises would
    hide the 401 from it; a request hook, or a redirect, could take the token elsewhere. Here a
    session's auth looks at each request last, and its token is in no request that a hook sees.
    """

    def __init__(
        self, auth: SessionAuth, connections: Connections, base_url: str, timeout: float
    ) -> None:
        super().__init__(
            auth=auth,
            base_url=base_url,
            timeout=timeout,
            transport=_SigningTransport(connections),
            # No cookies are kept: one client may act for one user after another.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def send(
        self,
        request: httpx.Request,
        *,
        stream: bool = False,
        auth: Any = httpx.USE_CLIENT_DEFAULT,
        follow_redirects: Any = httpx.USE_CLIENT_DEFAULT,
    ) -> httpx.Response:
        """Send a request; a session's auth is left to the transport."""
        chosen = self.auth if auth is httpx.USE_CLIENT_DEFAULT else auth
        if isinstance(chosen, SessionAuth):
            _keeper, origins = chosen.shared
            if origins.trusts(request):
                request.headers.pop(_HEADER, None)
            request.extensions[_AUTH] = chosen
            auth = NO_AUTH
        else:
            request.extensions.pop(_AUTH, None)
        return super().send(request, stream=stream, auth=auth, follow_redirects=follow_redirects)


class _SigningTransport(httpx.BaseTransport):
    """Runs the auth of a request, on a copy of it: what httpx keeps is never signed."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sign a request, send it, and let the auth answer for a refusal."""
        auth: httpx.Auth | None = request.extensions.get(_AUTH)
        if auth is None or _HEADER in request.headers:  # of the user's own, by a hook for example
            return self._connections.handle_request(request)
        flow = auth.sync_auth_flow(
            httpx.Request(
                request.method,
                request.url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        )
        response: httpx.Response | None = None
        failure: httpx.HTTPStatusError | None = None
        try:
            while (signed := advance(flow, response)) is not None:
                if response is not None:
                    _drop(response)
                response, failure = self._answer(signed)
        except BaseException:
            if response is not None:
                response.close()
            raise
        finally:
            flow.close()
        if failure is not None:
            raise failure
        return cast("httpx.Response", response)  # each flow yields a request

    def _answer(
        self, request: httpx.Request
    ) -> tuple[httpx.Response, httpx.HTTPStatusError | None]:
        """Send a request; a hook of the user's own client may have raised on its response."""
        try:
            response = self._connections.handle_request(request)
        except httpx.HTTPStatusError as exc:
            if exc.request is not request:  # on a response of its own affairs
                raise
            return exc.response, exc
        response.request = request
        return response, None


def _drop(response: httpx.Response) -> None:
    """Let go of a response that is not the answer, and of its connection."""
    if not response.is_closed:  # by a hook of the user's own client, which has raised
        read_raw(cast("httpx.SyncByteStream", response.stream), _REFUSAL_LIMIT)
        response.close()
