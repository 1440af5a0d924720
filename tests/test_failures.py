"""Failures without a reply: the message for people, and whether another attempt may help."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
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
from koyeb_session._http.failures import final, transport_error

from .faults.certificates import server_context
from .support import ME, raising

POLICY = RetryPolicy(delay=0)
Listen = Callable[[Callable[[socket.socket], None]], "Listener"]


class Listener:
    """Answers each connection in the same way, and counts them."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.port: int = self._socket.getsockname()[1]
        self.count = 0

    def _run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if self.count < 0:
                    return
                self.count += 1
                with suppress(OSError):
                    self._answer(connection)

    def close(self) -> None:
        """End it."""
        self.count = -1
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listen]:
    """Make listeners, and forget the proxies of the machine that the tests run on."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    made: list[Listener] = []

    def make(answer: Callable[[socket.socket], None]) -> Listener:
        made.append(Listener(answer))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def failure(half: str, **arguments: Any) -> TransportError:
    """Return the error of a sign-in."""

    def sign_in() -> None:
        with SessionClient(retry_policy=POLICY, **arguments) as session:
            session.login(ME, "correct horse")

    async def async_sign_in() -> None:
        async with AsyncSessionClient(retry_policy=POLICY, **arguments) as session:
            await session.login(ME, "correct horse")

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
    monkeypatch: pytest.MonkeyPatch,
    listen: Listen,
    half: str,
    status: str,
    text: str,
    *,
    retryable: bool,
) -> None:
    """A wrong password is not shown three times; the message says what to set."""

    def refuse(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())

    proxy = listen(refuse)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:wrong@127.0.0.1:{proxy.port}")
    error = failure(half)
    assert proxy.count == (3 if retryable else 1)
    assert text in str(error)
    assert status in str(error)
    assert error.retryable is retryable
    assert isinstance(error.__cause__, httpx.ProxyError)


@HALVES
@pytest.mark.usefixtures("listen")
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
def test_a_certificate_that_is_not_trusted_is_final(listen: Listen, half: str) -> None:
    """The message names the variable to set."""
    context = server_context("localhost")

    def shake(connection: socket.socket) -> None:
        with suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True):
            """The client breaks it off."""

    service = listen(shake)
    error = failure(half, base_url=f"https://localhost:{service.port}")
    assert service.count == 1
    assert "set SSL_CERT_FILE" in str(error)
    assert not error.retryable


@HALVES
@pytest.mark.usefixtures("listen")
def test_a_name_that_cannot_be_resolved_is_named(
    monkeypatch: pytest.MonkeyPatch, half: str
) -> None:
    """It may be the network of this moment: trying again may help."""
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        raising(socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    )
    error = failure(half, base_url="https://nowhere.invalid")
    assert "a name cannot be resolved: look at base_url" in str(error)
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
    ],
)
def test_failures_say_what_to_do(exc: Exception, text: str, *, retryable: bool) -> None:
    """SOCKS proxies have words of their own, other transports the same text in another class."""
    error = transport_error(exc, "login: no reply", str)
    assert str(error).startswith("login: no reply: ")
    assert text in str(error)
    assert error.retryable is retryable


def test_a_late_reply_is_worth_another_try() -> None:
    """The text of the timeout does not matter."""
    error = transport_error(httpx.ConnectTimeout("CERTIFICATE_VERIFY_FAILED"), "login", str)
    assert isinstance(error, TransportTimeoutError)
    assert error.retryable


def test_failures_that_go_round_in_circles_are_read_once() -> None:
    """An error may be its own cause."""
    exc = httpx.ConnectError("refused")
    exc.__context__ = other = OSError("refused")
    other.__context__ = exc
    assert transport_error(exc, "login", str).retryable


def test_final_errors_are_final() -> None:
    """They are told by their attribute."""
    assert not final("no").retryable
    assert TransportError("maybe").retryable
