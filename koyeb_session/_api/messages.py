"""The requests and replies of the operations."""

# No `from __future__ import annotations` here: cattrs reads the annotations as types.

from collections.abc import Mapping
from datetime import timedelta

import attrs

from .._core.models import LoginMethod, Token


@attrs.frozen
class LoginRequest:
    """
    The request of a login, as Koyeb's API has it; `SessionClient.login` makes one.

    ```python
    request = LoginRequest("me@example.com", "correct horse")
    print(request)  # without the password
    ```

    Attributes:
        email: The account's address.
        password: Its password; shows in no `repr`.
        organization_id: The organization to act in (a UUID); `None`: the account's default.

    Source: ``LoginRequest`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    email: str
    password: str = attrs.field(repr=False)
    organization_id: str | None = None


@attrs.frozen
class LoginReply:
    """
    The reply to login, refresh, new session and switch organization.

    ```python
    reply = LoginReply(Token("an-id"))
    print(reply.token.expires_at)
    ```

    Attributes:
        token: The token that was issued.

    Source: ``LoginReply`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    token: Token


@attrs.frozen
class PasswordlessLoginRequest:
    """
    The request of a passwordless login, which Koyeb has withdrawn.

    ```python
    request = PasswordlessLoginRequest("me@example.com")
    ```

    Attributes:
        email: The account's address.

    Source: ``PasswordlessLoginRequest`` in Koyeb's API description of 2021.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    email: str


@attrs.frozen
class CreateAccessTokenRequest:
    """
    The body of a request for an access token.

    Attributes:
        validity: The lifetime of the token; `None`: the service's default, an hour.

    Source: ``CreateAccessToken`` in Koyeb's API description.
    """

    validity: timedelta | None = None


@attrs.frozen
class CreateAccessTokenReply:
    """
    The reply with a new access token: the token alone, without an expiry.

    Source: ``CreateAccessTokenReply`` in Koyeb's API description.
    """

    token: str = attrs.field(repr=False)


@attrs.frozen
class LoginMethodReply:
    """
    The reply with the login method of an address.

    Source: ``LoginMethodReply`` in Koyeb's API description, with its default.
    """

    method: LoginMethod = LoginMethod.KOYEB


@attrs.frozen
class ErrorReply:
    """
    An error reply, in any of the API's three formats.

    Source: ``Error``, ``ErrorWithFields`` and ``google.rpc.Status`` in Koyeb's API description.
    """

    code: str | int | None = None
    message: str | None = None
    fields: Mapping[str, str] = attrs.field(factory=dict[str, str])
