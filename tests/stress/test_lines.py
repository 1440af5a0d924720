"""Another thread acts between any two lines of a call that asks for a token."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from functools import partial
from typing import Any, Final

import pytest

from koyeb_session import (
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    ServerError,
    SessionClient,
    SessionExpiredError,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..soak import SOAK
from .lines import AtLine, in_another_thread
from .scenario import EMAIL, LIFE, PASSWORD

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

MOST: Final = 2_000
STEP, SHORT_STEP = (1, 1) if SOAK else (23, 3)
"""
Lines from one act to the next, in long calls and in short ones.

Where the first of them is differs from one case to another.
"""
PHASES: Final = {
    "fresh": timedelta(0),
    "soft": LIFE / 2,
    "hard": LIFE - timedelta(seconds=20),
    "expired": LIFE + timedelta(seconds=1),
}


class Scene:
    """A session with credentials, at some age, with its answers and its requests."""

    def __init__(self, phase: str, *, keeps: bool = False, **arguments: Any) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            clock=self.clock, token_lifetime=LIFE, refresh="keeps" if keeps else "revokes"
        )
        arguments.setdefault("credentials", PasswordCredentials(EMAIL, PASSWORD))
        self.session = SessionClient(
            token=self.fake.issue_token(),
            transport=self.fake.transport,
            clock=self.clock,
            retry_policy=RetryPolicy(delay=0),
            refresh_policy=RefreshPolicy(jitter=0),
            **arguments,
        )
        assert self.session.token is not None
        self.held: list[str] = [self.session.token.id]
        self.session.on_token_change(self._note)
        self.age = PHASES[phase]
        self.clock.advance(self.age)
        self.result: object = None
        self.error: Exception | None = None
        self.after = 0

    def _note(self, token: Token | None) -> None:
        if token is not None:
            self.held.append(token.id)

    def run(self, call: Call, act: Act, at: int) -> bool:
        """Make the call, with the act before its line ``at``; tell whether it has that many."""
        try:
            with AtLine(in_another_thread(lambda: act(self)), at) as line:
                self.result = call(self)
        except KoyebSessionError as exc:
            self.error = exc
        self.after = self.session.http.get("/v1/apps").status_code
        self.session.close()
        return line.reached


Call = Callable[[Scene], object]
Act = Callable[[Scene], object]


def current_token(scene: Scene) -> str:
    """Ask for a token; the token that comes is good."""
    started = scene.clock.time()
    token = scene.session.current_token()
    assert token.expires_at is not None
    assert token.expires_at.timestamp() > started, "an expired token was handed out"
    return token.id


def request(scene: Scene) -> int:
    """Send a request whose body can be sent again."""
    return scene.session.http.get("/v1/apps").status_code


def streamed_request(scene: Scene) -> int:
    """Send a request whose body cannot be sent again."""

    def body() -> Generator[bytes]:
        yield b'{"name": "one"}'

    return scene.session.http.post("/v1/apps", content=body()).status_code


def replay(scene: Scene) -> int:
    """Send a request that is refused once."""
    scene.fake.fail("apps", Fault(status=401))
    return scene.session.http.get("/v1/apps").status_code


def new_session(scene: Scene) -> str:
    """Ask for a token of another session."""
    return scene.session.new_session().id


def renew(scene: Scene) -> None:
    """Renew the session."""
    scene.session.refresh()


def sign_in(scene: Scene) -> None:
    """Sign in anew."""
    scene.session.login(EMAIL, PASSWORD)


def expire(scene: Scene) -> None:
    """Let the token expire that the session began with."""
    scene.clock.advance(max(LIFE + timedelta(seconds=1) - scene.age, timedelta(0)))


CALLS: Final[dict[str, Call]] = {
    call.__name__: call for call in (current_token, request, streamed_request, replay, new_session)
}
ACTS: Final[dict[str, Act]] = {act.__name__: act for act in (renew, sign_in, expire)}


def every_line(
    make: Callable[[], Scene], call: Call, act: Act, first: int = 0
) -> Iterator[tuple[int, Scene]]:
    """Make the same call again and again, with the act at a later line each time."""
    make().run(call, act, 0)  # it does the imports of the first call
    step = SHORT_STEP if call is current_token else STEP
    for at in range(1 + first % step, MOST, step):
        scene = make()
        if not scene.run(call, act, at):
            assert at > step
            return
        yield at, scene
    pytest.fail("it has no end")


CASES: Final = [(call, phase, act) for call in CALLS for phase in PHASES for act in ACTS]


@pytest.mark.pitfall(44)
@pytest.mark.parametrize(("call", "phase", "act"), CASES)
def test_call_is_answered_when_another_thread_acts_between_any_two_lines(
    call: str, phase: str, act: str
) -> None:
    """No expired token is handed out or sent, and nothing fails that has credentials to go on."""
    # A token that is revoked between two lines, twice, is refused, and rightly so.
    keeps = call != "current_token"
    first = 5 * CASES.index((call, phase, act))
    for at, scene in every_line(lambda: Scene(phase, keeps=keeps), CALLS[call], ACTS[act], first):
        where = f"{call}, {phase}, {act} before line {at}"
        if act == "expire" and scene.result == 401:
            # Signed before it expired and sent after it, with no other one to be sent.
            assert call == "streamed_request" or (call, phase) == ("replay", "fresh"), where
            continue
        assert scene.error is None, (where, scene.error)
        if call in {"request", "replay", "streamed_request"}:
            assert scene.result == 200, where
        elif call == "current_token":
            assert scene.result in scene.held, where
        assert scene.after == 200, where
        assert scene.session.token is not None
        assert scene.session.token.id in scene.fake.live_tokens(), where


@pytest.mark.parametrize("call", ["request", "new_session"])
def test_call_is_answered_when_its_token_is_revoked_between_any_two_lines(call: str) -> None:
    """Another thread's renewal costs a replay, and no more."""
    for at, scene in every_line(lambda: Scene("fresh"), CALLS[call], renew):
        assert scene.error is None, (at, scene.error)
        assert scene.fake.exchanges() == 1, at
        if call == "request":
            assert scene.result == 200, at


@pytest.mark.parametrize("call", ["current_token", "request", "new_session"])
def test_error_has_its_cause_when_time_passes_between_any_two_lines(call: str) -> None:
    """An expired token in its back-off fails with the error of the renewal, at each line."""

    def make() -> Scene:
        scene = Scene("hard", credentials=None)
        scene.fake.fail("refresh", Fault(status=503), times=9)
        scene.session.current_token()
        scene.clock.advance(20)
        return scene

    for at in range(1, MOST, SHORT_STEP):
        scene = make()
        act = in_another_thread(partial(scene.clock.advance, 3600))
        with pytest.raises(SessionExpiredError) as caught, AtLine(act, at) as line:
            CALLS[call](scene)
        scene.session.close()
        if not line.reached:
            return
        assert isinstance(caught.value.__cause__, ServerError), at
    pytest.fail("it has no end")


def test_only_a_logout_is_the_error_when_another_thread_signs_out_between_any_two_lines() -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in range(1, MOST):
        scene = Scene("hard")
        other = in_another_thread(scene.session.logout)
        with AtLine(other, at) as line, contextlib.suppress(NotSignedInError):
            assert scene.session.current_token().id in scene.held, at
        if not line.reached:
            scene.session.close()
            return
        assert scene.session.token is None, at
        assert not scene.fake.live_tokens(), at
        scene.session.close()
    pytest.fail("it has no end")
