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
    ServerError,
    SessionClient,
    SessionExpiredError,
)
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeKoyeb, Fault

from ..soak import SOAK
from .lines import AtLine, in_another_thread
from .scenario import EMAIL, LIFE, PASSWORD, PHASES, AgedSession, is_saved_for

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


class CallInThread(AgedSession):
    """A blocking session, and one call of it."""

    session: SessionClient

    def __init__(self, phase: str, *, keeps: bool = False, **arguments: Any) -> None:
        super().__init__(SessionClient, phase, keeps=keeps, **arguments)
        self.after = 0

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


Call = Callable[[CallInThread], object]
Act = Callable[[CallInThread], object]


def current_token(scenario: CallInThread) -> str:
    """Ask for a token; the token that comes is good."""
    started = scenario.clock.time()
    token = scenario.session.current_token()
    assert token.expires_at is not None
    assert token.expires_at.timestamp() > started, "an expired token was handed out"
    return token.id


def request(scenario: CallInThread) -> int:
    """Send a request whose body can be sent again."""
    return scenario.session.http.get("/v1/apps").status_code


def streamed_request(scenario: CallInThread) -> int:
    """Send a request whose body cannot be sent again."""

    def body() -> Generator[bytes]:
        yield b'{"name": "one"}'

    return scenario.session.http.post("/v1/apps", content=body()).status_code


def replay(scenario: CallInThread) -> int:
    """Send a request that is refused once."""
    scenario.fake.fail("apps", Fault(status=401))
    return scenario.session.http.get("/v1/apps").status_code


def new_session(scenario: CallInThread) -> str:
    """Ask for a token of another session."""
    return scenario.session.new_session().id


def renew(scenario: CallInThread) -> None:
    """Renew the session."""
    scenario.session.refresh()


def sign_in(scenario: CallInThread) -> None:
    """Sign in anew."""
    scenario.session.login(EMAIL, PASSWORD)


def expire(scenario: CallInThread) -> None:
    """Let the token expire that the session began with."""
    scenario.clock.advance(max(LIFE + timedelta(seconds=1) - scenario.age, timedelta(0)))


CALLS: Final[dict[str, Call]] = {
    call.__name__: call for call in (current_token, request, streamed_request, replay, new_session)
}
ACTS: Final[dict[str, Act]] = {act.__name__: act for act in (renew, sign_in, expire)}


def every_line(
    make: Callable[[], CallInThread], call: Call, act: Act, first: int = 0
) -> Iterator[tuple[int, CallInThread]]:
    """Make the same call again and again, with the act at a later line each time."""
    make().run(call, act, 0)  # it does the imports of the first call
    step = SHORT_STEP if call is current_token else STEP
    for at in range(1 + first % step, MOST, step):
        scenario = make()
        if not scenario.run(call, act, at):
            assert at > step
            return
        yield at, scenario
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
    for at, scenario in every_line(
        lambda: CallInThread(phase, keeps=keeps), CALLS[call], ACTS[act], first
    ):
        where = f"{call}, {phase}, {act} before line {at}"
        if act == "expire" and scenario.result == 401:
            # Signed before it expired and sent after it, with no other one to be sent.
            assert call == "streamed_request" or (call, phase) == ("replay", "fresh"), where
            continue
        assert scenario.error is None, (where, scenario.error)
        if call in {"request", "replay", "streamed_request"}:
            assert scenario.result == 200, where
        elif call == "current_token":
            assert scenario.result in scenario.held, where
        assert scenario.after == 200, where
        assert scenario.session.token is not None
        assert scenario.session.token.id in scenario.fake.live_tokens(), where


@pytest.mark.parametrize("call", ["request", "new_session"])
def test_call_is_answered_when_its_token_is_revoked_between_any_two_lines(call: str) -> None:
    """Another thread's renewal costs a replay, and no more."""
    for at, scenario in every_line(lambda: CallInThread("fresh"), CALLS[call], renew):
        assert scenario.error is None, (at, scenario.error)
        assert scenario.fake.exchanges() == 1, at
        if call == "request":
            assert scenario.result == 200, at


@pytest.mark.parametrize("call", ["current_token", "request", "new_session"])
def test_error_has_its_cause_when_time_passes_between_any_two_lines(call: str) -> None:
    """An expired token in its back-off fails with the error of the renewal, at each line."""

    def make() -> CallInThread:
        scenario = CallInThread("hard", credentials=None)
        scenario.fake.fail("refresh", Fault(status=503), times=9)
        scenario.session.current_token()
        scenario.clock.advance(20)
        return scenario

    for at in range(1, MOST, SHORT_STEP):
        scenario = make()
        act = in_another_thread(partial(scenario.clock.advance, 3600))
        with pytest.raises(SessionExpiredError) as caught, AtLine(act, at) as line:
            CALLS[call](scenario)
        scenario.session.close()
        if not line.reached:
            return
        assert isinstance(caught.value.__cause__, ServerError), at
    pytest.fail("it has no end")


def test_only_a_logout_is_the_error_when_another_thread_signs_out_between_any_two_lines() -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in range(1, MOST):
        scenario = CallInThread("hard")
        other = in_another_thread(scenario.session.logout)
        with AtLine(other, at) as line, contextlib.suppress(NotSignedInError):
            assert scenario.session.current_token().id in scenario.held, at
        if not line.reached:
            scenario.session.close()
            return
        assert scenario.session.token is None, at
        assert not scenario.fake.live_tokens(), at
        scenario.session.close()
    pytest.fail("it has no end")


def test_login_is_saved_for_its_own_account_when_another_one_comes_between_any_two_lines() -> None:
    """Catches a token of one account that is saved as one of the other's."""
    first, second = (PasswordCredentials(email, PASSWORD) for email in (EMAIL, "you@example.com"))
    fake = FakeKoyeb(users={first.email: PASSWORD, second.email: PASSWORD})
    for at in range(1, MOST):
        store = MemoryTokenStore()
        session = SessionClient(store=store, transport=fake.transport)
        other = in_another_thread(partial(session.login, second.email, PASSWORD))
        with AtLine(other, at) as line:
            mine = session.login(first.email, PASSWORD)
        session.close()
        assert session.token is not None
        assert store.load() == session.token, at
        has_lasted = session.token.user_id == mine.user_id
        assert is_saved_for(store.load(), first if has_lasted else second), at
        if not line.reached:
            return
    pytest.fail("it has no end")
