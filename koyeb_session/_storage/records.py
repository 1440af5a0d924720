"""What stores write: a versioned JSON record of a token."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, cast

from .._core.models import Token
from .._core.results import frameless
from .._core.tokens import is_header_safe

VERSION: Final = 2
_READ: Final = (1, VERSION)
"""Version 1 has neither ``renewal`` nor ``provenance``."""
LIMIT: Final = 1 << 20
"""Bytes; no record comes near."""
_TEXTS: Final = ("user_id", "organization_id", "renewal", "provenance")
_TIMES: Final = ("expires_at", "issued_at")


@frameless
def write_record(token: Token) -> str:
    """Write a token with all its fields."""
    return json.dumps(
        {
            "format": "koyeb-session",
            "version": VERSION,
            "token": {
                "id": token.id,
                **{name: getattr(token, name) for name in _TEXTS},
                **{name: _iso(getattr(token, name)) for name in _TIMES},
            },
        }
    )


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


@frameless
def read_record(text: str | bytes | None) -> Token | ValueError | None:
    """
    Read a token back; the error says what is wrong and quotes nothing.

    `None`, and a text that is empty, as a file that was made to be mounted, hold no token.
    """
    return _record(text) if text and text.strip() else None


def _record(text: str | bytes) -> Token | ValueError:
    if len(text) > LIMIT:
        return ValueError("it is too large for a session")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ValueError("it is not JSON, or is cut off")
    record = _object(value)
    if record.get("format") != "koyeb-session":
        return ValueError("another program wrote it")
    if record.get("version") not in _READ:
        return ValueError("another version of koyeb-session wrote it")
    try:
        return _token(_object(record.get("token")))
    except (TypeError, ValueError):
        return ValueError("it holds no token")


def _token(fields: dict[str, Any]) -> Token:
    token_id = fields["id"] if isinstance(fields.get("id"), str) else ""
    if not is_header_safe(token_id):
        raise ValueError
    texts = {name: fields.get(name) for name in _TEXTS}
    if not all(isinstance(text, str | None) for text in texts.values()):
        raise TypeError
    times: dict[str, Any] = {
        name: None if fields.get(name) is None else datetime.fromisoformat(fields[name])
        for name in _TIMES
    }
    if any(at is not None and at.tzinfo is None for at in times.values()):
        raise ValueError
    return Token(token_id, **texts, **times)


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
