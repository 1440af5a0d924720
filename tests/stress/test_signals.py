"""An error that a signal handler raises, and its use of the session that it interrupts."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from operator import methodcaller
from typing import Final

import pytest

from koyeb_session import (
    NotSignedInError,
    PasswordCredentials,
    SessionClient,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._concurrency.runtime import is_in_step
from koyeb_session._concurrency.threads import shared_task
from koyeb_session._concurrency.threads.deadlines import ends
from koyeb_session._concurrency.threads.launch import end_idle_threads
from koyeb_session._concurrency.threads.shared_task import SharedTask
from koyeb_session._core.snapshot import Need, Urgency
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import PATIENCE, Background, arrived, idle, until
from ..soak import SOAK
from ..support import inside, raising
from .lines import SignalAtLine, TimeIsUpError, limit
from .scenario import (
    EMAIL,
    LIFE,
    PASSWORD,
    Work,
    arguments,
    current_token,
    get,
    is_saved_for,
    login,
    logout,
    refresh,
)

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

ME: Final = PasswordCredentials(EMAIL, PASSWORD)
HARD: Final = LIFE - timedelta(seconds=20)
ROUNDS: Final = 200 if SOAK else 20


class InterruptedSession:
    """A session on a store, at the end of its token's life, in the main thread."""

    def __init__(self, *, keeps: bool = False, timeout: float = 5, age: timedelta = HARD) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            clock=self.clock, token_lifetime=LIFE, refresh="keeps" if keeps else "revokes"
        )
        self.store = MemoryTokenStore()
        given = {"store": self.store, "transport": self.fake.transport, "timeout": timeout}
        self.session = SessionClient(**arguments(self.fake, self.clock, **given))
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


ACTS: Final[dict[str, Work]] = {
    "login": login,
    "refresh": refresh,
    "logout": logout,
    "current_token": current_token,
    "request": get,
    "new_session": methodcaller("new_session"),
    "close": methodcaller("close"),
}
USES: Final[dict[str, Work]] = {**ACTS, "show": lambda session: (session.token, repr(session))}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Start the tasks that a handler has held back: other tests wait until there are none."""
    yield
    idle()


@pytest.mark.pitfall(34)
@pytest.mark.parametrize(("act", "keeps"), [*((act, False) for act in ACTS), ("refresh", True)])
def test_session_works_when_a_handler_raises_at_any_line(act: str, *, keeps: bool) -> None:
    """
    Its error reaches the caller unchanged; the session, its store and its token go on.

    No deadline of the interrupted call is left, although the error still holds its frames.

    Before Python 3.13, `is_alive` of the main thread ends it when a handler raises in it.
    """
    for at in itertools.count(1):
        scenario = InterruptedSession()
        if not keeps:  # no thread is idle
            end_idle_threads()
        line, error = limit(partial(ACTS[act], scenario.session), at)
        assert (error is not None) is line.struck, at
        assert ends.get() == math.inf, at
        if scenario.session.token is None:  # signed out, and so as a whole
            scenario.session.close()
            assert not scenario.fake.live_tokens(), at
            assert scenario.store.load() is None, at
        else:
            scenario.check(act)
        assert threading.main_thread().is_alive(), at
        del error  # with its frames
        if not line.reached:
            until(lambda: all(thread.ident for thread in threading.enumerate()))
            return


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


def test_refresh_reaches_its_end_when_a_handler_interrupts_its_caller() -> None:
    """The exchange that was under way is the session's, and the next caller joins it."""
    scenario = InterruptedSession()
    gate = Gate()
    scenario.fake.fail("refresh", Fault(gate=gate))

    def interrupt() -> None:
        arrived(gate)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    with Background() as background, SignalAtLine(raising(TimeIsUpError()), 0):
        background.start(interrupt)
        with pytest.raises(TimeIsUpError):
            scenario.session.refresh()
    gate.open()
    assert scenario.session.current_token().id in scenario.fake.live_tokens()
    scenario.check("refresh")
    assert scenario.fake.exchanges() == 1


@pytest.mark.pitfall(43)
@pytest.mark.parametrize("use", ["show", "refresh", "current_token", "login", "logout", "close"])
@pytest.mark.parametrize("act", ["ahead of need", "current_token", "refresh", "logout", "close"])
def test_handler_that_uses_the_session_at_any_line_waits_for_nothing_in_vain(
    act: str, use: str
) -> None:
    """Catches a wait for the handler's own thread, which lasts until its timeout."""
    for at in itertools.count(1):
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


def use_in_handler(scenario: InterruptedSession, use: str) -> None:
    """Use the session as a handler does that is in no hurry."""
    error: TransportError | None = None
    try:
        USES[use](scenario.session)
    except (NotSignedInError, RuntimeError):
        pass  # it has signed out, or closed, the session that it interrupts
    except TransportError as exc:
        error = exc
    if error is not None:
        assert is_in_step(), error
        assert not isinstance(error, TransportTimeoutError), error
        assert error.retryable, error


@pytest.mark.pitfall(43)
def test_nothing_hangs_when_a_finalizer_uses_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector may come at any line of its thread."""
    # The collector may wait for a task that its own thread is about to launch.
    monkeypatch.setattr(shared_task, "_FIRST_LOOK", 0.02)
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
