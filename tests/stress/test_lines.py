"""Another thread acts between any two lines of a call that asks for a token."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import partial

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
from .scenario import ACTS, CALLS, CASES, EMAIL, PASSWORD, AgedSession, Work, is_saved_for

pytestmark = [
    pytest.mark.blocks_loop,
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

STEP, SHORT_STEP = (1, 1) if SOAK else (23, 3)
"""
Lines from one act to the next, in long calls and in short ones.

Where the first of them is differs from one case to another.
"""


def run(scenario: AgedSession, call: Work, act: Work, at: int) -> bool:
    """Make the call, with the act before its line ``at``; tell whether it has that many."""
    try:
        with AtLine(in_another_thread(lambda: act(scenario)), at) as line:
            scenario.keep(call(scenario))
    except KoyebSessionError as exc:
        scenario.error = exc
    scenario.after = scenario.session.http.get("/v1/apps").status_code
    scenario.session.close()
    return line.reached


def every_line(
    make: Callable[[], AgedSession], call: Work, act: Work, step: int, first: int = 0
) -> Iterator[tuple[int, AgedSession]]:
    """Make the same call again and again, with the act at a later line each time."""
    run(make(), call, act, 0)  # it does the imports of the first call
    for at in itertools.count(1 + first % step, step):
        scenario = make()
        if not run(scenario, call, act, at):
            assert at > step
            return
        yield at, scenario


@pytest.mark.pitfall(44)
@pytest.mark.parametrize(("call", "phase", "act"), CASES)
def test_call_is_answered_when_another_thread_acts_between_any_two_lines(
    call: str, phase: str, act: str
) -> None:
    """No expired token is handed out or sent, and nothing fails that has credentials to go on."""
    # A token that is revoked between two lines, twice, is refused, and rightly so.
    make = partial(AgedSession, SessionClient, phase, keeps=call != "current_token")
    step = SHORT_STEP if call == "current_token" else STEP
    first = 5 * CASES.index((call, phase, act))
    for at, scenario in every_line(make, CALLS[call], ACTS[act], step, first):
        scenario.check(call, act, at)


@pytest.mark.parametrize("call", ["request", "new_session"])
def test_call_is_answered_when_its_token_is_revoked_between_any_two_lines(call: str) -> None:
    """Another thread's renewal costs a replay, and no more."""
    make = partial(AgedSession, SessionClient, "fresh", keeps=False)
    for at, scenario in every_line(make, CALLS[call], ACTS["renew"], STEP):
        scenario.check(call, "renew", at)
        assert scenario.fake.exchanges() == 1, at


@pytest.mark.parametrize("call", ["current_token", "request", "new_session"])
def test_error_has_its_cause_when_time_passes_between_any_two_lines(call: str) -> None:
    """An expired token in its back-off fails with the error of the renewal, at each line."""
    for at in itertools.count(1, SHORT_STEP):
        scenario = AgedSession(SessionClient, "hard", keeps=False, credentials=None)
        scenario.fake.fail("refresh", Fault(status=503), times=9)
        scenario.session.current_token()
        scenario.clock.advance(20)
        act = in_another_thread(partial(scenario.clock.advance, 3600))
        with pytest.raises(SessionExpiredError) as caught, AtLine(act, at) as line:
            CALLS[call](scenario)
        scenario.session.close()
        if not line.reached:
            return
        assert isinstance(caught.value.__cause__, ServerError), at


def test_only_a_logout_is_the_error_when_another_thread_signs_out_between_any_two_lines() -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in itertools.count(1):
        scenario = AgedSession(SessionClient, "hard", keeps=False)
        other = in_another_thread(scenario.session.logout)
        with AtLine(other, at) as line, contextlib.suppress(NotSignedInError):
            assert scenario.session.current_token().id in scenario.held, at
        scenario.session.close()
        if not line.reached:
            return
        assert scenario.session.token is None, at
        assert not scenario.fake.live_tokens(), at


def test_login_is_saved_for_its_own_account_when_another_one_comes_between_any_two_lines() -> None:
    """Catches a token of one account that is saved as one of the other's."""
    first, second = (PasswordCredentials(email, PASSWORD) for email in (EMAIL, "you@example.com"))
    fake = FakeKoyeb(users={first.email: PASSWORD, second.email: PASSWORD})
    for at in itertools.count(1):
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
