"""The values of the session API, and the credentials and clocks of a client."""

# No `from __future__ import annotations` here: cattrs reads the annotations as types.

import enum
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

import attrs


@attrs.frozen
class Token:
    """
    A bearer token, as the service issues it.

    ``id`` is the secret itself; it shows in no `repr`, but does in `attrs.asdict` and pickles.

    ```python
    token = session.current_token()
    headers = {"Authorization": f"Bearer {token.id}"}
    if token.expires_at is not None:
        print("good for", token.expires_at - datetime.now(UTC))
    ```

    Attributes:
        id: The value for ``Authorization: Bearer``; visible ASCII.
        user_id: The user (a UUID); `None` when unknown.
        organization_id: The organization it acts in (a UUID); `None` for none or unknown.
        expires_at: When it stops working, an aware time in UTC; `None` when unknown.
        issued_at: When it was issued, an aware time in UTC: the reply's arrival, or the JWT's
            ``iat``. `None` when unknown.
        renewal: A secret of the callable that brought the token, such as the refresh token of its
            identity provider. It is never sent, shows in no `repr`, is saved by every store, and
            comes back to the callable with the token that is to be replaced. `None`: none.
        provenance: The service, the account and the issuer of the token, as the session notes
            them when it saves the token: no secret and no address. Stores keep it as it is.
            `None` when unknown.

    The last three are no fields of the API and no part of equality.

    Source: ``Token`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    id: str = attrs.field(repr=False)
    user_id: str | None = None
    organization_id: str | None = None
    expires_at: datetime | None = None
    issued_at: datetime | None = attrs.field(default=None, kw_only=True, eq=False)
    renewal: str | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)
    provenance: str | None = attrs.field(default=None, kw_only=True, eq=False, repr=False)


class LoginMethod(enum.Enum):
    """
    How an e-mail address signs in.

    ```python
    if session.login_method("me@example.com") is LoginMethod.WORKOS:
        print("Sign in with an API access token.")
    ```

    Source: ``LoginMethodReply.Method`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    KOYEB = "KOYEB"
    """With a password, by `SessionClient.login`."""
    WORKOS = "WORKOS"
    """In a browser, at WorkOS."""


@attrs.frozen
class PasswordCredentials:
    """
    Sign in with a password, at first and whenever a refresh cannot help.

    ```python
    me = PasswordCredentials("me@example.com", "correct horse")
    with SessionClient(credentials=me) as session:
        apps = session.http.get("/v1/apps")  # signs in first
    ```

    Attributes:
        email: The account's address.
        password: Its password; shows in no `repr`.
        organization_id: The organization to sign in to; `None` for the account's default.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    email: str
    password: str = attrs.field(repr=False)
    organization_id: str | None = None


@attrs.frozen
class AccessTokenCredentials:
    """
    Exchange an API access token for short-lived tokens of one organization.

    Each token is issued with the API access token, never with the token that it replaces.

    ```python
    me = AccessTokenCredentials(api_token, organization_id, validity=timedelta(minutes=30))
    with SessionClient(credentials=me) as session:
        apps = session.http.get("/v1/apps")  # has a token issued first
    ```

    Attributes:
        api_token: An API access token, from Koyeb's control panel; shows in no `repr`.
        organization_id: The organization to act in (a UUID).
        validity: How long each issued token lives, from one second to 24 hours; one hour by
            default.

    Source: ``POST /v1/organizations/{id}/access_token``, operation ``CreateAccessToken``.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    api_token: str = attrs.field(repr=False)
    organization_id: str
    validity: timedelta = timedelta(hours=1)


TokenSource: TypeAlias = (
    Callable[[], Token | str]
    | Callable[[], Awaitable[Token | str]]
    | Callable[[Token | None], Token | str]
    | Callable[[Token | None], Awaitable[Token | str]]
)
Credentials: TypeAlias = PasswordCredentials | AccessTokenCredentials | TokenSource
"""
How to sign in: a password, an API access token, or any callable that returns a token.

```python
def ask_the_vault(replaced: Token | None) -> str:
    return api_token  # a vault, or an identity provider, has it


with SessionClient(credentials=ask_the_vault) as session:
    apps = session.http.get("/v1/apps")
```

A callable that takes an argument is given the token that is to be replaced, `None` the first time.
It runs in a thread of the session; the asynchronous half awaits an ``async def``. It must not use
the session that asks it: that would wait for itself. The token that it replaces may have a one-time
secret: then its answer counts for twice the client's ``timeout``, and is lost after that.
"""


class Clock(Protocol):
    """
    Two clocks, as the `time` module has them; `time` itself is one.

    ```python
    class Late:
        def time(self) -> float:
            return time.time() - 3600

        def monotonic(self) -> float:
            return time.monotonic()


    session = SessionClient(clock=Late())
    ```
    """

    __module__: str = "koyeb_session"  # its public name, also in pickles

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed point; never goes back."""
        ...
