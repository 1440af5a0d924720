"""
The requests and replies of a sign-in.

Apart from the other values, as making such classes is most of what an import takes: the first
sign-in imports these.
"""

# No `from __future__ import annotations` here: cattrs reads the annotations as types.

import attrs

from ._models import Token


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

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

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

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

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

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    email: str


@attrs.frozen
class CreateAccessTokenRequest:
    """
    The request for an access token.

    Attributes:
        validity: A protobuf duration such as ``"3600s"``; `None`: the service's default, an hour.

    Source: ``CreateAccessToken`` in Koyeb's API description.
    """

    validity: str | None = None


@attrs.frozen
class CreateAccessTokenReply:
    """
    The reply to it: the token alone, without an expiry.

    Source: ``CreateAccessTokenReply`` in Koyeb's API description.
    """

    token: str = attrs.field(repr=False)
