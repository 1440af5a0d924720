"""
The certificates to trust, read ahead of need and shared by all clients that would read the same.

Reading them takes 20 ms. A client trusts what an `httpx.Client` made at the same moment would.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from .._concurrency.forks import start_before_forks
from .._core.errors import TransportError

if TYPE_CHECKING:
    import ssl

_FILE: Final = "SSL_CERT_FILE"


class Certificates:
    """
    The certificates of one source, and the thread that reads them.

    OpenSSL lets other threads run meanwhile, and a new client has something to do until it needs
    them: it imports what it connects with.
    """

    def __init__(self) -> None:
        self._source = _source()
        self._stamp = _stamp(self._source)
        self._ssl_class: object = None
        self._context: ssl.SSLContext | None = None
        self._failure: Exception | None = None
        # No daemon: the interpreter must not end while OpenSSL is at work.
        self._thread = threading.Thread(target=self._load, name="koyeb-session-tls")

    @property
    def is_loading(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether reading them again would bring the same."""
        return (
            self._failure is None
            and (self.is_loading or self._source == _source())
            and self._stamp == _stamp(self._source)
            and self._ssl_class in {None, _ssl_class()}  # None: not loaded yet
        )

    def start(self) -> None:
        """
        Begin to read.

        Raises:
            TransportError: The file that the environment names is not there.
        """
        if self._source.name == _FILE and self._stamp is None:
            raise self._unreadable("there is no such file")
        try:
            start_before_forks(self._thread)
        except RuntimeError:  # no thread can be had: they are read when needed
            return

    def wait(self) -> None:
        """Wait for the thread, if there is one."""
        if self.is_loading:
            self._thread.join()

    def context(self) -> ssl.SSLContext:
        """
        Return the TLS context that trusts them.

        Raises:
            TransportError: They cannot be read.
        """
        self.wait()
        if self._context is None and self._failure is None:
            self._load()
        if self._context is None:
            raise self._unreadable(str(self._failure))
        return self._context

    def _load(self) -> None:
        import ssl  # noqa: PLC0415 - takes a while, and this is a thread

        try:
            self._ssl_class = ssl.SSLContext
            self._context = httpx.create_ssl_context()
            if not self._source.path:  # httpx has imported certifi by now
                self._source = _source()
                self._stamp = _stamp(self._source)
        except Exception as exc:  # noqa: BLE001 - raised to the caller that needs the context
            self._failure = exc

    def _unreadable(self, why: str) -> TransportError:
        error = TransportError(
            f"the certificates of {self._source.name} ({self._source.path}) cannot be read: {why}; "
            f"{_FILE} must name a file of certificates in the PEM format"
        )
        error.retryable = False
        return error


_latest: Certificates | None = None


def certificates() -> Certificates:
    """
    Return what a new client trusts; begin to read it, unless that has been done.

    There is no lock: two threads that come first at the same moment read twice.

    Raises:
        TransportError: The file that the environment names is not there.
    """
    global _latest  # noqa: PLW0603 - one for the process
    latest = _latest
    if latest is None or not latest.is_current:
        latest = Certificates()
        latest.start()
        _latest = latest
    return latest


def read_ahead() -> None:
    """Begin to read, if this is the first client of the process. What is wrong shows later."""
    if _latest is None:
        with contextlib.suppress(TransportError):
            certificates()


class _Source(NamedTuple):
    name: str
    path: str


def _source() -> _Source:
    """Name the variable that httpx goes by; without one it asks certifi, once that is imported."""
    for name in (_FILE, "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            return _Source(name, path)
    certifi = sys.modules.get("certifi")
    return _Source("certifi", certifi.where() if certifi else "")


def _stamp(source: _Source) -> tuple[int, int, int] | None:
    """Tell one state of a file from another."""
    try:
        found = os.stat(source.path)  # noqa: PTH116 - pathlib would take longer
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _ssl_class() -> object:
    """Tell what a context is made of, which truststore replaces."""
    return getattr(sys.modules.get("ssl"), "SSLContext", None)
