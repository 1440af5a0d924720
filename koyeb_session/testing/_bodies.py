"""Collect bodies of any size, and keep a limited part of them."""

from __future__ import annotations

MAX_BODY = 16 * 1024 * 1024  # bytes; a longer body is answered with a 413


class Body:
    """Collects a body, up to one byte more than ``MAX_BODY``, which shows that it is too long."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._left = MAX_BODY + 1

    def add(self, chunk: bytes) -> None:
        """Add the next part."""
        if self._left:
            kept = chunk[: self._left]
            self._chunks.append(kept)
            self._left -= len(kept)

    @property
    def content(self) -> bytes:
        """The part of the body that was kept."""
        return b"".join(self._chunks)
