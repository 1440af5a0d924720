"""The effect of a failure or a refusal, and the errors of callers without a token."""

from __future__ import annotations

import logging

import pytest

from koyeb_session import (
    AuthenticationError,
    KoyebSessionError,
    NotSignedInError,
    RefreshPolicy,
    ServerError,
    SessionExpiredError,
    StoreError,
    Token,
    TransportTimeoutError,
)
from koyeb_session._core.snapshot import (
    Decision,
    FailedAttempt,
    FrozenClock,
    NewToken,
    Observation,
    Snapshot,
)
from koyeb_session._core.state import SessionState
from koyeb_session.testing import FakeClock

from .states import HOUR, commit, token


@pytest.fixture
def state(clock: FakeClock) -> SessionState:
    """Return the state of a session without a sign-in."""
    return SessionState(RefreshPolicy(jitter=0), clock)


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the random part out of the back-off."""
    monkeypatch.setattr("koyeb_session._core.state.random.random", lambda: 0.0)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the levels and the texts of the records."""
    return [f"{record.levelname}: {record.getMessage()}" for record in caplog.records]


@pytest.mark.usefixtures("no_chance")
def test_failure_is_a_warning_when_the_token_is_still_good(
    state: SessionState, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator reads which attempt failed, how long the token is good, and when the next is."""
    commit(state, token(clock))
    clock.advance(1800)
    error = ServerError("down")
    state.record_failure(FailedAttempt(error))
    assert told(caplog) == [
        "WARNING: renewal failed: down; the token is good for 30 min 0 s; next try in 1 s"
    ]
    assert state.failure is not None
    assert (state.failure.error, state.failure.failures) == (error, 1)
    assert state.observe().blocking_failure is state.failure
    assert state.usable is not None
    assert state.observe().decision is Decision.USE
    clock.advance(1)
    assert state.observe().blocking_failure is None
    assert state.observe().decision is Decision.RENEW_IN_BACKGROUND
    state.record_failure(FailedAttempt(error))
    assert state.failure.failures == 2
    assert caplog.messages[1].endswith("the token is good for 29 min 59 s; next try in 2 s")


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize(
    ("error", "age", "wait"),
    [
        (ServerError("down"), HOUR, "1 s"),
        (AuthenticationError("no"), HOUR, "1 min 0 s"),
        (AuthenticationError("no"), 0, "1 min 0 s"),
    ],
)
def test_failure_is_an_error_when_no_token_is_left(  # noqa: PLR0917 - fixtures and a table
    state: SessionState,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    error: KoyebSessionError,
    age: float,
    wait: str,
) -> None:
    """An expired token, or one that was refused, leaves callers without any."""
    commit(state, token(clock))
    clock.advance(age)
    state.record_failure(FailedAttempt(error, refused=isinstance(error, AuthenticationError)))
    assert told(caplog) == [
        f"ERROR: renewal failed: {error.message}; no token is left; next try in {wait}"
    ]
    assert state.observe().decision is Decision.FAIL
    assert state.usable is None


def test_failure_is_random_within_its_half(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that failed together do not come back together."""
    monkeypatch.setattr("koyeb_session._core.state.random.random", lambda: 1.0)
    state.record_failure(FailedAttempt(ServerError()))
    assert state.failure is not None
    assert state.failure.wait == 0.5


@pytest.mark.parametrize("error", [NotSignedInError("no"), SessionExpiredError("ended")], ids=repr)
def test_failure_is_no_trouble_when_nothing_was_sent(
    state: SessionState, caplog: pytest.LogCaptureFixture, error: KoyebSessionError
) -> None:
    """Without anybody to spare there is no back-off, and nothing for the log."""
    state.record_failure(FailedAttempt(error, attempted=False))
    assert state.failure is None
    assert error.__cause__ is None
    assert caplog.records == []


def test_failure_is_a_pause_when_nothing_was_sent_but_the_token_is_good(
    state: SessionState, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It spares the store, which may get a newer token; the error of its end does not name it."""
    commit(state, token(clock))
    state.record_failure(FailedAttempt(SessionExpiredError("no way"), attempted=False, soon=True))
    assert state.observe().blocking_failure is not None
    assert caplog.records == []
    clock.advance(24 * HOUR)
    ended = SessionExpiredError("ended")
    state.record_failure(FailedAttempt(ended, attempted=False, soon=True))
    assert ended.__cause__ is None


def test_failure_tells_of_the_one_before_when_nothing_was_sent(
    state: SessionState, clock: FakeClock
) -> None:
    """Without any means to renew, the error names the last failure, whose back-off goes on."""
    commit(state, token(clock))
    first = SessionExpiredError("refused")
    state.record_failure(FailedAttempt(first, refused=True))
    trouble = state.failure
    second = SessionExpiredError("ended")
    state.record_failure(FailedAttempt(second, attempted=False))
    assert state.failure is trouble
    assert second.__cause__ is first


def test_failure_is_no_trouble_when_the_token_is_an_api_token(
    state: SessionState, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot be refreshed, which says nothing about whether it is good."""
    snapshot = commit(state, Token("x" * 64))
    state.record_failure(FailedAttempt(AuthenticationError("no"), refused=True))
    assert state.failure is None
    assert state.usable is snapshot
    assert caplog.records == []


@pytest.mark.usefixtures("no_chance")
def test_failure_is_no_news_when_it_is_tried_again(
    state: SessionState, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting callers try again at once: that is worth a debug line, and no warning."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    error = ServerError("login: down (status 503)")
    state.record_failure(FailedAttempt(error), again=True)
    assert state.failure is not None
    state.record_failure(FailedAttempt(error))
    failed = "signing in failed: login: down (status 503)"
    assert told(caplog) == [
        f"DEBUG: {failed}; it is tried again",
        f"ERROR: {failed}; no token is left; next try in 2 s",
    ]


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize(("soon", "waits"), [(False, [60, 60]), (True, [1, 2])])
def test_failure_waits_as_long_as_another_attempt_may_harm(
    state: SessionState, clock: FakeClock, *, soon: bool, waits: list[float]
) -> None:
    """A wrong password locks its account; a user's callable locks nothing."""
    commit(state, token(clock, 100))
    for wait in waits:
        state.record_failure(FailedAttempt(AuthenticationError("no"), signs_in=True, soon=soon))
        assert state.failure is not None
        assert state.failure.wait == wait
        assert state.failure.signs_in


def test_failure_counts_only_for_the_token_that_it_is_about(
    state: SessionState, clock: FakeClock
) -> None:
    """A reader between the two steps of a swap sees no failure of the old token."""
    commit(state, token(clock))
    state.record_failure(FailedAttempt(AuthenticationError("no"), refused=True))
    past = state.failure
    assert past is not None
    assert past.about is state.snapshot
    assert state.usable is None
    snapshot = commit(state, token(clock, token_id="new"))
    state.failure = past  # as if read before the swap
    assert state.observe().failure is None
    assert state.observe().blocking_failure is None
    assert state.usable is snapshot
    assert state.observe().decision is Decision.USE


def test_next_look_comes_with_the_soft_window_or_after_the_back_off(
    state: SessionState, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keep_current` sleeps until there is something to do, for a minute at most."""
    assert state.seconds_to_next_check == 60
    commit(state, token(clock, 100))
    assert state.seconds_to_next_check == 50
    clock.advance(50)
    assert state.seconds_to_next_check == 0.05
    monkeypatch.setattr("koyeb_session._core.state.random.random", lambda: 0.0)
    state.record_failure(FailedAttempt(ServerError()))
    assert state.seconds_to_next_check == 1
    clock.advance(1)
    assert state.seconds_to_next_check == 0.05


def test_refused_token_is_not_used_until_the_back_off_is_over(
    state: SessionState, clock: FakeClock
) -> None:
    """A token that the service has just refused is not sent again at once (pitfall 7)."""
    snapshot = commit(state, token(clock))
    state.record_failure(FailedAttempt(AuthenticationError("no")))
    assert state.usable is snapshot  # the credentials were refused, and not the token
    state.record_failure(FailedAttempt(AuthenticationError("no"), refused=True))
    assert state.usable is None
    assert state.summary == "the session as user-1 has ended: token refused"
    clock.advance(60)
    assert state.usable is None  # the second failure in a row
    clock.advance(60)
    assert state.usable is snapshot


def test_a_failure_of_another_session_is_not_noted(state: SessionState, clock: FakeClock) -> None:
    """Somebody has signed in since that renewal began: the new session need not wait."""
    commit(state, token(clock), begins=True)
    generation = state.generation
    commit(state, token(clock, token_id="u"), begins=True)
    state.record_failure(FailedAttempt(ServerError()), generation)
    assert state.failure is None
    state.record_failure(FailedAttempt(ServerError()), state.generation)
    assert state.failure is not None
    assert state.failure.about is state.snapshot


def test_refusal_is_final_when_a_new_token_was_refused(
    state: SessionState, clock: FakeClock
) -> None:
    """A token refused when it was new is remembered, until the next sign-in (pitfall 9)."""
    snapshot = commit(state, token(clock))
    assert not state.must_accept_401(snapshot)
    state.mark_rejected(snapshot)
    assert state.must_accept_401(snapshot)
    assert state.must_accept_401(commit(state, token(clock, token_id="renewed when it was due")))
    assert not state.must_accept_401(commit(state, token(clock), begins=True))
    assert state.rejected is None


def test_refusal_is_not_final_when_the_token_was_taken_over(
    state: SessionState, clock: FakeClock
) -> None:
    """A token out of the store is new here alone."""
    snapshot = state.commit(NewToken(token(clock), just_issued=False, from_store=True))
    assert isinstance(snapshot, Snapshot)
    state.mark_rejected(snapshot)
    assert not state.must_accept_401(snapshot)
    assert state.rejected is None
    state.mark_rejected(commit(state, token(clock, token_id="issued here")))
    assert not state.must_accept_401(snapshot)


def test_refusal_is_final_for_a_minute(state: SessionState, clock: FakeClock) -> None:
    """Then the token may be dead after all: it was revoked when it was new."""
    snapshot = commit(state, token(clock))
    clock.advance(10)
    state.mark_rejected(snapshot)
    clock.advance(59)
    assert state.must_accept_401(snapshot)
    clock.advance(2)
    assert not state.must_accept_401(snapshot)


def test_refusal_is_final_for_twice_as_long_with_each_token(
    state: SessionState, clock: FakeClock
) -> None:
    """A service that rejects all it issues is asked less and less, once an hour in the end."""
    memories = list[float]()
    for number in range(9):
        snapshot = commit(state, token(clock, token_id=str(number)))
        state.mark_rejected(snapshot)
        begun = clock.monotonic()
        while state.must_accept_401(snapshot):
            clock.advance(60)
        memories.append((clock.monotonic() - begun) / 60)
    assert memories == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    state.note_accepted(commit(state, token(clock)))
    snapshot = commit(state, token(clock))
    state.mark_rejected(snapshot)
    clock.advance(60)
    assert not state.must_accept_401(snapshot)


def test_refusal_counts_once_for_all_requests_with_the_token(
    state: SessionState, clock: FakeClock
) -> None:
    """Catches an hour's pause after one token that was refused for twenty requests at once."""
    snapshot = commit(state, token(clock))
    for _ in range(20):
        state.mark_rejected(snapshot)
    clock.advance(60)
    assert not state.must_accept_401(snapshot)


@pytest.mark.parametrize(
    ("status", "again"), [(200, True), (404, True), (429, False), (500, False), (503, False)]
)
def test_refusal_is_forgotten_when_a_later_token_is_accepted(
    state: SessionState, clock: FakeClock, status: int, *, again: bool
) -> None:
    """An older one proves nothing, as its reply may have taken its time."""
    refused = commit(state, token(clock))
    state.mark_rejected(refused)
    later = commit(state, token(clock, token_id="later"))
    state.note_accepted(refused, status)
    assert state.must_accept_401(later)
    state.note_accepted(later, status)
    assert state.must_accept_401(later) is not again


@pytest.mark.parametrize("first", [False, True], ids=["refused first", "accepted first"])
def test_refusal_stays_when_one_endpoint_refuses_what_others_accept(
    state: SessionState, clock: FakeClock, *, first: bool
) -> None:
    """Catches a renewal for each of its 401s: only the first one is forgiven."""
    for number, forgiven in enumerate((True, False, False)):
        refused = commit(state, token(clock, token_id=str(number)))
        if first:
            state.note_accepted(refused)
        state.mark_rejected(refused)
        assert state.must_accept_401(refused)
        state.note_accepted(refused)
        assert state.must_accept_401(refused) is not forgiven


def test_refusal_is_final_when_the_token_is_not_renewable(
    state: SessionState, clock: FakeClock
) -> None:
    """A 401 on an API token is simply the answer."""
    assert state.must_accept_401(commit(state, Token("x" * 64)))
    other = SessionState(RefreshPolicy(), clock, renew=False)
    assert other.must_accept_401(commit(other, token(clock)))


def test_refusal_is_not_final_when_there_is_another_token(
    state: SessionState, clock: FakeClock
) -> None:
    """It is replayed with that one; catches a rule that looks at the refused token alone."""
    refused = commit(state, Token("x" * 64))
    commit(state, token(clock), begins=True)
    assert not state.must_accept_401(refused)
    rejected = commit(state, token(clock, token_id="new"))
    state.mark_rejected(rejected)
    commit(state, token(clock, token_id="newer"))
    assert not state.must_accept_401(rejected)


def fail(state: SessionState, error: KoyebSessionError) -> Observation:
    """Make a renewal fail, and return the observation of the next caller."""
    state.record_failure(FailedAttempt(error))
    seen = state.observe()
    assert seen.failure is not None
    assert seen.failure.error is error
    return seen


@pytest.mark.parametrize("make", [SessionExpiredError, NotSignedInError, StoreError, ServerError])
def test_ended_is_the_error_itself_when_it_says_so(
    state: SessionState, clock: FakeClock, make: type[KoyebSessionError]
) -> None:
    """
    An ended session is not wrapped again, and a store's failure keeps its class.

    Nor is the error of a failed sign-in, or the end of a caller's own time, which fails no renewal.
    """
    error = make("ended")
    mine = TransportTimeoutError("not renewed within 3 s")
    assert state.no_token_error(state.observe(), error) is error
    assert state.no_token_error(fail(state, error), error) is error
    assert state.no_token_error(state.observe(), mine) is mine
    commit(state, token(clock))
    assert state.no_token_error(state.observe(), mine) is mine
    ended = state.no_token_error(fail(state, error), error)
    assert (ended is error) is (make is not ServerError)
    assert state.no_token_error(state.observe(), mine) is mine


def test_ended_is_the_error_itself_when_the_failure_is_past(
    state: SessionState, clock: FakeClock
) -> None:
    """A failure of an earlier token says nothing about the current one."""
    commit(state, token(clock))
    error = ServerError("down")
    past = fail(state, error).failure
    commit(state, token(clock, token_id="new"))
    state.failure = past
    assert state.no_token_error(state.observe(), error) is error


def test_look_is_one_reading_of_the_clocks(state: SessionState, clock: FakeClock) -> None:
    """All that is decided on it is decided for one moment, however long the decision takes."""
    snapshot = commit(state, token(clock))
    seen = state.observe()
    assert seen == Observation(snapshot, None, FrozenClock(clock.time(), clock.monotonic()))
    clock.advance(2 * HOUR)
    assert seen.usable is snapshot
    assert seen.decision is Decision.USE
    assert state.observe().decision is Decision.RENEW_FIRST
