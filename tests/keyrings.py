"""Keyrings in the place of the machine's."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import keyring
from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError


class Ring(KeyringBackend):
    """A keyring in memory."""

    priority = 1  # pyright: ignore[reportAssignmentType] - keyring's own kind of property

    def __init__(self) -> None:  # not the base's: it reads the machine's settings
        self.entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        """Return an entry."""
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep an entry."""
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        """Forget an entry, which has to be there."""
        if self.entries.pop((service, username), None) is None:
            raise PasswordDeleteError


@contextlib.contextmanager
def machine_keyring(ring: KeyringBackend) -> Generator[None]:
    """Put a keyring in the place of the machine's."""
    before = keyring.get_keyring()
    keyring.set_keyring(ring)
    try:
        yield
    finally:
        keyring.set_keyring(before)
