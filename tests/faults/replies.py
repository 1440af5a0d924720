"""The reactions of a server to a request: behaviors for `Server`, made from a few words."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from typing import Final, TypeAlias

from .server import Behavior, Exchange, Request

ISSUED: Final = "canary-issued-6f1d2a"
"""The id of the token that the service hands out."""
ORGANIZATION: Final = "b3b1c1de-organization"
MIB: Final = 1 << 20

_JSON: Final = ("Content-Type: application/json",)
# Bodies other than the promised one
HTML: Final = f"<html><body><h1>Bad Gateway</h1><!-- {ISSUED} --></body></html>".encode()
ARRAY: Final = json.dumps([ISSUED]).encode()
TYPES: Final = json.dumps({"token": {"id": 7, "user_id": ISSUED}, "method": [ISSUED]}).encode()
NOT_UTF8: Final = b'{"token": {"id": "' + ISSUED.encode() + b'\xff"}, "method": "\xff"}'

Content: TypeAlias = bytes | Callable[[Request], bytes]
"""A reply's body, or a function that makes it for a request."""


def good(request: Request) -> bytes:
    """Make the body that the service promises."""
    if request.path.startswith("/v1/account/login_method"):
        return b'{"method": "WORKOS"}'
    if request.path.endswith(("/logout", "/passwordless_login")):
        return b"{}"
    if request.path.endswith("/access_token"):
        return json.dumps({"token": ISSUED}).encode()
    expires = datetime.now(UTC) + timedelta(hours=2)
    token = {
        "id": ISSUED,
        "user_id": "a-user",
        "organization_id": ORGANIZATION,
        "expires_at": expires.strftime("%Y-%m-%dT%H:%M:%S.123456789Z"),
    }
    return json.dumps({"token": token}).encode()


def cut_json(request: Request) -> bytes:
    """Make JSON that ends in the middle, after the token."""
    return good(request)[:-1]


@cache
def bomb() -> bytes:
    """Make 100 MiB of blanks, which JSON would allow, from 100 KiB."""
    return gzip.compress(b" " * (100 * MIB), compresslevel=6)


def head(status: int, *headers: str) -> bytes:
    """Make a status line and headers."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def reply(
    status: int = 200, content: Content = good, *, headers: tuple[str, ...] = _JSON
) -> Behavior:
    """Answer, with a body of the right length."""

    def behave(exchange: Exchange) -> None:
        body = content(exchange.request) if callable(content) else content
        length = () if status == 204 else (f"Content-Length: {len(body)}",)
        exchange.send(head(status, *headers, *length) + body)
        if "Connection: close" in headers:
            exchange.close()

    return behave


def error(status: int) -> Behavior:
    """Answer with an error in the API's own form."""
    body = {"status": status, "code": "some_code", "message": "some message"}
    return reply(status, json.dumps(body).encode())


def busy(retry_after: str | None = None) -> Behavior:
    """Answer 429, which comes without JSON."""
    headers = () if retry_after is None else (f"Retry-After: {retry_after}",)
    return reply(429, b"slow down", headers=headers)


def busy_until(seconds: float) -> Behavior:
    """Answer 429 with a date, so many seconds from now."""

    def behave(exchange: Exchange) -> None:
        busy(formatdate(time.time() + seconds, usegmt=True))(exchange)

    return behave


def redirect(status: int, location: str) -> Behavior:
    """Answer with a redirect; the exchange fills the gaps of the location."""

    def behave(exchange: Exchange) -> None:
        reply(status, b"", headers=(f"Location: {location.format(exchange)}",))(exchange)

    return behave


# Bad endings


def not_http(exchange: Exchange) -> None:
    """Answer in another protocol."""
    exchange.send(b"SSH-2.0-" + ISSUED.encode() + b"\r\n")
    exchange.close()


def reset_in_headers(exchange: Exchange) -> None:
    """Reset the connection after a part of the headers."""
    exchange.send(head(200, "Content-Type: appli")[:-4])
    exchange.reset()


def _send_all_but_a_byte(exchange: Exchange) -> None:
    body = good(exchange.request)
    exchange.send(head(200, *_JSON, f"Content-Length: {len(body) + 1}") + body)


def reset_in_body(exchange: Exchange) -> None:
    """Reset the connection after a part of the body."""
    _send_all_but_a_byte(exchange)
    exchange.reset()


def hang_in_body(exchange: Exchange) -> None:
    """Send a part of the body, and never the rest."""
    _send_all_but_a_byte(exchange)
    exchange.hang()


def cut_chunks(exchange: Exchange) -> None:
    """Close the connection before the last chunk, after all of the JSON."""
    body = good(exchange.request)
    chunk = b"%x\r\n%s\r\n" % (len(body), body)
    exchange.send(head(200, *_JSON, "Transfer-Encoding: chunked") + chunk)
    exchange.close()


def cut_error(exchange: Exchange) -> None:
    """Close the connection in the body of a 503."""
    exchange.send(head(503, *_JSON, "Content-Length: 100") + b'{"message": "')
    exchange.close()


def one_byte_at_a_time(exchange: Exchange) -> None:
    """Answer well, in as many pieces as can be."""
    body = good(exchange.request)
    for byte in head(200, *_JSON, f"Content-Length: {len(body)}") + body:
        exchange.send(bytes([byte]))


def drip_headers(exchange: Exchange) -> None:
    """Send headers for ever, each byte well within the time for a read."""
    exchange.send(head(200)[:-2])
    exchange.drip(b"X-More: and more\r\n")


def drip_body(exchange: Exchange) -> None:
    """Send a body for ever, each byte well within the time for a read."""
    exchange.send(head(200, *_JSON, "Transfer-Encoding: chunked"))
    exchange.drip(b"1\r\n \r\n")


def half_close(exchange: Exchange) -> None:
    """Answer well, and close the connection for sending, without having said so."""
    reply()(exchange)
    exchange.half_close()


def huge(status: int) -> Behavior:
    """Answer with 100 MiB, or as much of them as the client takes."""
    block = b" " * (64 << 10)

    def behave(exchange: Exchange) -> None:
        exchange.send(head(status, *_JSON, f"Content-Length: {100 * MIB}"))
        for _ in range(100 * MIB // len(block)):
            exchange.send(block)

    return behave
