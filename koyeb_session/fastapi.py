"""Sessions as dependencies of a FastAPI application: the service's own, and one for each caller."""
# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Any, cast

import httpx

from . import (
    AsyncSessionClient,
    AsyncTokenStore,
    Clock,
    Credentials,
    KoyebSessionError,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
    Token,
    _following,
)

try:
    from fastapi import Depends, FastAPI, Request, WebSocketException
    from fastapi.responses import Response
    from fastapi.security import HTTPAuthorizationCredentials
    from starlette.requests import HTTPConnection

    from . import _callers, _problems
except ImportError as _exc:
    raise ImportError("FastAPI is missing: pip install 'koyeb-session[fastapi]'") from _exc

__all__ = ["KoyebSessions"]


class KoyebSessions:
    """
    The sessions of an application; a configuration, which opens nothing until ``lifespan`` runs.

    It takes the arguments of :class:`AsyncSessionClient`, and fails on wrong ones when it is made.

    Example:
        .. code-block:: python

            sessions = KoyebSessions(credentials=PasswordCredentials("me@example.com", "..."))
            app = FastAPI(lifespan=sessions.lifespan)
            sessions.add_exception_handlers(app)

            Service = Annotated[AsyncSessionClient, Depends(sessions.service)]


            @app.get("/apps")
            async def apps(session: Service) -> Any:
                return (await session.http.get("/v1/apps")).raise_for_status().json()

    ``sessions.Service``, ``.ServiceSync`` and ``.Caller`` are such aliases ready made, for code
    that no type checker reads: those want the assignment.

    Args:
        base_url: As of :class:`AsyncSessionClient`, and so are all others.
        token: See there.
        credentials: See there.
        store: See there.
        refresh_policy: See there.
        retry_policy: See there.
        timeout: See there.
        allowed_origins: See there.
        http_client: See there; ``service_sync`` does not use it.
        transport: See there; ``service_sync`` uses it if it is an `httpx.BaseTransport` as well.
        clock: See there.
    """

    def __init__(
        self,
        *,
        base_url: str = "https://app.koyeb.com",
        token: Token | str | None = None,
        credentials: Credentials | None = None,
        store: AsyncTokenStore | None = None,
        refresh_policy: RefreshPolicy | None = None,
        retry_policy: RetryPolicy | None = None,
        timeout: float = 10.0,
        allowed_origins: Iterable[str] = (),
        http_client: httpx.AsyncClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(allowed_origins, str) and isinstance(allowed_origins, Iterable):
            allowed_origins = tuple(allowed_origins)  # it is read once for each client

        def make(
            transport: httpx.AsyncBaseTransport | None = transport,
        ) -> AsyncSessionClient:
            return AsyncSessionClient(
                base_url=base_url,
                token=token,
                credentials=credentials,
                store=store,
                refresh_policy=refresh_policy,
                retry_policy=retry_policy,
                timeout=timeout,
                allowed_origins=allowed_origins,
                http_client=http_client,
                transport=transport,
                clock=clock,
            )

        def make_sync() -> _following.FollowingClient:
            return _following.FollowingClient(
                base_url=base_url,
                refresh_policy=refresh_policy,
                retry_policy=retry_policy,
                timeout=timeout,
                allowed_origins=allowed_origins,
                transport=transport if isinstance(transport, httpx.BaseTransport) else None,
                clock=clock,
            )

        # Checked at once; a transport of httpx's own would begin to read the certificates.
        nowhere = None if http_client else httpx.AsyncBaseTransport()
        self._origins = make(transport or nowhere).auth.shared[1]
        self._make = make
        self._make_sync = make_sync
        self._running: tuple[AsyncSessionClient, SessionClient] | None = None
        self.Service: Any = Annotated[AsyncSessionClient, Depends(self.service)]
        self.ServiceSync: Any = Annotated[SessionClient, Depends(self.service_sync)]
        self.Caller: Any = Annotated[AsyncSessionClient, Depends(self.caller)]

    def __repr__(self) -> str:
        state = "not running" if self._running is None else repr(self._running[0])
        return f"<{type(self).__name__}: {state}>"

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:  # noqa: ARG002 - FastAPI's signature
        """
        Open the sessions, keep the service's token current, and close them in the end.

        ``FastAPI(lifespan=sessions.lifespan)``, or in a lifespan of yours ``async with
        sessions.lifespan(app):``. At its end it waits for a renewal under way. Where it runs
        already, as in a sub-application that shares it, it does nothing.
        """
        if self._running is not None:
            yield
            return
        async with (
            self._make() as service,
            self._make_sync().following(service) as service_sync,
            _following.beside(service.keep_current),
        ):
            self._running = service, service_sync
            try:
                yield
            finally:
                self._running = None

    def _sessions(self) -> tuple[AsyncSessionClient, SessionClient]:
        if self._running is None:
            message = "KoyebSessions is not running: use FastAPI(lifespan=sessions.lifespan)"
            raise RuntimeError(message)
        return self._running

    async def service(self) -> AsyncSessionClient:
        """
        Give the service's own session; a dependency for ``async def`` endpoints.

        Raises:
            RuntimeError: ``lifespan`` is not running.
        """
        return self._sessions()[0]

    async def service_sync(self) -> SessionClient:
        """
        Give the same session for ``def`` endpoints, which FastAPI runs in threads.

        It shares the token, its renewals, and sign-in and sign-out with :meth:`service`.

        Raises:
            RuntimeError: ``lifespan`` is not running.
        """
        return self._sessions()[1]

    async def caller(
        self,
        connection: HTTPConnection,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_callers.BEARER)],
    ) -> AsyncSessionClient:
        """
        Give a session for the caller's own bearer, on the service's connections.

        It is never renewed by itself, and need not be closed. A WebSocket may bring its token as
        the subprotocols ``Bearer, <token>``; accept it with ``subprotocol="Bearer"``. Whether Koyeb
        accepts a token shows when it is used.

        Raises:
            HTTPException: 401, with a challenge: there is no bearer, or it is malformed or expired.
            WebSocketException: 1008, for the same reasons.
            RuntimeError: ``lifespan`` is not running.
        """
        service = self._sessions()[0]
        problem = "a bearer token is needed"
        if bearer is not None:
            try:
                return service.for_token(bearer.credentials)
            except ValueError:
                problem = "the bearer token is malformed or has expired"
        if connection.scope["type"] == "websocket":
            raise WebSocketException(_problems.POLICY_VIOLATION, problem)
        invalid = {} if bearer is None else {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        raise _problems.Refused(
            HTTPStatus.UNAUTHORIZED, problem, {**_problems.CHALLENGE, **invalid}
        )

    def add_exception_handlers(self, app: FastAPI) -> None:
        """
        Have ``app`` answer errors about Koyeb with problem details (RFC 9457), without secrets.

        They are this package's errors, and those of `httpx` about the session's origins, as by
        ``raise_for_status()``; other hosts' are left alone.

        401, with a challenge, when a sign-in or a token is refused, has expired or is missing, be
        it the caller's or the service's own; 400, 403, 404, 409 and 429 as Koyeb said; 503 when
        Koyeb says so, a store fails or all connections are taken; 504 when there is no answer in
        time; 502 for all else. ``Retry-After`` is handed on. A WebSocket is closed with 1008 or
        1011. What is 500 and above is a warning in the log. A sub-application needs handlers of its
        own; two `KoyebSessions` may share an application's.
        """
        answers: object = app.exception_handlers.get(KoyebSessionError)
        if not isinstance(answers, _problems.Answers):
            answers = _problems.Answers()
            handler = cast("Callable[[Request, Exception], Awaitable[Response]]", answers)
            app.add_exception_handler(KoyebSessionError, handler)
            app.add_exception_handler(_problems.Refused, handler)
            app.exception_handlers.setdefault(httpx.HTTPError, handler)
        answers.origins.append(self._origins)
