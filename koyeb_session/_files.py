"""A token in a file: written whole or not at all, for its owner's eyes alone. All of it blocks."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from ._errors import StoreError
from ._log import log
from ._records import read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path

    from ._models import Token

_STALE: Final = 60.0
"""Seconds after which a temporary file is nobody's any more: its writer was killed."""
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
"""A pipe that somebody laid there would be waited for without end."""
_TAKEN_FOR_SYMLINK: Final = {errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP)}


@contextlib.contextmanager
def failing_as(what: str, path: Path) -> Generator[None]:
    """Raise a `StoreError` in place of what the operating system raises."""
    try:
        yield
    except OSError as exc:
        why = "it is a symlink" if exc.errno in _TAKEN_FOR_SYMLINK else os.strerror(exc.errno or 0)
        error = StoreError(f"{path} cannot be {what}: {why}")
        error.__cause__ = type(exc)(exc.errno, os.strerror(exc.errno or 0))
    else:
        return
    raise error


def read(path: Path) -> Token | None:
    """Read a token; put a file aside that does not hold one."""
    with failing_as("read", path):
        try:
            with open(path, "rb", opener=_open) as file:
                found = read_record(file.read())
        except FileNotFoundError:
            return None
    if not isinstance(found, ValueError):
        return found
    aside = path.with_name(f"{path.name}.{time.time_ns()}.unreadable")
    with failing_as("put aside", path), contextlib.suppress(FileNotFoundError):
        path.replace(aside)
        log.warning("%s is put aside as %s: %s", path, aside.name, found)
    return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_FOLLOW | _NO_WAIT)


def write(path: Path, token: Token) -> None:
    """Put a token in place of what is there; whoever is killed here leaves the old one."""
    with failing_as("written", path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, "")
        make_folder(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(write_record(token).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        _sweep(path)


def remove(path: Path) -> None:
    """Remove the file, if it is there; a symlink itself and not what it points to."""
    with failing_as("removed", path), contextlib.suppress(FileNotFoundError):
        path.unlink()
        _sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make the folder of a file, closed to others; one that is there stays as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # pragma: no cover - Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove what killed writers left: it holds tokens."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # a writer has just renamed it
            if time.time() - temporary.stat().st_mtime > _STALE:
                temporary.unlink()
