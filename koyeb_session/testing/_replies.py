"""Replies in the formats of the API's descriptions."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import attrs

_JSON = b"application/json"
# google.rpc.Code for the statuses that the descriptions leave to google.rpc.Status.
_RPC_CODES = {404: 5, 405: 12, 408: 4, 409: 10, 410: 5, 413: 8, 429: 8, 431: 8, 501: 12, 504: 4}
_RPC_UNKNOWN = 2
_ERROR_CODES = {
    403: "authorization_error",
    404: "not_found",
    500: "internal_error",
    503: "unavailable",
}


@attrs.frozen
class Reply:
    """One reply, before the service adds the common headers."""

    status: int = attrs.field(converter=int)  # an HTTPStatus is hard to read in a test's log
    body: bytes = attrs.field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", _JSON),)
    sent: int | None = None  # how many bytes of the body arrive; None: all

    @property
    def received_body(self) -> bytes:
        """The part of the body that reaches the client."""
        return self.body if self.sent is None else self.body[: self.sent]

    @property
    def is_truncated(self) -> bool:
        """Whether the connection ends before the body does."""
        return self.sent is not None and self.sent < len(self.body)

    @property
    def cut_short(self) -> str:
        """The message of a client about a truncated body."""
        return (
            "peer closed connection without sending complete message body "
            f"(received {len(self.received_body)} bytes, expected {len(self.body)})"
        )


class Refusal(Exception):  # noqa: N818 - ends an operation; not an error of the kit
    """An error reply, raised to end an operation."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def success(payload: dict[str, Any]) -> Reply:
    """Return a 200 with this JSON."""
    return Reply(HTTPStatus.OK, json.dumps(payload).encode())


def error(status: int, message: str, code: str | None = None) -> Reply:
    """
    Return an ``Error``: 401, 403, 404, 500 and 503.

    A 401 has no ``code``. In one description it is an ``Error``, whose code is text, and in the
    other a ``google.rpc.Status``, whose code is a number. Without a code it fits both.
    """
    payload: dict[str, Any] = {"status": status, "message": message}
    if (code := code or _ERROR_CODES.get(status)) is not None:
        payload["code"] = code
    return Reply(status, json.dumps(payload).encode())


def invalid(fields: dict[str, str]) -> Reply:
    """Return the ``ErrorWithFields`` of a 400, with the problem of each invalid field."""
    listed = [{"field": name, "description": text} for name, text in fields.items()]
    payload: dict[str, Any] = {
        "status": 400,
        "code": "invalid_argument",
        "message": "Validation error",
        "fields": listed,
    }
    return Reply(HTTPStatus.BAD_REQUEST, json.dumps(payload).encode())


def rpc_status(status: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """Return the ``google.rpc.Status`` of any other error, in the words of the API gateway."""
    payload: dict[str, Any] = {
        "code": _RPC_CODES.get(status, _RPC_UNKNOWN),
        "message": _phrase(status),
        "details": [],
    }
    return Reply(status, json.dumps(payload).encode(), ((b"content-type", _JSON), *headers))


def expected(status: int) -> Reply:
    """Return the documented reply for a status, for a fault that names only the status."""
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        # This one comes from the load balancer in front of the service, and is not JSON.
        return Reply(status, b"Too Many Requests", ((b"content-type", b"text/plain"),))
    if status in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return Reply(status, b"", ())
    if status < HTTPStatus.BAD_REQUEST:
        return Reply(status, b"{}")
    if status == HTTPStatus.BAD_REQUEST:
        return invalid({})
    if status == HTTPStatus.UNAUTHORIZED or status in _ERROR_CODES:
        return error(status, _phrase(status))
    return rpc_status(status)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
