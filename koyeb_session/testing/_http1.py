"""HTTP/1.1 (RFC 9112) as a server speaks it: h11 reads; replies may be as broken as faults."""

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
    keep_alive: bool = True
    body: Body = attrs.field(factory=Body)


class RequestReader:
    """Takes in what a connection delivers and hands out requests."""

    _request: WireRequest  # there from the end of its head

    def __init__(self) -> None:
        self._owes_continue = False
        self._begin(b"")

    def feed(self, data: bytes) -> None:
        """Take in the next bytes, if there are any: none would be the end, to h11."""
        if data:
            self._h11.receive_data(data)

    def next_request(self) -> WireRequest | None:
        """
        Hand out the next request, or ``None`` while it is incomplete.

        Raises:
            Malformed: what arrived is no request; there will be no more.
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
        # One for each request: h11 would want to see the replies, and refuses broken ones.
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
