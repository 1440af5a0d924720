"""The limits of a reply and of an error's text, without any socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    RateLimitedError,
    SessionClient,
    SessionExpiredError,
    StoreError,
    WireError,
)
from koyeb_session._core.redaction import safe_message
from koyeb_session._core.results import without_frames

from .matrix import EMAIL
from .replies import MIB, head, reply
from .server import Exchange, Server


class Endless(httpx.AsyncByteStream):
    """A body without end that never gives way; it counts the bytes that are taken."""

    taken = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self.taken += 1 << 16
            yield b" " * (1 << 16)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # there is no other way out
async def test_async_endless_body_that_never_gives_way() -> None:
    """A transport without a single checkpoint cannot make the async half read for ever."""
    body = Endless()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=body))
    async with AsyncSessionClient(transport=transport) as session:
        with pytest.raises(WireError, match="larger"):
            await session.login_method(EMAIL)
    assert body.taken < 3 * MIB


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("illegal status line: bytearray(b'HTTP/9 canary')", "illegal status line: ..."),
        ('illegal header line: bytearray(b"it\'s\ncanary")', "illegal header line: ..."),
        ("Bad status line:\n\n  b'canary'\n  ^", "Bad status line:\n\n  ..."),
        ("Server disconnected without sending a response.", None),
        ("[Errno 111] Connection refused", None),
    ],
)
def test_bytes_of_a_broken_reply_are_not_quoted(text: str, shown: str | None) -> None:
    """The part of a broken reply that an HTTP library quotes is cut off; its own text is not."""
    assert safe_message(ValueError(text)) == (text if shown is None else shown)


def _fail_thrice() -> None:
    try:
        try:
            int("x")
        except ValueError as exc:
            raise RateLimitedError("slow down", retry_after=3.0) from exc
    except RateLimitedError as exc:
        raise SessionExpiredError("it has ended", request_id="r-1") from exc


def test_detached_error_has_lost_its_frames_and_nothing_else() -> None:
    """An error of ours that comes out of user code keeps its class, text, attributes and causes."""
    with pytest.raises(SessionExpiredError) as caught:
        _fail_thrice()
    error = without_frames(caught.value)
    assert (str(error), error.request_id) == ("it has ended", "r-1")
    assert isinstance(error.__cause__, RateLimitedError)
    assert error.__cause__.retry_after == 3.0
    assert isinstance(error.__cause__.__cause__, ValueError)
    for link in (error, error.__cause__, error.__cause__.__cause__):
        assert (link.__traceback__, link.__context__) == (None, None)
    assert without_frames(StoreError("away")).__cause__ is None


def _two_replies(exchange: Exchange) -> None:
    """Answer once too often, in one packet."""
    bodies = (b'{"apps": []}', b'{"apps": ["of nobody"]}')
    exchange.send(b"".join(head(200, f"Content-Length: {len(it)}") + it for it in bodies))


def test_response_that_nobody_asked_for_answers_the_next_request_as_in_bare_httpx() -> None:
    """
    Two sessions on one connection share the bytes that httpcore has read ahead on it.

    No public interface tells of those bytes. Once bare httpx closes such a connection, this fails:
    then the security policy has to say so.
    """
    replies: list[list[Any]] = []
    with Server([_two_replies, reply()]) as server, httpx.Client() as bare:
        replies.append([bare.get(f"{server.url}/v1/apps").json() for _ in range(2)])
    with (
        Server([_two_replies, reply()]) as server,
        SessionClient(base_url=server.url, token="one") as session,
        session.for_token("another") as other,
    ):
        replies.append([it.http.get("/v1/apps").json() for it in (session, other)])
    assert replies == [[{"apps": []}, {"apps": ["of nobody"]}]] * 2
