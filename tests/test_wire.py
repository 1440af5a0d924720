"""Every quirk of the service's JSON, its tokens and its encodings."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

import pytest

from koyeb_session import LoginReply, Token, WireError
from koyeb_session._api.messages import (
    CreateAccessTokenReply,
    CreateAccessTokenRequest,
    ErrorReply,
    LoginMethodReply,
    LoginRequest,
    PasswordlessLoginRequest,
)
from koyeb_session._api.wire import BODY_LIMIT, decoded, json_object, read_error, write
from koyeb_session._api.wire import read as read_reply
from koyeb_session._storage.records import read_record, write_record

from .jwts import jwt

EXPIRES = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ISSUED = datetime(2030, 1, 1, 3, 4, 5, tzinfo=UTC)


def wire_error(value: object) -> str:
    """Return the message of a wire error."""
    assert type(value) is WireError
    return value.message


def reply(**fields: object) -> bytes:
    """Write a login reply with these fields of the token."""
    return json.dumps({"token": fields}).encode()


def read(**fields: object) -> Token:
    """Read the token of a login reply that has these fields."""
    result = read_reply(reply(**{"id": "t", **fields}), LoginReply)
    assert isinstance(result, LoginReply)
    return result.token


def refused(**fields: object) -> str:
    """Tell what is wrong with a login reply that has these fields."""
    return wire_error(read_reply(reply(**{"id": "t", **fields}), LoginReply))


@pytest.mark.parametrize("encoding", [None, "", " ", "identity", "Identity ", " IDENTITY"])
def test_body_is_taken_as_it_is_when_it_is_not_encoded(encoding: str | None) -> None:
    """No encoding, and ``identity``, mean the bytes themselves."""
    assert decoded(b"{}", encoding) == b"{}"
    assert decoded(b"", encoding) == b""


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", " gzip ", "deflate", "Deflate"])
def test_body_is_decoded_when_it_is_compressed_all_the_same(encoding: str) -> None:
    """A proxy may compress unasked; each header of the two is taken under each name."""
    assert decoded(gzip.compress(b"{}"), encoding) == b"{}"
    assert decoded(zlib.compress(b"{}"), encoding) == b"{}"
    assert decoded(b"", encoding) == b""


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "gzip, gzip", "compress", "identity, gzip", "*"]
)
def test_body_is_refused_when_its_encoding_is_another(encoding: str) -> None:
    """The error says that the encoding is unknown, without quoting the header."""
    message = wire_error(decoded(b"{}", encoding))
    assert message == "the reply's content encoding was not asked for"


def test_body_is_refused_when_it_does_not_decompress() -> None:
    """Broken and cut-off streams are told apart from JSON that is broken."""
    packed = gzip.compress(b'{"token": {}}' * 100)
    assert wire_error(decoded(b"{}", "gzip")) == "the reply cannot be decompressed"
    broken = packed[:12] + b"\xff" + packed[13:]
    assert wire_error(decoded(broken, "gzip")) == "the reply cannot be decompressed"
    for end in (1, 8, len(packed) // 2, len(packed) - 1):
        assert wire_error(decoded(packed[:end], "gzip")) == "the reply is compressed but cut off"
    assert decoded(packed, "gzip") == b'{"token": {}}' * 100


def test_body_is_refused_when_it_is_a_bomb() -> None:
    """Decompression stops at the limit: 1 MiB comes out, and a byte more does not."""
    assert decoded(gzip.compress(b"x" * BODY_LIMIT), "gzip") == b"x" * BODY_LIMIT
    for size in (BODY_LIMIT + 1, 50 * BODY_LIMIT):
        packed = gzip.compress(b"x" * size)
        tracemalloc.start()
        message = wire_error(decoded(packed, "gzip"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert message == "the reply is larger than 1048576 bytes"
        assert peak < 5 * BODY_LIMIT
    assert wire_error(decoded(b"x" * (BODY_LIMIT + 1), "gzip")).startswith("the reply is larger")


def test_json_is_an_object_or_a_wire_error() -> None:
    """Each way of not being a JSON object in UTF-8 has its own words."""
    assert json_object('{"a": "ü"}'.encode()) == {"a": "ü"}
    assert json_object(b" {}\n") == {}
    assert wire_error(json_object('{"a": "ü"}'.encode("latin-1"))) == "the reply is not UTF-8"
    assert wire_error(json_object("{}".encode("utf-16"))) == "the reply is not UTF-8"
    for body in (b"", b"<html>", b'{"a": ', b"{'a': 1}", b"\xef\xbb\xbf{}", b"{} {}"):
        assert wire_error(json_object(body)) == "the reply is not JSON"
    assert wire_error(json_object(b"[" * 100_000)) == "the reply is not JSON"
    assert wire_error(json_object(b'{"a": 1' + b"0" * 5000 + b"}")) == "the reply is not JSON"
    for body in (b"[]", b"null", b"1", b'"{}"', b"true"):
        assert wire_error(json_object(body)) == "the reply is not a JSON object"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        *((body, ErrorReply()) for body in (b"", b"<html>", b"{}", b'{"message": ""}')),
        *((body, ErrorReply()) for body in (b'{"code": 1.5}', b'{"fields": "email"}')),
        (b'{"code": false, "message": false}', ErrorReply()),
        (b'{"code": null, "message": null, "fields": null}', ErrorReply()),
        (b'{"code": [], "message": [5], "fields": {}}', ErrorReply()),
        (b'{"status": 404, "code": "not_found", "message": "m"}', ErrorReply("not_found", "m", {})),
        (b'{"code": 5, "message": "m", "details": []}', ErrorReply(5, "m", {})),
        (b'{"code": 0}', ErrorReply(0, None, {})),
        (
            b'{"fields": [{"field": "a", "description": "x"}, {"field": "b", "description": "y"}]}',
            ErrorReply(None, None, {"a": "x", "b": "y"}),
        ),
        (
            (
                b'{"fields": [null, 1, "a", [], {}, {"field": "a"}, {"description": "x"},'
                b' {"field": 1, "description": "x"}, {"field": "a", "description": null},'
                b' {"field": "b", "description": "y", "more": 1}]}'
            ),
            ErrorReply(None, None, {"b": "y"}),
        ),
        (b'{"fields": [{"field": "", "description": ""}]}', ErrorReply(None, None, {"": ""})),
    ],
)
def test_error_body_is_read_when_it_has_one_of_the_three_forms(
    body: bytes, expected: ErrorReply
) -> None:
    """The fields of an error are read if they have the promised type, and ignored otherwise."""
    assert read_error(body) == expected


def test_request_leaves_out_what_is_none_when_it_is_written() -> None:
    """Null is not sent: the service of 2021 does not know the field."""
    assert write(LoginRequest("a@b.c", "pw")) == b'{"email": "a@b.c", "password": "pw"}'
    assert write(LoginRequest("a", "b", "o")) == (
        b'{"email": "a", "password": "b", "organization_id": "o"}'
    )
    assert write(PasswordlessLoginRequest("a@b.c")) == b'{"email": "a@b.c"}'


def test_request_is_read_back_when_its_text_is_odd() -> None:
    """Quotes, line breaks and all of Unicode are written as JSON."""
    odd = 'ü"\\\n\u2028\U0001f600\x00'
    assert json.loads(write(LoginRequest(odd, odd))) == {"email": odd, "password": odd}


def test_cattrs_is_asked_nothing_when_a_message_comes() -> None:
    """
    A signal handler may interrupt the first login, and raise or use a session itself.

    cattrs swallows exceptions where it looks for the code of a class, and cannot begin to write
    that code again in the midst of it. Catches messages and records that go through its converter.
    """
    token = Token("t", "u", "o", EXPIRES, issued_at=ISSUED, renewal="r", provenance="p")
    entered: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_qualname
        if event != "call" or "cattrs" not in path.parts:
            return
        # A hook of cattrs' own may run, as for an optional field.
        if path.name == "dispatch.py" or path.parent.name == "gen" or name.startswith("BaseConv"):
            entered.append(name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        replies = [
            read_reply(reply(id="t", user_id="u", expires_at="2030-01-02T03:04:05Z"), LoginReply),
            read_reply(b'{"token": "t"}', CreateAccessTokenReply),
            read_reply(b'{"method": "WORKOS"}', LoginMethodReply),
            read_error(b'{"code": "c", "message": "m", "fields": []}'),
            read_record(write_record(token)),
        ]
        write(LoginRequest("a", "b", "o"))
        write(PasswordlessLoginRequest("a"))
        write(CreateAccessTokenRequest(timedelta(hours=1)))
    finally:
        sys.setprofile(before)
    assert not [it for it in replies if isinstance(it, Exception)]
    assert not entered


def test_token_is_read_when_the_reply_is_as_promised() -> None:
    """All fields of the description, and those it does not know beside them."""
    body = reply(
        id="t", user_id="u", organization_id="o", expires_at="2030-01-02T03:04:05Z", new=[1]
    )
    assert read_reply(body, LoginReply) == LoginReply(Token("t", "u", "o", EXPIRES))
    assert read_reply(body[:-1] + b', "more": {}}', LoginReply) == LoginReply(
        Token("t", "u", "o", EXPIRES)
    )


@pytest.mark.parametrize("nothing", [{}, {"v": None}, {"v": ""}])
@pytest.mark.parametrize("name", ["user_id", "organization_id", "expires_at", "expires"])
def test_field_is_none_when_it_is_missing_null_or_empty(
    name: str, nothing: dict[str, object]
) -> None:
    """Protobuf writes nothing in three ways."""
    assert read(**dict.fromkeys([name] * len(nothing), nothing.get("v"))) == Token("t")


@pytest.mark.parametrize(
    ("fields", "expires_at"),
    [
        ({"expires_at": "2030-01-02T03:04:05Z"}, EXPIRES),
        ({"expires": "2030-01-02T03:04:05Z"}, EXPIRES),
        ({"expires_at": None, "expires": "2030-01-02T03:04:05Z"}, EXPIRES),
        ({"expires_at": "", "expires": "2030-01-02T03:04:05Z"}, EXPIRES),
        ({"expires_at": "2030-01-02T03:04:05Z", "expires": "2031-01-01T00:00:00Z"}, EXPIRES),
        ({"expires_at": "2030-01-02T03:04:05Z", "expires": 5}, EXPIRES),
        ({"expires_at": "0001-01-01T00:00:00Z"}, None),
        ({"expires": "0001-01-01T00:00:00Z"}, None),
    ],
)
def test_expiry_is_read_when_it_has_either_name(
    fields: dict[str, object], expires_at: datetime | None
) -> None:
    """The schema's name goes before the example's, and Go's zero time is none."""
    assert read(**fields).expires_at == expires_at
    assert read(**fields).issued_at is None


@pytest.mark.parametrize(
    "missing", [{}, {"expires_at": None}, {"expires_at": "0001-01-01T00:00:00Z"}]
)
def test_expiry_is_the_jwts_when_the_reply_has_none(missing: dict[str, object]) -> None:
    """``expires_at`` if given, else the JWT's ``exp``, else unknown."""
    token_id = jwt({"exp": EXPIRES.timestamp()})
    assert read(id=token_id, **missing).expires_at == EXPIRES
    assert read(id=jwt({}), **missing).expires_at is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        *(
            ({"id": bad}, "token.id: empty, or not fit for a header")
            for bad in (None, "", "a\r\nX-Evil: 1")
        ),
        *(({"id": bad}, "token.id: not a string") for bad in (5, ["t"])),
        *(({"user_id": bad}, "token.user_id: not a string") for bad in (5, False)),
        ({"organization_id": {}}, "token.organization_id: not a string"),
        *(({"expires_at": bad}, "token.expires_at: not a string") for bad in (1_900_000_000, 0)),
        ({"expires": 1_900_000_000}, "token.expires: not a string"),
        ({"expires_at": "tomorrow"}, "token.expires_at: not an RFC 3339 timestamp"),
        ({"expires": "2030-13-01T00:00:00Z"}, "token.expires_at: not an RFC 3339 timestamp"),
    ],
)
def test_token_is_refused_when_a_field_is_not_as_promised(
    fields: dict[str, object], problem: str
) -> None:
    """The error names the field, and never quotes its value."""
    assert refused(**fields) == problem
