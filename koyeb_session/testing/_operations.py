"""The operations of the fake service: each one turns a request and the state into a reply."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Literal, NoReturn, cast
from urllib.parse import parse_qs

import attrs

from . import _replies
from ._accounts import Accounts
from ._apps import Apps
from ._pages import page
from ._replies import Refusal, Reply
from ._requests import Request
from ._tokens import IssuedToken, TokenRegistry

_WRONG_CREDENTIALS = (
    "There is no Koyeb account associated with this email address or your password is incorrect"
)
_ORGANIZATION_STATUSES = frozenset(
    ("WARNING", "LOCKED", "ACTIVE", "DEACTIVATING", "DEACTIVATED", "DELETING", "DELETED")
)
_DURATION = re.compile(r"(\d{1,6})(?:\.(\d{1,9}))?s", re.ASCII)
_DEFAULT_VALIDITY, _LONGEST_VALIDITY = timedelta(hours=1), timedelta(hours=24)


@attrs.frozen
class Rules:
    """Behavior that Koyeb does not document, so that each test chooses it; see ``FakeKoyeb``."""

    refresh: Literal["revokes", "keeps"]
    access_tokens: Literal["jwt", "opaque"]
    access_tokens_may_issue: bool
    organization_api_tokens_may_issue: bool
    logout_revokes_access_tokens: bool

    def __attrs_post_init__(self) -> None:
        if self.refresh not in ("revokes", "keeps"):
            raise ValueError(f"refresh is 'revokes' or 'keeps', not {self.refresh!r}")
        if self.access_tokens not in ("jwt", "opaque"):
            raise ValueError(f"access_tokens is 'jwt' or 'opaque', not {self.access_tokens!r}")


class Operations:
    """
    The operations and their state. Not thread-safe: the service holds its lock.

    Attributes:
        exchanges: how many refreshes have issued a token.
        mailbox: email -> the tokens in passwordless links.
    """

    def __init__(self, accounts: Accounts, registry: TokenRegistry, rules: Rules) -> None:
        self._accounts = accounts
        self._registry = registry
        self._apps = Apps()
        self._rules = rules
        self.exchanges: int = 0
        self.mailbox: dict[str, list[str]] = {email: [] for email in accounts.organizations}
        self._handlers: Mapping[str, Callable[[Request, str], Reply]] = {
            "login": self._login,
            "logout": self._logout,
            "passwordless_login": self._passwordless_login,
            "refresh": self._refresh,
            "new_session": self._new_session,
            "login_method": self._login_method,
            "switch_organization": self._switch_organization,
            "create_access_token": self._create_access_token,
            "unscope_organization_token": self._unscope_organization_token,
            "profile": self._profile,
            "organization": self._organization,
            "organizations": self._organizations,
            "apps": self._use_apps,
        }

    def carry_out(self, operation: str, request: Request, argument: str) -> Reply:
        """
        Carry out the operation of a request.

        Args:
            operation: its name, from the routes.
            request: the request.
            argument: the variable part of the path, e.g. the id of an organization.
        """
        try:
            return self._handlers[operation](request, argument)
        except Refusal as refusal:
            return refusal.reply

    def _login(self, request: Request, _: str) -> Reply:
        fields = _text_fields(request.content, "email", "password", optional="organization_id")
        account = self._accounts.find(fields["email"])
        if account is not None and account.is_locked:
            _refuse(HTTPStatus.FORBIDDEN, "Account is locked")
        if account is None or not account.accepts(fields["password"]):
            _refuse(HTTPStatus.UNAUTHORIZED, _WRONG_CREDENTIALS)
        wanted = fields.get("organization_id")
        if wanted and not self._accounts.is_member(account.email, wanted):
            _refuse(HTTPStatus.FORBIDDEN, "User is not a member of the organization")
        organization = wanted or self._accounts.default_organization(account.email)
        return _token_reply(self._registry.issue(account.email, account.user_id, organization))

    def _logout(self, request: Request, _: str) -> Reply:
        token = self._signed_in(request)
        if token.kind != "access" or self._rules.logout_revokes_access_tokens:
            token.revoked = True
        return _replies.success({})

    def _passwordless_login(self, request: Request, _: str) -> Reply:
        # The reply is the same for unknown addresses, so that it reveals no account.
        account = self._accounts.find(_text_fields(request.content, "email")["email"])
        if account is not None and not account.is_locked:
            organization = self._accounts.default_organization(account.email)
            token = self._registry.issue(account.email, account.user_id, organization)
            self.mailbox[account.email].append(token.id)
        return _replies.success({})

    def _refresh(self, request: Request, _: str) -> Reply:
        known = self._registry.find(request.bearer or "")
        if known is not None and known.exchanged and not self._registry.is_expired(known):
            # RFC 9700, 4.14.2: a second use of an exchanged token may be that of a thief.
            self._registry.revoke_family(known.family)
        old = self._signed_in(request)
        if old.kind != "session":
            _refuse(HTTPStatus.UNAUTHORIZED, "Token rejected")
        new = self._descend(old, old.organization_id)
        old.exchanged = old.revoked = self._rules.refresh == "revokes"
        self.exchanges += 1
        return _token_reply(new)

    def _new_session(self, request: Request, _: str) -> Reply:
        token = self._signed_in(request)
        return _token_reply(self._registry.issue(token.email, token.user_id, ""))

    def _login_method(self, request: Request, _: str) -> Reply:
        email = _query(request).get("email", "")
        return _replies.success({"method": self._accounts.login_methods.get(email, "KOYEB")})

    def _switch_organization(self, request: Request, organization_id: str) -> Reply:
        token = self._signed_in(request)
        _json_object(request.content)
        if not self._accounts.exists(organization_id):
            _refuse(HTTPStatus.NOT_FOUND, "Organization not found")
        if not self._accounts.is_member(token.email, organization_id):
            _refuse(HTTPStatus.FORBIDDEN, "User is not a member of the organization")
        return _token_reply(self._descend(token, organization_id))

    def _create_access_token(self, request: Request, organization_id: str) -> Reply:
        token = self._signed_in(request)
        validity = _validity(request.content)
        if not self._accounts.exists(organization_id):
            _refuse(HTTPStatus.NOT_FOUND, "Organization not found")
        if not self._accounts.is_member(token.email, organization_id):
            _refuse(HTTPStatus.FORBIDDEN, "User is not a member of the organization")
        if not self._may_issue(token, organization_id):
            _refuse(HTTPStatus.FORBIDDEN, "This token may not create access tokens")
        issued = self._registry.issue(
            token.email,
            token.user_id,
            organization_id,
            lifetime=validity,
            kind="access",
            opaque=self._rules.access_tokens == "opaque",
        )
        return _replies.success({"token": issued.id})

    def _may_issue(self, token: IssuedToken, organization_id: str) -> bool:
        if token.kind == "access":
            return self._rules.access_tokens_may_issue
        if token.kind == "organization api":
            own = token.organization_id == organization_id
            return own and self._rules.organization_api_tokens_may_issue
        return True

    def _unscope_organization_token(self, request: Request, _: str) -> Reply:
        token = self._signed_in(request)
        _json_object(request.content)
        if token.kind in ("api", "organization api"):
            _refuse(HTTPStatus.FORBIDDEN, "An API token cannot be unscoped")
        return _token_reply(self._descend(token, ""))

    def _profile(self, request: Request, _: str) -> Reply:
        token = self._signed_in(request)
        user = {
            "id": token.user_id,
            "email": token.email,
            "name": token.email.partition("@")[0],
            "two_factor_authentication": False,
            "email_validated": True,
            "flags": ["ACTIVE"],
        }
        return _replies.success({"user": user})

    def _organization(self, request: Request, _: str) -> Reply:
        token = self._active(request)
        if not token.organization_id:
            _refuse(HTTPStatus.NOT_FOUND, "The session has no organization")
        return _replies.success({"organization": self._organization_json(token.organization_id)})

    def _organizations(self, request: Request, _: str) -> Reply:
        token = self._signed_in(request)
        statuses = set(parse_qs(request.query, keep_blank_values=True).get("statuses", ["ACTIVE"]))
        if statuses - _ORGANIZATION_STATUSES:
            raise Refusal(_replies.invalid({"statuses": "no such status"}))
        listed = self._accounts.organizations.get(token.email, [])
        wanted = _query(request).get("search", "").casefold()
        found = [
            one
            for one in map(self._organization_json, listed)
            if one["status"] in statuses and wanted in f"{one['id']} {one['name']}".casefold()
        ]
        part, limit, offset, has_next = page(found, request)
        payload = {"organizations": part, "limit": limit, "offset": offset, "has_next": has_next}
        return _replies.success(payload)

    def _use_apps(self, request: Request, app_id: str) -> Reply:
        self._active(request)
        return self._apps.use(request, app_id)

    def _signed_in(self, request: Request) -> IssuedToken:
        bearer = request.bearer
        token = None if bearer is None else self._registry.find_live(bearer)
        if token is None:
            _refuse(HTTPStatus.UNAUTHORIZED, "Token rejected")
        return token

    def _active(self, request: Request) -> IssuedToken:
        """Return the token of a request about an organization's resources, if that is active."""
        token = self._signed_in(request)
        if token.organization_id in self._accounts.deactivated:
            _refuse(HTTPStatus.UNAUTHORIZED, "Token rejected")
        return token

    def _organization_json(self, organization_id: str) -> dict[str, Any]:
        is_deactivated = organization_id in self._accounts.deactivated
        return {
            "id": organization_id,
            "name": f"organization-{organization_id[:8]}",
            "plan": "starter",
            "status": "DEACTIVATED" if is_deactivated else "ACTIVE",
            "status_message": "VALID",
        }

    def _descend(self, token: IssuedToken, organization_id: str) -> IssuedToken:
        return self._registry.issue(
            token.email, token.user_id, organization_id, family=token.family
        )


def _refuse(status: int, message: str) -> NoReturn:
    raise Refusal(_replies.error(status, message))


def _token_reply(token: IssuedToken) -> Reply:
    return _replies.success({"token": token.as_json()})


def _query(request: Request) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(request.query).items()}


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(_replies.invalid({"body": "must be a JSON object"}))
    return cast("dict[str, Any]", value)


def _validity(content: bytes) -> timedelta:
    """Read the lifetime of an access token, which protobuf writes as ``"3600s"``."""
    text = _json_object(content).get("validity")
    if text is None:
        return _DEFAULT_VALIDITY
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise Refusal(_replies.invalid({"validity": 'must be a duration such as "3600s"'}))
    fraction = int((match[2] or "").ljust(9, "0")) // 1000
    validity = timedelta(seconds=int(match[1]), microseconds=fraction)
    if not timedelta(0) < validity <= _LONGEST_VALIDITY:
        raise Refusal(_replies.invalid({"validity": "must be above 0s and at most 86400s"}))
    return validity


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # Python accepts NaN and Infinity, which are not JSON


def _text_fields(content: bytes, *required: str, optional: str | None = None) -> dict[str, str]:
    value = _json_object(content)
    wanted = [*required, *([optional] if optional in value else [])]
    wrong = {
        name: "must be a string" if value.get(name) else "is required"
        for name in wanted
        if not isinstance(value.get(name), str) or (name in required and not value[name])
    }
    if wrong:
        raise Refusal(_replies.invalid(wrong))
    return {name: value[name] for name in wanted}
