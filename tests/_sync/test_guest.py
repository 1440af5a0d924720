# Generated from tests/_async/test_guest.py by .ci/generate_sync.py: edit that, not this.

"""Sessions for somebody else on the same connections, and whose session an error comes from."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta

import pytest

from koyeb_session import (
    InvalidCredentialsError,
    KoyebSessionError,
    MemoryTokenStore,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    SessionClient,
    SessionExpiredError,
)
from koyeb_session._outcomes import RAISED_BY
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

ME = "me@example.com"
PASSWORD = "correct horse"
Connect = Callable[..., SessionClient]


def test_guest_logs_in_and_out_beside_the_session(fake: FakeKoyeb, connect: Connect) -> None:
    """A guest signs in on the same transport; the session's own token and store are left alone."""
    store = MemoryTokenStore()
    session = connect(store=store)
    own = session.login(ME, PASSWORD)
    guest = session.guest()
    assert guest.token is None
    with pytest.raises(NotSignedInError):
        guest.current_token()
    token = guest.login(ME, PASSWORD)
    assert token != own
    assert (guest.http.get("/v1/apps")).status_code == 200
    assert session.token == store.load() == own
    guest.logout()
    assert fake.live_tokens() == [own.id]
    with pytest.raises(NotSignedInError):
        guest.current_token()


def test_guest_is_not_renewed(fake: FakeKoyeb, clock: FakeClock, connect: Connect) -> None:
    """Its token ends when it ends, although the session that it is a guest of has credentials."""
    session = connect(credentials=PasswordCredentials(ME, PASSWORD))
    guest = session.guest()
    guest.login(ME, PASSWORD)
    clock.advance(timedelta(hours=23, minutes=59))
    guest.current_token()
    clock.advance(timedelta(minutes=2))
    with pytest.raises(SessionExpiredError):
        guest.current_token()
    assert fake.exchanges() == 0


def test_guest_lives_no_longer_than_the_connections(connect: Connect) -> None:
    """Neither can a closed session make a guest, nor can a guest of one log in."""
    session = connect()
    guest = session.guest()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.guest()
    with pytest.raises(RuntimeError, match="closed"):
        guest.login(ME, PASSWORD)


def test_error_says_which_session_raised_it(fake: FakeKoyeb, connect: Connect) -> None:
    """A session marks its own errors, and its requests, whichever session they came from before."""
    session = connect()
    guest = session.guest()
    with pytest.raises(InvalidCredentialsError) as guests:
        guest.login(ME, "wrong")

    def credentials() -> str:
        raise guests.value

    asked = connect(credentials=credentials)
    with pytest.raises(InvalidCredentialsError) as own:
        asked.current_token()
    marks = [error.value.raised_by for error in (guests, own)]
    assert None not in marks
    assert marks[0] is not marks[1]
    caller = session.for_token(fake.issue_token())
    response = caller.http.get("/v1/apps")
    assert response.request.extensions[RAISED_BY] not in [None, *marks]


def test_request_without_a_token_raises_a_marked_error(connect: Connect) -> None:
    """What the auth raises, in `http` or in a client of the user's, has the session's mark too."""
    guest = connect().guest()
    with pytest.raises(NotSignedInError) as caught:
        guest.http.get("/v1/apps")
    with pytest.raises(NotSignedInError) as again:
        guest.current_token()
    assert caught.value.raised_by is again.value.raised_by is not None


def test_mark_does_not_leave_the_process(fake: FakeKoyeb, connect: Connect) -> None:
    """A copied error is the same session's; one out of a pickle is nobody's."""
    fake.fail("login", Fault(status=403))
    with pytest.raises(PermissionDeniedError) as caught:
        connect().login(ME, PASSWORD)
    error = caught.value
    assert copy.copy(error).raised_by is error.raised_by
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):  # noqa: S301 - our own
        assert isinstance(twin, PermissionDeniedError)
        assert twin.raised_by is not error.raised_by
        assert str(twin) == str(error)
    assert KoyebSessionError().raised_by is None
