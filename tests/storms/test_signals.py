"""What a signal handler raises, or does with the session that it interrupts."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest

from koyeb_session import RefreshPolicy, RetryPolicy, SessionClient
from koyeb_session._concurrency import flights
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, Gate

from ..concurrency import Background, arrived, until
from ..soak import SOAK
from .lines import AtLine
from .stage import EMAIL, LIFE, PASSWORD

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

HARD: Final = LIFE - timedelta(seconds=20)
MOST: Final = 3_000
STEP: Final = 3


class TimeIsUpError(Exception):
    """What a job queue raises in the middle of a job."""


class Scene:
    """A session on a store, at the end of its token's life, in the main thread."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(clock=self.clock, token_lifetime=LIFE)
        self.store = MemoryTokenStore()
        self.session = SessionClient(
            token=self.fake.issue_token(),
            store=self.store,
            transport=self.fake.transport,
            clock=self.clock,
            retry_policy=RetryPolicy(delay=0),
            refresh_policy=RefreshPolicy(jitter=0),
            timeout=5,
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
            assert not self.fake.live_tokens()
        else:
            assert self.session.http.get("/v1/apps").status_code == 200
            self.session.close()  # what is under way comes to its end
            assert self.session.token is not None
            assert self.session.token.id in self.fake.live_tokens()
            saved = self.store.load()
            assert saved is not None
            assert saved.id == self.session.token.id
            if act not in {"login", "new_session"}:  # which leave one that nobody has heard of
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
    monkeypatch.setattr(flights, "_GRACE", 0.02, raising=False)


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Set what the timer's signal does; it is as it was after the test."""
    before = signal.getsignal(signal.SIGALRM)

    def handle(act: Callable[[], object]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: act())

    yield handle
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def time_is_up() -> None:
    """Raise as a handler does."""
    raise TimeIsUpError


@pytest.mark.parametrize("act", ACTS)
def test_session_works_when_a_handler_raises_at_any_line(act: str) -> None:
    """What it raises reaches the caller unchanged; the session, its store and its token go on."""
    step = 1 if SOAK else STEP
    for at in range(1, MOST, step):
        scene = Scene()
        kept: Exception | None = None  # a caller may keep it, with its frames
        with AtLine(time_is_up, at, everywhere=True) as line:
            try:
                ACTS[act](scene.session)
            except TimeIsUpError as exc:
                kept = exc
        assert (kept is not None) is line.reached, at
        scene.check(act)
        if not line.reached:
            return
    pytest.fail("it has no end")
