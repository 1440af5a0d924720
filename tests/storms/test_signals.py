"""What a signal handler raises, or does with the session that it interrupts."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Final

import pytest

from koyeb_session import RefreshPolicy, RetryPolicy, SessionClient, TransportError
from koyeb_session._concurrency.threads import shared_task
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import Background, arrived
from ..soak import SOAK
from .stage import EMAIL, LIFE, PASSWORD

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    # `Thread.start` that is interrupted forgets a thread that has begun.
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in.*:pytest.PytestUnraisableExceptionWarning"
    ),
]

HARD: Final = LIFE - timedelta(seconds=20)
MOMENT: Final = 0.00002
"""Seconds from one moment at which a signal comes to the next one."""
MOMENTS: Final = 2_000 if SOAK else 100
ROUNDS: Final = 200 if SOAK else 20


class TimeIsUpError(Exception):
    """What a job queue raises in the middle of a job."""


class Scene:
    """A session on a store, at the end of its token's life, in the main thread."""

    def __init__(self, *, keeps: bool = False, timeout: float = 5) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            clock=self.clock, token_lifetime=LIFE, refresh="keeps" if keeps else "revokes"
        )
        self.store = MemoryTokenStore()
        self.session = SessionClient(
            token=self.fake.issue_token(),
            store=self.store,
            transport=self.fake.transport,
            clock=self.clock,
            retry_policy=RetryPolicy(delay=0),
            refresh_policy=RefreshPolicy(jitter=0),
            timeout=timeout,
        )
        self.clock.advance(HARD)

    def check(self, act: str) -> None:
        """Check that the session works, and that the store holds what the session is."""
        if act == "close":
            self.session.close()
        elif act == "logout":
            self.session.logout()
            assert self.session.token is None
            assert self.store.load() is None
        else:
            assert self.session.http.get("/v1/apps").status_code == 200
            self.session.close()  # what is under way comes to its end
            assert self.session.token is not None
            assert self.session.token.id in self.fake.live_tokens()
            saved = self.store.load()
            assert saved is not None
            assert saved.id == self.session.token.id
            if act in {"refresh", "current_token", "request"}:
                assert self.fake.live_tokens() == [saved.id]


ACTS: Final[dict[str, Callable[[SessionClient], object]]] = {
    "login": lambda session: session.login(EMAIL, PASSWORD),
    "refresh": lambda session: session.refresh(),
    "logout": lambda session: session.logout(),
    "current_token": lambda session: session.current_token(),
    "request": lambda session: session.http.get("/v1/apps"),
    "new_session": lambda session: session.new_session(),
    "close": lambda session: session.close(),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a flight again soon whose starter was interrupted."""
    monkeypatch.setattr(shared_task, "_GRACE", 0.02, raising=False)


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[FrameType | None], object]], None]]:
    """Set what the timer's signal does; it is as it was after the test."""
    before = signal.getsignal(signal.SIGALRM)

    def handle(act: Callable[[FrameType | None], object]) -> None:
        signal.signal(signal.SIGALRM, lambda _, frame: act(frame))

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Alarm:
    """Raises out of a timer's signal, once, where the package or what it calls is at work."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.armed = False
        self.raised = False

    def start(self) -> None:
        """Set the timer."""
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, self._delay)

    def ring(self, frame: FrameType | None) -> None:
        """Raise, or come again a moment later: the service is another program's affair."""
        if not self.armed:
            return
        while frame is not None:
            if "testing" in frame.f_code.co_filename or frame.f_code.co_name == "__del__":
                signal.setitimer(signal.ITIMER_REAL, MOMENT)
                return
            frame = frame.f_back
        self.armed = False
        self.raised = True
        raise TimeIsUpError


@pytest.mark.parametrize("act", ACTS)
def test_session_works_when_a_handler_raises_at_any_moment(
    act: str, on_alarm: Callable[[Callable[[FrameType | None], object]], None]
) -> None:
    """What it raises reaches the caller unchanged; the session, its store and its token go on."""
    for moment in range(1, MOMENTS):
        scene = Scene()
        alarm = Alarm(moment * MOMENT)
        on_alarm(alarm.ring)
        caught: Exception | None = None  # kept, with its frames
        try:
            alarm.start()
            ACTS[act](scene.session)
            alarm.armed = False
        except TimeIsUpError as exc:
            caught = exc
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert (caught is not None) is alarm.raised, moment
        scene.check(act)


def test_refresh_reaches_its_end_when_a_handler_interrupts_its_caller(
    on_alarm: Callable[[Callable[[FrameType | None], object]], None],
) -> None:
    """The exchange that was under way is the session's, and the next caller joins it."""
    scene = Scene()
    gate = Gate()
    scene.fake.fail("refresh", Fault(gate=gate))

    def ring(frame: FrameType | None) -> None:
        raise TimeIsUpError

    def interrupt() -> None:
        arrived(gate)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    on_alarm(ring)
    with Background() as background:
        background.start(interrupt)
        with pytest.raises(TimeIsUpError):
            scene.session.refresh()
    gate.open()
    assert scene.session.current_token().id in scene.fake.live_tokens()
    scene.check("refresh")
    assert scene.fake.exchanges() == 1


@pytest.mark.parametrize("use", ["token", "current_token", "refresh", "repr"])
def test_nothing_hangs_when_a_handler_uses_the_session(
    use: str, on_alarm: Callable[[Callable[[FrameType | None], object]], None]
) -> None:
    """A handler may do what its own thread is in the middle of."""
    scene = Scene(keeps=True, timeout=0.2)
    session = scene.session
    uses: dict[str, Callable[[], object]] = {
        "token": lambda: session.token,
        "current_token": session.current_token,
        "refresh": session.refresh,
        "repr": lambda: repr(session),
    }
    busy = False
    rang = 0

    def ring(frame: FrameType | None) -> None:
        nonlocal busy, rang
        while frame is not None and "testing" not in frame.f_code.co_filename:
            frame = frame.f_back
        if busy or frame is not None:  # the service's own lock is no affair of the session's
            return
        busy = True
        try:
            rang += 1
            uses[use]()
        except TransportError:
            pass  # it cannot wait for what its own thread is in the middle of
        finally:
            busy = False

    on_alarm(ring)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    for n in range(ROUNDS):
        with contextlib.suppress(TransportError):  # as its flight may have waited for the handler
            session.current_token()
            session.refresh()
            if n % 5 == 0:
                session.login(EMAIL, PASSWORD)
            session.http.get("/v1/apps")
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert rang
    scene.check("login")


def test_nothing_hangs_when_a_finalizer_uses_the_session() -> None:
    """The collector may come in the middle of whatever its thread does."""
    scene = Scene()
    session = scene.session
    seen: list[object] = []

    class Finalized:
        """Uses the session when it is collected."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            seen.append((session.token, repr(session), session.current_token()))

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        for _ in range(ROUNDS):
            Finalized()
            session.refresh()
            session.current_token()
    finally:
        gc.set_threshold(*before)
    assert seen
    scene.check("refresh")
