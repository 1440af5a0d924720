"""A token in the operating system's keyring. All of it blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from .._core.errors import StoreError
from .._core.log import log
from .._core.results import frameless, redacted_text, sanitized_copy, unwrap
from .records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.models import Token

T = TypeVar("T")

_SHORTEST_LIMIT: Final = 1280
"""Characters that the keyring of Windows takes; no other one is known to take fewer."""


def read(service: str, name: str) -> Token | None:
    """Read a token; an entry that holds something else counts as none, with a warning."""
    import keyring  # noqa: PLC0415 - an extra

    found: Token | ValueError | None = unwrap(
        _tried("read", lambda: read_record(keyring.get_password(service, name)), None)
    )
    if isinstance(found, ValueError):
        log.warning("the entry %s of %s in the keyring is passed over: %s", name, service, found)
        return None
    return found


def write(service: str, name: str, token: Token) -> None:
    """Put a token in place of what is there."""
    import keyring  # noqa: PLC0415 - an extra

    def put() -> None:
        keyring.set_password(service, name, write_record(token))

    unwrap(_tried("written", put, token))


def remove(service: str, name: str) -> None:
    """Remove the entry, if it is there."""
    import keyring  # noqa: PLC0415 - an extra

    def take_away() -> None:
        if keyring.get_password(service, name) is not None:
            keyring.delete_password(service, name)

    unwrap(_tried("removed", take_away, None))


@frameless
def _tried(what: str, work: Callable[[], T], token: Token | None) -> T | StoreError:
    """Return an error in place of what a back end raises, whose frames hold the record."""
    try:
        return work()
    except Exception as exc:  # noqa: BLE001 - each back end has errors of its own
        text = redacted_text(exc, token)
        hint = "" if token is None else _hint(len(write_record(token)))
        error = StoreError(
            f"the entry in the keyring cannot be {what}: {type(exc).__name__}: {text}{hint}"
        )
        error.__cause__ = sanitized_copy(exc, text)
        return error


def _hint(length: int) -> str:
    if length <= _SHORTEST_LIMIT:
        return ""
    return f" (with {length} characters it may be too long for this keyring: use a file)"
