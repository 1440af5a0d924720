"""The session's auth for `httpx2`, which does not accept the auth of `httpx`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any, overload

from . import AsyncSessionAuth, AsyncSessionClient, SessionAuth, SessionClient

try:
    import httpx2
except ImportError as _exc:
    raise ImportError('httpx2 is missing: pip install "koyeb-session[httpx2]"') from _exc

__all__ = ["AsyncHttpx2Auth", "Httpx2Auth", "auth_for"]


class _AsyncFlow(AsyncSessionAuth):
    _library = httpx2


class _Flow(SessionAuth):
    _library = httpx2


class AsyncHttpx2Auth(httpx2.Auth):
    """
    An `httpx2.Auth` for any `httpx2.AsyncClient`, as `AsyncSessionAuth` is for httpx.

    `auth_for` makes one.

    ```python
    async with httpx2.AsyncClient(auth=AsyncHttpx2Auth(session)) as client:
        apps = await client.get("https://app.koyeb.com/v1/apps")
    ```

    Requests raise the errors of this package that `AsyncSessionAuth` names, for the token, and
    those of httpx2, for the request itself.
    """

    def __init__(self, session: AsyncSessionClient) -> None:
        self._flow: Any = _AsyncFlow(*session.auth.shared)

    def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Sign a request; renew the token and sign it once more if it is refused."""
        flow: AsyncGenerator[httpx2.Request, httpx2.Response] = self._flow.async_auth_flow(request)
        return flow

    def sync_auth_flow(
        self,
        request: httpx2.Request,  # noqa: ARG002 - httpx2's signature
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Raise `TypeError`: an `httpx2.Client` needs the auth of a `SessionClient`."""
        raise TypeError("this auth is for an httpx2.AsyncClient; use auth_for(a SessionClient)")


class Httpx2Auth(httpx2.Auth):
    """
    An `httpx2.Auth` for any `httpx2.Client`, as `SessionAuth` is for httpx.

    `auth_for` makes one.

    ```python
    with httpx2.Client(auth=Httpx2Auth(session)) as client:
        apps = client.get("https://app.koyeb.com/v1/apps")
    ```

    Requests raise the errors of this package that `SessionAuth` names, for the token, and those of
    httpx2, for the request itself.
    """

    def __init__(self, session: SessionClient) -> None:
        self._flow: Any = _Flow(*session.auth.shared)

    def sync_auth_flow(
        self, request: httpx2.Request
    ) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Sign a request; renew the token and sign it once more if it is refused."""
        flow: Generator[httpx2.Request, httpx2.Response, None] = self._flow.sync_auth_flow(request)
        return flow

    def async_auth_flow(
        self,
        request: httpx2.Request,  # noqa: ARG002 - httpx2's signature
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Raise `TypeError`: an `httpx2.AsyncClient` needs the auth of an `AsyncSessionClient`."""
        raise TypeError("this auth is for an httpx2.Client; use auth_for(an AsyncSessionClient)")


@overload
def auth_for(session: AsyncSessionClient) -> AsyncHttpx2Auth: ...
@overload
def auth_for(session: SessionClient) -> Httpx2Auth: ...
def auth_for(session: AsyncSessionClient | SessionClient) -> AsyncHttpx2Auth | Httpx2Auth:
    """
    Make an auth for an httpx2 client of the session's own half.

    The guarantees are those of ``session.auth``: a current token, for the session's origins only,
    and one replay of a request that was refused, if httpx2 has its body as bytes. They hold for
    ``client.websocket("wss://...")`` as well, which begins as a request.

    ```python
    async with httpx2.AsyncClient(auth=auth_for(session)) as client:
        apps = await client.get("https://app.koyeb.com/v1/apps")
    ```

    Args:
        session: The session whose token to send, of either half.

    Raises:
        TypeError: ``session`` is no session client.
    """
    if isinstance(session, AsyncSessionClient):
        return AsyncHttpx2Auth(session)
    if isinstance(session, SessionClient):
        return Httpx2Auth(session)
    message = f"session must be a session client, not {type(session).__name__}"
    raise TypeError(message)
