"""As much of HTTP/1.1 (RFC 9112) as a server needs to cut requests out of a connection."""

from __future__ import annotations

import re
from collections.abc import Generator
from http import HTTPStatus

import attrs

from ._bodies import Body
from ._replies import Reply
from ._requests import RawHeaders

_MAX_HEAD = 64 * 1024
_REQUEST_LINE = re.compile(rb"([!#-'*+.^_`|~0-9A-Za-z-]+) ([!-~\x80-\xff]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#-'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_LENGTH = re.compile(rb"\d{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Malformed(Exception):  # noqa: N818 - the peer's error, answered and not raised further
    """What arrived is no request; the connection cannot go on."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


@attrs.define
class WireRequest:
    """One request, complete once the reader hands it out."""

    method: str
    target: str
    headers: RawHeaders
    keep_alive: bool
    body: Body = attrs.field(factory=Body)


class RequestReader:
    """Takes in what a connection delivers and hands out requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._owes_continue = False
        self._requests = self._read_requests()

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._buffer += data

    def next_request(self) -> WireRequest | None:
        """
        Hand out the next request, or ``None`` while it is incomplete.

        Raises:
            Malformed: what arrived is no request; there will be no more.
        """
        return next(self._requests)

    def take_continue(self) -> bool:
        """Return, once for each request, whether the client waits for a ``100 Continue``."""
        owed, self._owes_continue = self._owes_continue, False
        return owed

    # The generators yield ``None`` whenever they need more bytes.

    def _read_requests(self) -> Generator[WireRequest | None]:
        while True:
            lines = yield from self._read_head()
            request = _parse_head(lines)
            headers = {name.lower(): value.lower() for name, value in request.headers}
            length = _body_length(headers)
            self._owes_continue = headers.get(b"expect") == b"100-continue"
            if length is None:
                yield from self._read_chunks(request.body)
            else:
                yield from self._read_bytes(length, request.body)
            self._owes_continue = False
            yield request

    def _read_head(self) -> Generator[None, None, list[bytes]]:
        lines: list[bytes] = []
        left = _MAX_HEAD
        while True:
            line = yield from self._read_line(left, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            left -= len(line) + 2
            if line:
                lines.append(line)
            elif lines:  # RFC 9112, 2.2: empty lines before a request are ignored
                return lines

    def _read_chunks(self, body: Body) -> Generator[None]:
        while True:
            line = yield from self._read_line(_MAX_HEAD)
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise Malformed(HTTPStatus.BAD_REQUEST)
            if not (length := int(size[1], 16)):
                break
            yield from self._read_bytes(length, body)
            yield from self._read_line(0)
        while (yield from self._read_line(_MAX_HEAD)):
            pass  # trailers

    def _read_bytes(self, length: int, body: Body) -> Generator[None]:
        while True:
            part = bytes(self._buffer[:length])
            del self._buffer[: len(part)]
            body.add(part)
            length -= len(part)
            if not length:
                return
            yield

    def _read_line(
        self, limit: int, too_long: HTTPStatus = HTTPStatus.BAD_REQUEST
    ) -> Generator[None, None, bytes]:
        while (end := self._buffer.find(b"\r\n")) < 0 and len(self._buffer) <= limit + 1:
            yield
        if not 0 <= end <= limit:
            raise Malformed(too_long)
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def encode(reply: Reply, *, keep_alive: bool) -> bytes:
    """Put a reply on the wire, as much of it as is to arrive."""
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {reply.status} {phrase}".encode()]
    lines += [name + b": " + value for name, value in reply.headers]
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", reply.received_body])


def _parse_head(lines: list[bytes]) -> WireRequest:
    line = _REQUEST_LINE.fullmatch(lines[0])
    fields = [_FIELD.fullmatch(field) for field in lines[1:]]
    headers = [(field[1], field[2]) for field in fields if field is not None]
    if line is None or len(headers) < len(fields):
        raise Malformed(HTTPStatus.BAD_REQUEST)
    options = {
        option.strip()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.lower().split(b",")
    }
    return WireRequest(
        method=line[1].decode(),
        target=_ORIGIN.sub(b"", line[2], count=1).decode("latin-1"),
        headers=headers,
        keep_alive=line[3] == b"1" and b"close" not in options,
    )


def _body_length(headers: dict[bytes, bytes]) -> int | None:
    """Return the length of the body in bytes; ``None`` if it comes in chunks."""
    length, coding = headers.get(b"content-length"), headers.get(b"transfer-encoding")
    if coding not in (None, b"chunked"):
        raise Malformed(HTTPStatus.NOT_IMPLEMENTED)
    if length is None:
        return 0 if coding is None else None
    if coding is not None or not _LENGTH.fullmatch(length):
        raise Malformed(HTTPStatus.BAD_REQUEST)
    return int(length)
