"""Failures without a reply: the message for people, and whether another attempt may help."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    RetryPolicy,
    SessionClient,
    TransportError,
    TransportTimeoutError,
)
from koyeb_session._http.failures import transport_error
from koyeb_session.testing import FakeKoyeb

from .faults.certificates import issuer, server_context
from .faults.server import Server
from .support import ME, PASSWORD, raising

pytestmark = pytest.mark.usefixtures("no_proxies")
POLICY = RetryPolicy(delay=0)


def failure(half: str, **arguments: Any) -> TransportError:
    """Return the error of a sign-in."""

    def sign_in() -> None:
        with SessionClient(retry_policy=POLICY, **arguments) as session:
            session.login(ME, PASSWORD)

    async def async_sign_in() -> None:
        async with AsyncSessionClient(retry_policy=POLICY, **arguments) as session:
            await session.login(ME, PASSWORD)

    run = sign_in if half == "blocking" else partial(anyio.run, async_sign_in, backend=half)
    with pytest.raises(TransportError) as caught:
        run()
    return caught.value


HALVES = pytest.mark.parametrize("half", ["blocking", "asyncio", "trio"])


@HALVES
@pytest.mark.parametrize(
    ("status", "text", "retryable"),
    [
        ("407 Proxy Authentication Required", "http://user:password@host:port", False),
        ("403 Forbidden", "refuses to connect", False),
        ("429 Too Many Requests", "did not reach the service", True),
        ("502 Bad Gateway", "did not reach the service", True),
    ],
)
def test_a_refusal_of_the_proxy_is_final_and_one_of_the_moment_is_not(
    monkeypatch: pytest.MonkeyPatch, half: str, status: str, text: str, *, retryable: bool
) -> None:
    """A wrong password is not shown three times; the message says what to set."""
    reply = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
    with Server([lambda exchange: exchange.send(reply)]) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:wrong@127.0.0.1:{proxy.port}")
        error = failure(half)
    assert len(proxy.requests) == (3 if retryable else 1)
    assert text in str(error)
    assert status in str(error)
    assert error.retryable is retryable
    assert isinstance(error.__cause__, httpx.ProxyError)


@HALVES
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_away_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, half: str, scheme: str
) -> None:
    """A reader of "connection refused" would else look at the service."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        proxy = f"127.0.0.1:{gone.getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://me:canary@{proxy}")
    error = failure(half)
    assert f", by the proxy {scheme}://{proxy}; look at HTTPS_PROXY and NO_PROXY" in str(error)
    assert "canary" not in f"{error}{error.__cause__}"
    assert error.retryable
    assert isinstance(error.__cause__, httpx.ConnectError)


@HALVES
def test_a_certificate_that_is_not_trusted_is_final(half: str) -> None:
    """The message names the variable to set."""
    with Server([], tls=server_context()) as service:
        error = failure(half, base_url=service.url)
    assert len(service._threads) == 2  # one accepts, and one serves
    assert "set SSL_CERT_FILE" in str(error)
    assert not error.retryable


@HALVES
@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"year": 2020}, "certificate is out of date, or the clock of this machine is wrong"),
        ({"year": 2037}, "certificate is out of date, or the clock of this machine is wrong"),
        ({"name": "elsewhere.example"}, "certificate is for another host: look at base_url"),
    ],
)
def test_a_certificate_of_another_time_or_host_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, half: str, server: dict[str, Any], text: str
) -> None:
    """The issuer is trusted: catches advice to trust it."""
    issuer().cert_pem.write_to_path(tmp_path / "issuer.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "issuer.pem"))
    with Server([], tls=server_context(**server)) as service:
        error = failure(half, base_url=service.url)
    assert text in str(error)
    assert "SSL_CERT_FILE" not in str(error)


@HALVES
def test_a_service_without_tls_is_said(half: str) -> None:
    """OpenSSL's own words are a wrong version number."""
    with FakeKoyeb().serve() as url:
        error = failure(half, base_url=url.replace("http:", "https:"))
    assert "it answers without TLS: look at base_url, and at HTTPS_PROXY" in str(error)


@HALVES
def test_a_name_that_cannot_be_resolved_is_named(
    monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    """It may be the network of this moment: trying again may help."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", raising(unknown))
    error = failure(half, base_url="https://nowhere.invalid")
    assert "a host name cannot be resolved: look at base_url, at the host of HTTPS_PROXY" in str(
        error
    )
    assert error.retryable


@pytest.mark.parametrize(
    ("exc", "text", "retryable"),
    [
        (httpx.ProxyError("Invalid username/password"), "user:password", False),
        (httpx.ProxyError("Requested NO AUTHENTICATION REQUIRED but got"), "user:pass", False),
        (httpx.ProxyError("Proxy Server could not connect: refused."), "did not reach", True),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "SSL_CERT", False),
        (httpx.ReadError("Connection reset by peer"), "reset by peer", True),
        (httpx.ReadError(""), "ReadError", True),
        (httpx.ConnectTimeout("CERTIFICATE_VERIFY_FAILED"), "CERTIFICATE_VERIFY_FAILED", True),
    ],
)
def test_failures_say_what_to_do(exc: Exception, text: str, *, retryable: bool) -> None:
    """SOCKS proxies have words of their own, other transports the same text in another class."""
    error = transport_error(exc, "login: no reply", str)
    assert str(error).startswith("login: no reply: ")
    assert text in str(error)
    assert error.retryable is retryable
    assert isinstance(error, TransportTimeoutError) is isinstance(exc, httpx.TimeoutException)


def test_failures_that_go_round_in_circles_are_read_once() -> None:
    """An error may be its own cause."""
    exc = httpx.ConnectError("refused")
    exc.__context__ = other = OSError("refused")
    other.__context__ = exc
    assert transport_error(exc, "login", str).retryable
