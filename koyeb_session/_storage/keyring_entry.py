"""Keep a token in the operating system's keyring. All calls block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from .._core.errors import StoreError
from .._core.log import log
from .._core.results import frameless, redacted_text, sanitized_copy, unwrap, with_cause
from .records import ForeignRecordError, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core.models import Token

T = TypeVar("T")

_SHORTEST_LIMIT: Final = 1280
"""The limit of the Windows keyring in characters; no other one is known to have a lower one."""


def read(service: str, name: str) -> Token | None:
    """Read a token; ignore a damaged entry, with a warning, and refuse one that is no session's."""
    found = _found(service, name)
    if isinstance(found, StoreError):
        return unwrap(found)
    if isinstance(found, ForeignRecordError):
        raise _not_a_session(service, name)
    if isinstance(found, ValueError):
        log.warning("the entry %s of %s in the keyring is passed over: %s", name, service, found)
        return None
    return found


def write(service: str, name: str, token: Token) -> None:
    """Write a token, in place of the old entry of a session."""
    import keyring  # noqa: PLC0415 - an extra

    # An entry that cannot be read may be written nevertheless.
    if isinstance(_found(service, name), ForeignRecordError):
        raise _not_a_session(service, name)

    def put() -> None:
        keyring.set_password(service, name, write_record(token))

    unwrap(_tried("written", put, token))


def remove(service: str, name: str) -> None:
    """Remove the entry, if there is one; one that is no session's stays: it holds no token."""
    import keyring  # noqa: PLC0415 - an extra

    def take_away() -> None:
        entry = keyring.get_password(service, name)
        if entry is not None and not isinstance(read_record(entry), ForeignRecordError):
            keyring.delete_password(service, name)

    unwrap(_tried("removed", take_away, None))


def _found(service: str, name: str) -> Token | ValueError | StoreError | None:
    import keyring  # noqa: PLC0415 - an extra

    return _tried("read", lambda: read_record(keyring.get_password(service, name)), None)


def _not_a_session(service: str, name: str) -> StoreError:
    return StoreError(
        f"the entry {name} of {service} in the keyring is no session, and is left as it is: "
        "give another name"
    )


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
