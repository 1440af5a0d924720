# Generated from koyeb_session/_async/stores.py by .ci/generate_sync.py: edit that, not this.

"""Where a session's token is kept between processes, and the store for one process alone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from .._concurrency import Lock

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

    from .._models import Token


class TokenStore(Protocol):
    """
    Keeps one session's token.

    Any error that a method raises is logged, and the session goes on in memory.
    """

    def load(self) -> Token | None:
        """Return what was saved last, `None` when there is nothing."""
        ...

    def save(self, token: Token) -> None:
        """Keep ``token`` in place of what was there."""
        ...

    def delete(self) -> None:
        """Forget the token; nothing happens when there is none."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Keep all others who use this store from renewing the token until the block ends."""
        ...


class MemoryTokenStore:
    """
    Keeps the token for as long as the object lives.

    Several clients in one process that are given the same store share one session.
    """

    def __init__(self) -> None:
        self._token: Token | None = None
        self._lock = Lock()

    def load(self) -> Token | None:
        """Return what was saved last."""
        return self._token

    def save(self, token: Token) -> None:
        """Keep ``token``."""
        self._token = token

    def delete(self) -> None:
        """Forget the token."""
        self._token = None

    def lock(self) -> AbstractContextManager[None]:
        """Keep the other clients from renewing the token meanwhile."""
        return self._lock.held()


class NoStore:
    """Keeps nothing: the session lives in its client."""

    def load(self) -> Token | None:
        """Return `None`."""
        return None

    def save(self, token: Token) -> None:
        """Do nothing."""

    def delete(self) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold nothing."""
        yield


no_store: Final = NoStore()
