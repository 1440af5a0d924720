"""The certificates: read once, ahead of need, and never in the middle of a fork."""

from __future__ import annotations

import functools
import os
import runpy
import ssl
import subprocess
import sys
import threading

import anyio
import httpx
import pytest

from koyeb_session import AsyncSessionClient, SessionClient, TransportError
from koyeb_session._concurrency import tls
from koyeb_session._concurrency.http import tls_ready
from koyeb_session.testing import FakeKoyeb

from .concurrency import async_idle


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin as a process does that has made no client yet."""
    monkeypatch.setattr(tls, "_threads", [])
    for name in ("tls_context", "_start", "_context"):
        function = getattr(tls, name).__wrapped__
        monkeypatch.setattr(tls, name, functools.cache(function))


class Certificates:
    """Counts how often they are read, and waits for leave to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: list[threading.Thread] = []
        self.go = threading.Event()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        monkeypatch.setattr(httpx, "create_ssl_context", self.read)

    def read(self) -> ssl.SSLContext:
        """Stand for httpx's own function."""
        self.threads.append(threading.current_thread())
        self.go.wait(30)
        return self.context


@pytest.mark.usefixtures("unread")
def test_clients_have_the_certificates_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first client begins, in a thread; who connects waits for it and reads nothing."""
    certificates = Certificates(monkeypatch)
    for _ in range(3):
        SessionClient()
    tls_ready()  # does not wait: there is more to import
    assert tls._threads[0].is_alive()
    certificates.go.set()
    assert tls.tls_context() is certificates.context
    (thread,) = certificates.threads
    assert thread is not threading.current_thread()
    assert not thread.daemon
    assert not thread.is_alive()


@pytest.mark.usefixtures("unread")
async def test_the_event_loop_goes_on_while_the_certificates_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A first request waits for them, and others run meanwhile."""
    certificates = Certificates(monkeypatch)
    async with AsyncSessionClient(base_url="http://127.0.0.1:1", timeout=30) as session:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refused, session)
            await async_idle()
            certificates.go.set()
        assert certificates.threads == tls._threads


async def refused(session: AsyncSessionClient) -> None:
    """Ask a service that is not there."""
    with pytest.raises(TransportError, match="connect"):
        await session.login_method("me@example.com")


@pytest.mark.usefixtures("unread")
def test_a_given_transport_needs_no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the operations' own connections would use them, and there are none."""
    certificates = Certificates(monkeypatch)
    SessionClient(transport=FakeKoyeb().transport)
    assert tls._threads == certificates.threads == []


@pytest.mark.usefixtures("unread")
def test_certificates_are_read_in_the_calling_thread_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that may have no more threads, or is ending, signs in all the same."""
    certificates = Certificates(monkeypatch)
    certificates.go.set()

    def refuse(_: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    SessionClient()
    assert tls.tls_context() is certificates.context
    assert certificates.threads == [threading.current_thread()]


@pytest.mark.usefixtures("unread")
def test_certificates_that_cannot_be_read_are_told_to_who_connects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread says nothing; whoever needs the certificates gets the error."""

    def fail() -> ssl.SSLContext:
        raise FileNotFoundError

    monkeypatch.setattr(httpx, "create_ssl_context", fail)
    SessionClient()
    with pytest.raises(FileNotFoundError):
        tls.tls_context()


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
    return done[0]
httpx.create_ssl_context = slow
from koyeb_session import SessionClient
from koyeb_session._concurrency.tls import tls_context
session = SessionClient()
os.register_at_fork(before=forking.set)  # before those that were registered before it
assert threading.active_count() == 2
if os.fork() == 0:
    os._exit(0 if len(done) == 1 and done == [tls_context()] else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_certificates_do_without_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is nothing to register."""
    monkeypatch.delattr(os, "register_at_fork")
    copied = runpy.run_path(tls.__file__)
    copied["prepare_tls"]()
    assert copied["tls_context"]() is copied["tls_context"]()
