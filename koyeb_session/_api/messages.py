"""What the operations send, and what they are answered."""

# No `from __future__ import annotations` here: cattrs reads the annotations as types.

from collections.abc import Mapping
from datetime import timedelta

import attrs

from .._core.models import LoginMethod, Token


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
        validity: How long the token is to live; `None`: the service's default, an hour.

    Source: ``CreateAccessToken`` in Koyeb's API description.
    """

    validity: timedelta | None = None


@attrs.frozen
class CreateAccessTokenReply:
    """
    What creating an access token answers: the token alone, without an expiry.

    Source: ``CreateAccessTokenReply`` in Koyeb's API description.
    """

    token: str = attrs.field(repr=False)


@attrs.frozen
class LoginMethodReply:
    """
    What a question for the login method is answered.

    Source: ``LoginMethodReply`` in Koyeb's API description, with its default.
    """

    method: LoginMethod = LoginMethod.KOYEB


@attrs.frozen
class ErrorReply:
    """
    What an error reply says, whichever of the API's three shapes it has.

    Source: ``Error``, ``ErrorWithFields`` and ``google.rpc.Status`` in Koyeb's API description.
    """

    code: str | int | None = None
    message: str | None = None
    fields: Mapping[str, str] = attrs.field(factory=dict[str, str])
