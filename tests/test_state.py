"""What a session knows: each change is one swap, and each failure leaves the rest as it was."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

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
    WireError,
)
from koyeb_session._outcomes import caused
from koyeb_session._snapshot import Obtained, Snapshot, Verdict
from koyeb_session._state import SUPERSEDED, SessionState
from koyeb_session.testing import FakeClock

HOUR = 3600.0


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still."""
    return FakeClock()


@pytest.fixture
def state(clock: FakeClock) -> SessionState:
    """Give the state of a session that nobody has signed in to."""
    return SessionState(RefreshPolicy(jitter=0), clock)


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the random part out of the back-off."""
    monkeypatch.setattr("koyeb_session._state.random.random", lambda: 0.0)


def token(clock: FakeClock, life: float | None = HOUR, token_id: str = "t") -> Token:
    """Make a token that the service mints now."""
    now = datetime.fromtimestamp(clock.time(), UTC)
    expires_at = None if life is None else now + timedelta(seconds=life)
    return Token(token_id, "user-1", None, expires_at, issued_at=now)


def commit(
    state: SessionState, given: Token, fence: int | None = None, *, begins: bool = False
) -> Snapshot:
    """Commit a token that has to be accepted."""
    found = state.commit(Obtained(given, minted=True), fence, begins=begins)
    assert isinstance(found, Snapshot)
    return found


def refused(state: SessionState, given: Token, *, minted: bool = True) -> KoyebSessionError:
    """Commit a token that has to be refused, and see that nothing has changed."""
    before = facts(state)
    found = state.commit(Obtained(given, minted=minted), begins=True)
    assert isinstance(found, KoyebSessionError)
    assert facts(state) == before
    return found


def facts(state: SessionState) -> list[object]:
    """Tell all that a state holds."""
    return [getattr(state, name) for name in SessionState.__slots__]


# Commit


def test_state_knows_nothing_when_it_is_new(state: SessionState) -> None:
    """A new session has no token, and may sign in at once."""
    assert (state.snapshot, state.trouble, state.on_change) == (None, None, None)
    assert (state.fence, state.closed, state.signed_out) == (0, False, False)
    assert state.verdict is Verdict.WAIT
    assert state.usable is None
    assert state.summary == "not signed in"
    assert state.blocked() is None
    state.check_open()


def test_commit_swaps_the_snapshot_in_when_the_token_is_good(
    state: SessionState, clock: FakeClock
) -> None:
    """The new snapshot is the whole of what is known."""
    heard: list[Token | None] = []
    state.on_change = heard.append
    state.clear()
    state.failed(ServerError("down"))
    given = token(clock)
    snapshot = commit(state, given)
    assert state.snapshot is snapshot
    assert snapshot.token is given
    assert (snapshot.expiry, snapshot.soft, snapshot.renewable) == (HOUR, HOUR / 2, True)
    assert (state.trouble, state.signed_out, state.fence) == (None, False, 1)
    assert state.usable is snapshot
    assert state.verdict is Verdict.USE
    assert heard == [None, given]


def test_commit_tells_of_the_change_after_it(state: SessionState, clock: FakeClock) -> None:
    """Whoever hears of a token finds it in the state."""
    seen: list[Snapshot | None] = []
    state.on_change = lambda _: seen.append(state.snapshot)
    first = commit(state, token(clock))
    state.clear()
    assert seen == [first, None]


def test_commit_counts_from_the_wall_clock_when_the_token_is_not_minted_now(
    state: SessionState, clock: FakeClock
) -> None:
    """An adopted token has the rest of its life before it, a minted one all of it."""
    given = token(clock)
    clock.advance(HOUR / 4)
    adopted = state.commit(Obtained(given, minted=False))
    assert isinstance(adopted, Snapshot)
    assert adopted.expiry == HOUR * 3 / 4
    assert state.fence == 0  # a token that only goes on with the session
    assert commit(state, given).expiry == HOUR


def test_commit_makes_no_windows_when_the_session_does_not_renew(clock: FakeClock) -> None:
    """A session that holds somebody else's token leaves it alone."""
    snapshot = commit(SessionState(RefreshPolicy(), clock, renew=False), token(clock))
    assert not snapshot.renewable
    assert snapshot.soft == HOUR


@pytest.mark.parametrize("life", [0, -1, -HOUR])
def test_commit_refuses_a_token_when_it_has_expired(
    state: SessionState, clock: FakeClock, life: float
) -> None:
    """A token without a future changes nothing, be there one before or not (pitfall 13)."""
    text = "the service handed out a token that has expired"
    for minted in (True, False):
        error = refused(state, token(clock, life), minted=minted)
        assert type(error) is WireError
        assert error.message == text
    commit(state, token(clock))
    state.failed(ServerError())
    assert refused(state, token(clock, life, "new")).message == text


def test_commit_accepts_a_token_when_a_moment_is_left(
    state: SessionState, clock: FakeClock
) -> None:
    """Any future is enough."""
    assert commit(state, token(clock, 1e-6)).expiry > 0


def test_commit_refuses_the_same_token_when_it_ends_earlier(
    state: SessionState, clock: FakeClock
) -> None:
    """The same id with less time left is nonsense (pitfall 13)."""
    commit(state, token(clock, HOUR))
    error = refused(state, token(clock, HOUR - 1e-3))
    assert type(error) is WireError
    assert error.message == "the service handed out the same token with less time left"


def test_commit_accepts_an_earlier_end_when_the_token_is_another(
    state: SessionState, clock: FakeClock
) -> None:
    """A new token may be shorter; the old one may come again as it was, or longer, or unknown."""
    for life, token_id in (
        *((HOUR, "a"), (HOUR, "a"), (2 * HOUR, "a"), (60, "b"), (None, "b"), (60, "b")),
    ):
        assert commit(state, token(clock, life, token_id)) is state.snapshot


# The fence


def test_commit_is_superseded_when_the_fence_has_moved(
    state: SessionState, clock: FakeClock
) -> None:
    """A renewal that began before a sign-out does not bring the session back (pitfall 17)."""
    fence = state.fence
    commit(state, token(clock), fence)
    state.clear()
    before = facts(state)
    assert state.commit(Obtained(token(clock), minted=True), fence) is SUPERSEDED
    assert facts(state) == before
    assert type(SUPERSEDED) is NotSignedInError
    assert SUPERSEDED.message == "the session was signed out, or in again, meanwhile"


def test_fence_moves_when_a_session_begins_or_ends(state: SessionState, clock: FakeClock) -> None:
    """Signing in and out each count; going on with a session does not."""
    commit(state, token(clock))
    assert state.fence == 0
    commit(state, token(clock), begins=True)
    assert state.fence == 1
    commit(state, token(clock), 1, begins=True)
    assert state.fence == 2
    state.clear()
    assert state.fence == 3
    assert state.commit(Obtained(token(clock), minted=True), 1, begins=True) is SUPERSEDED
    assert state.fence == 3


def test_clear_returns_what_there_was(state: SessionState, clock: FakeClock) -> None:
    """Who signs out gets the token to revoke, once."""
    heard: list[Token | None] = []
    state.on_change = heard.append
    snapshot = commit(state, token(clock))
    state.refuse(snapshot)
    state.failed(ServerError())
    assert state.clear() is snapshot
    assert (state.snapshot, state.trouble, state.signed_out) == (None, None, True)
    assert not state.is_final(snapshot)
    assert state.clear() is None
    assert heard == [snapshot.token, None, None]


# Closing


def test_close_leaves_the_token_to_be_read(state: SessionState, clock: FakeClock) -> None:
    """After the end the last token can still be seen, and the hot path does not use it."""
    snapshot = commit(state, token(clock))
    state.close()
    assert state.closed
    assert state.summary == "closed"
    assert state.snapshot is snapshot
    assert snapshot.is_due(clock)  # what the hot path asks
    state.missed(snapshot)
    assert snapshot.is_due(clock)
    assert state.take_missed() is snapshot
    assert snapshot.is_due(clock)
    with pytest.raises(RuntimeError) as info:
        state.check_open()
    assert str(info.value) == "the session client is closed: make another one"


def test_close_stays_when_a_renewal_ends_after_it(state: SessionState, clock: FakeClock) -> None:
    """A token that comes after the end is kept, and does not open the session again."""
    commit(state, token(clock, token_id="old"))
    state.close()
    commit(state, token(clock, token_id="new"), state.fence)
    assert state.snapshot is not None
    assert state.snapshot.token.id == "new"
    assert state.snapshot.is_due(clock)
    state.clear()
    assert state.snapshot is None


def test_close_is_enough_when_nobody_is_signed_in(state: SessionState) -> None:
    """A client that was never used is closed all the same."""
    state.close()
    state.close()
    assert state.closed
    assert state.snapshot is None
    assert state.summary == "closed"


# For a person


@pytest.mark.parametrize(
    ("life", "user", "age", "summary"),
    [
        (HOUR, "user-1", 0, "signed in as user-1, token good for 1 h 0 min"),
        (HOUR, None, 600, "signed in, token good for 50 min 0 s"),
        (HOUR, "", 3599.5, "signed in, token good for 0 s"),
        (HOUR, "user-1", 3600, "signed in as user-1, token expired"),
        (None, None, 9e9, "signed in, token good for an unknown time"),
    ],
)
def test_summary_says_who_and_for_how_long(  # noqa: PLR0917 - fixtures and a table
    state: SessionState,
    clock: FakeClock,
    life: float | None,
    user: str | None,
    age: float,
    summary: str,
) -> None:
    """A client's repr tells where the session stands, and no secret."""
    given = token(clock, life, "canary")
    commit(state, Token("canary", user, None, given.expires_at, issued_at=given.issued_at))
    clock.advance(age)
    assert state.summary == summary


# Failures


def test_nothing_is_missed_when_the_session_was_left(state: SessionState, clock: FakeClock) -> None:
    """A sign-out amid a save that fails leaves nothing to save later, not even what was before."""
    snapshot = state.commit(Obtained(Token("a"), minted=True))
    assert isinstance(snapshot, Snapshot)
    state.missed(snapshot)
    state.missed(None)
    assert state.take_missed() is None
    state.missed(snapshot)
    assert state.take_missed() is snapshot
    assert state.take_missed() is None


@pytest.mark.usefixtures("no_chance")
def test_failure_is_a_warning_when_the_token_is_still_good(
    state: SessionState, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator reads what failed, how long the token is good, and when it is tried again."""
    commit(state, token(clock))
    clock.advance(1800)
    error = ServerError("refresh: down (status 503)")
    state.failed(error)
    assert caplog.record_tuples == [
        (
            "koyeb_session",
            logging.WARNING,
            (
                "renewal failed: refresh: down (status 503); the token is good for 30 min 0 s; "
                "next try in 1 s"
            ),
        )
    ]
    assert state.trouble is not None
    assert (state.trouble.error, state.trouble.failures) == (error, 1)
    assert state.blocked() is error
    assert state.usable is not None
    clock.advance(1)
    assert state.blocked() is None
    assert state.verdict is Verdict.RENEW
    state.failed(error)
    assert state.trouble.failures == 2
    assert caplog.messages[1].endswith("the token is good for 29 min 59 s; next try in 2 s")


@pytest.mark.usefixtures("no_chance")
@pytest.mark.parametrize(
    ("error", "age", "wait"),
    [(ServerError("down"), HOUR, "1 s"), (AuthenticationError("no"), 0, "1 min 0 s")],
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
    state.failed(error)
    assert caplog.record_tuples == [
        (
            "koyeb_session",
            logging.ERROR,
            f"renewal failed: {error.message}; no token is left; next try in {wait}",
        )
    ]
    assert state.verdict is Verdict.FAIL
    assert state.usable is None


def test_failure_is_random_within_its_half(
    state: SessionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that failed together do not come back together."""
    monkeypatch.setattr("koyeb_session._state.random.random", lambda: 1.0)
    state.failed(ServerError())
    assert state.trouble is not None
    assert state.trouble.wait == 0.5


@pytest.mark.parametrize("error", [NotSignedInError("no"), SessionExpiredError("ended")], ids=repr)
def test_failure_is_no_trouble_when_nothing_was_sent(
    state: SessionState, caplog: pytest.LogCaptureFixture, error: KoyebSessionError
) -> None:
    """Without anybody to spare there is no back-off, and nothing for the log."""
    state.failed(error)
    assert state.trouble is None
    assert caplog.records == []


def test_failure_is_trouble_when_the_session_ended_by_a_refusal(state: SessionState) -> None:
    """An ended session with a cause was refused by the service, which is to be spared."""
    error = caused(SessionExpiredError("ended"), AuthenticationError("no"))
    state.failed(error)
    assert state.blocked() is error


def test_refused_token_is_not_used_until_the_back_off_is_over(
    state: SessionState, clock: FakeClock
) -> None:
    """A token that the service has just refused is not sent again at once (pitfall 7)."""
    snapshot = commit(state, token(clock))
    state.failed(AuthenticationError("no"))
    assert state.usable is None
    clock.advance(60)
    assert state.usable is snapshot


def test_a_failure_of_another_session_is_not_noted(state: SessionState, clock: FakeClock) -> None:
    """Somebody has signed in since that renewal began: the new session need not wait."""
    commit(state, token(clock), begins=True)
    fence = state.fence
    commit(state, token(clock, token_id="u"), begins=True)
    state.failed(ServerError(), fence)
    assert state.trouble is None
    state.failed(ServerError(), state.fence)
    assert state.trouble is not None


# Refusals


def test_refusal_is_final_when_a_new_token_was_refused(
    state: SessionState, clock: FakeClock
) -> None:
    """A token refused when it was new is remembered, until there is another (pitfall 9)."""
    snapshot = commit(state, token(clock))
    assert not state.is_final(snapshot)
    state.refuse(snapshot)
    assert state.is_final(snapshot)
    other = commit(state, token(clock))
    assert not state.is_final(other)
    assert not state.is_final(snapshot)


def test_refusal_is_not_final_when_the_token_was_taken_over(
    state: SessionState, clock: FakeClock
) -> None:
    """A token out of the store is new here alone."""
    state.taken_over = snapshot = commit(state, token(clock))
    state.refuse(snapshot)
    assert not state.is_final(snapshot)


def test_refusal_is_final_for_a_minute(state: SessionState, clock: FakeClock) -> None:
    """Then the token may be dead after all: it was revoked when it was new."""
    snapshot = commit(state, token(clock))
    clock.advance(10)
    state.refuse(snapshot)
    clock.advance(59)
    assert state.is_final(snapshot)
    clock.advance(2)
    assert not state.is_final(snapshot)


def test_refusal_is_final_when_the_token_is_not_renewable(
    state: SessionState, clock: FakeClock
) -> None:
    """A 401 on an API token is simply the answer."""
    assert state.is_final(commit(state, Token("x" * 64)))
    other = SessionState(RefreshPolicy(), clock, renew=False)
    assert other.is_final(commit(other, token(clock)))


# What callers without a token get


def test_ended_says_so_when_the_session_does_not_renew(
    state: SessionState, clock: FakeClock
) -> None:
    """Nothing has failed: the token has come to its end."""
    error = state.ended(commit(state, token(clock)), None)
    assert type(error) is SessionExpiredError
    assert error.message == "the token has expired, and is not renewed by this session"
    assert error.__cause__ is None


@pytest.mark.parametrize(
    "make", [SessionExpiredError, NotSignedInError], ids=lambda kind: kind.__name__
)
def test_ended_is_the_error_itself_when_it_says_so(
    state: SessionState, clock: FakeClock, make: Callable[[str], KoyebSessionError]
) -> None:
    """An error that already says that the session has ended is not wrapped again."""
    error = make("ended")
    assert state.ended(commit(state, token(clock)), error) is error


def test_ended_is_the_error_itself_when_there_was_no_token(state: SessionState) -> None:
    """A sign-in that failed is what it is."""
    error = ServerError("down")
    assert state.ended(None, error) is error


@pytest.mark.usefixtures("no_chance")
def test_ended_wraps_the_last_failure_when_there_was_a_token(
    state: SessionState, clock: FakeClock
) -> None:
    """The session has expired, by that error, so long ago, and may come back (pitfall 6)."""
    snapshot = commit(state, token(clock))
    error = ServerError("refresh: down (status 503)")
    state.failed(error)
    clock.advance(90)
    ended = state.ended(snapshot, error)
    assert type(ended) is SessionExpiredError
    assert ended.message == (
        "the token could not be renewed 1 min 30 s ago: refresh: down (status 503)"
    )
    assert ended.__cause__ is error
    assert ended.retryable is True


def test_ended_is_not_retryable_when_the_failure_was_not(
    state: SessionState, clock: FakeClock
) -> None:
    """Without a back-off there is no time to tell."""
    for error in (AuthenticationError("no"), StoreError("full")):
        ended = state.ended(commit(state, token(clock)), error)
        assert ended.message == f"the token could not be renewed: {error.message}"
        assert ended.retryable is error.retryable
        assert ended.__cause__ is error
