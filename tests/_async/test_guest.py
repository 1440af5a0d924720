"""Sessions for another account on the same connections, and the session that an error names."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta

import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    InvalidCredentialsError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    PermissionDeniedError,
    SessionExpiredError,
)
from koyeb_session._core.results import RAISED_BY
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from ..support import ME, PASSWORD, raising
from .doubles import Connect


async def test_guest_logs_in_and_out_beside_the_session(fake: FakeKoyeb, connect: Connect) -> None:
    """A guest signs in on the same transport; the session's own token and store are left alone."""
    store = AsyncMemoryTokenStore()
    session = connect(store=store)
    own = await session.login(ME, PASSWORD)
    guest = session.guest()
    assert guest.token is None
    with pytest.raises(NotSignedInError):
        await guest.current_token()
    token = await guest.login(ME, PASSWORD)
    assert token != own
    assert (await guest.http.get("/v1/apps")).status_code == 200
    assert session.token == await store.load() == own
    await guest.logout()
    assert fake.live_tokens() == [own.id]
    with pytest.raises(NotSignedInError):
        await guest.current_token()


async def test_guest_is_not_renewed(fake: FakeKoyeb, clock: FakeClock, connect: Connect) -> None:
    """Its token ends when it ends, although the session that it is a guest of has credentials."""
    session = connect(credentials=PasswordCredentials(ME, PASSWORD))
    guest = session.guest()
    await guest.login(ME, PASSWORD)
    clock.advance(timedelta(hours=23, minutes=59))
    await guest.current_token()
    clock.advance(timedelta(minutes=2))
    with pytest.raises(SessionExpiredError):
        await guest.current_token()
    assert fake.exchanges() == 0


async def test_guest_lives_no_longer_than_the_connections(connect: Connect) -> None:
    """Neither can a closed session make a guest, nor can a guest of one log in."""
    session = connect()
    guest = session.guest()
    await session.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        session.guest()
    with pytest.raises(RuntimeError, match="closed"):
        await guest.login(ME, PASSWORD)


async def test_error_says_which_session_raised_it(fake: FakeKoyeb, connect: Connect) -> None:
    """A session marks its own errors, and its requests, whichever session they came from before."""
    session = connect()
    guest = session.guest()
    with pytest.raises(InvalidCredentialsError) as guests:
        await guest.login(ME, "wrong")

    asked = connect(credentials=raising(guests.value))
    with pytest.raises(InvalidCredentialsError) as own:
        await asked.current_token()
    marks = [error.value.raised_by for error in (guests, own)]
    assert None not in marks
    assert marks[0] is not marks[1]
    caller = session.for_token(fake.issue_token())
    response = await caller.http.get("/v1/apps")
    assert response.request.extensions[RAISED_BY] not in [None, *marks]


async def test_request_without_a_token_raises_a_marked_error(
    fake: FakeKoyeb, connect: Connect
) -> None:
    """An error of the auth, in `http` or in a user's own client, has the session's mark too."""
    expired = connect(token=fake.issue_token())
    fake.revoke_all()
    for session, kind in ((connect().guest(), NotSignedInError), (expired, SessionExpiredError)):
        with pytest.raises(kind) as caught:
            await session.http.get("/v1/apps")
        with pytest.raises(kind) as again:
            await session.current_token()
        assert caught.value.raised_by is again.value.raised_by is not None


async def test_mark_does_not_leave_the_process(fake: FakeKoyeb, connect: Connect) -> None:
    """A copied error is the same session's; one out of a pickle is nobody's."""
    fake.fail("login", Fault(status=403))
    with pytest.raises(PermissionDeniedError) as caught:
        await connect().login(ME, PASSWORD)
    error = caught.value
    assert copy.copy(error).raised_by is error.raised_by
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):  # noqa: S301 - our own
        assert isinstance(twin, PermissionDeniedError)
        assert twin.raised_by is not error.raised_by
        assert str(twin) == str(error)
    assert KoyebSessionError().raised_by is None
