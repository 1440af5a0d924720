"""``FakeKoyeb``, the fake service that tests use."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

from .._core.models import Clock
from ._accounts import Accounts
from ._fake import FakeService
from ._operations import Operations, Rules
from ._routes import KOYEB
from ._tokens import TokenKind, TokenRegistry

_USERS: Mapping[str, str] = MappingProxyType({"me@example.com": "correct horse"})


class FakeKoyeb(FakeService):
    """
    A sign-in service like Koyeb's, with all its state in this object.

    Its operations are ``login``, ``logout``, ``passwordless_login``, ``refresh``, ``new_session``,
    ``login_method``, ``profile``, ``organization``, ``organizations``, ``switch_organization``,
    ``unscope_organization_token``, ``create_access_token``, and ``apps`` for all requests below
    ``/v1/apps``. For other paths, answer them in a transport of your own, which passes the rest on
    to ``transport``.

    Args:
        users: email -> password.
        token_lifetime: how long a token lives.
        refresh: whether a refresh ``"revokes"`` the token that it is given, or ``"keeps"`` it. A
            service that revokes also detects reuse: to refresh with a token that has been
            exchanged before ends all tokens that descend from the same sign-in.
        access_tokens: whether the tokens that ``create_access_token`` issues are each a ``"jwt"``,
            which says when it expires, or ``"opaque"``.
        access_tokens_may_issue: whether such a token may issue the next one.
        organization_api_tokens_may_issue: whether an organization's API token may issue them, too.
        logout_revokes_access_tokens: whether a logout with such a token ends it.
        withdrawn: names of operations that the service no longer has.
        clock: tells the service's time; the machine's own if it is ``None``.

    Attributes:
        base_url: where clients on ``transport`` find the service.
        transport: an ``httpx`` transport for both halves.
        app: the service as an ASGI application.
        clock: tells the service's time.
        organizations: email -> the ids of the user's organizations, the default one first.
            Change it to change who is a member.
        deactivated: the ids of the organizations that are deactivated. Their tokens can be
            renewed and replaced, and are refused for all else with "Token rejected".
        login_methods: email -> ``"KOYEB"`` or ``"WORKOS"``, for those that do not use ``"KOYEB"``.

    Raises:
        ValueError: ``refresh`` or ``access_tokens`` is neither, or ``withdrawn`` names an unknown
            operation.
        TypeError: ``withdrawn`` is one name in place of a collection, or ``users`` no mapping.

    >>> import httpx
    >>> fake = FakeKoyeb()
    >>> with httpx.Client(transport=fake.transport, base_url=fake.base_url) as client:
    ...     signed_in = {"Authorization": f"Bearer {fake.issue_token()}"}
    ...     client.get("/v1/apps", headers=signed_in).status_code
    200
    >>> fake.requests
    [Request(operation='apps', method='GET', path='/v1/apps', status=200)]
    """

    def __init__(
        self,
        *,
        users: Mapping[str, str] = _USERS,
        token_lifetime: timedelta = timedelta(hours=24),
        refresh: Literal["revokes", "keeps"] = "revokes",
        access_tokens: Literal["jwt", "opaque"] = "jwt",
        access_tokens_may_issue: bool = False,
        organization_api_tokens_may_issue: bool = True,
        logout_revokes_access_tokens: bool = True,
        withdrawn: Collection[str] = (),
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(users, Mapping):
            raise TypeError("users must be a mapping: give {email: password}")
        rules = Rules(
            refresh,
            access_tokens,
            access_tokens_may_issue,
            organization_api_tokens_may_issue,
            logout_revokes_access_tokens,
        )
        clock = time if clock is None else clock
        self._accounts = Accounts(users)
        self._registry = TokenRegistry(clock, token_lifetime)
        self._operations = Operations(self._accounts, self._registry, rules)
        super().__init__(
            "https://app.koyeb.com", self._operations.carry_out, KOYEB, clock, withdrawn
        )
        self.organizations: dict[str, list[str]] = self._accounts.organizations
        self.deactivated: set[str] = self._accounts.deactivated
        self.login_methods: dict[str, str] = self._accounts.login_methods

    @property
    def mailbox(self) -> dict[str, list[str]]:
        """Email -> the tokens that passwordless links carried, the latest last."""
        return self._operations.mailbox

    def exchanges(self) -> int:
        """Return how many refreshes were served, those included whose reply was lost."""
        return self._operations.exchanges

    def issue_token(self, email: str | None = None, *, lifetime: timedelta | None = None) -> str:
        """
        Sign a user in without a request.

        Args:
            email: the user's address; ``None`` for the first user.
            lifetime: how long the token lives; ``None`` for the service's ``token_lifetime``.

        Returns:
            The id of the token.

        Raises:
            ValueError: there is no such user.
        """
        with self._service.lock:
            account = self._accounts.get(email)
            organization = self._accounts.default_organization(account.email)
            token = self._registry.issue(
                account.email, account.user_id, organization, lifetime=lifetime
            )
        return token.id

    def issue_api_token(
        self, email: str | None = None, *, organization_id: str | None = None
    ) -> str:
        """
        Issue an API access token, as the control panel does: opaque, good until it is revoked.

        Args:
            email: the user's address; ``None`` for the first user.
            organization_id: the organization whose token it is; ``None`` for the user's own,
                which acts in the user's default organization.

        Raises:
            ValueError: there is no such user, or the user is not a member of the organization.
        """
        with self._service.lock:
            account = self._accounts.get(email)
            if organization_id is None:
                kind: TokenKind = "api"
                organization_id = self._accounts.default_organization(account.email)
            elif self._accounts.is_member(account.email, organization_id):
                kind = "organization api"
            else:
                raise ValueError(f"{account.email} is not a member of {organization_id}")
            token = self._registry.issue_api_token(
                account.email, account.user_id, organization_id, kind=kind
            )
        return token.id

    def live_tokens(self) -> list[str]:
        """Return the ids of the tokens that the service accepts now, the oldest first."""
        with self._service.lock:
            return [token.id for token in self._registry.live()]

    def revoke(self, token_id: str) -> None:
        """
        Stop accepting a token.

        Raises:
            ValueError: the service did not issue it.
        """
        with self._service.lock:
            token = self._registry.find(token_id)
            if token is None:
                raise ValueError("the service did not issue this token")
            token.revoked = True

    def revoke_all(self) -> None:
        """Stop accepting all tokens that were issued so far."""
        with self._service.lock:
            for token in self._registry.live():
                token.revoked = True

    def lock_account(self, email: str) -> None:
        """
        Lock an account, as five wrong passwords in a row do: no more sign-in, old tokens stay.

        Raises:
            ValueError: there is no such user.
        """
        with self._service.lock:
            self._accounts.get(email).is_locked = True
