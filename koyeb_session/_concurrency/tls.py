"""The one TLS context of the process, and getting it ready ahead of need."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import ssl


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the one TLS context of the process; reading the certificates takes 20 ms."""
    for thread in _threads:
        thread.join()
    return _context()


def prepare_tls() -> None:
    """
    Begin to read the certificates in a thread, once for the process.

    OpenSSL lets other threads run meanwhile, and a new client has something to do until it needs
    them: it imports what it connects with.
    """
    with contextlib.suppress(RuntimeError):  # no thread can be had: they are read when needed
        _start()


@functools.cache
def _start() -> None:
    # No daemon: the interpreter must not end while OpenSSL is at work.
    thread = threading.Thread(target=_load, name="koyeb-session-tls")
    thread.start()
    _threads.append(thread)
    if hasattr(os, "register_at_fork"):
        # A fork in the middle would leave OpenSSL's locks held for ever in the child. A function of
        # this module as the hook would keep httpx alive until the very end, which takes time.
        os.register_at_fork(before=thread.join)


_threads: list[threading.Thread] = []


def _load() -> None:
    with contextlib.suppress(Exception):  # it is raised to whoever needs the context
        _context()


def is_loading() -> bool:
    """Tell whether what :func:`prepare_tls` has begun is not done yet."""
    return any(thread.is_alive() for thread in _threads)


@functools.cache
def _context() -> ssl.SSLContext:
    return httpx.create_ssl_context()
