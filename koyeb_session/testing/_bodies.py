"""Bodies of any size, of which only so much is kept."""

from __future__ import annotations

MAX_BODY = 16 * 1024 * 1024  # bytes; what is longer is answered with a 413


class Body:
    """Collects a body; beyond ``MAX_BODY`` it keeps one more byte, to tell, and drops the rest."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._left = MAX_BODY + 1

    def add(self, chunk: bytes) -> None:
        """Take in the next part."""
        if self._left:
            kept = chunk[: self._left]
            self._chunks.append(kept)
            self._left -= len(kept)

    @property
    def content(self) -> bytes:
        """What was kept."""
        return b"".join(self._chunks)
