"""The certificates: read once, ahead of need, again when they change, and never beside a fork."""

from __future__ import annotations

import os
import runpy
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import certifi
import httpx
import pytest
import truststore

from koyeb_session import AsyncSessionClient, SessionClient, TransportError
from koyeb_session._concurrency import forks
from koyeb_session._http import tls
from koyeb_session._http.threads import http_transport, tls_ready
from koyeb_session.testing import FakeKoyeb

from .concurrency import async_idle
from .support import raising


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process does that has made no client yet."""
    monkeypatch.setattr(tls, "_latest", None)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


class Certificates:
    """Counts how often they are read, and waits for leave to go on."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.go = threading.Event()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def read(self) -> ssl.SSLContext:
        """Stand for httpx's own function."""
        self.threads.append(threading.current_thread())
        self.go.wait(30)
        return self.context


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch) -> Certificates:
    """Put these in the place of the machine's."""
    certificates = Certificates()
    monkeypatch.setattr(httpx, "create_ssl_context", certificates.read)
    return certificates


def read() -> ssl.SSLContext:
    """Return the certificates that a new client trusts."""
    return tls.certificates().context()


def test_clients_have_the_certificates_read_once(certificates: Certificates) -> None:
    """The first client begins, in a thread; a connection waits for it and reads nothing."""
    for _ in range(3):
        SessionClient()
    found = tls.certificates()
    tls_ready(found)  # does not wait: there is more to import
    assert found.is_loading
    certificates.go.set()
    assert found.context() is certificates.context
    (thread,) = certificates.threads
    assert thread is not threading.current_thread()
    assert not thread.daemon
    assert not found.is_loading
    SessionClient()
    assert certificates.threads == [thread]


async def test_the_event_loop_goes_on_while_the_certificates_are_read(
    certificates: Certificates,
) -> None:
    """A first request waits for them, and other tasks run in the meantime."""
    async with AsyncSessionClient(base_url="http://127.0.0.1:1", timeout=30) as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused, session)
            await async_idle()
            certificates.go.set()
        assert len(certificates.threads) == 1


async def refused(session: AsyncSessionClient) -> None:
    """Ask a service that is not there."""
    with pytest.raises(TransportError, match="connect"):
        await session.login_method("me@example.com")


def test_a_given_transport_needs_no_certificates(certificates: Certificates) -> None:
    """Only the operations' own connections would use them, and there are none."""
    SessionClient(transport=FakeKoyeb().transport)
    with httpx.Client(transport=FakeKoyeb().transport) as client:
        SessionClient(http_client=client)
    assert tls._latest is None
    assert certificates.threads == []


def test_certificates_are_read_in_the_calling_thread_where_there_is_no_other(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that can start no thread, or is ending, can still sign in."""
    certificates.go.set()
    no_thread = raising(RuntimeError("can't start new thread"))
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    SessionClient()
    assert read() is certificates.context
    assert certificates.threads == [threading.current_thread()]


def test_certificates_that_cannot_be_read_are_told_to_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread says nothing; the error is final, and the next client reads again."""
    with monkeypatch.context() as broken:
        broken.setattr(httpx, "create_ssl_context", raising(OSError("too many open files")))
        with SessionClient(token="a" * 64) as session:
            for ask in (session.login_method, session.http.get):
                with pytest.raises(
                    TransportError, match=r"certificates .* too many open"
                ) as caught:
                    ask("me@example.com")
                assert not caught.value.retryable
    assert isinstance(read(), ssl.SSLContext)


# Certificates that a new client trusts


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Copy certifi's certificates."""
    path = tmp_path / "bundle.pem"
    path.write_bytes(Path(certifi.where()).read_bytes())
    return path


def number(context: ssl.SSLContext) -> int:
    """Count the certificates that a context trusts."""
    return len(context.get_ca_certs())


@pytest.mark.pitfall(50)
@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_variable_that_is_set_later_counts_for_the_next_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path, variable: str
) -> None:
    """An earlier client keeps its certificates; the same setting is read once."""
    before = read()
    monkeypatch.setenv(variable, str(bundle if variable == "SSL_CERT_FILE" else tmp_path))
    after = read()
    assert after is not before
    assert read() is after
    assert number(after) == number(httpx.create_ssl_context())
    monkeypatch.delenv(variable)
    assert number(read()) == number(before)


def test_certificates_that_are_rotated_count_for_the_next_client(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """The file is another one, or of another size or time."""
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    many = read()
    end = "-----END CERTIFICATE-----\n"
    text = bundle.read_text("utf-8")
    bundle.write_text(text[: text.index(end) + len(end)], "utf-8")
    assert number(read()) == 1 < number(many)


def test_certifis_own_certificates_may_be_rotated_too(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """A distribution may let certifi name the system's."""
    monkeypatch.setattr(certifi, "where", lambda: str(bundle))
    first = read()
    assert read() is first
    os.utime(bundle, (0, 0))
    assert read() is not first


def test_truststore_counts_for_the_next_client() -> None:
    """It replaces the class of contexts in the process."""
    before = read()
    truststore.inject_into_ssl()
    try:
        assert isinstance(read(), truststore.SSLContext)
    finally:
        truststore.extract_from_ssl()
    assert type(read()) is type(before) is ssl.SSLContext


@pytest.mark.parametrize("client", [SessionClient, AsyncSessionClient])
def test_a_missing_file_is_told_when_the_client_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, client: Any
) -> None:
    """The error names the variable and the file, and is final."""
    missing = str(tmp_path / "missing.pem")
    monkeypatch.setenv("SSL_CERT_FILE", missing)
    with pytest.raises(TransportError, match=r"SSL_CERT_FILE \(.*missing.pem\)") as caught:
        client()
    assert not caught.value.retryable
    Path(missing).write_bytes(Path(certifi.where()).read_bytes())
    client()


def test_a_file_that_holds_no_certificates_is_told_to_the_connection(
    monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    """Reading it takes too long for the constructor."""
    bundle.write_text("nonsense", "utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with (
        SessionClient() as session,
        pytest.raises(TransportError, match=r"SSL_CERT_FILE \(.*PEM") as caught,
    ):
        session.login_method("me@example.com")
    assert not caught.value.retryable


def test_an_httpx_with_other_names_inside_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of its pool has no public name; without it, each read has its own timeout."""

    class Plain:
        """Has no pool."""

        def __init__(self, **_options: object) -> None:
            """Take the same arguments as httpx's own."""

    monkeypatch.setattr(httpx, "HTTPTransport", Plain)
    found: object = http_transport(None, tls.certificates())
    assert type(found) is Plain


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_waits_for_the_certificates() -> None:
    """OpenSSL's locks are free in the child, and only the forking thread is there."""
    program = """
import os, threading, httpx
inner = httpx.create_ssl_context
done = []
forking = threading.Event()
def slow():
    forking.wait()
    done.append(inner())
    return done[-1]
httpx.create_ssl_context = slow
from koyeb_session import SessionClient
from koyeb_session._http.tls import certificates
os.register_at_fork(before=forking.set)  # before those that were registered before it
for n in (1, 2):
    forking.clear()
    session = SessionClient()
    os.register_at_fork(before=forking.set)  # before those that were registered before it
    assert threading.active_count() == 2
    if os.fork() == 0:
        os._exit(0 if len(done) == n and done[-1] is certificates().context() else 1)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    os.environ["SSL_CERT_DIR"] = "/"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_certificates_do_without_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is nothing to register."""
    monkeypatch.delattr(os, "register_at_fork")
    copied = runpy.run_path(forks.__file__)
    copied["start_before_forks"](thread := threading.Thread(target=bool))
    thread.join()
    copied["_wait"]()  # for nothing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_waits_for_no_thread_that_has_ended() -> None:
    """Nor for one that could not be started."""
    read()
    forks._threads.append(threading.Thread())
    forks._wait()
