"""The users of the fake service, and their organizations."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import attrs

_NAMESPACE = uuid.UUID("0c0b1d0e-6f79-5e62-8a3c-6b6f79656200")
_WRONG_PASSWORDS_UNTIL_LOCKED = 5


@attrs.define(eq=False)
class Account:
    """One user of the service."""

    email: str
    user_id: str
    password: str = attrs.field(repr=False)
    wrong_passwords: int = 0
    is_locked: bool = False

    def accepts(self, password: str) -> bool:
        """Check a password; five wrong ones in a row lock the account."""
        if password == self.password:
            self.wrong_passwords = 0
            return True
        self.wrong_passwords += 1
        self.is_locked |= self.wrong_passwords >= _WRONG_PASSWORDS_UNTIL_LOCKED
        return False


class Accounts:
    """
    The users, their organizations and their ways to sign in.

    Attributes:
        organizations: email -> the ids of the user's organizations; a sign-in that names none
            gets the first. Initially, each user has one alone and shares one with all others.
        deactivated: the ids of the organizations that are deactivated.
        login_methods: email -> ``"KOYEB"`` or ``"WORKOS"``; users not listed use ``"KOYEB"``.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        shared = _stable_id("organization", "everybody")
        self._by_email = {
            email: Account(email, _stable_id("user", email), password)
            for email, password in users.items()
        }
        self.organizations: dict[str, list[str]] = {
            email: [_stable_id("organization", email), shared] for email in self._by_email
        }
        self.deactivated: set[str] = set()
        self.login_methods: dict[str, str] = {}

    def find(self, email: str) -> Account | None:
        """Return the account of this address."""
        return self._by_email.get(email)

    def get(self, email: str | None) -> Account:
        """
        Return the account of this address, or the first one for ``None``.

        Raises:
            ValueError: there is no such user.
        """
        known = next(iter(self._by_email), None) if email is None else email
        account = None if known is None else self.find(known)
        if account is None:
            raise ValueError(f"no such user: {email!r}")
        return account

    def default_organization(self, email: str) -> str:
        """Return the organization for a sign-in that names none; empty if the user has none."""
        return next(iter(self.organizations.get(email, ())), "")

    def is_member(self, email: str, organization_id: str) -> bool:
        """Return whether the user belongs to the organization."""
        return organization_id in self.organizations.get(email, ())

    def exists(self, organization_id: str) -> bool:
        """Return whether any user belongs to the organization."""
        return any(organization_id in ids for ids in self.organizations.values())


def _stable_id(kind: str, name: str) -> str:
    # The same in every run, so that the output of a failing test stays the same.
    return str(uuid.uuid5(_NAMESPACE, f"{kind}/{name}"))
