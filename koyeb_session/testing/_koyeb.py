"""``FakeKoyeb``, the one object that a test holds."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from types import MappingProxyType
from typing import Literal

from ._accounts import Accounts
from ._asgi import FakeApp
from ._clock import Clock
from ._faults import Fault
from ._operations import Operations
from ._requests import Request
from ._service import Service
from ._tokens import Ledger
from ._transport import FakeTransport

_USERS: Mapping[str, str] = MappingProxyType({"me@example.com": "correct horse"})


class FakeKoyeb:
    """
    A sign-in service like Koyeb's, with all its state in this object.

    Args:
        users: email -> password.
        token_lifetime: how long a token lives.
        refresh: whether a refresh ``"revokes"`` the token that it is given, or ``"keeps"`` it. A
            service that revokes also detects reuse: to refresh with a token that has been
            exchanged before ends all tokens that descend from the same sign-in.
        withdrawn: names of operations that the service no longer has.
        clock: tells the service's time; the machine's own if it is ``None``.

    Attributes:
        base_url: where clients on ``transport`` find the service.
        transport: an ``httpx`` transport for both halves.
        app: the service as an ASGI application.
        organizations: email -> the ids of the user's organisations, the default one first.
            Change it to change who is a member.
        login_methods: email -> ``"KOYEB"`` or ``"WORKOS"``, for those that do not use ``"KOYEB"``.

    Raises:
        ValueError: ``refresh`` is neither, or ``withdrawn`` names an unknown operation.

    Example:
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
        withdrawn: Collection[str] = (),
        clock: Clock | None = None,
    ) -> None:
        if refresh not in ("revokes", "keeps"):
            raise ValueError(f"refresh is 'revokes' or 'keeps', not {refresh!r}")
        clock = time if clock is None else clock
        self._accounts = Accounts(users)
        self._ledger = Ledger(clock, token_lifetime)
        self._operations = Operations(
            self._accounts, self._ledger, refresh_revokes=refresh == "revokes"
        )
        self._service = Service(self._operations, withdrawn, clock)
        self.base_url = "https://app.koyeb.com"
        self.transport: FakeTransport = FakeTransport(self._service)
        self.app: FakeApp = FakeApp(self._service)
        self.organizations: dict[str, list[str]] = self._accounts.organizations
        self.login_methods: dict[str, str] = self._accounts.login_methods

    def __repr__(self) -> str:
        return f"<FakeKoyeb, {len(self.requests)} requests>"

    @property
    def requests(self) -> list[Request]:
        """What was received, in order. Clear it to begin anew."""
        return self._service.requests

    @property
    def mailbox(self) -> dict[str, list[str]]:
        """Email -> the tokens that passwordless links carried, the latest last."""
        return self._operations.mailbox

    def serve(self) -> AbstractContextManager[str]:
        """
        Serve on a real socket of the loopback interface, as long as the context lasts.

        Returns:
            A context manager that yields the base URL, ``http://127.0.0.1:`` and a free port.
        """
        # Not at the top: most tests need no socket.
        from ._server import serving  # noqa: PLC0415

        return serving(self._service)

    def exchanges(self) -> int:
        """Return how many refreshes were served, those included whose reply was lost."""
        return self._operations.exchanges

    def fail(self, operation: str, fault: Fault, *, times: int = 1) -> None:
        """
        Let the next requests of an operation go wrong. Faults are played in the order of the calls.

        Args:
            operation: its name, e.g. ``"refresh"`` or ``"apps"``.
            fault: what goes wrong.
            times: with how many requests.

        Raises:
            ValueError: there is no such operation, or ``times`` is below 1.
        """
        self._service.fail(operation, fault, times)

    def recover(self, operation: str | None = None) -> None:
        """
        Forget the faults that have not been played yet.

        Args:
            operation: of which operation; ``None`` for all.

        Raises:
            ValueError: there is no such operation.
        """
        self._service.recover(operation)

    def issue_token(self, email: str | None = None, *, lifetime: timedelta | None = None) -> str:
        """
        Sign a user in without a request.

        Args:
            email: who; the first user if it is ``None``.
            lifetime: how long the token lives; ``None`` for the service's ``token_lifetime``.

        Returns:
            The id of the token.

        Raises:
            ValueError: there is no such user.
        """
        with self._service.lock:
            account = self._accounts.get(email)
            organization = self._accounts.default_organization(account.email)
            token = self._ledger.issue(
                account.email, account.user_id, organization, lifetime=lifetime
            )
        return token.id

    def issue_api_token(self, email: str | None = None) -> str:
        """
        Issue an API access token, as the control panel does: opaque, good until it is revoked.

        Args:
            email: for whom; the first user if it is ``None``.

        Raises:
            ValueError: there is no such user.
        """
        with self._service.lock:
            account = self._accounts.get(email)
            organization = self._accounts.default_organization(account.email)
            token = self._ledger.issue_api_token(account.email, account.user_id, organization)
        return token.id

    def live_tokens(self) -> list[str]:
        """Return the ids of the tokens that the service accepts now, the oldest first."""
        with self._service.lock:
            return [token.id for token in self._ledger.live()]

    def revoke(self, token_id: str) -> None:
        """
        Stop accepting a token.

        Raises:
            ValueError: the service did not issue it.
        """
        with self._service.lock:
            token = self._ledger.find(token_id)
            if token is None:
                raise ValueError("the service did not issue this token")
            token.revoked = True

    def revoke_all(self) -> None:
        """Stop accepting all tokens that were issued so far."""
        with self._service.lock:
            for token in self._ledger.live():
                token.revoked = True

    def lock_account(self, email: str) -> None:
        """
        Lock an account, as five wrong passwords in a row do: no more sign-in, old tokens stay.

        Raises:
            ValueError: there is no such user.
        """
        with self._service.lock:
            self._accounts.get(email).is_locked = True
