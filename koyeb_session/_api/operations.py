"""
The operations of the service: each one builds a request and interprets the reply.

Nothing here waits or sends. Errors are returned as values, since the frame of a function that
raises would show the password among its locals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs
import httpx

from .._core.errors import KoyebSessionError, WireError
from .._core.models import LoginMethod, Token
from .._core.origins import address
from .._core.redaction import Redactor
from .._core.results import frameless
from .._core.timestamps import from_epoch, service_time
from .._core.tokens import fill_from_jwt, with_issue_time
from .._core.validation import BadArgument, header_error, id_error, text_error
from .._core.version import __version__
from .messages import (
    CreateAccessTokenReply,
    CreateAccessTokenRequest,
    LoginMethodReply,
    LoginReply,
    LoginRequest,
    PasswordlessLoginRequest,
)
from .wire import read, read_nothing, write

if TYPE_CHECKING:
    from .wire import Reply

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_PRODUCT: Final = f"koyeb-session/{__version__}"
USER_AGENT: Final = f"{_PRODUCT} python-httpx/{httpx.__version__}"
"""The ``User-Agent`` of requests that no client of the user sends (RFC 9110, 10.1.5)."""
_ACCEPT: Final = ((b"Accept", b"application/json"), (b"Accept-Encoding", b"identity"))
_HEADERS: Final = (*_ACCEPT, (b"User-Agent", USER_AGENT.encode()))
_NOT_DONE: Final = frozenset({429, 503})
"""The statuses that mean that nothing was done."""
_NO_ANSWER: Final = _NOT_DONE | {502, 504}
"""Those, and the statuses that leave it open: for operations that may safely be repeated."""
_DEFAULT_VALIDITY: Final = timedelta(hours=1)
"""The lifetime of an access token if the request names none, by the API's description."""
OTHER_WAYS: Final = (
    "an API access token (token=...), AccessTokenCredentials(api_token, organization_id), or a "
    "callable that brings tokens (credentials=...)"
)
"""The ways to sign in to Koyeb without a password."""
AS_IT_IS: Final = "an API access token as it is (token=...), or a callable as credentials="
"""The ways without access tokens that are issued."""
_NO_PASSWORDS: Final = f"if Koyeb no longer accepts this kind of sign-in, use {OTHER_WAYS}"


def user_agent(own: str | None) -> str:
    """Return the ``User-Agent`` of a request, appended to that of the user's own client."""
    return f"{own} {_PRODUCT}" if own else USER_AGENT


@attrs.frozen(eq=False)
class Operation(Generic[T_co]):
    """
    One call of the service.

    Attributes:
        read: A function that reads the result from the body of a successful reply.
        params: The query.
        secrets: Secrets in the request, which no error may quote.
        instead: The advice for the case that the service has withdrawn the operation.
        forbidden: The advice for a 403.
        repeat: The statuses after which it may be sent again.
    """

    name: str
    method: str
    path: str
    # Rich and structlog ignore `__repr__` and show the fields, so each field hides itself.
    read: Callable[[bytes], T_co | WireError] = attrs.field(repr=False)
    instead: str = attrs.field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(default=(), repr=False)
    params: Mapping[str, str] | None = attrs.field(default=None, repr=False)
    body: bytes | None = attrs.field(default=None, repr=False)
    secrets: tuple[str, ...] = attrs.field(default=(), repr=False)
    repeat: frozenset[int] = attrs.field(default=frozenset(), repr=False)
    signs_in: bool = attrs.field(default=False, repr=False)
    forbidden: str = attrs.field(default="", repr=False)

    def request(self, base_url: str, timeout: float) -> httpx.Request:
        """Build the request; each phase of it may take ``timeout`` seconds."""
        url, host = address(base_url + self.path)
        length = () if self.body is None else ((b"Content-Length", b"%d" % len(self.body)),)
        # With a stream, httpx adds no headers. Hot path: see tests/benchmarks.
        request = httpx.Request(
            self.method,
            url if self.params is None else url.copy_with(params=self.params),
            headers=((b"Host", host), *_HEADERS, *length, *self.headers),
            stream=httpx.ByteStream(self.body or b""),
            extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout)},
        )
        request.read()  # event hooks expect a request whose body is in memory
        return request

    def outcome(self, reply: Reply, wall: float, base_url: str = "") -> T_co | KoyebSessionError:
        """
        Turn a reply into a result or an error.

        Args:
            reply: The reply.
            wall: The time of its arrival, in seconds since the epoch.
            base_url: The service's URL, for an error message.
        """
        if not 200 <= reply.status < 300:
            from .replies import error_of  # noqa: PLC0415 - rarely needed

            return error_of(self, reply, wall, base_url, self._redactor())
        result = reply.body if isinstance(reply.body, WireError) else self.read(reply.body)
        if isinstance(result, Token):
            now = service_time(reply.headers.get("date"), wall)
            if result.expires_at is None or result.expires_at.timestamp() > now:
                return with_issue_time(result, now)  # type: ignore[return-value]
            result = WireError("the token that the service handed out has expired")
        if isinstance(result, WireError):
            from .replies import unfit  # noqa: PLC0415 - rarely needed

            return unfit(self, reply, result, base_url, self._redactor())
        return result

    def redacted(self, text: str) -> str:
        """Remove the request's secrets from a text of another program."""
        return self._redactor()(text)

    def _redactor(self) -> Redactor:
        fingerprints = (value.decode() for name, value in self.headers if name == b"seon-fp")
        return Redactor((*self.secrets, *fingerprints))


@attrs.frozen(eq=False)
class _AccessTokenRequest(Operation[Token]):
    """A request whose reply names no expiry: the token lives as long as the request asks."""

    validity: timedelta = attrs.field(default=_DEFAULT_VALIDITY, repr=False)

    def outcome(self, reply: Reply, wall: float, base_url: str = "") -> Token | KoyebSessionError:
        """Turn a reply into a token or an error; its lifetime begins when the reply arrives."""
        token = super().outcome(reply, wall, base_url)
        if not isinstance(token, Token) or token.expires_at is not None or token.issued_at is None:
            return token
        expires = token.issued_at.timestamp() + self.validity.total_seconds()
        return attrs.evolve(token, expires_at=from_epoch(expires))


# The operations, one function each


@frameless
def login(
    email: str, password: str, organization_id: str | None = None, seon_fp: str | None = None
) -> Operation[Token] | BadArgument:
    """``POST /v1/account/login``."""
    wrong = (
        text_error("email", email)
        or text_error("password", password)
        or (organization_id is not None and id_error(organization_id))
        or header_error("seon_fp", seon_fp)
    )
    if wrong:
        return wrong
    return Operation(
        "login",
        "POST",
        "/v1/account/login",
        read=_token,
        instead=f"use {OTHER_WAYS}",
        headers=((b"Content-Type", b"application/json"), *_fingerprint(seon_fp)),
        body=write(LoginRequest(email, password, organization_id)),
        secrets=(password,),
        signs_in=True,
        forbidden=_NO_PASSWORDS,
    )


def passwordless_login(email: str) -> Operation[None] | BadArgument:
    """``POST /v1/account/passwordless_login``."""
    return text_error("email", email) or Operation(
        "passwordless_login",
        "POST",
        "/v1/account/passwordless_login",
        read=read_nothing,
        instead=f"Koyeb withdrew passwordless login in 2023: use {OTHER_WAYS}",
        headers=((b"Content-Type", b"application/json"),),
        body=write(PasswordlessLoginRequest(email)),
        forbidden=_NO_PASSWORDS,
    )


@frameless
def refresh(token: Token) -> Operation[Token]:
    """``PUT /v1/account/refresh``, with the current token."""
    return Operation(
        "refresh",
        "PUT",
        "/v1/account/refresh",
        read=_token,
        instead=f"use {OTHER_WAYS}",
        headers=_bearer(token),
        body=b"",
        secrets=(token.id,),
        repeat=_NOT_DONE,
    )


@frameless
def logout(token: Token) -> Operation[None]:
    """``DELETE /v1/account/logout``."""
    return Operation(
        "logout",
        "DELETE",
        "/v1/account/logout",
        read=read_nothing,
        instead="the token works until it expires; revoke it in the control panel",
        headers=_bearer(token),
        secrets=(token.id,),
        repeat=_NO_ANSWER,
    )


@frameless
def new_session(token: Token) -> Operation[Token]:
    """``POST /v1/account/session``."""
    return Operation(
        "new_session",
        "POST",
        "/v1/account/session",
        read=_token,
        instead=f"for one more session use {OTHER_WAYS}",
        headers=_bearer(token),
        body=b"",
        secrets=(token.id,),
    )


@frameless
def switch_organization(
    token: Token, organization_id: str, seon_fp: str | None = None
) -> Operation[Token]:
    """``POST /v1/organizations/{id}/switch``; the caller has checked the arguments."""
    return Operation(
        "switch_organization",
        "POST",
        f"/v1/organizations/{organization_id}/switch",
        read=_token,
        instead="use create_access_token(), or AccessTokenCredentials(api_token, organization_id)",
        headers=(*_bearer(token), (b"Content-Type", b"application/json"), *_fingerprint(seon_fp)),
        body=b"{}",
        secrets=(token.id,),
    )


@frameless
def unscope_organization_token(token: Token, seon_fp: str | None = None) -> Operation[Token]:
    """``POST /v1/unscope_organization_token``; the caller has checked the arguments."""
    return Operation(
        "unscope_organization_token",
        "POST",
        "/v1/unscope_organization_token",
        read=_token,
        instead="go on in an organization, with switch_organization() or AccessTokenCredentials",
        headers=(*_bearer(token), (b"Content-Type", b"application/json"), *_fingerprint(seon_fp)),
        body=b"{}",
        secrets=(token.id,),
    )


@frameless
def create_access_token(
    bearer: Token, organization_id: str, validity: timedelta | None = None
) -> Operation[Token]:
    """
    ``POST /v1/organizations/{id}/access_token``; the caller has checked the arguments.

    Args:
        bearer: The token of a session, or an API access token.
        organization_id: The organization in which the new token acts.
        validity: The lifetime of the new token; `None`: the service's default, an hour.
    """

    @frameless
    def issued(body: bytes) -> Token | WireError:
        reply = read(body, CreateAccessTokenReply)
        if isinstance(reply, WireError):
            return reply
        return fill_from_jwt(Token(reply.token, organization_id=organization_id))

    return _AccessTokenRequest(
        "create_access_token",
        "POST",
        f"/v1/organizations/{organization_id}/access_token",
        read=issued,
        instead=f"use {AS_IT_IS}",
        headers=(*_bearer(bearer), (b"Content-Type", b"application/json")),
        body=write(CreateAccessTokenRequest(validity)),
        secrets=(bearer.id,),
        repeat=_NOT_DONE,
        forbidden="use a token whose user is a member of this organization and may issue tokens",
        validity=_DEFAULT_VALIDITY if validity is None else validity,
    )


def login_method(email: str) -> Operation[LoginMethod] | BadArgument:
    """``GET /v1/account/login_method``."""
    return text_error("email", email) or Operation(
        "login_method",
        "GET",
        "/v1/account/login_method",
        read=_method,
        instead=f"try login(), and if that is refused use {OTHER_WAYS}",
        params={"email": email},
        repeat=_NO_ANSWER,
    )


@frameless
def with_token(
    build: Callable[..., Operation[T]], *arguments: object
) -> Callable[[Token], Operation[T]]:
    """Return a builder that takes the token; a `partial` would show the arguments in its repr."""
    return frameless(lambda token: build(token, *arguments))


def _bearer(token: Token) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"Authorization", b"Bearer " + token.id.encode()),)


def _fingerprint(seon_fp: str | None) -> tuple[tuple[bytes, bytes], ...]:
    return () if seon_fp is None else ((b"seon-fp", seon_fp.encode()),)


@frameless
def _token(body: bytes) -> Token | WireError:
    reply = read(body, LoginReply)
    return reply if isinstance(reply, WireError) else reply.token


def _method(body: bytes) -> LoginMethod | WireError:
    reply = read(body, LoginMethodReply)
    return reply if isinstance(reply, WireError) else reply.method
