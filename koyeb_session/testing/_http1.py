"""The server side of HTTP/1.1 (RFC 9112): h11 reads requests; replies may be broken on purpose."""

from __future__ import annotations

import re
from http import HTTPStatus

import attrs
import h11

from ._bodies import Body
from ._replies import Reply
from ._requests import RawHeaders

_MAX_HEAD = 64 * 1024
_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)


class Malformed(Exception):  # noqa: N818 - the peer's error, which is answered, not propagated
    """The received bytes are not a request, and the connection cannot go on."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


@attrs.define
class WireRequest:
    """One request, complete once the reader returns it."""

    method: str
    target: str
    headers: RawHeaders
    keep_alive: bool = True
    body: Body = attrs.field(factory=Body)


class RequestReader:
    """Reads the bytes of a connection, and returns requests."""

    _request: WireRequest  # set once its head is complete

    def __init__(self) -> None:
        self._owes_continue = False
        self._begin(b"")

    def feed(self, data: bytes) -> None:
        """Add the next bytes, if there are any: to h11, no bytes mean the end."""
        if data:
            self._h11.receive_data(data)

    def next_request(self) -> WireRequest | None:
        """
        Return the next request, or ``None`` while it is incomplete.

        Raises:
            Malformed: the bytes are not a request; no further request follows.
        """
        try:
            return self._read()
        except h11.RemoteProtocolError as exc:
            raise Malformed(HTTPStatus(exc.error_status_hint)) from None

    def take_continue(self) -> bool:
        """Return, once for each request, whether the client waits for a ``100 Continue``."""
        owed, self._owes_continue = self._owes_continue, False
        return owed and self._h11.they_are_waiting_for_100_continue

    def _begin(self, data: bytes) -> None:
        # A new one for each request: otherwise h11 would check the replies and refuse broken ones.
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self.feed(data)

    def _read(self) -> WireRequest | None:
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Request):
                self._request = WireRequest(
                    method=event.method.decode("ascii"),
                    target=_ORIGIN.sub(b"", event.target, count=1).decode("latin-1"),
                    headers=event.headers.raw_items(),
                )
                self._owes_continue = True
            elif isinstance(event, h11.Data):
                self._request.body.add(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return None
        self._request.keep_alive = self._h11.their_state is not h11.MUST_CLOSE
        self._begin(self._h11.trailing_data[0])
        return self._request


def encode(reply: Reply, *, keep_alive: bool) -> bytes:
    """Encode the part of a reply that the client receives."""
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {reply.status} {phrase}".encode()]
    lines += [name + b": " + value for name, value in reply.headers]
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join([*lines, b"", reply.received_body])
