"""Strategies for Hypothesis: any bytes, JSON, headers and times that a service may send."""

from __future__ import annotations

import json
from typing import TypeAlias

from hypothesis import settings
from hypothesis import strategies as st

from koyeb_session import WireError

from .soak import SOAK

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


fuzzed = settings(max_examples=5_000 if SOAK else 60, deadline=None)


# Bodies and headers that a service may send

# All of Unicode, the halves of characters that JSON can spell included.
texts = st.text(st.characters(exclude_categories=()), max_size=30)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from(["0001-01-01T00:00:00Z", "2027-06-01T00:00:00.123456789Z", "KOYEB", "a.b.c"])
    | st.datetimes().map(lambda at: f"{at.isoformat()}Z")
)
values: st.SearchStrategy[JSON] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def objects(*names: str) -> st.SearchStrategy[dict[str, JSON]]:
    """Make objects that have some of these keys, and any values."""
    known = st.fixed_dictionaries({}, optional=dict.fromkeys(names, values))
    return st.tuples(st.dictionaries(texts, values, max_size=2), known).map(
        lambda parts: {**parts[0], **parts[1]}
    )


tokens = objects("id", "user_id", "organization_id", "expires_at", "expires")
error_fields = st.lists(objects("field", "description") | values, max_size=4)
bodies = (
    st.binary(max_size=200)
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | values.map(lambda value: json.dumps(value).encode())
    | values.map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    | tokens.map(lambda token: json.dumps({"token": token}).encode())
    | st.dictionaries(st.just("token"), texts).map(lambda reply: json.dumps(reply).encode())
    | objects("method").map(lambda reply: json.dumps(reply).encode())
    | st.tuples(objects("status", "code", "message", "details"), error_fields).map(
        lambda parts: json.dumps({**parts[0], "fields": parts[1]}).encode()
    )
    | st.sampled_from([b"", b"{}", b"[" * 5000, b'{"a":' * 5000, b"<html>", b"1" * 5000])
)
encodings = st.none() | st.sampled_from(["identity", "gzip", "deflate", "br", "gzip, gzip"]) | texts
dates = (
    st.sampled_from(
        [
            "Fri, 15 Jan 2027 08:00:00 GMT",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "1 Jan 1 0:0:0 -9999999999999999999",
        ]
    )
    | st.datetimes().map(lambda at: f"{at:%a, %d %b %Y %H:%M:%S} GMT")
    | st.from_regex(r"[A-Z][a-z]{2}, -?\d{1,20} [A-Z][a-z]{2} \d{1,20} \d{1,9}:\d+:?\d* ?[-+\w]*")
    | texts
)
header_texts = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=40) | dates
headers = st.fixed_dictionaries(
    {},
    optional={
        "date": header_texts,
        "retry-after": header_texts | st.floats().map(str) | st.integers().map(str),
        "x-request-id": header_texts,
    },
)


def is_clean_wire_error(value: object) -> bool:
    """Return whether this is a `WireError` with a fixed text and without a cause."""
    return type(value) is WireError and value.message.isascii() and value.__cause__ is None
