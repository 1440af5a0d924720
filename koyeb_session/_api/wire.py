"""
Convert between bytes and messages: only this module knows the API's field names and quirks.

One converter reads and writes every message; each quirk is a hook of it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias, TypeVar, cast

import attrs
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from .._core.errors import WireError
from .._core.models import LoginMethod, Token
from .._core.redaction import printable
from .._core.results import frameless
from .._core.timestamps import timestamp
from .._core.tokens import fill_from_jwt, is_header_safe
from .messages import (
    CreateAccessTokenReply,
    CreateAccessTokenRequest,
    ErrorReply,
    LoginMethodReply,
    LoginReply,
    LoginRequest,
    PasswordlessLoginRequest,
)

BODY_LIMIT: Final = 1 << 20
"""The largest body in bytes, before and after decoding; real replies are far smaller."""
FIELD_LIMIT: Final = 50
"""The number of invalid fields that are read from an error; no request has as many fields."""

T = TypeVar("T")
_Json: TypeAlias = dict[str, Any] | list[Any] | str | float | None


class Unfit(Exception):  # noqa: N818 - it never leaves the package; the name says what is wrong
    """An invalid value in a reply; the message names the field, and quotes nothing."""


# Replies as bytes


@attrs.frozen
class Reply:
    """A reply as it arrived; ``body`` is a `WireError` if it could not be read."""

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes | WireError = attrs.field(repr=False)


@frameless
def decoded(raw: bytes, encoding: str | None) -> bytes | WireError:
    """Undo a ``Content-Encoding`` that the request did not allow, within the size limit."""
    if len(raw) > BODY_LIMIT:
        return WireError(f"the reply is larger than {BODY_LIMIT} bytes")
    if encoding is None or encoding.strip().lower() in {"", "identity"}:
        return raw
    if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return WireError("the reply's content encoding was not asked for")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # zlib detects which header it has
    try:
        body = inflate.decompress(raw, BODY_LIMIT + 1)
    except zlib.error:
        return WireError("the reply cannot be decompressed")
    if len(body) > BODY_LIMIT:
        return WireError(f"the reply is larger than {BODY_LIMIT} bytes")
    return body if inflate.eof or not raw else WireError("the reply is compressed but cut off")


def json_object(body: bytes) -> dict[str, Any] | WireError:
    """Read a body as a JSON object (RFC 8259: in UTF-8)."""
    try:
        value: _Json = json.loads(body.decode())
    except UnicodeDecodeError:
        return WireError("the reply is not UTF-8")
    except (ValueError, RecursionError):
        return WireError("the reply is not JSON")
    if not isinstance(value, dict):
        return WireError("the reply is not a JSON object")
    return value


# Messages


converter: Final = Converter(detailed_validation=False, omit_if_default=True)
"""The converter for all messages. It omits `None`: older services do not know these fields."""


@frameless
def write(message: object) -> bytes:
    """Write the body of a request."""
    return json.dumps(_WRITERS[type(message)](message)).encode()


def read(body: bytes, kind: type[T]) -> T | WireError:
    """Read the body of a reply; the error names the invalid part, and quotes nothing."""
    value = json_object(body)
    if isinstance(value, WireError):
        return value
    try:
        result: T = _READERS[kind](value, kind)
    except KeyError as exc:  # cattrs names the field
        return WireError(f"the reply has no {exc.args[0]}")
    except Unfit as exc:
        return WireError(str(exc))
    return result


def read_nothing(body: bytes) -> WireError | None:
    """Accept ``{}``, as the API's description says, or an empty body."""
    value = json_object(body) if body.strip() else {}
    return value if isinstance(value, WireError) else None


def read_error(body: bytes | WireError) -> ErrorReply:
    """Read ``Error``, ``ErrorWithFields`` or ``google.rpc.Status``; else return an empty reply."""
    value = body if isinstance(body, WireError) else json_object(body)
    if isinstance(value, WireError):
        return ErrorReply()
    reply: ErrorReply = _READERS[ErrorReply](value, ErrorReply)
    return reply


# Quirks


@converter.register_unstructure_hook
def _write_duration(value: timedelta) -> str:
    """Format a duration as protobuf does in JSON: seconds, with as many digits as it needs."""
    seconds, rest = divmod(value, timedelta(seconds=1))
    return f"{seconds}.{rest.microseconds:06}".rstrip("0").rstrip(".") + "s"


def _id(value: object, _: object) -> str:
    text = _text("id", value)
    if text is None or not is_header_safe(text):
        message = "token.id: empty, or not fit for a header"
        raise Unfit(message)
    return text


def _shown(name: str) -> Any:
    """Make a hook for a string that logs and representations show."""

    def structure(value: object, _: object) -> str | None:
        text = _text(name, value)
        return text if text is None or text.isprintable() else printable(text)

    return override(struct_hook=structure)


def _expiry(value: Any, _: object) -> datetime | None:
    try:
        return None if value is None else timestamp(value)
    except ValueError:
        message = "token.expires_at: not an RFC 3339 timestamp"
        raise Unfit(message) from None


def _text(name: str, value: object) -> str | None:
    """Read a string; absent, null and empty mean the same, as in protobuf."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        message = f"token.{name}: not a string"
        raise Unfit(message)
    return value


_token_of_fields: Final = make_dict_structure_fn(
    Token,
    converter,
    id=override(struct_hook=_id),
    user_id=_shown("user_id"),
    organization_id=_shown("organization_id"),
    expires_at=override(struct_hook=_expiry),
    # These fields are not in the API, so they are never read from a reply.
    issued_at=override(omit=True),
    renewal=override(omit=True),
    provenance=override(omit=True),
)


@converter.register_structure_hook
def _read_token(value: Any, _: type) -> Token:
    if not isinstance(value, Mapping):
        message = "token: not an object"
        raise Unfit(message)
    fields = cast("Mapping[str, object]", value)
    # The schema names it `expires_at`; the description's example and older replies say `expires`.
    expires = _text("expires_at", fields.get("expires_at")) or _text(
        "expires", fields.get("expires")
    )
    token = _token_of_fields({"id": None, **fields, "expires_at": expires}, Token)
    # The JWT is read only for a missing expiry: the caller knows when it asked for the token.
    return fill_from_jwt(token) if token.expires_at is None else token


def _bare_token(value: object, _: object) -> str:
    if not isinstance(value, str):
        message = "the reply has no token that is a string"
        raise Unfit(message)
    if not is_header_safe(value):
        message = "token: empty, or not fit for a header"
        raise Unfit(message)
    return value


converter.register_structure_hook(
    CreateAccessTokenReply,
    make_dict_structure_fn(
        CreateAccessTokenReply, converter, token=override(struct_hook=_bare_token)
    ),
)


@converter.register_structure_hook
def _read_method(value: Any, _: type) -> LoginMethod:
    """Read a login method; a missing one is the description's default, ``KOYEB``."""
    try:
        return LoginMethod(value or LoginMethod.KOYEB)
    except ValueError:
        message = "method: not a login method that is known here"
        raise Unfit(message) from None


def _code(value: object, _: object) -> str | int | None:
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None


def _message(value: object, _: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _fields(value: _Json, _: object) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in value[:FIELD_LIMIT] if isinstance(value, list) else ():
        match entry:
            case {"field": str(name), "description": str(description)}:
                found[name] = description
            case _:
                pass
    return found


converter.register_structure_hook(
    ErrorReply,
    make_dict_structure_fn(
        ErrorReply,
        converter,
        code=override(struct_hook=_code),
        message=override(struct_hook=_message),
        fields=override(struct_hook=_fields),
    ),
)

# cattrs is asked for the code of each class now, not when a message comes. Where a signal handler
# interrupts that, cattrs may swallow its exception, or never write the code for the class again.
_READERS: Final[dict[type, Callable[[object, type], Any]]] = {
    kind: converter.get_structure_hook(kind)
    for kind in (LoginReply, CreateAccessTokenReply, LoginMethodReply, ErrorReply)
}
_WRITERS: Final[dict[type, Callable[[Any], object]]] = {
    kind: converter.get_unstructure_hook(kind)
    for kind in (LoginRequest, PasswordlessLoginRequest, CreateAccessTokenRequest)
}
