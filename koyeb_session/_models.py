"""The values that the session API speaks of, and those that it is asked with."""

# No `from __future__ import annotations` here: converters read the annotations as types.

import enum
from collections.abc import Awaitable, Callable
from datetime import datetime
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
        issued_at: When it was minted, UTC, as far as is known: the reply's arrival, or the JWT's
            ``iat``. Not a field of the API, and no part of equality. `None` when unknown.

    Source: ``Token`` in Koyeb's API description.
    """

    id: str = attrs.field(repr=False)
    user_id: str | None = None
    organization_id: str | None = None
    expires_at: datetime | None = None
    issued_at: datetime | None = attrs.field(default=None, kw_only=True, eq=False)


class LoginMethod(enum.Enum):
    """
    How an e-mail address signs in.

    Source: ``LoginMethodReply.Method`` in Koyeb's API description.
    """

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

    email: str
    password: str = attrs.field(repr=False)
    organization_id: str | None = None


TokenSource: TypeAlias = (
    Callable[[], Token | str] | Callable[[], Awaitable[Token | str]]  # a plain or an async one
)
Credentials: TypeAlias = PasswordCredentials | TokenSource
"""
How to sign in again: :class:`PasswordCredentials`, or any callable that returns a token.

A plain callable is called in a worker thread by the asynchronous half, in the calling thread by the
blocking one; the asynchronous half awaits an ``async def``. It must not use the session that asks
it: that would wait for itself.
"""


class Clock(Protocol):
    """Two clocks, as the `time` module has them; `time` itself is one."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds since any fixed point; never goes back."""
        ...
