"""Faults on demand, seen by a client on the transport."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, Gate


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"status": 99}, "200 to 599"),
        ({"status": 600}, "200 to 599"),
        ({"latency": -1.0}, "latency"),
        ({"latency": float("nan")}, "latency"),
        ({"latency": float("inf")}, "latency"),
        ({"truncate": -1}, "truncate"),
        ({"hold": "both"}, "'reply' or 'request'"),
        ({"hold": "request"}, "needs a gate or a latency"),
        ({"headers": {"Content-Length": "3"}}, "truncate cuts it short"),
        ({"headers": {"x": "a\r\nb"}}, "line break"),
        ({"reset": True, "status": 500}, "leaves no reply"),
        ({"reset": True, "truncate": 1}, "leaves no reply"),
        ({"reset": True, "headers": {"a": "b"}}, "leaves no reply"),
        ({"refuse": True, "reset": True}, "no other way"),
        ({"refuse": True, "processed": True}, "no other way"),
        ({"status": 204, "body": "x"}, "no body"),
        ({"processed": False}, "nothing to reply"),
        ({"latency": 1.0, "processed": False}, "nothing to reply"),
    ],
)
def test_impossible_fault_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    """A fault that cannot be played is an error where it is written."""
    with pytest.raises(ValueError, match=complaint):
        Fault(**arguments)


def test_fault_shows_what_was_given() -> None:
    """The representation of a fault leaves out the defaults, and nothing else."""
    assert repr(Fault()) == "Fault()"
    assert repr(Fault(status=503, truncate=0)) == "Fault(status=503, truncate=0)"
    assert repr(Fault(reset=True, processed=False)) == "Fault(reset=True, processed=False)"


def test_unknown_operation_is_refused() -> None:
    """The names of operations are checked, and the error lists those that there are."""
    with pytest.raises(ValueError, match=r"no such operation: refersh; there are .*refresh"):
        FakeKoyeb().fail("refersh", Fault(status=500))
    with pytest.raises(ValueError, match="no such operation: x"):
        FakeKoyeb().recover("x")


def test_fault_that_never_happens_is_refused() -> None:
    """A fault is played at least once."""
    with pytest.raises(ValueError, match="times"):
        FakeKoyeb().fail("refresh", Fault(), times=0)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {}),
        (302, {}),
        (
            400,
            {
                "status": 400,
                "code": "invalid_argument",
                "message": "Validation error",
                "fields": [],
            },
        ),
        (401, {"status": 401, "message": "Unauthorized"}),
        (403, {"status": 403, "code": "authorization_error", "message": "Forbidden"}),
        (404, {"status": 404, "code": "not_found", "message": "Not Found"}),
        (500, {"status": 500, "code": "internal_error", "message": "Internal Server Error"}),
        (503, {"status": 503, "code": "unavailable", "message": "Service Unavailable"}),
        (504, {"code": 4, "message": "Gateway Timeout", "details": []}),
        (599, {"code": 2, "message": "Unknown", "details": []}),
    ],
)
def test_status_alone_comes_with_the_promised_body(
    connect: Any, status: int, body: dict[str, Any]
) -> None:
    """A scripted status has the body that the API's description has for it."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(status=status))
    reply = connect(fake).get("/v1/apps")
    assert (reply.status_code, reply.json()) == (status, body)
    assert fake.requests[-1].status == status


def test_too_many_requests_come_without_json(connect: Any) -> None:
    """The 429 is the load balancer's, and text."""
    fake = FakeKoyeb()
    fake.fail("refresh", Fault(status=429, headers={"Retry-After": "7"}))
    reply = connect(fake).put("/v1/account/refresh")
    assert reply.headers["content-type"] == "text/plain"
    assert reply.headers["retry-after"] == "7"
    assert reply.text == "Too Many Requests"


@pytest.mark.parametrize("status", [204, 304])
def test_bodiless_status_has_no_length(connect: Any, status: int) -> None:
    """A reply that may not have a body has no length either."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(status=status))
    reply = connect(fake).get("/v1/apps")
    assert "content-length" not in reply.headers
    assert reply.content == b""


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"\xff\x00", b"\xff\x00"),
        ("<h1>häh?</h1>", "<h1>häh?</h1>".encode()),
        ({"token": None}, b'{"token": null}'),
        ([1, "two"], b'[1, "two"]'),
        ("", b""),
        ({}, b"{}"),
    ],
)
def test_body_is_sent_as_given(connect: Any, body: Any, content: bytes) -> None:
    """Garbage and wrong types take the place of the reply, with a 200 unless told otherwise."""
    fake = FakeKoyeb()
    fake.fail("refresh", Fault(body=body))
    reply = connect(fake, fake.issue_token()).put("/v1/account/refresh")
    assert (reply.status_code, reply.content) == (200, content)
    assert reply.headers["content-length"] == str(len(content))
    assert fake.exchanges() == 0


def test_headers_replace_and_add(connect: Any) -> None:
    """Headers of a fault win over the service's, in any case of letters; the body stays."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(headers={"Content-Type": "text/html", "DATE": "never", "x-a": "b"}))
    reply = connect(fake, fake.issue_token()).get("/v1/apps")
    assert reply.headers.get_list("content-type") == ["text/html"]
    assert reply.headers.get_list("date") == ["never"]
    assert reply.headers["x-a"] == "b"
    assert reply.json()["apps"] == []


def test_faults_are_played_in_order(connect: Any) -> None:
    """Faults queue up for each operation by itself, and an empty one lets a request pass."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(status=500), times=2)
    fake.fail("apps", Fault())
    fake.fail("apps", Fault(status=502))
    client = connect(fake, fake.issue_token())
    assert client.get("/v1/account/profile").status_code == 200
    statuses = [client.get("/v1/apps").status_code for _ in range(5)]
    assert statuses == [500, 500, 200, 502, 200]


def test_recover_forgets_faults(connect: Any) -> None:
    """The outage of one operation, or of all, can be ended."""
    fake = FakeKoyeb()
    client = connect(fake, fake.issue_token())
    for operation in ("apps", "profile", "organizations"):
        fake.fail(operation, Fault(status=503), times=10_000)
    fake.recover("apps")
    assert client.get("/v1/apps").status_code == 200
    assert client.get("/v1/account/profile").status_code == 503
    fake.recover()
    assert client.get("/v1/account/profile").status_code == 200
    assert client.get("/v1/account/organizations").status_code == 200


def test_reset_loses_the_request(connect: Any) -> None:
    """A reset is the error that a broken connection gives, and the service has done nothing."""
    fake = FakeKoyeb()
    token = fake.issue_token()
    fake.fail("refresh", Fault(reset=True))
    with pytest.raises(httpx.ReadError):
        connect(fake, token).put("/v1/account/refresh")
    assert fake.live_tokens() == [token]
    assert [(r.operation, r.status) for r in fake.requests] == [("refresh", None)]


def test_lost_reply_leaves_its_effect(connect: Any) -> None:
    """The service may have exchanged the token before the connection broke."""
    fake = FakeKoyeb()
    token = fake.issue_token()
    fake.fail("refresh", Fault(reset=True, processed=True))
    with pytest.raises(httpx.ReadError):
        connect(fake, token).put("/v1/account/refresh")
    assert fake.exchanges() == 1
    assert token not in fake.live_tokens()
    assert len(fake.live_tokens()) == 1


def test_error_may_follow_the_deed(connect: Any) -> None:
    """A gateway may answer 504 for a refresh that the service behind it did."""
    fake = FakeKoyeb()
    fake.fail("refresh", Fault(status=504, processed=True))
    assert connect(fake, fake.issue_token()).put("/v1/account/refresh").status_code == 504
    assert fake.exchanges() == 1


def test_refused_connection_is_no_request(connect: Any) -> None:
    """A refused request has not arrived, and so is not in the log."""
    fake = FakeKoyeb()
    fake.fail("refresh", Fault(refuse=True))
    with pytest.raises(httpx.ConnectError):
        connect(fake, fake.issue_token()).put("/v1/account/refresh")
    assert fake.requests == []
    assert fake.exchanges() == 0


@pytest.mark.parametrize("length", [0, 5])
def test_truncated_body_is_an_error(connect: Any, length: int) -> None:
    """A body that ends early is a protocol error of httpx; the deed is done."""
    fake = FakeKoyeb()
    fake.fail("refresh", Fault(truncate=length))
    with pytest.raises(httpx.RemoteProtocolError, match=f"received {length} bytes"):
        connect(fake, fake.issue_token()).put("/v1/account/refresh")
    assert fake.exchanges() == 1
    assert fake.requests[-1].status == 200


def test_truncation_beyond_the_end_cuts_nothing(connect: Any) -> None:
    """A body that is shorter than the cut arrives whole."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(truncate=10_000))
    assert connect(fake, fake.issue_token()).get("/v1/apps").json()["apps"] == []


def test_held_reply_waits_for_the_gate(connect: Any) -> None:
    """The service has done its work while the gate still holds the reply."""
    fake, gate = FakeKoyeb(), Gate()
    fake.fail("refresh", Fault(gate=gate))
    replies: list[httpx.Response] = []
    client = connect(fake, fake.issue_token())
    thread = threading.Thread(target=lambda: replies.append(client.put("/v1/account/refresh")))
    thread.start()
    gate.wait_arrived()
    assert fake.exchanges() == 1
    assert fake.requests[-1].status is None
    gate.open()
    thread.join()
    assert replies[0].status_code == fake.requests[-1].status == 200


def test_held_request_is_carried_out_after_the_gate(connect: Any) -> None:
    """A request that is held on its way meets the service as it is when the gate opens."""
    fake, gate = FakeKoyeb(), Gate()
    token = fake.issue_token()
    fake.fail("apps", Fault(gate=gate, hold="request"))
    replies: list[httpx.Response] = []
    client = connect(fake, token)
    thread = threading.Thread(target=lambda: replies.append(client.get("/v1/apps")))
    thread.start()
    gate.wait_arrived()
    fake.revoke(token)
    gate.open()
    thread.join()
    assert replies[0].status_code == 401


def test_latency_delays_a_reply(connect: Any) -> None:
    """A reply that is late arrives all the same."""
    fake = FakeKoyeb()
    fake.fail("apps", Fault(latency=0.001))
    assert connect(fake, fake.issue_token()).get("/v1/apps").status_code == 200


@pytest.mark.parametrize(
    "fault", [Fault(latency=60.0), Fault(gate=Gate()), Fault(latency=0.001, gate=Gate())]
)
def test_held_reply_ends_the_clients_patience(connect: Any, fault: Fault) -> None:
    """A client's read timeout ends the wait for a held reply."""
    fake = FakeKoyeb()
    fake.fail("apps", fault)
    client = connect(fake, fake.issue_token())
    with pytest.raises(httpx.ReadTimeout):
        client.get("/v1/apps", timeout=0.002)
    assert fake.requests[-1].status is None


@pytest.mark.parametrize("fault", [Fault(latency=60.0), Fault(gate=Gate(), hold="request")])
async def test_held_reply_ends_the_async_clients_patience(fault: Fault) -> None:
    """The same holds for a client that awaits; a held request it gives up on is not carried out."""
    fake = FakeKoyeb()
    fake.fail("new_session", fault)
    headers = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with httpx.AsyncClient(transport=fake.transport, base_url=fake.base_url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/account/session", headers=headers, timeout=0.002)
    assert fake.requests[-1].status is None
    assert len(fake.live_tokens()) == (1 if fault.hold == "request" else 2)
