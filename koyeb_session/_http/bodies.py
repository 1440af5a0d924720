"""The body of a reply that somebody else may have read, or will read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    import httpx


def content(response: httpx.Response) -> bytes | None:
    """Return the content if an event hook or the transport has read it, and otherwise `None`."""
    try:
        return response.content
    except RuntimeError:  # `ResponseNotRead` of httpx or of httpx2
        return None


def check_encoding(response: httpx.Response, body: bytes, library: ModuleType) -> None:
    """Raise the library's `HTTPError` if a body cannot be decoded."""
    library.Response(
        response.status_code, headers=response.headers, content=body, request=response.request
    )


def put_back(response: httpx.Response, body: bytes | None, library: ModuleType) -> None:
    """Have a reply read as if nobody had read it; with `None`, as if it had no body."""
    if body is None:
        response.headers.pop("Content-Encoding", None)
    response.stream = library.ByteStream(body or b"")
    response.is_closed = response.is_stream_consumed = False
