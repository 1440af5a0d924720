"""
Load the trusted certificates ahead of need, once for all clients with the same source.

Loading them is slow: see tests/benchmarks. A client trusts the same certificates as an
`httpx.Client` that is created at the same moment.
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
    The certificates of one source, and the thread that loads them.

    OpenSSL releases the GIL while it loads them. A new client imports its network modules in the
    meantime.
    """

    def __init__(self) -> None:
        self._source = _source()
        self._stamp = _stamp(self._source)
        self._ssl_class: object = None
        self._context: ssl.SSLContext | None = None
        self._failure: Exception | None = None
        # Not a daemon: the interpreter must not end while OpenSSL is running.
        self._thread = threading.Thread(target=self._load, name="koyeb-session-tls")

    @property
    def is_loading(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether loading them again would give the same result."""
        return (
            self._failure is None
            and (self.is_loading or self._source == _source())
            and self._stamp == _stamp(self._source)
            and self._ssl_class in {None, _ssl_class()}  # None: not loaded yet
        )

    def start(self) -> None:
        """
        Start to load the certificates.

        Raises:
            TransportError: The file that the environment names does not exist.
        """
        if self._source.name == _FILE and self._stamp is None:
            raise self._unreadable("there is no such file")
        try:
            start_before_forks(self._thread)
        except RuntimeError:  # no thread can be started: `context` loads them
            return

    def wait(self) -> None:
        """Wait for the thread, if there is one."""
        if self.is_loading:
            self._thread.join()

    def context(self) -> ssl.SSLContext:
        """
        Return the TLS context with these certificates.

        Raises:
            TransportError: The certificates cannot be read.
        """
        self.wait()
        if self._context is None and self._failure is None:
            self._load()
        if self._context is None:
            raise self._unreadable(str(self._failure))
        return self._context

    def _load(self) -> None:
        import ssl  # noqa: PLC0415 - slow to import, so this thread does it

        try:
            self._ssl_class = ssl.SSLContext
            self._context = httpx.create_ssl_context()
            if not self._source.path:  # only now has httpx imported certifi
                self._source = _source()
                self._stamp = _stamp(self._source)
        except Exception as exc:  # noqa: BLE001 - raised to the caller that needs the context
            self._failure = exc

    def _unreadable(self, why: str) -> TransportError:
        from .failures import final  # noqa: PLC0415 - rarely needed

        return final(
            f"the certificates of {self._source.name} ({self._source.path}) cannot be read: {why}; "
            f"{_FILE} must name a file of certificates in the PEM format"
        )


_latest: Certificates | None = None


def certificates() -> Certificates:
    """
    Return the certificates for a new client, and start to load them if necessary.

    There is no lock: two threads that come first at the same moment load them twice.

    Raises:
        TransportError: The file that the environment names does not exist.
    """
    global _latest  # noqa: PLW0603 - shared by the whole process
    latest = _latest
    if latest is None or not latest.is_current:
        latest = Certificates()
        latest.start()
        _latest = latest
    return latest


def read_ahead() -> None:
    """Begin to read for the first client of the process. An error shows later."""
    if _latest is None:
        with contextlib.suppress(TransportError):
            certificates()


class _Source(NamedTuple):
    name: str
    path: str


def _source() -> _Source:
    """Return the source that httpx uses: a variable, or certifi once that is imported."""
    for name in (_FILE, "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            return _Source(name, path)
    certifi = sys.modules.get("certifi")
    return _Source("certifi", certifi.where() if certifi else "")


def _stamp(source: _Source) -> tuple[int, int, int] | None:
    """Return the identity of a file's content; `None` if the file does not exist."""
    try:
        found = os.stat(source.path)  # noqa: PTH116 - hot path: see tests/benchmarks
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _ssl_class() -> object:
    """Return the class of TLS contexts, which truststore replaces."""
    return getattr(sys.modules.get("ssl"), "SSLContext", None)
