"""Deadlines: the longest time of each wait and of each phase of a request."""

from __future__ import annotations

import contextlib
import contextvars
import math
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from functools import partial
from queue import Queue
from typing import Any

import anyio
import anyio.lowlevel
import httpcore
import httpx
import pytest

from koyeb_session import (
    RateLimitedError,
    SessionClient,
    Token,
    TransportTimeoutError,
)
from koyeb_session._concurrency.event_loop.deadlines import async_read_raw
from koyeb_session._concurrency.event_loop.waiting import async_sleep
from koyeb_session._concurrency.threads.deadlines import ends, read_raw, within
from koyeb_session._concurrency.threads.launch import launch
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session._concurrency.threads.waiting import Event, Lock, sleep
from koyeb_session._http import deadline_network
from koyeb_session._http.event_loop import async_http_transport
from koyeb_session._http.threads import http_transport
from koyeb_session._http.tls import certificates
from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ._sync.doubles import Troubled
from .concurrency import PATIENCE, Background, deadlines, idle
from .support import raising


class Chunks(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body of so many pieces, which counts those that were taken."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        for _ in range(self.pieces):
            self.taken += 1
            yield b"piece"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces, as a connection does."""
        for piece in [b"piece"] * self.pieces:
            await anyio.lowlevel.checkpoint()
            self.taken += 1
            yield piece


# Reading


@pytest.mark.parametrize("half", ["asynchronous", "blocking"])
@pytest.mark.parametrize(
    ("pieces", "read", "taken"), [(0, 0, 0), (2, 10, 2), (3, 15, 3), (9, 15, 3)]
)
async def test_reading_stops_beyond_the_limit(
    pieces: int, read: int, taken: int, half: str
) -> None:
    """As soon as there is too much, no more is read."""
    stream = Chunks(pieces)
    body = read_raw(stream, 10) if half == "blocking" else await async_read_raw(stream, 10)
    assert body == (b"piece" * pieces)[:read]
    assert stream.taken == taken


def test_read_raw_ends_with_the_deadline() -> None:
    """A body that drips in on the user's own connections is read once more, and then left."""
    stream = Chunks(9)
    with pytest.raises(httpx.ReadTimeout, match="too long"):
        within(0, partial(read_raw, stream, 100))
    assert stream.taken == 2
    assert len(within(60, partial(read_raw, Chunks(9), 100))) == 45


class Recorder:
    """A backend and its stream, which note the arguments of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, *args, *kwargs.values()))
            return self

        return note

    def get_extra_info(self, info: str) -> str:
        """Return the argument."""
        return info


# The network


def test_each_phase_may_take_what_is_left_of_the_deadline() -> None:
    """Connecting, TLS, reading and writing may each take only the remaining time."""
    recorder: Any = Recorder()
    context = ssl.create_default_context()

    def use() -> httpcore.NetworkStream:
        stream = deadline_network._Backend(recorder).connect_tcp("host", 443, 60.0, "local", [])
        stream = stream.start_tls(context, "host", 60.0)
        assert stream.read(3, 60.0) == recorder
        stream.write(b"y", 60.0)
        stream.read(1, 5.0)
        stream.read(1, None)
        return stream

    stream = within(10, use)
    assert stream.get_extra_info("socket") == "socket"
    stream.close()
    (_, *place, connect, local, options), *others, close = recorder.calls
    assert (place, local, options, close) == (["host", 443], "local", [], ("close",))
    calls = [("start_tls", context, "host"), ("read", 3), ("write", b"y"), ("read", 1), ("read", 1)]
    assert [call[:-1] for call in others] == calls
    timeouts = [timeout for *_, timeout in others]
    assert timeouts.pop(3) == 5.0
    assert all(9 < timeout <= 10 for timeout in (connect, *timeouts))


def test_without_a_deadline_timeouts_are_what_they_are() -> None:
    """Work without one has no limit, even after work that had one."""
    recorder: Any = Recorder()
    stream = deadline_network._Backend(recorder).connect_tcp("host", 80)
    assert recorder.calls == [("connect_tcp", "host", 80, None, None, None)]
    with pytest.raises(KeyError):
        within(1, raising(KeyError()))
    stream.read(1, 7.0)
    stream.read(1)
    assert recorder.calls[1:] == [("read", 1, 7.0), ("read", 1, None)]


@pytest.mark.parametrize("fails", [False, True])
def test_variables_that_work_with_a_deadline_sets_are_kept(*, fails: bool) -> None:
    """An event hook of the user may bind one for the log; catches a context that is thrown away."""
    variable = ContextVar("variable", default="before")
    variable.set("unchanged")

    def work() -> None:
        variable.set("by a hook")
        if fails:
            raise KeyError

    with pytest.raises(KeyError) if fails else contextlib.nullcontext():
        within(60, work)
    assert variable.get() == "by a hook"
    assert ends.get() == math.inf


def test_a_passed_deadline_leaves_a_moment() -> None:
    """Nothing is left, but 0 would make the socket non-blocking."""
    recorder: Any = Recorder()
    stream = deadline_network._Stream(recorder)
    within(-5, partial(stream.read, 1, 7.0))
    assert recorder.calls == [("read", 1, 1e-6)]


def test_a_deadline_within_another_cannot_be_later() -> None:
    """The outer one holds; an inner one may be sooner."""
    recorder: Any = Recorder()
    stream = deadline_network._Stream(recorder)

    def outer() -> None:
        within(60, partial(stream.read, 1))
        within(2, partial(stream.read, 1))
        stream.read(1)

    within(5, outer)
    first, second, third = (timeout for *_, timeout in recorder.calls)
    assert 4 < first <= 5
    assert 1 < second <= 2
    assert 4 < third <= 5
    assert ends.get() == math.inf


def test_transports_share_one_tls_context() -> None:
    """Reading the certificates takes 20 ms: once for the process is enough."""
    trusted, proxy = certificates(), httpx.URL("http://proxy:1")
    blocking: Any = http_transport(None, trusted)
    proxied: Any = http_transport(proxy, trusted)
    other: Any = async_http_transport(proxy, trusted)
    assert blocking._pool._ssl_context is other._pool._ssl_context is trusted.context()
    assert isinstance(blocking._pool._network_backend, deadline_network._Backend)
    assert isinstance(blocking._pool._network_backend._inner, httpcore.NetworkBackend)
    assert isinstance(proxied._pool, httpcore.HTTPProxy)
    assert isinstance(other._pool, httpcore.AsyncHTTPProxy)
    for transport in (blocking, proxied):
        transport.close()


def test_a_store_that_cannot_be_stopped_leaves_time_for_the_exchange() -> None:
    """It never answers, and its thread cannot be stopped: the refresh has its half of the time."""
    store = Troubled()
    renewed: list[Token] = []
    for seconds in deadlines(lambda: renewed):
        fake = FakeKoyeb()  # an exchange whose reply came too late is not the next one's
        gate = store.gates["load"] = Gate()
        with SessionClient(
            transport=fake.transport, token=fake.issue_token(), store=store, timeout=seconds
        ) as session:
            with contextlib.suppress(TransportTimeoutError):
                renewed.append(session.refresh())
                assert renewed == [session.token]
                assert session.http.get("/v1/apps").status_code == 200
                assert fake.exchanges() == 1
            gate.open()


def test_an_operation_with_no_time_left_is_not_slept_for() -> None:
    """Inside of another session's credentials: the reply that there is counts."""
    fake = FakeKoyeb()
    fake.fail("login_method", Fault(status=429, headers={"Retry-After": "2"}))
    session = SessionClient(transport=fake.transport)
    with pytest.raises(RateLimitedError):
        within(0.05, partial(session.login_method, "me@example.com"))
    session.close()


def test_a_reply_that_is_complete_at_the_deadline_counts() -> None:
    """It may be the session's token."""

    class Late(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            ends.set(0.0)
            yield b"whole"
            yield b""  # the last frame of HTTP/2 may be an empty one

    assert within(60, partial(read_raw, Late(), 100)) == b"whole"


def test_the_waits_of_the_blocking_half_end_at_the_deadline() -> None:
    """Those of the other half are cancelled there."""
    lock = Lock()

    def late() -> None:
        with pytest.raises(TimeoutError):
            sleep(PATIENCE)
        with pytest.raises(TimeoutError), lock.held():
            raise AssertionError
        go = threading.Event()
        shared = SharedTask(lambda: go.wait(PATIENCE), seconds=PATIENCE)
        assert shared.join(PATIENCE) is None
        assert Event().wait(PATIENCE) is False
        go.set()

    with lock.held():
        within(0, late)
    with lock.held():
        pass
    sleep(0)
    assert async_sleep is anyio.sleep


def test_runtime_error_of_a_handler_is_raised_when_it_comes_while_a_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not count as the lack of a thread."""
    idle()
    monkeypatch.setattr("_thread.start_new_thread", raising(RuntimeError("from a handler")))
    with pytest.raises(RuntimeError, match="from a handler"):
        launch(int)


def test_thread_that_cannot_have_another_one_does_the_work_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The main thread has begun one; as from Python 3.12 on when the main thread has ended."""
    idle()
    error = RuntimeError("can't create new thread at interpreter shutdown")
    monkeypatch.setattr(threading.Thread, "start", raising(error))
    done: Queue[int] = Queue()
    assert launch(lambda: done.put(threading.get_ident()))
    helper = done.get(timeout=PATIENCE)
    assert helper != threading.get_ident()


def test_thread_that_is_not_the_main_one_says_that_it_can_have_no_other_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then its caller does the work, or not."""

    def no_thread(_: object) -> bool:
        return False

    idle()
    monkeypatch.setattr("koyeb_session._concurrency.threads.launch._start", no_thread)
    with Background() as background:
        job = background.start(lambda: launch(int))
    assert job.result() is False


def test_main_thread_says_that_it_can_have_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many threads, or too little memory."""
    idle()
    context = contextvars.copy_context()  # which raises that error when it is entered twice
    monkeypatch.setattr("_thread.start_new_thread", context.run)
    assert context.run(launch, int) is False
