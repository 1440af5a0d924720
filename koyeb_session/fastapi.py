"""Sessions as dependencies of a FastAPI application: one for the service, one for each caller."""
# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, Final, Self, Unpack, cast

import httpx

from . import (
    AsyncSessionClient,
    KoyebSessionError,
    SessionClient,
    Token,
    _environment,
)
from ._async.arguments import AsyncClientArguments as _AsyncClientArguments
from ._concurrency.event_loop.calls import async_in_thread as _async_in_thread
from ._concurrency.runtime import current_loop as _current_loop
from ._core.origins import Origins as _Origins
from ._sync.arguments import ClientArguments as _ClientArguments

try:
    from fastapi import Depends, FastAPI, Request, WebSocketException
    from fastapi.responses import Response
    from starlette.requests import HTTPConnection

    from ._fastapi import problems
    from ._fastapi.bearer import BEARER as _BEARER
    from ._fastapi.mirror import MirrorClient as _MirrorClient
    from ._fastapi.mirror import in_background as _in_background
except ImportError as _exc:
    raise ImportError('FastAPI is missing: pip install "koyeb-session[fastapi]"') from _exc

__all__ = ["KoyebSessions"]

_SHARED: Final = frozenset(
    ("base_url", "refresh_policy", "retry_policy", "timeout", "allowed_origins", "clock")
)
"""The arguments that both halves take."""


class _Run:
    """The open sessions of an event loop, and the number of lifespans that use them."""

    def __init__(self, service: AsyncSessionClient, mirror: _MirrorClient) -> None:
        mirror.follow(service)
        self.service: AsyncSessionClient = service
        self.mirror: _MirrorClient = mirror
        self.users = 0
        self._at_end = contextlib.AsyncExitStack()
        # In reverse: the service's closing delivers the last change, also to listeners of the
        # mirror, which removes them.
        self._at_end.push_async_callback(_async_in_thread, mirror.close)
        self._at_end.push_async_callback(service.aclose)
        self._at_end.push_async_callback(_in_background(service.keep_current))

    async def close(self) -> None:
        """Close the sessions, after a renewal under way; any task may call it."""
        await self._at_end.aclose()


class KoyebSessions:
    """
    The sessions of an application; a configuration, which opens nothing until ``lifespan`` runs.

    Name the dependencies once, in a form that type checkers read:

    ```python
    sessions = KoyebSessions(credentials=PasswordCredentials("me@example.com", "correct horse"))
    app = FastAPI(lifespan=sessions.lifespan)
    sessions.add_exception_handlers(app)
    router = APIRouter(responses=sessions.responses)

    Service = Annotated[AsyncSessionClient, Depends(sessions.service)]
    ServiceSync = Annotated[SessionClient, Depends(sessions.service_sync)]
    Caller = Annotated[AsyncSessionClient, Depends(sessions.caller)]
    Guest = Annotated[AsyncSessionClient, Depends(sessions.guest)]


    @router.get("/apps")
    async def apps(session: Service) -> Any:
        return (await session.http.get("/v1/apps")).raise_for_status().json()


    app.include_router(router)
    ```

    ``sessions.Service``, ``.ServiceSync``, ``.Caller`` and ``.Guest`` are the same ready made, for
    code that no type checker reads: an attribute of an object is no type to them.

    The requests by ``http`` of all these sessions share a hundred connections; operations and
    renewals have others. One caller with that many slow requests can hold them all; other callers
    are then answered with 503 after ``timeout`` seconds. Set a limit for each caller where requests
    come in, such as nginx's ``limit_conn``.

    Args:
        base_url: The service, https; http on loopback only. ``https://app.koyeb.com`` by default.
        token: The token that the service's session begins with: a `Token`, or a `str` that is a JWT
            or an API access token; the latter is never renewed. It serves one run of ``lifespan``:
            the next one begins with it again, though Koyeb may have revoked it by then. Give
            ``credentials`` where there are several. `None`: none.
        credentials: How the service's session signs in, and signs in again when a refresh cannot
            help: `PasswordCredentials`, `AccessTokenCredentials` or a callable. `None`: then it is
            an error when the token expires.
        store: Where the service's token is kept between processes. `None`: in memory only.
        refresh_policy: When the service's token is renewed. `None`: the defaults of
            `RefreshPolicy`.
        retry_policy: How often an operation is sent. `None`: the defaults of `RetryPolicy`.
        timeout: Seconds that one operation may take in all; for ``session.http``, each phase of a
            request. 10 by default.
        allowed_origins: More origins that may see a token, beside ``base_url``'s own.
        http_client: Your own `httpx.AsyncClient`, to send everything with: its event hooks,
            proxies, mounts, limits and TLS settings count. Its auth, cookies and redirects do not,
            and it stays yours to close. ``service_sync`` does not use it. `None`: none.
        transport: Your own transport, to send everything on; it is closed in the end.
            ``service_sync`` uses it if it is an `httpx.BaseTransport` as well. Excludes
            ``http_client``. `None`: httpx's own, with the proxies and the certificates that the
            environment names.
        clock: The wall clock and the monotonic clock. `None`: the `time` module.

    Raises:
        ValueError: An argument has an impossible value; the message names it.
        TypeError: An argument is of the wrong type; the message names it.
        TransportError: ``http_client`` is closed.
    """

    responses: ClassVar[dict[int | str, dict[str, Any]]] = problems.RESPONSES
    """The answers to errors, for OpenAPI: ``APIRouter(responses=sessions.responses)``."""

    def __init__(self, **arguments: Unpack[_AsyncClientArguments]) -> None:
        self._runs: dict[object, _Run] = {}
        """The sessions by event loop."""
        _hide_token(arguments)
        origins = arguments.get("allowed_origins")
        if isinstance(origins, Iterable) and not isinstance(origins, str):
            arguments["allowed_origins"] = tuple(origins)  # each client reads it once
        self._arguments = arguments.copy()
        found = _origins_of(arguments)  # which checks them at once
        if isinstance(found, Exception):
            raise found
        self._origins = found
        self.Service: Any = Annotated[AsyncSessionClient, Depends(self.service)]
        """An annotation for endpoints: the dependency `service`."""
        self.ServiceSync: Any = Annotated[SessionClient, Depends(self.service_sync)]
        """An annotation for endpoints: the dependency `service_sync`."""
        self.Caller: Any = Annotated[AsyncSessionClient, Depends(self.caller)]
        """An annotation for endpoints: the dependency `caller`."""
        self.Guest: Any = Annotated[AsyncSessionClient, Depends(self.guest)]
        """An annotation for endpoints: the dependency `guest`."""

    @classmethod
    def from_env(cls, **overrides: Unpack[_AsyncClientArguments]) -> Self:
        """
        Make one from the environment.

        The first of ``KOYEB_TOKEN``, ``KOYEB_API_TOKEN``, ``KOYEB_EMAIL`` with ``KOYEB_PASSWORD``,
        and the Koyeb CLI's file signs the service in. `AsyncSessionClient.from_env` says more.

        Args:
            overrides: Arguments of this class, by name; they win. With ``token=`` or
                ``credentials=`` the environment need not say how to sign in; with ``store=`` it
                may.

        Raises:
            NotSignedInError: There is nothing to sign in with; the message says what was looked at.
            ImportError: The CLI's file is needed, and the extra ``cli-config`` is not installed.
            ValueError: A variable or an argument has an impossible value.
            TypeError: An argument is of the wrong type.
            TransportError: ``http_client`` is closed.
        """
        _hide_token(overrides)
        return cls(**_environment.client_arguments(cast("dict[str, Any]", overrides)))

    def __repr__(self) -> str:
        run = self._find_run()
        state = "not running" if run is None else repr(run.service)
        return f"<{type(self).__name__}: {state}>"

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:  # noqa: ARG002 - FastAPI's signature
        """
        Open the sessions, keep the service's token current, and close them in the end.

        Write ``FastAPI(lifespan=sessions.lifespan)``, or in your own lifespan ``async with
        sessions.lifespan(app):``. At its end it waits for a renewal under way.

        Where it runs already in this event loop, as for a sub-application or a second server, it
        joins: the last one that ends closes the sessions. Each event loop has sessions of its own,
        as two ``TestClient`` at a time have. Each of them begins with ``token``.

        Raises:
            TransportError: The environment's proxies or certificates cannot be used.
        """
        here = _current_loop()
        # No await from here to the count: another lifespan of this event loop would open another.
        run = self._runs.get(here)
        if run is None:
            mirror = self._make_mirror()
            run = self._runs[here] = _Run(AsyncSessionClient(**self._arguments), mirror)
        run.users += 1
        try:
            yield
        finally:
            run.users -= 1
            if not run.users:
                del self._runs[here]
                await run.close()

    def _make_mirror(self) -> _MirrorClient:
        """Make the blocking client, which follows the async one."""
        shared = {name: value for name, value in self._arguments.items() if name in _SHARED}
        if isinstance(transport := self._arguments.get("transport"), httpx.BaseTransport):
            shared["transport"] = transport
        return _MirrorClient(**cast("_ClientArguments", shared))

    def _find_run(self) -> _Run | None:
        """Find the sessions of this event loop; elsewhere, as in a thread, the newest ones."""
        runs = {**self._runs}
        here: object = None
        with contextlib.suppress(RuntimeError):  # no event loop runs in this thread
            here = _current_loop()
        return runs.get(here) or next(reversed(runs.values()), None)

    def _current_run(self) -> _Run:
        run = self._find_run()
        if run is None:
            raise RuntimeError(
                "KoyebSessions is not running: use FastAPI(lifespan=sessions.lifespan), and in a "
                "test, with TestClient(app) as client"
            )
        return run

    async def service(self) -> AsyncSessionClient:
        """
        Give the service's own session; a dependency for ``async def`` endpoints.

        Raises:
            RuntimeError: ``lifespan`` is not running.
        """
        return self._current_run().service

    async def service_sync(self) -> SessionClient:
        """
        Give the same session for ``def`` endpoints, which FastAPI runs in threads.

        It shares the token, its renewals, and sign-in and sign-out with `service`.

        Raises:
            RuntimeError: ``lifespan`` is not running.
        """
        return self._current_run().mirror

    async def caller(
        self,
        connection: HTTPConnection,
        bearer: Annotated[Token | ValueError | None, Depends(_BEARER)],
    ) -> AsyncSessionClient:
        """
        Give a session for the caller's own bearer, on the service's connections.

        It is never renewed by itself, and need not be closed. A WebSocket may bring its token as
        the subprotocols ``Bearer, <token>``; accept it with ``subprotocol="Bearer"``. Whether Koyeb
        accepts a token shows when it is used.

        Raises:
            HTTPException: 401, with a challenge: there is no bearer, or more than one, or it is
                malformed or expired.
            WebSocketException: 1008, for the same reasons.
            RuntimeError: ``lifespan`` is not running.
        """
        outcome = self._admitted(connection, bearer)
        del connection  # a traceback with locals would show its headers
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def for_token(
        self, connection: HTTPConnection, token: Token | str | None
    ) -> AsyncSessionClient:
        """
        Give a session for a caller's token that came in another way, such as by a cookie.

        It is like that of `caller`: the caller of this connection is told of errors about the
        token. With ``service.for_token()`` they are the service's own.

        Args:
            connection: The `Request` or the `WebSocket` that brought the token.
            token: The caller's token. `None`: there was none, which is refused.

        Raises:
            HTTPException: 401, with a challenge: the token is missing, malformed or expired.
            WebSocketException: 1008, for the same reasons.
            RuntimeError: ``lifespan`` is not running.
        """
        outcome = self._admitted(connection, Token(token) if isinstance(token, str) else token)
        del connection, token  # as in `caller`
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _admitted(
        self, connection: HTTPConnection, bearer: Token | ValueError | None
    ) -> AsyncSessionClient | problems.CallerRejected | WebSocketException | RuntimeError:
        """Make the session for a bearer token, or the exception that rejects its caller."""
        try:
            service = self._current_run().service
            if bearer is not None and not isinstance(bearer, ValueError):
                return problems.own(connection, service.for_token(bearer))
        except RuntimeError as exc:
            return exc.with_traceback(None)
        except ValueError:
            bearer = ValueError("the bearer token is malformed or has expired")
        problem = "a bearer token is needed" if bearer is None else str(bearer)
        if connection.scope["type"] == "websocket":
            return WebSocketException(problems.POLICY_VIOLATION, problem)
        challenge = "Bearer" if bearer is None else 'Bearer error="invalid_token"'
        return problems.CallerRejected(
            HTTPStatus.UNAUTHORIZED, problem, {"WWW-Authenticate": challenge}
        )

    async def guest(self, connection: HTTPConnection) -> AsyncSessionClient:
        """
        Give a session that is signed out, on the service's connections, for a login endpoint.

        A login with it does nothing to the service's own session. It is never renewed, is in no
        store, and need not be closed. The caller is told of a refused password. An empty address
        or password is a `ValueError`, which is not answered here.

        Raises:
            RuntimeError: ``lifespan`` is not running.
        """
        outcome: AsyncSessionClient | RuntimeError
        try:
            outcome = problems.own(connection, self._current_run().service.guest())
        except RuntimeError as exc:
            outcome = exc.with_traceback(None)
        del connection  # as in `caller`
        if isinstance(outcome, RuntimeError):
            raise outcome
        return outcome

    def add_exception_handlers(self, app: FastAPI) -> None:
        """
        Have ``app`` answer errors about Koyeb with problem details (RFC 9457), without secrets.

        They are this package's errors, and those of `httpx` about the session's origins, as by
        ``raise_for_status()``; other hosts' are left alone.

        The errors of `caller`, `guest` and `for_token` are the caller's own, and
        say what is wrong: 401, with a challenge, when a token or a password is refused, has expired
        or is missing; 400, 403, 404, 409 and 429 as Koyeb said.

        All others are the service's: the answer is 502, 503 or 504 and says nothing of them, and
        the log has an error. An endpoint that wants to say more raises an `HTTPException` itself.

        For both, 504 means that there is no answer in time, 503, with ``Retry-After``, that trying
        again may help, and 502 all else. A WebSocket is closed with 1008 where the answer would be
        below 500, and else with 1011. A sub-application needs handlers of its own; two
        `KoyebSessions` may share an application's.
        """
        responder: object = app.exception_handlers.get(KoyebSessionError)
        if not isinstance(responder, problems.ProblemResponder):
            responder = problems.ProblemResponder()
            handler = cast("Callable[[Request, Exception], Awaitable[Response]]", responder)
            app.add_exception_handler(KoyebSessionError, handler)
            app.add_exception_handler(problems.CallerRejected, handler)
            app.exception_handlers.setdefault(httpx.HTTPError, handler)
        responder.services.append((self._origins, self._arguments.get("clock") or time))


def _origins_of(arguments: _AsyncClientArguments) -> _Origins | Exception:
    """Return the origins of a client with these arguments, or the error that refuses them."""
    if arguments.get("transport") is None and arguments.get("http_client") is None:
        # Without a transport, the client would start to load the certificates.
        arguments["transport"] = httpx.AsyncBaseTransport()
    try:
        return AsyncSessionClient(**arguments).auth.shared[1]
    except Exception as exc:  # noqa: BLE001 - the caller raises it, without a frame that shows the arguments
        return exc.with_traceback(None)
    finally:
        cast("dict[str, Any]", arguments).clear()


def _hide_token(arguments: _AsyncClientArguments) -> None:
    """Put a plain token into a `Token`, which hides it from tracebacks with local variables."""
    if isinstance(token := arguments.get("token"), str):
        arguments["token"] = Token(token)
