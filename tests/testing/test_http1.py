"""How requests are cut out of the bytes of a connection."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koyeb_session.testing._http1 import Malformed, RequestReader, WireRequest

GET = b"GET /v1/apps HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(*parts: bytes) -> list[WireRequest]:
    """Feed a reader part by part, and return the requests that it hands out."""
    reader, requests = RequestReader(), list[WireRequest]()
    for part in parts:
        reader.feed(part)
        while (request := reader.next_request()) is not None:
            requests.append(request)
    return requests


def test_requests_follow_one_another() -> None:
    """Several requests may arrive at once."""
    post = b"POST /x?y=%20 HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \r\n\r\nabc"
    first, second, third = read(GET + post + GET)
    assert (first.method, first.target, first.body.content) == ("GET", "/v1/apps", b"")
    assert (second.method, second.target, second.body.content) == ("POST", "/x?y=%20", b"abc")
    assert second.headers == [(b"Host", b"a"), (b"Content-Length", b"3")]
    assert third.headers == [(b"Host", b"a")]


@pytest.mark.parametrize(
    ("head", "keep_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, Close\r\n\r\n", False),
    ],
)
def test_connection_may_be_used_again(head: bytes, *, keep_alive: bool) -> None:
    """Version and options say whether more requests may follow."""
    assert read(head)[0].keep_alive is keep_alive


def test_target_may_name_the_origin() -> None:
    """A client that takes the server for a proxy is understood."""
    assert read(b"GET http://a:1/v1/apps?x HTTP/1.1\r\nHost: a\r\n\r\n")[0].target == "/v1/apps?x"


@given(st.lists(st.integers(0, 180), max_size=8))
def test_parts_do_not_matter(cuts: list[int]) -> None:
    """However the bytes are cut on their way, the same requests come out."""
    sent = GET + CHUNKED + b"3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n" + GET
    edges = [0, *sorted(cuts), len(sent)]
    parts = [sent[a:b] for a, b in pairwise(edges)]
    bodies = [(request.target, request.body.content) for request in read(*parts)]
    assert bodies == [("/v1/apps", b""), ("/", b"abc"), ("/v1/apps", b"")]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        *((sent, 400) for sent in (b"hello\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n")),
        (b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost\r\n : a\r\nfolded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        *((CHUNKED + body, 400) for body in (b"x\r\n", b"-1\r\n", b"1\r\nab\r\n")),
        (b"G" * 70_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 12_000, 431),
    ],
)
def test_malformed_request_is_refused(sent: bytes, status: int) -> None:
    """Bytes that are no request end the connection, with the status that says why."""
    with pytest.raises(Malformed) as caught:
        read(sent)
    assert caught.value.status == status


@given(st.binary(max_size=200))
def test_noise_is_refused_or_awaited(noise: bytes) -> None:
    """Any bytes at all are a request, the beginning of one, or refused."""
    with contextlib.suppress(Malformed):
        assert all(request.method for request in read(noise, GET, CHUNKED, noise))


def test_continue_is_owed_once() -> None:
    """A client that waits to be told to go on is told so once, and only while it waits."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    reader = RequestReader()
    reader.feed(head)
    assert reader.next_request() is None
    assert [reader.take_continue(), reader.take_continue()] == [True, False]
    reader.feed(b"x" + head + b"x")
    assert reader.next_request() is not None
    assert reader.next_request() is not None
    assert reader.take_continue() is False
