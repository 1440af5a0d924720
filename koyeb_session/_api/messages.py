"""
What a sign-in sends, and what it is answered.

Apart from the other values, as making such classes is most of what an import takes: the first
sign-in imports these.
"""

# No `from __future__ import annotations` here: cattrs reads the annotations as types.

import attrs

from .._core.models import Token


@attrs.frozen
class LoginRequest:
    """
    What a login sends.

    Source: ``LoginRequest`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    email: str
    password: str = attrs.field(repr=False)
    organization_id: str | None = None


@attrs.frozen
class LoginReply:
    """
    What login, refresh, new session and switch organization answer.

    Source: ``LoginReply`` in Koyeb's API description.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    token: Token


@attrs.frozen
class PasswordlessLoginRequest:
    """
    What a passwordless login sends.

    Source: ``PasswordlessLoginRequest`` in Koyeb's API description of 2021.
    """

    __module__ = "koyeb_session"  # where users import it from, and what pickles say

    email: str


@attrs.frozen
class CreateAccessTokenRequest:
    """
    What creating an access token sends.

    Attributes:
        validity: A protobuf duration such as ``"3600s"``; `None`: the service's default, an hour.

    Source: ``CreateAccessToken`` in Koyeb's API description.
    """

    validity: str | None = None


@attrs.frozen
class CreateAccessTokenReply:
    """
    What creating an access token answers: the token alone, without an expiry.

    Source: ``CreateAccessTokenReply`` in Koyeb's API description.
    """

    token: str = attrs.field(repr=False)
