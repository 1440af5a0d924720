"""Cases of the blocking half alone: threads that end while others wait for their work."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator
from typing import Any

import httpx
import pytest

from koyeb_session import MemoryTokenStore, SessionClient, Token, TransportError
from koyeb_session._concurrency.runtime import state_lock
from koyeb_session._core.deadline import Deadline
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from .concurrency import PATIENCE, Background, Halted, arrived, idle, until
from .support import DAY, inside


@pytest.fixture
def fake() -> FakeKoyeb:
    """Make a service whose tokens die when they are refreshed."""
    return FakeKoyeb()


@pytest.mark.pitfall(16)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupted_listener_leaves_the_rest_to_the_next(fake: FakeKoyeb) -> None:
    """Catches a "somebody is telling" that outlives its teller: nobody is ever told again."""
    heard: list[Token | None] = []
    others: list[Token | None] = []

    def listener(token: Token | None) -> None:
        heard.append(token)
        if len(heard) == 1:
            sys.exit("it ends the thread that tells")

    with SessionClient(transport=fake.transport, token=fake.issue_token()) as session:
        session.on_token_change(listener)
        session.on_token_change(others.append)
        first = session.refresh()
        idle()
        second = session.refresh()
        idle()
    assert heard == [first, second]
    assert others == [second]


def test_a_transport_that_halts_its_thread_fails_once() -> None:
    """Like the ``Timeout`` of gevent; catches a renewal that begins again with each request."""
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    tried: list[str] = []

    def halt(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/refresh"):
            return fake.transport.handle_request(request)
        tried.append(request.url.path)
        raise Halted

    transport = httpx.MockTransport(halt)
    with SessionClient(transport=transport, clock=clock, token=fake.issue_token()) as session:
        clock.advance(DAY * 0.6)
        for _ in range(5):
            assert session.http.get("/v1/apps").status_code == 200
            idle()
        with pytest.raises(TransportError, match="was not renewed: RuntimeError"):
            session.refresh()
    assert len(tried) == 2


@pytest.mark.usefixtures("no_grace")
def test_a_late_reply_is_saved_in_the_lock_of_its_own_renewal(
    fake: FakeKoyeb, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller has more time than the client; catches a save that waits for that very lock."""
    fake.fail("refresh", Fault(gate=(gate := Gate()), hold="reply"))
    store, token = MemoryTokenStore(), fake.issue_token()
    given: Any = {"transport": fake.transport, "timeout": 0.01}
    with SessionClient(store=store, token=token, **given) as session, Background() as background:
        persistence = inside(session).persistence
        job = background.start(lambda: session.refresh(timeout=PATIENCE))
        arrived(gate)
        until(lambda: not persistence._hold.alive)  # it counts as late
        gate.open()
        newer = job.result()
        assert store.load() == newer
    assert caplog.messages == []  # no news of a token that could not be saved in time


def test_hold_that_was_left_is_read_for_a_caller_that_joins_as_the_lock_comes() -> None:
    """Catches a caller that takes the store for empty, as nobody was there to read it for."""
    gate = Gate()

    class Awaited(MemoryTokenStore):
        @contextlib.contextmanager
        def lock(self) -> Generator[None]:
            gate.pass_through(PATIENCE)
            yield

    store = Awaited()
    store.save(token := Token("a"))
    with SessionClient(store=store) as session:
        hold = inside(session).persistence.hold()
        arrived(gate)
        hold.leave(Deadline(0))
        with state_lock:
            gate.open()
            until(lambda: hold.locked)
            assert hold.join()
        hold.ready(PATIENCE)
        assert hold.not_ready is None
        assert hold.found == token
        hold.leave(Deadline(PATIENCE))


@pytest.mark.usefixtures("no_grace")
def test_logout_waits_no_longer_than_its_time_for_a_hook_that_hangs(fake: FakeKoyeb) -> None:
    """A thread cannot be stopped; catches a caller that waits for as long as the thread does."""
    go = threading.Event()

    def hang(_: httpx.Request) -> None:
        go.wait(PATIENCE)

    with httpx.Client(transport=fake.transport, event_hooks={"request": [hang]}) as client:
        session = SessionClient(http_client=client, token=fake.issue_token(), timeout=0.05)
        with pytest.raises(TransportError, match="not done within"):
            session.logout()
        assert not go.is_set()
        go.set()
        session.close()
    assert session.token is None


def test_logout_in_the_midst_of_a_change_is_done_after_it(fake: FakeKoyeb) -> None:
    """A signal handler holds up the change that it has interrupted, and so cannot wait for it."""
    with SessionClient(transport=fake.transport, token=fake.issue_token()) as session:
        with state_lock, pytest.raises(TransportError, match=r"^logout: it goes on once"):
            session.logout()
        idle()
        assert session.token is None
        assert fake.live_tokens() == []


@pytest.mark.pitfall(20)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exchange_that_ends_its_thread_keeps_no_thread_waiting(fake: FakeKoyeb) -> None:
    """Catches a renewal that only a result ends: a transport that calls `sys.exit` hangs all."""
    gate = Gate()

    class Leaving(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            gate.pass_through(PATIENCE)
            sys.exit("it ends the thread of the exchange")

    with (
        SessionClient(transport=Leaving(), token=fake.issue_token()) as session,
        Background() as background,
    ):
        jobs = [background.start(session.refresh) for _ in range(3)]
        arrived(gate)
        background.settled()
        gate.open()
        for job in jobs:
            with pytest.raises(
                TransportError,
                match=r"^the token was not renewed: RuntimeError: it raised SystemExit$",
            ):
                job.result()
    idle()


def test_a_listener_waits_for_a_renewal_that_uses_the_listener_s_session(fake: FakeKoyeb) -> None:
    """The renewal waits for the token of the other session, and for nothing after that."""
    gate = Gate()
    brought: list[Token] = []

    def source() -> str:
        other.current_token()
        gate.pass_through(PATIENCE)
        return fake.issue_token()

    def listen(_: Token | None) -> None:
        brought.append(session.current_token())

    with (
        SessionClient(transport=fake.transport, credentials=fake.issue_token) as other,
        SessionClient(transport=fake.transport, credentials=source) as session,
        Background() as background,
    ):
        other.on_token_change(listen)
        job = background.start(session.current_token)
        arrived(gate)
        background.settled()
        gate.open()
        token = job.result()
        idle()
    assert brought == [token]
