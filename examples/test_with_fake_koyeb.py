"""Test your code against a Koyeb that fails on demand: pip install pytest && pytest examples/."""

from datetime import timedelta

import pytest

from koyeb_session import ServerError, SessionClient, SessionExpiredError
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, assert_no_secret


def count_apps(session: SessionClient) -> int:
    """Stand for the code under test."""
    return len(session.http.get("/v1/apps").raise_for_status().json()["apps"])


def test_outage_goes_unnoticed_while_the_token_is_good(
    fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock
) -> None:
    with SessionClient(transport=fake_koyeb.transport, clock=koyeb_clock) as session:
        session.login("me@example.com", "correct horse")
        koyeb_clock.advance(timedelta(hours=23, minutes=59, seconds=30))
        fake_koyeb.fail("refresh", Fault(status=503))
        assert count_apps(session) == 0
        assert fake_koyeb.exchanges() == 0


def test_expired_session_says_so(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> None:
    with SessionClient(transport=fake_koyeb.transport, clock=koyeb_clock) as session:
        session.login("me@example.com", "correct horse")
        koyeb_clock.advance(timedelta(days=2))
        with pytest.raises(SessionExpiredError) as caught:
            count_apps(session)
        assert not isinstance(caught.value.__cause__, ServerError)
        assert_no_secret("correct horse", caught.value)
