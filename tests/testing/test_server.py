"""The service on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, Gate

GET = b"GET /v1/apps HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def url(fake: FakeKoyeb) -> Iterator[str]:
    """Serve the service."""
    with fake.serve() as url:
        yield url


@pytest.fixture
def client(fake: FakeKoyeb, url: str) -> Iterator[httpx.Client]:
    """Connect to the server, signed in."""
    headers = {"Authorization": f"Bearer {fake.issue_token()}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        yield client


def dial(url: str) -> socket.socket:
    """Connect without any HTTP."""
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30)


def converse(url: str, sent: bytes) -> bytes:
    """Send raw bytes, and give all that comes back until the server ends the connection."""
    with dial(url) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_server_keeps_connections(fake: FakeKoyeb, client: httpx.Client) -> None:
    """Requests with and without bodies use one connection, one after another."""
    connections: set[Any] = set()
    for _ in range(3):
        reply = client.post("/v1/apps", content=iter([b'{"name"', b': "web"}']))
        connections.add(reply.extensions["network_stream"].get_extra_info("client_addr"))
        assert client.get("/v1/apps").status_code == 200
    assert len(connections) == 1
    assert {request.json["name"] for request in fake.requests if request.json} == {"web"}


def test_client_may_end_the_connection(url: str) -> None:
    """After a reply that the client wants to be the last, the server hangs up and says so."""
    reply = converse(url, b"GET / HTTP/1.0\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 404 Not Found\r\n")
    assert b"\r\nconnection: close\r\n" in reply


def test_fault_may_end_the_connection(fake: FakeKoyeb, url: str) -> None:
    """A scripted ``connection: close`` is acted on."""
    fake.fail("apps", Fault(headers={"Connection": "close"}))
    assert b"401" in converse(url, GET)


def test_unknown_status_has_no_phrase(fake: FakeKoyeb, url: str) -> None:
    """A status that HTTP does not know goes over the wire too."""
    fake.fail("apps", Fault(status=599))
    assert converse(url, b"GET /v1/apps HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 599 \r\n")


def test_requests_that_arrive_at_once_are_answered_in_order(fake: FakeKoyeb, url: str) -> None:
    """Requests behind a held one wait for it."""
    fake.fail("apps", Fault(latency=0.001))
    reply = converse(url, GET + b"GET /x HTTP/1.0\r\n\r\n")
    assert reply.index(b"HTTP/1.1 401") < reply.index(b"HTTP/1.1 404")


def test_malformed_request_is_answered(url: str) -> None:
    """Bytes that are no request get a 400 that arrives, though the client goes on sending."""
    with dial(url) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        connection.sendall(b"and more of it")
        assert connection.recv(65_536) == b""


def test_waiting_client_is_told_to_go_on(url: str) -> None:
    """A client that asks before it sends its body is answered."""
    with dial(url) as connection:
        connection.sendall(
            b"POST /v1/apps HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"{}")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 401")


def test_reset_is_a_reset(fake: FakeKoyeb, client: httpx.Client) -> None:
    """The client sees a reset connection, and the next request gets a new one."""
    fake.fail("apps", Fault(reset=True))
    fake.fail("apps", Fault(refuse=True))
    for _ in range(2):
        with pytest.raises(httpx.ReadError, match="reset"):
            client.get("/v1/apps")
    assert client.get("/v1/apps").status_code == 200


def test_truncated_body_is_a_protocol_error(fake: FakeKoyeb, client: httpx.Client) -> None:
    """A body that ends early is seen as such, and the connection is not used again."""
    fake.fail("apps", Fault(truncate=5))
    with pytest.raises(httpx.RemoteProtocolError, match="received 5 bytes"):
        client.get("/v1/apps")
    assert client.get("/v1/apps").status_code == 200


def test_client_that_hangs_up_is_forgotten(fake: FakeKoyeb, url: str) -> None:
    """A held reply ends with its connection, and has no status in the log."""
    fake.fail("apps", Fault(gate=(gate := Gate())))
    with dial(url) as connection:
        connection.sendall(GET)
        gate.wait_arrived()
    assert httpx.get(f"{url}/v1/apps", trust_env=False).status_code == 401
    gate.open()
    assert httpx.get(f"{url}/v1/apps", trust_env=False).status_code == 401
    assert [request.status for request in fake.requests] == [None, 401, 401]


def test_end_of_serving_ends_everything(fake: FakeKoyeb) -> None:
    """Idle and held connections end with the server, its thread too; it can serve again."""
    before = set(threading.enumerate())  # threads of other tests may still end
    for _ in range(2):
        fake.fail("apps", Fault(gate=(gate := Gate())))
        with fake.serve() as url:
            idle, held = dial(url), dial(url)
            held.sendall(GET)
            gate.wait_arrived()
            assert len(set(threading.enumerate()) - before) == 1
        for connection in (idle, held):
            with connection:
                assert connection.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            dial(url)
    assert set(threading.enumerate()) <= before


def test_many_connections_are_served_at_once(fake: FakeKoyeb, url: str) -> None:
    """Two hundred connections are held at the same time, and all are answered."""
    fake.fail("apps", Fault(gate=(gate := Gate())), times=200)
    connections = [dial(url) for _ in range(200)]
    for connection in connections:
        connection.sendall(GET)
    gate.wait_arrived(200)
    gate.open()
    for connection in connections:
        with connection:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 401")
