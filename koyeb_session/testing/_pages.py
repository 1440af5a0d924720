"""The pages of lists, by ``limit``, ``offset`` and ``order``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from ._requests import Request

_DEFAULT_LIMIT = 10
_MOST = 100


class Page(NamedTuple):
    """A part of a list, and its place in there."""

    items: Sequence[Any]
    limit: int
    offset: int
    has_next: bool


def page(items: Sequence[Any], request: Request) -> Page:
    """Return the part of a list that a request asks for."""
    query = parse_qs(request.query)
    limit = min(_number(query, "limit", _DEFAULT_LIMIT), _MOST)
    offset = _number(query, "offset", 0)
    ordered = items[::-1] if query.get("order", [""])[-1] == "desc" else items
    end = offset + limit
    return Page(ordered[offset:end], limit, offset, end < len(items))


def _number(query: dict[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [""])[-1]
    return int(text) if text.isdecimal() else default
