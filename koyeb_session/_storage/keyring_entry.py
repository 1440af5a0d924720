"""Keep a token in the operating system's keyring. All calls block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from .._core.errors import StoreError
from .._core.log import log
from .._core.results import frameless, redacted_text, sanitized_copy, unwrap, with_cause
from .records import read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.models import Token

T = TypeVar("T")

_SHORTEST_LIMIT: Final = 1280
"""The limit of the Windows keyring in characters; no other one is known to have a lower one."""


def read(service: str, name: str) -> Token | None:
    """Read a token; ignore an entry with any other content, with a warning."""
    import keyring  # noqa: PLC0415 - an extra

    found = _tried("read", lambda: read_record(keyring.get_password(service, name)), None)
    if isinstance(found, StoreError):
        return unwrap(found)
    if isinstance(found, ValueError):
        log.warning("the entry %s of %s in the keyring is passed over: %s", name, service, found)
        return None
    return found


def write(service: str, name: str, token: Token) -> None:
    """Write a token, in place of the old entry."""
    import keyring  # noqa: PLC0415 - an extra

    def put() -> None:
        keyring.set_password(service, name, write_record(token))

    unwrap(_tried("written", put, token))


def remove(service: str, name: str) -> None:
    """Remove the entry, if there is one."""
    import keyring  # noqa: PLC0415 - an extra

    def take_away() -> None:
        if keyring.get_password(service, name) is not None:
            keyring.delete_password(service, name)

    unwrap(_tried("removed", take_away, None))


@frameless
def _tried(what: str, work: Callable[[], T], token: Token | None) -> T | StoreError:
    """Return a `StoreError` in place of a back end's exception, whose frames hold the record."""
    try:
        return work()
    except Exception as exc:  # noqa: BLE001 - each back end has its own exceptions
        text = redacted_text(exc, token)
        hint = "" if token is None else _hint(len(write_record(token)))
        error = StoreError(
            f"the entry in the keyring cannot be {what}: {type(exc).__name__}: {text}{hint}"
        )
        return with_cause(error, sanitized_copy(exc, text))


def _hint(length: int) -> str:
    if length <= _SHORTEST_LIMIT:
        return ""
    return f" (with {length} characters it may be too long for this keyring: use a file)"
