"""``FakeIdentityProvider``: a sign-in service for users whose passwords Koyeb does not check."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Literal, NoReturn
from urllib.parse import parse_qs

import attrs

from . import _replies
from ._fake import FakeService
from ._koyeb import FakeKoyeb
from ._replies import Refusal, Reply
from ._requests import Request
from ._routes import fixed_routes

_ROUTES = fixed_routes(
    {
        "/oauth2/device_authorization": {"POST": "device_authorization"},
        "/oauth2/token": {"POST": "token"},
        "/device": {"GET": "verification"},
    }
)
_DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER = 5.0  # seconds to add to the interval of a client that polls too fast (RFC 8628, 3.5)


@attrs.define(eq=False)
class _Device:
    """A device that waits for a person, and the person's decision."""

    user_code: str
    expires_at: float
    interval: float
    polled_at: float | None = None
    decision: Literal["pending", "approved", "denied"] = "pending"
    email: str | None = None  # the user who has approved; None for the first user
    used: bool = False


@attrs.define(eq=False)
class _Grant:
    """One sign-in: the refresh tokens and the tokens for Koyeb that descend from it."""

    email: str | None
    refresh_tokens: dict[str, bool] = attrs.field(factory=dict[str, bool], repr=False)  # -> used
    tokens: list[str] = attrs.field(factory=list[str], repr=False)
    ended: bool = False


class FakeIdentityProvider(FakeService):
    """
    An identity provider that signs users of a `FakeKoyeb` in and hands out its tokens.

    It has the device grant (RFC 8628) and refresh tokens that rotate: each is good for one use, and
    using one again ends the whole sign-in, with all tokens that came of it (RFC 9700, 4.14.2). A
    test decides for the person with `approve` and `deny`; to open the page
    ``verification_uri_complete`` approves, too.

    - ``POST /oauth2/device_authorization`` gives ``device_code``, ``user_code`` and
      ``verification_uri``.
    - ``POST /oauth2/token`` gives ``access_token``, ``expires_in`` and ``refresh_token``.

    Both take forms, with any ``client_id``.

    Args:
        koyeb: the service that the tokens are for; the provider lives by its clock.
        token_lifetime: how long a token lives.
        rotate: whether a refresh token is replaced at each use.
        device_lifetime: how long a device may wait for a person.
        interval: how long a device has to wait between two polls.

    Attributes:
        base_url: where clients on ``transport`` find the provider.
        transport: an ``httpx`` transport for both halves.
        app: the provider as an ASGI application.
        clock: tells the provider's time.
        reuses: how often a refresh token came that had been used before.

    >>> provider = FakeIdentityProvider(FakeKoyeb())
    >>> form = {
    ...     "grant_type": "refresh_token",
    ...     "client_id": "me",
    ...     "refresh_token": provider.sign_in(),
    ... }
    >>> import httpx
    >>> with httpx.Client(transport=provider.transport, base_url=provider.base_url) as client:
    ...     sorted(client.post("/oauth2/token", data=form).json())
    ['access_token', 'expires_in', 'refresh_token', 'token_type']
    """

    def __init__(
        self,
        koyeb: FakeKoyeb,
        *,
        token_lifetime: timedelta = timedelta(minutes=5),
        rotate: bool = True,
        device_lifetime: timedelta = timedelta(minutes=10),
        interval: timedelta = timedelta(seconds=5),
    ) -> None:
        super().__init__("https://login.example.com", self._carry_out, _ROUTES, koyeb.clock)
        self.reuses: int = 0
        self._koyeb = koyeb
        self._token_lifetime = token_lifetime
        self._rotate = rotate
        self._device_lifetime = device_lifetime.total_seconds()
        self._interval = interval.total_seconds()
        self._devices: dict[str, _Device] = {}
        self._grants: list[_Grant] = []
        self._exchanges = 0

    def exchanges(self) -> int:
        """Return how many refresh tokens were exchanged, those included whose reply was lost."""
        return self._exchanges

    def sign_in(self, email: str | None = None) -> str:
        """
        Sign a user in without a request.

        Args:
            email: the user's address; ``None`` for the first user.

        Returns:
            A refresh token.

        Raises:
            ValueError: there is no such user.
        """
        self._check(email)
        with self._service.lock:
            grant = _Grant(email)
            self._grants.append(grant)
            return _next_refresh_token(grant)

    def approve(self, user_code: str, email: str | None = None) -> None:
        """
        Let a person sign a device in.

        Args:
            user_code: the code that the device shows.
            email: the address of the user who signs in; ``None`` for the first user.

        Raises:
            ValueError: no device that waits shows this code, or there is no such user.
        """
        self._check(email)
        with self._service.lock:
            self._approve(user_code, email)

    def deny(self, user_code: str) -> None:
        """
        Let a person refuse to sign a device in.

        Raises:
            ValueError: no device that waits shows this code.
        """
        with self._service.lock:
            self._waiting(user_code).decision = "denied"

    def _check(self, email: str | None) -> None:
        if email is not None and email not in self._koyeb.organizations:
            raise ValueError(f"no such user: {email!r}")

    def _approve(self, user_code: str, email: str | None) -> None:
        device = self._waiting(user_code)
        device.decision, device.email = "approved", email

    def _waiting(self, user_code: str) -> _Device:
        for device in self._devices.values():
            if device.user_code == user_code and device.decision == "pending":
                return device
        raise ValueError(f"no device waits with the code {user_code}")

    # The operations

    def _carry_out(self, operation: str, request: Request, _: str) -> Reply:
        handlers: Mapping[str, Callable[[Request], Reply]] = {
            "device_authorization": self._authorize_device,
            "token": self._issue,
            "verification": self._verify,
        }
        try:
            return handlers[operation](request)
        except Refusal as refusal:
            return refusal.reply

    def _authorize_device(self, request: Request) -> Reply:
        _form(request)
        user_code = "-".join(
            "".join(secrets.choice(string.ascii_uppercase) for _ in range(4)) for _ in range(2)
        )
        device_code = secrets.token_urlsafe(32)
        expires_at = self.clock.time() + self._device_lifetime
        self._devices[device_code] = _Device(user_code, expires_at, self._interval)
        page = f"{_origin(request, self.base_url)}/device"
        return _replies.success(
            {
                "device_code": device_code,
                "user_code": user_code,
                "verification_uri": page,
                "verification_uri_complete": f"{page}?user_code={user_code}",
                "expires_in": round(self._device_lifetime),
                "interval": round(self._interval),
            }
        )

    def _verify(self, request: Request) -> Reply:
        code = parse_qs(request.query).get("user_code", [""])[-1]
        try:
            self._approve(code, None)
        except ValueError:
            raise Refusal(_replies.invalid({"user_code": "no device waits with it"})) from None
        return _replies.success({"message": "You are signed in: go back to your device."})

    def _issue(self, request: Request) -> Reply:
        form = _form(request)
        kind = form.get("grant_type")
        if kind == "refresh_token":
            grant = self._exchanged(form.get("refresh_token", ""))
        elif kind == _DEVICE_CODE:
            grant = self._decided(form.get("device_code", ""))
        else:
            _refuse("unsupported_grant_type")
        return self._tokens(grant)

    def _decided(self, device_code: str) -> _Grant:
        device = self._devices.get(device_code)
        if device is None or device.used:
            _refuse("invalid_grant")
        now = self.clock.time()
        if now >= device.expires_at:
            _refuse("expired_token")
        too_soon = device.polled_at is not None and now - device.polled_at < device.interval
        device.polled_at = now
        if too_soon:
            device.interval += _SLOWER
            _refuse("slow_down")
        if device.decision == "pending":
            _refuse("authorization_pending")
        if device.decision == "denied":
            _refuse("access_denied")
        device.used = True
        grant = _Grant(device.email)
        self._grants.append(grant)
        return grant

    def _exchanged(self, refresh_token: str) -> _Grant:
        for grant in self._grants:
            if refresh_token in grant.refresh_tokens:
                break
        else:
            _refuse("invalid_grant")
        if grant.refresh_tokens[refresh_token]:
            self.reuses += 1
            grant.ended = True
            for token in grant.tokens:
                self._koyeb.revoke(token)
        if grant.ended:
            _refuse("invalid_grant")
        grant.refresh_tokens[refresh_token] = self._rotate
        self._exchanges += 1
        return grant

    def _tokens(self, grant: _Grant) -> Reply:
        token = self._koyeb.issue_token(grant.email, lifetime=self._token_lifetime)
        grant.tokens.append(token)
        payload: dict[str, Any] = {
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": round(self._token_lifetime.total_seconds()),
        }
        if self._rotate or not grant.refresh_tokens:
            payload["refresh_token"] = _next_refresh_token(grant)
        return _replies.success(payload)


def _next_refresh_token(grant: _Grant) -> str:
    token = secrets.token_urlsafe(32)
    grant.refresh_tokens[token] = False
    return token


def _origin(request: Request, base_url: str) -> str:
    """Return the provider's URL as the client sees it: on a socket, it is not ``base_url``."""
    host = request.headers["host"]
    return base_url if base_url == f"https://{host}" else f"http://{host}"


def _form(request: Request) -> dict[str, str]:
    fields = parse_qs(request.content.decode("latin-1"))
    form = {name: values[-1] for name, values in fields.items()}
    if not form.get("client_id"):
        _refuse("invalid_request")
    return form


def _refuse(error: str) -> NoReturn:
    """Raise the refusal that RFC 6749, 5.2, and RFC 8628, 3.5, describe."""
    raise Refusal(attrs.evolve(_replies.success({"error": error}), status=HTTPStatus.BAD_REQUEST))
