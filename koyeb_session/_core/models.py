"""The values that the session API speaks of, and those that it is asked with."""

# No `from __future__ import annotations` here: converters read the annotations as types.

import enum
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

import attrs


@attrs.frozen
class Token:
    """
    A bearer token, as the service hands it out.

    ``id`` is the secret itself; it shows in no `repr`, but does in `attrs.asdict` and pickles.

    Attributes:
        id: What goes into ``Authorization: Bearer``; visible ASCII.
        user_id: Whose it is (a UUID); `None` when unknown.
        organization_id: The organization it acts in (a UUID); `None` for none or unknown.
        expires_at: When it stops working, UTC; `None` when unknown.
        issued_at: When it was issued, UTC, as far as is known: the reply's arrival, or the JWT's
            ``iat``. `None` when unknown.
        renewal: A secret of the callable that brought the token, such as the refresh token of its
            identity provider. It is never sent, shows in no `repr`, is saved by every store, and
            comes back to the callable with the token that is to be replaced. `None`: none.
        provenance: Which service and account the token is of, and who issued it, as the session
            notes it when it saves the token: no secret and no address. Stores keep it as it is.
            `None` when unknown.

    The last three are no fields of the API and no part of equality.

    Source: ``Token`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

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

    Source: ``LoginMethodReply.Method`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    KOYEB = "KOYEB"
    """With a password, by :meth:`~koyeb_session.AsyncSessionClient.login`."""
    WORKOS = "WORKOS"
    """In a browser, at WorkOS."""


@attrs.frozen
class PasswordCredentials:
    """
    Sign in again with a password, when a refresh cannot help.

    Attributes:
        email: The account's address.
        password: Its password; shows in no `repr`.
        organization_id: The organization to sign in to; `None` for the account's default.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    email: str
    password: str = attrs.field(repr=False)
    organization_id: str | None = None


@attrs.frozen
class AccessTokenCredentials:
    """
    Exchange an API access token for short-lived tokens of one organization.

    Each token is issued with the API access token, never with the token that it replaces.

    Attributes:
        api_token: An API access token, from Koyeb's control panel; shows in no `repr`.
        organization_id: The organization to act in (a UUID).
        validity: How long each issued token lives, from one second to 24 hours.

    Source: ``POST /v1/organizations/{id}/access_token``, operation ``CreateAccessToken``.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

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
How to sign in again: a password, an API access token, or any callable that returns a token.

A callable that takes an argument is given the token that is to be replaced, `None` the first time.
It runs in a thread of the session's; the asynchronous half awaits an ``async def``. It must not use
the session that asks it: that would wait for itself.
"""


class Clock(Protocol):
    """Two clocks, as the `time` module has them; `time` itself is one."""

    __module__: str = "koyeb_session"  # where users import it from, and what pickles say

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed point; never goes back."""
        ...
