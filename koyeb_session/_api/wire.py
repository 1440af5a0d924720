"""Between bytes and models: the only module that knows the API's spelling and its quirks."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import attrs

from .._core.errors import WireError
from .._core.models import LoginMethod, Token
from .._core.timestamps import timestamp
from .._core.tokens import completed, is_header_safe

if TYPE_CHECKING:
    from .messages import CreateAccessTokenReply, LoginReply

BODY_LIMIT: Final = 1 << 20
"""Bytes of a reply's body, before and after decoding; no reply of this API comes near."""
FIELD_LIMIT: Final = 50
"""Fields of an error that are read; no request of this API has as many."""


class _Unfit(Exception):  # noqa: N818 - a signal inside this module; the name says what is wrong
    """A value that the API does not promise; the message never quotes it."""


class Reply:
    """A reply as it arrived; ``body`` is a `WireError` where it could not be read."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes | WireError) -> None:
        self.status: int = status
        self.headers: Mapping[str, str] = headers
        self.body: bytes | WireError = body


def decoded(raw: bytes, encoding: str | None) -> bytes | WireError:
    """Undo a ``Content-Encoding`` that nobody asked for, within the limit."""
    if len(raw) > BODY_LIMIT:
        return WireError(f"the reply is larger than {BODY_LIMIT} bytes")
    if encoding is None or encoding.strip().lower() in {"", "identity"}:
        return raw
    if encoding.strip().lower() not in {"gzip", "x-gzip", "deflate"}:
        return WireError("the reply's content encoding was not asked for")
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # either header, told apart by zlib
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
        value = json.loads(body.decode())
    except UnicodeDecodeError:
        return WireError("the reply is not UTF-8")
    except (ValueError, RecursionError):
        return WireError("the reply is not JSON")
    if not isinstance(value, dict):
        return WireError("the reply is not a JSON object")
    return cast("dict[str, Any]", value)


class ErrorBody(NamedTuple):
    """What an error reply says, whichever of the API's three shapes it has."""

    code: str | int | None = None
    message: str | None = None
    fields: Mapping[str, str] = {}


def error_body(body: bytes) -> ErrorBody:
    """Read ``Error``, ``ErrorWithFields`` or ``google.rpc.Status``; nothing from anything else."""
    value = json_object(body)
    if isinstance(value, WireError):
        return ErrorBody()
    code, message, fields = value.get("code"), value.get("message"), value.get("fields")
    return ErrorBody(
        code if isinstance(code, str | int) and not isinstance(code, bool) else None,
        message if isinstance(message, str) and message else None,
        dict(_error_fields(cast("list[object]", fields) if isinstance(fields, list) else [])),
    )


def _error_fields(entries: list[object]) -> Iterator[tuple[str, str]]:
    for entry in entries[:FIELD_LIMIT]:
        match entry:
            case {"field": str(name), "description": str(description)}:
                yield name, description
            case _:
                pass


def login_body(email: str, password: str, organization_id: str | None) -> bytes:
    """Write the body of a login."""
    from .messages import LoginRequest  # noqa: PLC0415 - as that module says

    return _dumped(attrs.asdict(LoginRequest(email, password, organization_id)))


def passwordless_login_body(email: str) -> bytes:
    """Write the body of a passwordless login."""
    # To import cattrs takes longer than all of a login, which is therefore written out here.
    from cattrs import Converter  # noqa: PLC0415

    from .messages import PasswordlessLoginRequest  # noqa: PLC0415 - as that module says

    return _dumped(Converter().unstructure(PasswordlessLoginRequest(email)))


def create_access_token_body(validity: timedelta | None) -> bytes:
    """Write the body of a request for an access token."""
    from .messages import CreateAccessTokenRequest  # noqa: PLC0415 - as that module says

    wanted = None if validity is None else _duration(validity)
    return _dumped(attrs.asdict(CreateAccessTokenRequest(wanted)))


def _duration(value: timedelta) -> str:
    """Spell a duration as protobuf does in JSON: seconds, with as many digits as it takes."""
    seconds, rest = divmod(value, timedelta(seconds=1))
    return f"{seconds}.{rest.microseconds:06}".rstrip("0").rstrip(".") + "s"


def _dumped(fields: dict[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()


def login_reply(body: bytes) -> LoginReply | WireError:
    """Read a reply that carries a token."""
    value = json_object(body)
    if isinstance(value, WireError):
        return value
    if "token" not in value:
        return WireError("the reply has no token")
    try:
        return _reply_class()(_token(value["token"]))
    except _Unfit as exc:
        return WireError(str(exc))


def create_access_token_reply(body: bytes) -> CreateAccessTokenReply | WireError:
    """Read a reply that is a bare token."""
    from .messages import CreateAccessTokenReply  # noqa: PLC0415 - as that module says

    value = json_object(body)
    if isinstance(value, WireError):
        return value
    token_id = value.get("token")
    if not isinstance(token_id, str):
        return WireError("the reply has no token that is a string")
    if not is_header_safe(token_id):
        return WireError("token: empty, or not fit for a header")
    return CreateAccessTokenReply(token_id)


@functools.cache
def _reply_class() -> type[LoginReply]:
    """Import it once: the statement alone takes a hundredth of a refresh."""
    from .messages import LoginReply  # noqa: PLC0415 - as that module says

    return LoginReply


def login_method(body: bytes) -> LoginMethod | WireError:
    """Read a login method; a missing one is the description's default, ``KOYEB``."""
    value = json_object(body)
    if isinstance(value, WireError):
        return value
    try:
        return LoginMethod(value.get("method") or LoginMethod.KOYEB)
    except ValueError:
        return WireError("method: not a login method that is known here")


def empty_reply(body: bytes) -> WireError | None:
    """Accept ``{}``, which is promised, and no body at all."""
    value = json_object(body) if body.strip() else {}
    return value if isinstance(value, WireError) else None


def _token(value: object) -> Token:
    if not isinstance(value, Mapping):
        message = "token: not an object"
        raise _Unfit(message)
    fields = cast("Mapping[str, object]", value)
    token_id = _text(fields, "id")
    if token_id is None or not is_header_safe(token_id):
        message = "token.id: empty, or not fit for a header"
        raise _Unfit(message)
    # The schema says `expires_at`; the description's example, and older replies, `expires`.
    expires = _text(fields, "expires_at") or _text(fields, "expires")
    try:
        expires_at = None if expires is None else timestamp(expires)
    except ValueError:
        message = "token.expires_at: not an RFC 3339 timestamp"
        raise _Unfit(message) from None
    token = Token(
        token_id, _shown(fields, "user_id"), _shown(fields, "organization_id"), expires_at
    )
    # When it was issued is known to who asked for it: the JWT is read for its expiry alone.
    return completed(token) if expires_at is None else token


def _shown(fields: Mapping[str, object], name: str) -> str | None:
    """Read a string that logs and representations show."""
    text = _text(fields, name)
    if text is None or text.isprintable():
        return text
    from .._core.redaction import printable  # noqa: PLC0415 - no service in its right mind needs it

    return printable(text)


def _text(fields: Mapping[str, object], name: str) -> str | None:
    """Read a string; absent, null and empty mean the same, as in protobuf."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        message = f"token.{name}: not a string"
        raise _Unfit(message)
    return value
