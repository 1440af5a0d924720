"""The format of a saved token: a versioned JSON record."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any, Final, cast

import attrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from .._api.wire import Unfit, converter
from .._core.models import Token
from .._core.results import frameless
from .._core.tokens import is_header_safe

FORMAT: Final = "koyeb-session"
VERSION: Final = 2
_READ: Final = (1, VERSION)
"""Version 1 has neither ``renewal`` nor ``provenance``."""
_WRITTEN: Final = b'{"format": "koyeb-session"'
"""The beginning of each record, as `write_record` writes it."""
_START: Final = re.compile(rb'\s*\{\s*"format"\s*:\s*"koyeb-session"')
"""The same, as a person or a program may have formatted it."""
_ANOTHERS: Final = "another program wrote it"
LIMIT: Final = 1 << 20
"""The largest record in bytes; real ones are far smaller."""


class ForeignRecordError(ValueError):
    """The text is no saved token, not even a damaged one: another program has written it."""


@attrs.frozen
class Record:
    """A saved token, with all its fields, unlike a token in a reply."""

    format: str = FORMAT
    version: int = VERSION
    token: Token = attrs.field(kw_only=True)


@frameless
def write_record(token: Token) -> str:
    """Write a token with all its fields."""
    return json.dumps(_UNSTRUCTURE(Record(token=token)))


@frameless
def read_record(text: str | bytes | None) -> Token | ValueError | None:
    """
    Read a token back; the error says what is wrong, and quotes nothing.

    `None` and an empty text hold no token; an empty file may have been made as a mount point.
    """
    return _record(text) if text and text.strip() else None


def _record(text: str | bytes) -> Token | ValueError:
    try:
        value: object = json.loads(text) if len(text) <= LIMIT else None
    except (ValueError, RecursionError):
        value = None
    if value is None:
        return ValueError("it is damaged") if _is_damaged(text) else ForeignRecordError(_ANOTHERS)
    record = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if record.get("format") != FORMAT:
        return ForeignRecordError(_ANOTHERS)
    if record.get("version") not in _READ:
        return ValueError("another version of koyeb-session wrote it")
    try:
        return _STRUCTURE(record, Record).token
    except (KeyError, TypeError, ValueError, Unfit):
        return ValueError("it holds no token")


def _is_damaged(text: str | bytes) -> bool:
    """Return whether this was a record: it begins like one, or the power failed in the write."""
    raw = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    return bool(_START.match(raw)) or _WRITTEN.startswith(raw) or not raw.strip(b"\0")


def _id(value: object, _: object) -> str:
    if not isinstance(value, str) or not is_header_safe(value):
        raise Unfit
    return value


def _text(value: object, _: object) -> str | None:
    if not isinstance(value, str | None):
        raise Unfit
    return value


def _time(value: Any, _: object) -> datetime | None:
    at = None if value is None else datetime.fromisoformat(value)
    if at is not None and at.tzinfo is None:
        raise Unfit
    return at


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


_TEXT: Final = override(struct_hook=_text)
_TIME: Final = override(struct_hook=_time, unstruct_hook=_iso)
_FIELDS: Final[dict[str, Any]] = {
    "id": override(struct_hook=_id),
    **dict.fromkeys(("user_id", "organization_id", "renewal", "provenance"), _TEXT),
    **dict.fromkeys(("expires_at", "issued_at"), _TIME),
}
_TOKEN: Final = override(
    struct_hook=make_dict_structure_fn(Token, converter, **_FIELDS),
    unstruct_hook=make_dict_unstructure_fn(Token, converter, **_FIELDS),
)
# Called as they are, not through the converter: see the end of `wire`.
_STRUCTURE: Final = make_dict_structure_fn(Record, converter, token=_TOKEN)
_UNSTRUCTURE: Final = make_dict_unstructure_fn(
    Record, converter, _cattrs_omit_if_default=False, token=_TOKEN
)
