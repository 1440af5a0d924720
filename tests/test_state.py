"""The state of a session: each change is one swap, and a failure changes nothing else."""

from __future__ import annotations

import pytest

from koyeb_session import NotSignedInError, RefreshPolicy, ServerError, Token, WireError
from koyeb_session._core.snapshot import Decision, FailedAttempt, NewToken, Snapshot
from koyeb_session._core.state import SUPERSEDED, SessionState
from koyeb_session.testing import FakeClock

from .states import HOUR, commit, facts, refused, token


@pytest.fixture
def state(clock: FakeClock) -> SessionState:
    """Return the state of a session without a sign-in."""
    return SessionState(RefreshPolicy(jitter=0), clock)


def test_commit_swaps_the_snapshot_in_when_the_token_is_good(
    state: SessionState, clock: FakeClock
) -> None:
    """The new snapshot is the complete state, and is there when a listener is told of it."""
    heard: list[tuple[Token | None, Snapshot | None]] = []
    state.on_change = lambda told: heard.append((told, state.snapshot))
    state.clear()
    state.record_failure(FailedAttempt(ServerError("down")))
    given = token(clock)
    snapshot = commit(state, given)
    assert snapshot.token is given
    assert (snapshot.expiry, snapshot.soft, snapshot.renewable) == (HOUR, HOUR / 2, True)
    assert (state.failure, state.signed_out, state.generation) == (None, False, 1)
    assert state.usable is snapshot
    assert state.observe().decision is Decision.USE
    assert heard == [(None, None), (given, snapshot)]


def test_commit_counts_from_the_wall_clock_when_the_token_is_not_issued_now(
    state: SessionState, clock: FakeClock
) -> None:
    """A token from elsewhere has the rest of its life left, a newly issued one all of it."""
    given = token(clock)
    clock.advance(HOUR / 4)
    adopted = state.commit(NewToken(given, just_issued=False))
    assert isinstance(adopted, Snapshot)
    assert adopted.expiry == HOUR * 3 / 4
    assert state.generation == 0  # a token that only goes on with the session
    assert commit(state, given).expiry == HOUR


@pytest.mark.parametrize("life", [0, -1, -HOUR])
def test_commit_refuses_a_token_when_it_has_expired(
    state: SessionState, clock: FakeClock, life: float
) -> None:
    """A token without a future changes nothing, be there one before or not (pitfall 13)."""
    text = "the service handed out a token that has expired"
    for just_issued in (True, False):
        error = refused(state, token(clock, life), just_issued=just_issued)
        assert type(error) is WireError
        assert error.message == text
    commit(state, token(clock))
    state.record_failure(FailedAttempt(ServerError()))
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


def test_commit_is_superseded_when_the_fence_has_moved(
    state: SessionState, clock: FakeClock
) -> None:
    """A renewal that began before a sign-out does not bring the session back (pitfall 17)."""
    generation = state.generation
    commit(state, token(clock), generation)
    state.clear()
    before = facts(state)
    assert state.commit(NewToken(token(clock), just_issued=True), generation) is SUPERSEDED
    assert facts(state) == before
    assert type(SUPERSEDED) is NotSignedInError
    assert SUPERSEDED.message == "the session was signed out, or in again, meanwhile"


def test_fence_moves_when_a_session_begins_or_ends(state: SessionState, clock: FakeClock) -> None:
    """Signing in and out each count; going on with a session does not."""
    commit(state, token(clock))
    assert state.generation == 0
    commit(state, token(clock), begins=True)
    assert state.generation == 1
    commit(state, token(clock), 1, begins=True)
    assert state.generation == 2
    state.clear()
    assert state.generation == 3
    assert state.commit(NewToken(token(clock), just_issued=True), 1, begins=True) is SUPERSEDED
    assert state.generation == 3


def test_clear_returns_what_there_was(state: SessionState, clock: FakeClock) -> None:
    """Signing out returns the token to revoke, once."""
    heard: list[Token | None] = []
    state.on_change = heard.append
    snapshot = commit(state, token(clock))
    state.mark_rejected(snapshot)
    state.record_failure(FailedAttempt(ServerError()))
    assert state.clear() is snapshot
    assert (state.snapshot, state.failure, state.signed_out) == (None, None, True)
    assert state.summary == "signed out"
    assert state.clear() is None
    assert heard == [snapshot.token, None, None]


def test_close_leaves_the_token_to_be_read(state: SessionState, clock: FakeClock) -> None:
    """After the end the last token can still be seen, and the hot path does not use it."""
    snapshot = commit(state, token(clock))
    client = state.lifetime
    state.close()
    assert state.closed
    assert state.summary == "closed"
    assert state.snapshot is snapshot
    assert state.lifetime.ended  # the question of the hot path
    assert not client.ended  # other sessions of the client go on
    with pytest.raises(RuntimeError) as info:
        state.check_open()
    assert str(info.value) == "the session client is closed: make another one"


def test_close_stays_when_a_renewal_ends_after_it(state: SessionState, clock: FakeClock) -> None:
    """A token that comes after the end is kept, and does not open the session again."""
    commit(state, token(clock, token_id="old"))
    state.close()
    commit(state, token(clock, token_id="new"), state.generation)
    assert state.snapshot is not None
    assert state.snapshot.token.id == "new"
    assert state.closed
    state.clear()
    assert state.snapshot is None


@pytest.mark.parametrize(
    ("life", "user", "age", "summary"),
    [
        (HOUR, "user-1", 0, "signed in as user-1, token good for 1 h 0 min"),
        (HOUR, None, 600, "signed in, token good for 50 min 0 s"),
        (HOUR, "", 3599.5, "signed in, token good for 1 s"),
        (HOUR, "user-1", 3600, "the session as user-1 has ended: token expired"),
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


def test_requests_look_for_what_is_not_saved_until_it_is(
    state: SessionState, clock: FakeClock
) -> None:
    """A store that is owed a token is thought of again: 5 s later, then after twice as long."""
    snapshot = commit(state, token(clock))
    assert not snapshot.has_deferred_work(clock)
    looked = list[float]()
    snapshot.defer_check(clock)
    for _ in range(60):
        if snapshot.is_due(clock):
            assert snapshot.has_deferred_work(clock)
            looked.append(snapshot.age(clock))
            snapshot.defer_check(clock)
        clock.advance(2.5)
    assert looked == [5, 10, 20, 40, 80, 140]  # at most a minute apart
    snapshot.cancel_check()
    assert not snapshot.has_deferred_work(clock)
    clock.advance(HOUR / 2 - snapshot.age(clock))
    assert snapshot.is_due(clock)  # it is to be renewed, and that is all
    assert not snapshot.has_deferred_work(clock)


def test_requests_look_for_what_is_not_saved_from_the_first_commit(
    state: SessionState, clock: FakeClock
) -> None:
    """A save may be interrupted: a later request checks that it was done."""
    snapshot = state.commit(NewToken(token(clock), just_issued=True), unsaved=True)
    assert isinstance(snapshot, Snapshot)
    assert not snapshot.is_due(clock)
    clock.advance(5)
    assert snapshot.has_deferred_work(clock)
