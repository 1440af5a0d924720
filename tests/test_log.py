"""The records of the log: their texts for operators, and their fields for programs."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import anyio
import httpx
import pytest

import koyeb_session
from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    ServerError,
    SessionClient,
    TransportError,
)
from koyeb_session._core.log import format_duration, log, time_from_now
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .support import ME, PASSWORD, connect_once, raising


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (1e-9, "1 s"), (-5, "0 s"), (0.9, "1 s"), (1, "1 s")),
        *((59.999, "1 min 0 s"), (60, "1 min 0 s"), (61, "1 min 1 s"), (3599, "59 min 59 s")),
        *((3600, "1 h 0 min"), (3661, "1 h 1 min"), (42_720, "11 h 52 min")),
        *((86_399, "23 h 59 min"), (86_400, "1 d 0 h"), (90_061, "1 d 1 h")),
        *((30 * 86_400, "30 d 0 h"), (math.inf, "an unknown time")),
    ],
)
def test_span_is_said_in_its_two_largest_units(seconds: float, words: str) -> None:
    """Two units are as exact as anybody wants to know; a wait never seems over before it is."""
    assert format_duration(seconds) == words


def test_no_wait_is_not_said_in_seconds() -> None:
    """Nobody waits for 0 s."""
    words = [time_from_now(seconds) for seconds in (0, -1, 0.1, 90)]
    assert words == ["now", "now", "in 1 s", "in 1 min 30 s"]


def test_logger_is_named_after_the_package() -> None:
    """An operator configures it by that name."""
    assert log is logging.getLogger("koyeb_session")


@pytest.fixture
def session(fake: FakeKoyeb, clock: FakeClock) -> Iterator[SessionClient]:
    """Make a client of the service that tries everything once, and again after ten seconds."""
    with connect_once(fake, clock) as session:
        yield session


def facts(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the fields of the records about one kind of event."""
    found = [vars(it) for it in caplog.records if vars(it).get("koyeb_event") == event]
    return [{k: v for k, v in it.items() if k.startswith("koyeb_")} for it in found]


# The texts


def test_each_sign_in_is_told_and_each_end(
    fake: FakeKoyeb,
    session: SessionClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An operator sees when a session began, and how."""
    caplog.set_level(logging.INFO, "koyeb_session")
    good = "; the token is good for 1 d 0 h"
    session.login(ME, PASSWORD)
    session.switch_organization(fake.organizations[ME][1])
    session.unscope_organization_token()
    session.use_token(fake.issue_token())
    session.refresh()
    session.logout()
    assert caplog.messages == [
        f"signed in with a password{good}",
        f"switched to an organization{good}",
        f"switched to no organization{good}",
        f"signed in with a given token{good}",
        f"renewed{good}",
        "signed out",
    ]
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_a_second_logout_says_nothing(
    fake: FakeKoyeb, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """There was no longer a session that could have ended."""
    caplog.set_level(logging.INFO, "koyeb_session")
    with connect_once(fake, clock, store=MemoryTokenStore()) as session:
        session.login(ME, PASSWORD)
        for _ in range(3):
            session.logout()
    assert caplog.messages.count("signed out") == 1


@pytest.mark.parametrize("backend", ["blocking", "asyncio", "trio"])
def test_each_operation_is_in_the_debug_log(
    fake: FakeKoyeb, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    """Method, path, status, time and request id: no query, as it says who signs in."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    fake.fail("login_method", Fault(status=200, body={}, headers={"x-request-id": "r-\x1b7"}))

    async def ask() -> None:
        async with AsyncSessionClient(transport=fake.transport) as session:
            await session.login_method(ME)
            await session.login_method(ME)

    if backend == "blocking":
        with SessionClient(transport=fake.transport) as session:
            session.login_method(ME)
            session.login_method(ME)
    else:
        anyio.run(ask, backend=backend)
    begins = r"login_method: GET /v1/account/login_method: 200 in \S+ ms"
    assert len([it for it in caplog.messages if re.match(begins, it)]) == 2
    assert ME not in caplog.text
    fields = facts(caplog, "operation")[0]
    milliseconds = fields.pop("koyeb_milliseconds")
    assert isinstance(milliseconds, float)
    assert milliseconds >= 0
    assert fields == {
        "koyeb_event": "operation",
        "koyeb_operation": "login_method",
        "koyeb_method": "GET",
        "koyeb_path": "/v1/account/login_method",
        "koyeb_status": 200,
        "koyeb_request_id": r"r-\x1b7",
        "koyeb_error": None,
    }


def test_an_operation_without_a_reply_is_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    """The class of the error stands where the status would."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    transport = httpx.MockTransport(raising(httpx.ConnectError("refused")))
    with (
        SessionClient(transport=transport, retry_policy=RetryPolicy(attempts=1)) as session,
        pytest.raises(TransportError),
    ):
        session.login(ME, PASSWORD)
    (fields,) = facts(caplog, "operation")
    assert (fields["koyeb_status"], fields["koyeb_request_id"]) == (None, None)
    assert fields["koyeb_error"] == "TransportError"
    begins = "login: POST /v1/account/login: TransportError in "
    assert any(text.startswith(begins) for text in caplog.messages)


def test_nothing_is_made_of_an_operation_when_nobody_debugs(
    fake: FakeKoyeb, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is off costs one look."""
    caplog.set_level(logging.INFO, "koyeb_session")
    monkeypatch.setattr("koyeb_session._sync.http.sender._log_operation", None)
    with SessionClient(transport=fake.transport) as session:
        session.login(ME, PASSWORD)
    assert facts(caplog, "operation") == []


# The fields


def bad_night(fake: FakeKoyeb, clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Let a session meet with all that the log speaks of."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    credentials, store = PasswordCredentials(ME, PASSWORD), MemoryTokenStore()
    with connect_once(fake, clock, credentials=credentials, store=store) as session:
        fake.fail("login", Fault(status=503, headers={"x-request-id": "r-1"}))
        with pytest.raises(KoyebSessionError):
            session.current_token()
        session.login(ME, PASSWORD)
        with connect_once(fake, clock, store=store) as another:
            another.current_token()
        clock.advance(timedelta(hours=23, minutes=59.5))
        fake.fail("refresh", Fault(status=500, headers={"x-request-id": "r-2"}))
        session.current_token()
        session.refresh()
        session.logout()
        session.login(ME, PASSWORD)
        fake.fail("logout", Fault(status=500))
        with pytest.raises(ServerError):
            session.logout()


def test_fields_are_those_that_the_package_documents(
    fake: FakeKoyeb, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Operators make filters of the names: all are in the docstring, and no others are used."""
    bad_night(fake, clock, caplog)
    document = koyeb_session.__doc__ or ""
    documented = set(re.findall(r"``(koyeb_\w+)``", document)) - {"koyeb_session"}
    used = {name for it in caplog.records for name in vars(it) if name.startswith("koyeb_")}
    assert used == documented
    for event in {vars(it)["koyeb_event"] for it in caplog.records}:
        assert f"``{event}``" in document


def test_fields_tell_of_a_bad_night(
    fake: FakeKoyeb, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """They can be counted, compared and written as JSON."""
    bad_night(fake, clock, caplog)
    (first,) = facts(caplog, "sign_in_failed")
    assert first == {
        "koyeb_event": "sign_in_failed",
        "koyeb_error": "ServerError",
        "koyeb_status": 503,
        "koyeb_request_id": "r-1",
        "koyeb_retry_in": first["koyeb_retry_in"],
        "koyeb_expires_in": 0.0,
        "koyeb_user_id": None,
    }
    assert 10 <= first["koyeb_retry_in"] <= 20
    signed_in, _ = facts(caplog, "signed_in")
    assert signed_in["koyeb_expires_in"] == pytest.approx(86_400)
    (failed,) = facts(caplog, "renewal_failed")
    assert failed["koyeb_user_id"] == signed_in["koyeb_user_id"]
    assert failed["koyeb_expires_in"] == pytest.approx(30)
    assert failed["koyeb_request_id"] == "r-2"
    assert len(facts(caplog, "taken_over")) == len(facts(caplog, "renewed")) == 1
    assert facts(caplog, "signed_out") == [
        {"koyeb_event": "signed_out", "koyeb_error": error} for error in (None, "ServerError")
    ]
    json.dumps([facts(caplog, name) for name in ("operation", "signed_in", "renewal_failed")])


def test_a_token_without_an_expiry_has_none_in_the_log(
    fake: FakeKoyeb, session: SessionClient, caplog: pytest.LogCaptureFixture
) -> None:
    """JSON knows no infinity."""
    caplog.set_level(logging.INFO, "koyeb_session")
    session.use_token(fake.issue_api_token())
    (fields,) = facts(caplog, "signed_in")
    assert fields["koyeb_expires_in"] is None
    assert caplog.messages[0].endswith("the token is good for an unknown time")
