"""An error that a signal handler raises, and its use of the session that it interrupts."""

# pyright: reportPossiblyUnboundVariable=false
# A loop over lines runs at least once.

from __future__ import annotations

import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Final

import pytest

from koyeb_session import (
    NotSignedInError,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._concurrency.threads import shared_task
from koyeb_session._concurrency.threads.launch import end_idle_threads
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session._core.snapshot import Need, Urgency
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, Background, arrived, idle, until
from ..soak import SOAK
from ..support import inside, raising
from .lines import SignalAtLine, holds_the_lock
from .scenario import EMAIL, LIFE, PASSWORD, is_saved_for

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

ME: Final = PasswordCredentials(EMAIL, PASSWORD)
HARD: Final = LIFE - timedelta(seconds=20)
MOMENT: Final = 0.00002
"""Seconds from one moment at which a signal comes to the next one."""
MOMENTS: Final = 2_000 if SOAK else 100
LINES: Final = 2_000
ROUNDS: Final = 200 if SOAK else 20


class TimeIsUpError(Exception):
    """The error of a job queue in the middle of a job."""


class InterruptedSession:
    """A session on a store, at the end of its token's life, in the main thread."""

    def __init__(self, *, keeps: bool = False, timeout: float = 5, age: timedelta = HARD) -> None:
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
        assert self.session.token is not None
        self.given = self.session.token
        self.clock.advance(age)

    def check(self, act: str) -> None:
        """Check that the session works, and that the store holds its token for its account."""
        if act == "close":
            self.session.close()
        elif act == "logout":
            self.session.logout()
            assert self.session.token is None
            assert self.store.load() is None
        else:
            assert self.session.http.get("/v1/apps").status_code == 200
            self.session.close()  # the work under way comes to its end
            assert self.session.token is not None
            assert self.session.token.id in self.fake.live_tokens()
            saved = self.store.load()
            assert saved is not None
            assert saved.id == self.session.token.id
            has_begun = act == "login" and inside(self.session).state.generation
            assert is_saved_for(saved, ME if has_begun else self.given)
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
def nothing_is_left() -> Iterator[None]:
    """Start the tasks that a handler has held back: other tests wait until there are none."""
    yield
    idle()


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[FrameType | None], object]], None]]:
    """Set the action of the timer's signal; it is as it was after the test."""
    before = signal.getsignal(signal.SIGALRM)

    def handle(act: Callable[[FrameType | None], object]) -> None:
        signal.signal(signal.SIGALRM, lambda _, frame: act(frame))

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


OTHERS: Final = ("testing", "logging", "<frozen importlib")
"""
Parts of the names of files that are no affair of the session's: the service, and Python's locks.

Where a handler raises just after Python 3.11 has locked `logging`, or a module that it imports, the
lock stays locked. Each other thread of the process then waits for it without end.
"""


class Alarm:
    """Raises out of a timer's signal, once, in the package or in a function that it calls."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self.armed = False
        self.raised = False

    def start(self) -> None:
        """Set the timer."""
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, self._delay)

    def ring(self, frame: FrameType | None) -> None:
        """Raise, or come again a moment later: see `OTHERS`."""
        if not self.armed:
            return
        while frame is not None:
            path, name = frame.f_code.co_filename, frame.f_code.co_name
            if any(other in path for other in OTHERS) or name in {"__del__", "gc_callback"}:
                signal.setitimer(signal.ITIMER_REAL, MOMENT)
                return
            frame = frame.f_back
        self.armed = False
        self.raised = True
        raise TimeIsUpError


@pytest.mark.pitfall(34)
@pytest.mark.parametrize("act", ACTS)
def test_session_works_when_a_handler_raises_at_any_moment(
    act: str, on_alarm: Callable[[Callable[[FrameType | None], object]], None]
) -> None:
    """Its error reaches the caller unchanged; the session, its store and its token go on."""
    for moment in range(1, MOMENTS):
        scenario = InterruptedSession()
        alarm = Alarm(moment * MOMENT)
        on_alarm(alarm.ring)
        caught: Exception | None = None  # kept, with its frames
        try:
            alarm.start()
            ACTS[act](scenario.session)
            alarm.armed = False
        except TimeIsUpError as exc:
            caught = exc
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert (caught is not None) is alarm.raised, moment
        scenario.check(act)


@pytest.mark.parametrize(("act", "keeps"), [*((act, False) for act in ACTS), ("refresh", True)])
def test_session_works_when_a_handler_raises_at_any_line(act: str, *, keeps: bool) -> None:
    """
    Without and with an idle thread: races that a timer's signal meets once in 10,000 times.

    Before Python 3.13, `is_alive` of the main thread ends it when a handler raises in it.
    """
    for at in range(1, LINES):
        scenario = InterruptedSession()
        if not keeps:
            end_idle_threads()
        caught: Exception | None = None
        try:
            with SignalAtLine(time_is_up, at) as line:
                ACTS[act](scenario.session)
        except TimeIsUpError as exc:
            caught = exc
        assert (caught is not None) is line.struck, at
        if scenario.session.token is None:  # signed out, and so as a whole
            scenario.session.close()
            assert not scenario.fake.live_tokens(), at
            assert scenario.store.load() is None, at
        else:
            scenario.check(act)
        assert threading.main_thread().is_alive(), at
        if not line.reached:
            until(lambda: all(thread.ident for thread in threading.enumerate()))
            return
    pytest.fail("it has no end")


def time_is_up() -> None:
    """Raise as a signal handler does."""
    raise TimeIsUpError


def test_alarm_leaves_the_lock_of_logging_alone(
    on_alarm: Callable[[Callable[[FrameType | None], object]], None],
) -> None:
    """A lock that stays locked fails other tests, whose threads wait for it."""
    log = logging.getLogger("koyeb_session.alarm")

    def look() -> bool:
        log.setLevel(logging.DEBUG)  # the next look is one under the lock
        return log.isEnabledFor(logging.DEBUG)

    def look_until(alarm: Alarm) -> None:
        alarm.start()
        while alarm.armed:
            look()

    for moment in range(1, MOMENTS):
        alarm = Alarm(moment * MOMENT / 10)
        on_alarm(alarm.ring)
        with contextlib.suppress(TimeIsUpError):
            look_until(alarm)
        with Background() as background:
            assert background.start(look).result()


def test_logout_that_a_handler_kept_from_starting_ends_no_later_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closing starts all pending work; catches a logout that comes after the next login."""
    fake, store = FakeKoyeb(users={EMAIL: PASSWORD}), MemoryTokenStore()
    session = SessionClient(transport=fake.transport, store=store)
    session.login(EMAIL, PASSWORD)

    with monkeypatch.context() as patched:
        patched.setattr(SharedTask, "_launch", raising(TimeIsUpError()))
        with pytest.raises(TimeIsUpError):
            session.logout()
    later = session.login(EMAIL, PASSWORD)
    session.close()
    idle()
    assert session.token == store.load() == later
    assert later.id in fake.live_tokens()


def test_logout_begins_no_renewal_whose_starter_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for one under way; catches the exchange of a token that is just being revoked."""

    def interrupted(_: object) -> None:
        pass

    scenario = InterruptedSession()
    keeper = inside(scenario.session).keeper
    with monkeypatch.context() as patched:
        patched.setattr(SharedTask, "start", interrupted)
        need = Need(keeper.state.snapshot, keeper.state.generation, Urgency.NEEDED, 5)
        assert keeper._join_or_start(need)
    scenario.session.logout()
    assert [request.operation for request in scenario.fake.requests] == ["logout"]
    scenario.session.close()


def test_refresh_reaches_its_end_when_a_handler_interrupts_its_caller(
    on_alarm: Callable[[Callable[[FrameType | None], object]], None],
) -> None:
    """The exchange that was under way is the session's, and the next caller joins it."""
    scenario = InterruptedSession()
    gate = Gate()
    scenario.fake.fail("refresh", Fault(gate=gate))

    def ring(frame: FrameType | None) -> None:
        raise TimeIsUpError

    def interrupt() -> None:
        arrived(gate)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    on_alarm(ring)
    with Background() as background:
        background.start(interrupt)
        with pytest.raises(TimeIsUpError):
            scenario.session.refresh()
    gate.open()
    assert scenario.session.current_token().id in scenario.fake.live_tokens()
    scenario.check("refresh")
    assert scenario.fake.exchanges() == 1


@pytest.mark.pitfall(43)
@pytest.mark.parametrize("use", ["token", "current_token", "refresh", "repr"])
def test_nothing_hangs_when_a_handler_uses_the_session(
    use: str, on_alarm: Callable[[Callable[[FrameType | None], object]], None]
) -> None:
    """A handler may use the session in the middle of its own thread's work with it."""
    scenario = InterruptedSession(keeps=True, timeout=0.2)
    session = scenario.session
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
            pass  # it cannot wait for work in the middle of which its own thread is
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
    scenario.check("login")


@pytest.mark.parametrize("use", ["refresh", "current_token", "login", "logout", "close"])
@pytest.mark.parametrize("act", ["ahead of need", "current_token", "refresh", "logout", "close"])
def test_handler_that_uses_the_session_at_any_line_waits_for_nothing_in_vain(
    act: str, use: str
) -> None:
    """Catches a wait for the handler's own thread, which lasts until its timeout."""
    for at in range(1, LINES):
        is_ahead = act not in ACTS
        scenario = InterruptedSession(timeout=PATIENCE, age=LIFE / 2 if is_ahead else HARD)
        line = SignalAtLine(partial(use_in_handler, scenario, use), at)
        done = False
        with contextlib.suppress(NotSignedInError, RuntimeError, TransportError), line:
            ACTS["current_token" if is_ahead else act](scenario.session)
            done = True
        assert done or line.struck, at
        scenario.session.close()
        token, saved = scenario.session.token, scenario.store.load()
        live = set(scenario.fake.live_tokens())
        assert token is scenario.given or (saved and saved.id) == (token and token.id), at
        assert token is None or token.id in live, at
        if done and use != "login":
            assert live == ({token.id} if token else set()), at
        if not line.reached:
            return
    pytest.fail("it has no end")


def use_in_handler(scenario: InterruptedSession, use: str) -> None:
    """Use the session as a handler does that is in no hurry."""
    error: TransportError | None = None
    try:
        ACTS[use](scenario.session)
    except (NotSignedInError, RuntimeError):
        pass  # it has signed out, or closed, the session that it interrupts
    except TransportError as exc:
        error = exc
    if error is not None:
        assert holds_the_lock(), error
        assert not isinstance(error, TransportTimeoutError), error
        assert error.retryable, error


@pytest.mark.pitfall(43)
def test_nothing_hangs_when_a_finalizer_uses_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may come at any line of its thread."""
    # The collector may wait for a task that its own thread is about to launch.
    monkeypatch.setattr(shared_task, "_GRACE", 0.02)
    scenario = InterruptedSession()
    session = scenario.session
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
    gc.collect()  # while the session is open: later, the finalizers would fail in another test
    until(lambda: bool(seen))  # another thread may be collecting
    scenario.check("refresh")
