"""The client: the operations of the service, and the life of a session."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack, cast

import httpx

from .._core.errors import KoyebSessionError
from .._http.tls import read_ahead

if TYPE_CHECKING:
    from . import engine
else:

    class _Engine:
        """Stands for the module `engine` until something of it is first used."""

        def __getattr__(self, name: str) -> object:
            global engine  # noqa: PLW0603 - from now on the module itself
            from . import engine  # noqa: PLC0415 - as the module says

            return getattr(engine, name)

    engine = _Engine()

T = TypeVar("T")

_CLOSING: Final = 4
"""Closing waits for so many things in turn, each for up to the client's timeout."""


class AsyncSessionClient:
    """
    A session with Koyeb: it signs in, and keeps itself signed in.

    One object serves any number of callers. Close it, or use it as a context manager: that waits
    for a renewal under way.

    ```python
    async with AsyncSessionClient.from_env() as session:  # KOYEB_TOKEN, for example
        apps = await session.http.get("/v1/apps")
    ```

    Every operation can raise these, beside the errors that it names itself:

    - `TransportError`: There was no reply. `TransportTimeoutError`: There was none in time.
    - `RateLimitedError`, `ServerError` and other kinds of `ApiError`: The service refused.
    - `WireError`: The reply is not as Koyeb's API promises.
    - `ValueError`, `TypeError`: An argument is wrong; nothing was sent.
    - `RuntimeError`: The client is closed.

    A client cannot be copied or pickled. A process may be forked: the child then goes on with
    connections of its own. Without a store each process renews for itself. Where the service
    revokes the old token on refresh, the other processes are then refused. They sign in again with
    their ``credentials``; without those their session has ended. For several processes, such as
    those of gunicorn, Celery or a process pool, do one of these:

    - Give each process the same ``store=``: they share one session, and one of them renews it.
    - Make the client after the fork, in each process, with ``credentials=``: each has a session.
    - Let one process hand out tokens by `current_token`. The others use them as they are, with
      ``token=`` or `for_token`, and ask for the next one when one is refused.

    A signal handler or a finalizer may use a blocking client. If it has interrupted a change of the
    session in its own thread, it cannot wait: a renewal raises `TransportError` and does not start,
    `logout` raises it, and `aclose` returns. Both of these go on when the handler has returned. The
    same holds for a store, credentials or an event hook that use the session which calls them.

    Args:
        base_url: The service, https; http on loopback only.
        token: A token to begin with. A `str` may be a JWT or an API access token; the latter is
            never renewed. `None`: none.
        credentials: How to sign in, and to sign in again when a refresh cannot help. `None`: then
            `SessionExpiredError` says that the session has ended.
        store: Where the token is kept between processes. `None`: in memory only.
        refresh_policy: When to renew. `None`: the defaults of `RefreshPolicy`.
        retry_policy: How often to send an operation. `None`: the defaults of `RetryPolicy`.
        timeout: Seconds that one operation may take in all. For `http`, seconds that each phase of
            a request may take.
        allowed_origins: More origins that may see the token, beside ``base_url``'s own, such as
            ``"https://logs.example.com"``.
        http_client: Your own client, to send everything with: its event hooks, proxies, mounts,
            limits and TLS settings count. Its auth, cookies and redirects do not, and it stays
            yours to close. Its hooks and its transport see the token. `None`: none.
        transport: Your own transport, to send everything on; the client closes it. The session
            keeps no cookies, but a transport may: aiohttp does, without a ``DummyCookieJar``.
            Excludes ``http_client``. `None`: httpx's own, with the proxies and the certificates
            that the environment names when this client is made.
        clock: The wall clock and the monotonic clock. `None`: the `time` module.

    Raises:
        ValueError: An argument has an impossible value; the message names it.
        TypeError: An argument is of the wrong type; the message names it.
        TransportError: The environment's proxies or certificates cannot be used, or ``http_client``
            is closed; the message says what to set.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    __slots__ = (
        "__dict__",  # so that tests can replace a method of one client; takes no memory until then
        "__weakref__",
        "_auth",
        "_closing",
        "_http",
        "_is_sibling",
        "_keeper",
        "_resources",
        "_state",
    )

    def __init__(
        self,
        *,
        base_url: str = "https://app.koyeb.com",
        token: engine.Token | str | None = None,
        credentials: engine.Credentials | None = None,
        store: engine.AsyncTokenStore | None = None,
        refresh_policy: engine.RefreshPolicy | None = None,
        retry_policy: engine.RetryPolicy | None = None,
        timeout: float = 10.0,
        allowed_origins: Iterable[str] = (),
        http_client: httpx.AsyncClient | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: engine.Clock | None = None,
    ) -> None:
        try:
            if http_client is None and transport is None:
                read_ahead()  # in a thread, while this one imports the engine
            wrong = engine.clock_error(clock)
            clock = clock or time
            first = None if wrong or token is None else engine.parse_token(token, clock.time())
        finally:  # a signal handler may raise
            del token
        engine.unwrap(
            wrong
            or engine.async_store_error(store)
            or engine.timeout_error(timeout)
            or engine.async_credentials_error(credentials)
            or engine.kind_error("refresh_policy", refresh_policy, engine.RefreshPolicy)
            or engine.kind_error("retry_policy", retry_policy, engine.RetryPolicy)
            or engine.kind_error("http_client", http_client, httpx.AsyncClient)
            or engine.kind_error("transport", transport, httpx.AsyncBaseTransport)
        )
        if http_client is not None and transport is not None:
            message = "give http_client or transport, not both"
            raise ValueError(message)
        first = engine.unwrap(first)
        origins = engine.unwrap(engine.origins(base_url, allowed_origins))
        if http_client is not None:
            transport = engine.AsyncBorrowedClient(http_client)
        self._is_sibling = False
        self._resources = engine.AsyncResources(
            origins,
            transport,
            policy=refresh_policy or engine.RefreshPolicy(),
            retry=retry_policy or engine.RetryPolicy(),
            timeout=float(timeout),
            clock=clock,
        )
        self._start_session(clock, credentials, store, first)
        if first is not None:
            engine.unwrap(self._state.commit(engine.NewToken(first, just_issued=False)))

    @classmethod
    def from_env(cls, **overrides: Unpack[engine.AsyncClientArguments]) -> Self:
        """
        Make a client from the environment.

        ```python
        async with AsyncSessionClient.from_env() as session:
            apps = await session.http.get("/v1/apps")
        ```

        The first of these signs in:

        - ``KOYEB_TOKEN``, then ``KOYEB_API_TOKEN``,
        - ``KOYEB_EMAIL`` with ``KOYEB_PASSWORD``,
        - the Koyeb CLI's file: the one that ``KOYEB_CONFIG`` names, or ``~/.koyeb.yaml``. It must
          be yours or root's, and writable by nobody else.

        The first of ``KOYEB_URL``, ``KOYEB_API_HOST`` and ``KOYEB_API_URL`` is the service. The
        CLI's file may name it for its own token, which is then sent to no other service.

        With an organization, from ``KOYEB_ORGANIZATION`` or beside the token in the CLI's file, an
        API access token becomes `AccessTokenCredentials`, so that the program acts where the CLI
        does. A password signs in to that organization. A JWT is used as it is: it acts in the
        organization that it was issued for.

        Args:
            overrides: Arguments of the client, by name; they win. With ``token=`` or
                ``credentials=`` the environment need not say how to sign in; with ``store=`` it
                may.

        Raises:
            NotSignedInError: There is nothing to sign in with, or the CLI's file cannot be used;
                the message says what was looked at.
            ImportError: The CLI's file is needed, and the extra ``cli-config`` is not installed.
            ValueError: A variable, a field of the CLI's file, or an argument has an impossible
                value.
            TypeError: An argument is of the wrong type.
            TransportError: As for the client itself.
        """
        if not overrides.keys() & {"http_client", "transport"}:
            read_ahead()
        from .._environment import client_arguments  # noqa: PLC0415 - few clients need it

        return cls(**client_arguments(cast("dict[str, Any]", overrides)))

    def _start_session(
        self,
        clock: engine.Clock,
        credentials: engine.Credentials | None = None,
        store: engine.AsyncTokenStore | None = None,
        first: engine.Token | None = None,
        *,
        renew: bool = True,
    ) -> None:
        resources, sender = self._resources, self._resources.sender
        state = engine.SessionState(
            resources.policy,
            clock,
            renew=renew,
            has_credentials=credentials is not None,
            lifetime=resources.lifetime,
        )
        beginning = first if credentials is None else credentials
        source = engine.AsyncTokenSource(sender, credentials, clock)
        persistence = None
        if store is not None:
            from .._core.ownership import Ownership  # noqa: PLC0415 - only with a store
            from .._core.snapshot import Owner  # noqa: PLC0415 - only with a store
            from .persistence import AsyncPersistence  # noqa: PLC0415 - only with a store

            if beginning is not None:
                state.owner = Owner(engine.account_of(beginning), bound=True)
            persistence = AsyncPersistence(
                store,
                state,
                Ownership(state, resources.origins.service),
                timeout=sender.timeout,
                active_tasks=resources.active_tasks,
            )
        self._state = state
        self._keeper = engine.AsyncTokenKeeper(
            state,
            source,
            persistence,
            active_tasks=resources.active_tasks,
        )
        self._auth: engine.AsyncSessionAuth | None = None
        self._closing: engine.AsyncSharedTask[None] | None = None
        self._http: httpx.AsyncClient | None = None

    # Signing in and out

    async def login(
        self,
        email: str,
        password: str,
        *,
        organization_id: str | None = None,
        seon_fp: str | None = None,
        timeout: float | None = None,
    ) -> engine.Token:
        """
        Sign in with a password; the new session replaces the one before.

        A login is never sent twice once it may have arrived: accounts lock.

        Args:
            email: The account's address.
            password: Its password; it is not kept.
            organization_id: The organization to act in; `None`: the account's default.
            seon_fp: A SEON fingerprint, sent as the ``seon-fp`` header; `None`: there is none.
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The new token.

        Raises:
            InvalidCredentialsError: The address or the password is wrong.
            AccountLockedError: The account is locked.
            PermissionDeniedError: The user is not a member of the organization, or the service no
                longer accepts passwords.
            RateLimitedError: There were too many logins; ``retry_after`` says when to try again.
            EndpointGoneError: The service has withdrawn the operation.
            NotSignedInError: The session was signed out meanwhile, and the token is revoked.

        Source: ``POST /v1/account/login``, operation ``Login``.
        """
        try:
            operation = engine.operations.login(email, password, organization_id, seon_fp)
        finally:  # a signal handler may raise
            del password, seon_fp
        change = self._change(timeout)
        outcome = await self._resources.sender.send(engine.unwrap(operation), change.deadline)
        new_token = _issued(self._unwrap(outcome), "signed in with a password")
        account = engine.account_of(engine.PasswordCredentials(email, "", organization_id))
        return self._unwrap(await change.begin(new_token, account=account, bound=True)).token

    async def passwordless_login(self, email: str, *, timeout: float | None = None) -> None:
        """
        Have the service mail a sign-in link; give the token in it to `use_token`.

        Koyeb withdrew this operation in 2023: each call is a `DeprecationWarning`.

        Args:
            email: The account's address.
            timeout: Seconds in all; `None`: the client's.

        Raises:
            EndpointGoneError: The service has withdrawn the operation.
            NotFoundError: There is no such account.

        Source: ``POST /v1/account/passwordless_login`` of the description of 2021.
        """
        operation = engine.operations.passwordless_login(email)
        deadline = self._deadline(timeout)
        operation = engine.unwrap(operation)
        text = "Koyeb has withdrawn passwordless login: use login() or an API access token"
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        self._unwrap(await self._resources.sender.send(operation, deadline))

    async def use_token(self, token: engine.Token | str) -> engine.Token:
        """
        Go on with a token from elsewhere; the new session replaces the one before.

        A token that the session holds already changes nothing.

        Args:
            token: A `Token`, or a `str`: a JWT or an API access token.

        Returns:
            The token, with the times that a JWT names filled in.

        Raises:
            ValueError: The token has expired, cannot be sent in a header, or has a naive time.
            TypeError: It is neither a `Token` nor a `str`.
        """
        try:
            given = engine.parse_token(token, self._state.clock.time())
        finally:  # a signal handler may raise
            del token
        change = self._change(None)
        given = engine.unwrap(given)
        held = self._state.snapshot
        if held is not None and engine.adds_nothing(given, held.token):
            return held.token
        # With credentials the account stays the same: they renew this token when it is due.
        account = None if self._state.has_credentials else engine.account_of(given)
        new_token = engine.NewToken(given, just_issued=False, how="signed in with a given token")
        return self._unwrap(await change.begin(new_token, account=account)).token

    async def refresh(self, *, timeout: float | None = None) -> engine.Token:
        """
        Renew the token now, or join the renewal that is under way.

        When the service refuses, the session signs in again through ``credentials``, if there are
        any. The renewal goes on for others when this caller is cancelled, or has less time than
        the client.

        Args:
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The new token.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and nothing can renew it. An API
                access token cannot be refreshed, and goes on to work as it is.
            StoreError: Another process holds the store's lock for too long.
            EndpointGoneError: The service has withdrawn it, and there are no credentials.

        Source: ``PUT /v1/account/refresh``, operation ``RefreshToken``.
        """
        deadline = self._deadline(timeout)
        outcome = await self._keeper.renew(self._state.snapshot, deadline)
        return self._unwrap(outcome).token

    async def logout(self, *, timeout: float | None = None) -> None:
        """
        End the session: here, in the store, and at the service.

        Here it ends at once, even if the service fails. A token that a renewal under way still
        brings is revoked. If the caller is cancelled, the rest goes on. It is success when the
        service does not know the token any more. Afterwards ``credentials`` are not used until
        you call `login`, `use_token` or `refresh`.

        Args:
            timeout: Seconds in all; `None`: the client's.

        Raises:
            StoreError: The store still holds the token.
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``DELETE /v1/account/logout``, operation ``Logout``.
        """
        self._unwrap(await self._change(timeout).end())

    # Other operations

    async def new_session(self, *, timeout: float | None = None) -> engine.Token:
        """
        Issue a token for one more session of this user, without an organization.

        This client keeps its own token; use the new one with `for_token`.

        Args:
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The other session's token.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``POST /v1/account/session``, operation ``NewSession``.
        """
        deadline = self._deadline(timeout)
        return self._unwrap(await self._keeper.send(engine.operations.new_session, deadline))

    async def switch_organization(
        self, organization_id: str, *, seon_fp: str | None = None, timeout: float | None = None
    ) -> engine.Token:
        """
        Act in another organization from now on.

        Args:
            organization_id: Its id (a UUID).
            seon_fp: A SEON fingerprint, sent as the ``seon-fp`` header; `None`: there is none.
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The new token, for that organization; the client goes on with it.

        Raises:
            NotSignedInError: There is no token and no credentials, or the session was signed out
                meanwhile.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            PermissionDeniedError: The user is not a member of the organization.
            NotFoundError: There is no such organization.
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``POST /v1/organizations/{id}/switch``, operation ``SwitchOrganization``.
        """
        try:
            wrong = engine.switch_error(organization_id, seon_fp)
            build = engine.operations.with_token(
                engine.operations.switch_organization, organization_id, seon_fp
            )
        finally:  # a signal handler may raise
            del seon_fp
        engine.unwrap(wrong)
        return await self._switch(build, "switched to an organization", timeout)

    async def unscope_organization_token(
        self, *, seon_fp: str | None = None, timeout: float | None = None
    ) -> engine.Token:
        """
        Act in no organization from now on, for example to delete the one acted in so far.

        A token that acts in an organization stops working when that organization is deleted.

        Args:
            seon_fp: A SEON fingerprint, sent as the ``seon-fp`` header; `None`: there is none.
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The new token, for no organization; the client goes on with it.

        Raises:
            NotSignedInError: There is no token and no credentials, or the session was signed out
                meanwhile.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            PermissionDeniedError: The token may not be used for this; an API access token may not
                be, for example.
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``POST /v1/unscope_organization_token``, operation ``UnscopeOrganizationToken``.
        """
        try:
            wrong = engine.header_error("seon_fp", seon_fp)
            build = engine.operations.with_token(
                engine.operations.unscope_organization_token, seon_fp
            )
        finally:  # a signal handler may raise
            del seon_fp
        engine.unwrap(wrong)
        return await self._switch(build, "switched to no organization", timeout)

    async def create_access_token(
        self,
        organization_id: str,
        *,
        validity: timedelta | None = None,
        timeout: float | None = None,
    ) -> engine.Token:
        """
        Issue a short-lived token that acts in one organization.

        This client keeps its own token; use the new one with `for_token`. To keep such tokens
        current give a client `AccessTokenCredentials`.

        Args:
            organization_id: The organization to act in (a UUID).
            validity: How long the token lives, from one second to 24 hours; `None`: the service's
                default, one hour.
            timeout: Seconds in all; `None`: the client's.

        Returns:
            The new token. The service does not say when it expires: ``expires_at`` is the JWT's
            ``exp`` where the token is one, else ``validity`` after the reply's arrival.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            PermissionDeniedError: The user is not a member of the organization, or this client's
                token may not issue others.
            NotFoundError: There is no such organization.
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``POST /v1/organizations/{id}/access_token``, operation ``CreateAccessToken``.
        """
        engine.unwrap(engine.access_token_error(organization_id, validity))
        deadline = self._deadline(timeout)
        build = engine.operations.with_token(
            engine.operations.create_access_token, organization_id, validity
        )
        return self._unwrap(await self._keeper.send(build, deadline))

    async def login_method(self, email: str, *, timeout: float | None = None) -> engine.LoginMethod:
        """
        Ask how an address signs in.

        Args:
            email: The account's address.
            timeout: Seconds in all; `None`: the client's.

        Returns:
            With a password here (`LoginMethod.KOYEB`), or at WorkOS.

        Raises:
            EndpointGoneError: The service has withdrawn the operation.

        Source: ``GET /v1/account/login_method``, operation ``LoginMethod``.
        """
        operation = engine.operations.login_method(email)
        deadline = self._deadline(timeout)
        return self._unwrap(await self._resources.sender.send(engine.unwrap(operation), deadline))

    # The token

    @property
    def token(self) -> engine.Token | None:
        """
        The token as it was last known; it may have expired. `None`: not signed in.

        A plain read: nothing is sent, and no store is read.
        """
        snapshot = self._state.snapshot
        return None if snapshot is None else snapshot.token

    async def current_token(self) -> engine.Token:
        """
        Return a token that may be used now; renew it first if need be.

        A renewal ahead of need starts, and nobody waits for it. Where the service revokes the old
        token, the one that you have may then be refused. `auth` signs again in that case. If you
        send a token by other means, ask for another one when it is refused.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            KoyebSessionError: The renewal or the sign-in failed, and the token has expired.
        """
        deadline = self._deadline(None)
        return self._unwrap(await self._keeper.usable_snapshot(deadline=deadline)).token

    async def keep_current(self) -> None:
        """
        Renew ahead of need, also while no requests are made, until the client is closed.

        Run it in a background task, or in a daemon thread in the blocking half. It returns when the
        client is closed; a task may be cancelled as well. Open a task group outside the client's
        ``async with``: at its end the group waits for this task. Without a token it waits until you
        sign in. It raises nothing: a failure is in the log, and is tried again.
        """
        self._check_open()
        self._resources.list_for_closing(self._keeper)
        await self._keeper.renew_ahead_of_need(lambda: not self._closed)

    def on_token_change(
        self, listener: Callable[[engine.Token | None], object]
    ) -> Callable[[], None]:
        """
        Call a function, plain or async, after each change of the token.

        The calls are in order, and one at a time. The listener may use the client. Its exceptions
        are logged. While it hangs, no listener is called, and only the newest hundred changes are
        kept for it.

        Args:
            listener: It is given the new token, or `None` after a logout.

        Returns:
            A function that removes the listener.

        Raises:
            TypeError: It is no function, or, in the blocking half, an async one.
        """
        engine.unwrap(engine.async_listener_error(listener))
        self._resources.list_for_closing(self._keeper)
        return self._keeper.listen(listener)

    def for_token(self, token: engine.Token | str, *, renew: bool = False) -> Self:
        """
        Make one more session, for somebody else's token, on the same connections.

        The new session is cheap, and need not be closed. It works until this client is closed.

        Args:
            token: The other session's token.
            renew: Whether to renew it when it is due. That may revoke its owner's copy. Closing
                this client waits for such a renewal.

        Raises:
            ValueError: The token has expired, cannot be sent in a header, or has a naive time.
            TypeError: It is neither a `Token` nor a `str`.
        """
        try:
            given = engine.parse_token(token, self._state.clock.time())
        finally:  # a signal handler may raise
            del token
        self._check_open()
        return self._sibling(engine.unwrap(given), renew=renew)

    def guest(self) -> Self:
        """
        Make one more session, signed out, on the same connections: for somebody else to log in.

        Its token is not renewed and is in no store, and it has no credentials to sign in with. It
        is cheap, and need not be closed. It works until this client is closed.
        """
        self._check_open()
        return self._sibling(None, renew=False)

    def _sibling(self, token: engine.Token | None, *, renew: bool) -> Self:
        """Make another session on the same connections, with a token or signed out."""
        other = object.__new__(type(self))
        other._is_sibling = True
        other._resources = self._resources
        other._start_session(self._state.clock, renew=renew)
        if token is not None:
            engine.unwrap(other._state.commit(engine.NewToken(token, just_issued=False)))
        return other

    # For httpx

    @property
    def auth(self) -> engine.AsyncSessionAuth:
        """
        An `httpx.Auth` that signs the requests of any `httpx.AsyncClient` to the service.

        A request raises `KoyebSessionError` when no token can be had, as `AsyncSessionAuth` says in
        full, and `httpx.HTTPError` when the request itself fails.
        """
        if self._auth is None:
            self._auth = engine.AsyncSessionAuth(self._keeper, self._resources.origins)
        return self._auth

    @property
    def http(self) -> httpx.AsyncClient:
        """
        An authorized `httpx.AsyncClient` for the service, with ``base_url`` set.

        ```python
        try:
            apps = await session.http.get("/v1/apps")
            apps.raise_for_status()
        except (KoyebSessionError, httpx.HTTPError) as error:
            print(error)
        ```

        It sends where the operations are sent: with your own ``http_client``, on your
        ``transport``, or on httpx's own. It keeps no cookies, and follows a redirect only where you
        ask it to. It needs no ``with`` of its own: closing it closes no connection, and while the
        session is open, this property then has another one.

        Requests are signed below its event hooks and redirects, on their way out. So a response
        hook that calls `raise_for_status` hides no 401 from the renewal. The token goes to trusted
        origins alone, even if a hook or a redirect changes the request. In your own
        client with `auth`, httpx calls hooks first: a response hook that raises keeps a refused
        request from being renewed and sent again.

        On httpx's own transport a hundred requests go out at a time, on a hundred sockets at most,
        in each event loop or process. Further requests queue until a connection is free or their
        pool timeout expires. A token that expires meanwhile is refused, renewed, and the request is
        sent once more.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and nothing can renew it.
            KoyebSessionError: The renewal or the sign-in failed, and the token has expired.
            httpx.HTTPError: The request itself failed: `httpx.TransportError` when there was no
                reply, `httpx.PoolTimeout` when no connection was free in time, and
                `httpx.HTTPStatusError` by ``raise_for_status()``.
            RuntimeError: The client is closed.
        """
        if self._http is None or (self._http.is_closed and not self._state.closed):
            from .authorized_client import AsyncAuthorizedClient  # noqa: PLC0415 - rarely needed

            resources = self._resources
            base_url, timeout = resources.origins.base_url, resources.sender.timeout
            self._http = AsyncAuthorizedClient(self.auth, resources.connections, base_url, timeout)
        return self._http

    # Life cycle

    async def aclose(self) -> None:
        """
        Wait for work under way, within bounds, then close the connections.

        It waits for a renewal, for a save, and for the listeners, which have the client's timeout;
        also for those of sessions of `for_token`. Your own ``http_client`` stays open. Closing a
        session of `for_token` leaves its parent's connections open. Any number of callers wait for
        one closing, which goes on if one of them is cancelled.

        In an event loop, a caller whose cancel scope is cancelled waits as well, for at most the
        client's timeout: the end of the loop would cut the work off. `asyncio.Task.cancel` ends the
        wait at once.
        """
        if not self._is_sibling:
            self._resources.end()
        self._keeper.close()
        for keeper in self._resources.listed_keepers():
            if keeper.listeners is not None:
                keeper.listeners.let_go()
        # One shared task closes, for any number of callers. It is replaced if it failed, or if its
        # event loop or process has ended.
        with engine.state_lock:
            closing = self._closing
            if closing is None or not (closing.succeeded or closing.alive):
                seconds = _CLOSING * self._resources.sender.timeout
                self._closing = closing = engine.AsyncSharedTask(self._close_all, seconds=seconds)
                closing.start()
        # A hook or a store that closes the client is called by work that the closing waits for.
        waits_for_caller = not self._keeper.may_wait or (
            not self._is_sibling and engine.is_inside(self._resources.active_tasks)
        )
        limit = 0.0 if waits_for_caller else None
        # The event loop may end next, as after a cancelled `main`, and cut off the work.
        with engine.async_shield(self._resources.sender.timeout):
            await closing.join(limit)
        await closing.join(limit)

    async def _close_all(self) -> None:
        # Tasks first, connections last: a renewal that is running still needs its connection.
        try:
            await self._keeper.drain()
            if not self._is_sibling:
                await self._resources.drain(self._keeper)
        finally:  # also if the work is cancelled at the end of an event loop
            if self._http is not None:
                await self._http.aclose()
            if not self._is_sibling:
                await self._resources.shut()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if not hasattr(self, "_state"):  # its arguments were invalid
            return f"<{type(self).__name__}: not made>"
        return f"<{type(self).__name__} {self._resources.origins.base_url}: {self._state.summary}>"

    def __reduce__(self) -> str:
        raise TypeError(engine.not_copied(type(self).__name__))

    def __del__(self) -> None:
        state: engine.SessionState | None = getattr(self, "_state", None)  # `__init__` may fail
        if state is None or state.closed or self._is_sibling:
            return
        if self._resources.opened:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    # Shared by the methods above

    @property
    def _closed(self) -> bool:
        return self._state.closed

    def _check_open(self) -> None:
        """Raise if the client is closed, or the one that this session was made by."""
        self._state.check_open()

    def _deadline(self, timeout: float | None) -> engine.Deadline:
        """Return the deadline of a call; raise if the client is closed or the timeout invalid."""
        self._check_open()
        if timeout is not None:
            engine.unwrap(engine.timeout_error(timeout))
        return engine.Deadline(self._resources.sender.timeout if timeout is None else timeout)

    def _unwrap(self, outcome: T | KoyebSessionError) -> T:
        """Return a result, or raise an error as one of this session."""
        return engine.unwrap(outcome, self._state.mark)

    def _change(self, timeout: float | None) -> engine.AsyncSessionChange:
        """Make an object for one sign-in or sign-out; see `_deadline`."""
        return engine.AsyncSessionChange(self._keeper, self._deadline(timeout))

    async def _switch(
        self,
        build: Callable[[engine.Token], engine.Operation[engine.Token]],
        how: str,
        timeout: float | None,
    ) -> engine.Token:
        """Send an operation that issues a token for this session, and go on with that token."""
        change = self._change(timeout)  # before any wait: a logout meanwhile must win
        new_token = _issued(self._unwrap(await self._keeper.send(build, change.deadline)), how)
        return self._unwrap(await change.begin(new_token, continues=True)).token


def _issued(token: engine.Token, how: str) -> engine.NewToken:
    """Make a `NewToken` of a token that the service has just issued."""
    return engine.NewToken(token, just_issued=True, how=how, issuer=engine.Issuer.KOYEB)
