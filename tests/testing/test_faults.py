"""Faults on demand, seen by a client on the transport."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, Gate

from ..concurrency import Background


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        *(({"status": status}, "200 to 599") for status in (99, 600)),
        *(({"latency": latency}, "latency") for latency in (-1.0, float("nan"), float("inf"))),
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


def test_impossible_call_is_refused(fake: FakeKoyeb) -> None:
    """The error lists the names of operations; a fault is played at least once."""
    with pytest.raises(ValueError, match=r"no such operation: refersh; there are .*refresh"):
        fake.fail("refersh", Fault(status=500))
    with pytest.raises(TypeError, match=r"give a Fault, such as Fault\(status=503\), not int"):
        fake.fail("apps", 503)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake
    with pytest.raises(ValueError, match="no such operation: x"):
        fake.recover("x")
    with pytest.raises(ValueError, match="times"):
        fake.fail("refresh", Fault(), times=0)


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
    fake: FakeKoyeb, client: httpx.Client, status: int, body: dict[str, Any]
) -> None:
    """A scripted status has the body that the API's description has for it."""
    fake.fail("apps", Fault(status=status))
    reply = client.get("/v1/apps")
    assert (reply.status_code, reply.json()) == (status, body)
    assert fake.requests[-1].status == status


def test_too_many_requests_come_without_json(fake: FakeKoyeb, client: httpx.Client) -> None:
    """The 429 is the load balancer's, and text."""
    fake.fail("refresh", Fault(status=429, headers={"Retry-After": "7"}))
    reply = client.put("/v1/account/refresh")
    assert reply.headers["content-type"] == "text/plain"
    assert reply.headers["retry-after"] == "7"
    assert reply.text == "Too Many Requests"


@pytest.mark.parametrize("status", [204, 304])
def test_bodiless_status_has_no_length(fake: FakeKoyeb, client: httpx.Client, status: int) -> None:
    """A reply that may not have a body has no length either."""
    fake.fail("apps", Fault(status=status))
    reply = client.get("/v1/apps")
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
def test_body_is_sent_as_given(
    fake: FakeKoyeb, client: httpx.Client, body: Any, content: bytes
) -> None:
    """Garbage and wrong types take the place of the reply, with a 200 unless told otherwise."""
    fake.fail("refresh", Fault(body=body))
    reply = client.put("/v1/account/refresh")
    assert (reply.status_code, reply.content) == (200, content)
    assert reply.headers["content-length"] == str(len(content))
    assert fake.exchanges() == 0


def test_headers_replace_and_add(fake: FakeKoyeb, client: httpx.Client) -> None:
    """Headers of a fault win over the service's, in any case of letters; the body stays."""
    fake.fail("apps", Fault(headers={"Content-Type": "text/html", "DATE": "never", "x-a": "b"}))
    reply = client.get("/v1/apps")
    assert reply.headers.get_list("content-type") == ["text/html"]
    assert reply.headers.get_list("date") == ["never"]
    assert reply.headers["x-a"] == "b"
    assert reply.json()["apps"] == []


def test_faults_are_played_in_order(fake: FakeKoyeb, client: httpx.Client) -> None:
    """Faults queue up for each operation by itself, and an empty one lets a request pass."""
    fake.fail("apps", Fault(status=500), times=2)
    fake.fail("apps", Fault())
    fake.fail("apps", Fault(status=502))
    assert client.get("/v1/account/profile").status_code == 200
    statuses = [client.get("/v1/apps").status_code for _ in range(5)]
    assert statuses == [500, 500, 200, 502, 200]


def test_recover_forgets_faults(fake: FakeKoyeb, client: httpx.Client) -> None:
    """The outage of one operation, or of all, can be ended."""
    for operation in ("apps", "profile", "organizations"):
        fake.fail(operation, Fault(status=503), times=10_000)
    fake.recover("apps")
    assert client.get("/v1/apps").status_code == 200
    assert client.get("/v1/account/profile").status_code == 503
    fake.recover()
    assert client.get("/v1/account/profile").status_code == 200
    assert client.get("/v1/account/organizations").status_code == 200


@pytest.mark.parametrize(
    ("fault", "error", "exchanges", "statuses"),
    [
        (Fault(refuse=True), httpx.ConnectError("refused"), 0, []),
        (Fault(reset=True), httpx.ReadError("reset"), 0, [None]),
        (Fault(reset=True, processed=True), httpx.ReadError("reset"), 1, [None]),
        (Fault(truncate=0), httpx.RemoteProtocolError("received 0 bytes"), 1, [200]),
        (Fault(truncate=5), httpx.RemoteProtocolError("received 5 bytes"), 1, [200]),
    ],
    ids=repr,
)
def test_broken_connection_leaves_what_was_done(
    fake: FakeKoyeb,
    client: httpx.Client,
    *,
    fault: Fault,
    error: httpx.HTTPError,
    exchanges: int,
    statuses: list[int | None],
) -> None:
    """The error is the one of a real connection; the service has done its work, or has not."""
    (token,) = fake.live_tokens()
    fake.fail("refresh", fault)
    with pytest.raises(type(error), match=str(error)):
        client.put("/v1/account/refresh")
    assert fake.exchanges() == exchanges
    assert len(fake.live_tokens()) == 1
    assert (token in fake.live_tokens()) is not bool(exchanges)
    assert [request.status for request in fake.requests] == statuses


def test_error_may_follow_the_deed(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A gateway may answer 504 for a refresh that the service behind it did."""
    fake.fail("refresh", Fault(status=504, processed=True))
    assert client.put("/v1/account/refresh").status_code == 504
    assert fake.exchanges() == 1


def test_truncation_beyond_the_end_cuts_nothing(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A body that is shorter than the cut arrives whole."""
    fake.fail("apps", Fault(truncate=10_000))
    assert client.get("/v1/apps").json()["apps"] == []


def test_held_reply_waits_for_the_gate(fake: FakeKoyeb, client: httpx.Client) -> None:
    """The service has done its work while the gate still holds the reply."""
    fake.fail("refresh", Fault(gate=(gate := Gate())))
    with Background() as background:
        reply = background.start(lambda: client.put("/v1/account/refresh"))
        gate.wait_arrived()
        assert fake.exchanges() == 1
        assert fake.requests[-1].status is None
        gate.open()
        assert reply.result().status_code == fake.requests[-1].status == 200


def test_held_request_is_carried_out_after_the_gate(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A request that is held on its way meets the service as it is when the gate opens."""
    fake.fail("apps", Fault(gate=(gate := Gate()), hold="request"))
    with Background() as background:
        reply = background.start(lambda: client.get("/v1/apps"))
        gate.wait_arrived()
        fake.revoke_all()
        gate.open()
        assert reply.result().status_code == 401


def test_latency_delays_a_reply(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A reply that is late arrives all the same."""
    fake.fail("apps", Fault(latency=0.001))
    assert client.get("/v1/apps").status_code == 200


@pytest.mark.parametrize(
    "fault", [Fault(latency=60.0), Fault(gate=Gate()), Fault(latency=0.001, gate=Gate())]
)
def test_held_reply_ends_the_clients_patience(
    fake: FakeKoyeb, client: httpx.Client, fault: Fault
) -> None:
    """A client's read timeout ends the wait for a held reply."""
    fake.fail("apps", fault)
    with pytest.raises(httpx.ReadTimeout):
        client.get("/v1/apps", timeout=0.002)
    assert fake.requests[-1].status is None


@pytest.mark.parametrize("fault", [Fault(latency=60.0), Fault(gate=Gate(), hold="request")])
async def test_held_reply_ends_the_async_clients_patience(
    fake: FakeKoyeb, async_client: httpx.AsyncClient, fault: Fault
) -> None:
    """The same holds for a client that awaits; a held request it gives up on is not carried out."""
    fake.fail("new_session", fault)
    with pytest.raises(httpx.ReadTimeout):
        await async_client.post("/v1/account/session", timeout=0.002)
    assert fake.requests[-1].status is None
    assert len(fake.live_tokens()) == (1 if fault.hold == "request" else 2)
