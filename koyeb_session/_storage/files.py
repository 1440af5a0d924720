"""Keep a token in a file: written whole or not at all, and only for its owner. All calls block."""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import secrets
import shlex
import stat
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from .._core.errors import StoreError
from .._core.file_trust import NO_WAIT, Distrust, distrust
from .._core.log import log
from .._core.results import with_cause
from .records import LIMIT, ForeignRecordError, read_record, write_record

if TYPE_CHECKING:
    from .._core.models import Token

_STALE: Final = 60.0
"""Seconds after which a temporary file counts as abandoned: its process was killed."""
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
_TAKEN_FOR_SYMLINK: Final = {errno.ELOOP, getattr(errno, "EMLINK", errno.ELOOP)}
_IS_MOUNT: Final = {errno.EBUSY, errno.EXDEV}
"""The errors for replacing or removing a file that is itself a mount, as in a container."""


@contextlib.contextmanager
def failing_as(what: str, path: Path) -> Generator[None]:
    """Raise a `StoreError` in place of an `OSError`."""
    try:
        yield
    except OSError as exc:
        error = with_cause(StoreError(f"{path} cannot be {what}: {_why(exc)}"), _copy(exc))
    else:
        return
    raise error


def _copy(exc: OSError) -> OSError:
    """Copy an error without its frames, but never as a `TimeoutError`, which means a held lock."""
    if exc.errno is None or isinstance(exc, TimeoutError):
        return OSError(str(exc))
    return OSError(exc.errno, exc.strerror)  # makes the subclass that belongs to the number


def _why(exc: OSError) -> str:
    if exc.errno in _TAKEN_FOR_SYMLINK:
        return "it is a symlink"
    if exc.errno is None:
        return str(exc) or type(exc).__name__
    return f"{exc.strerror or os.strerror(exc.errno)} (errno {exc.errno})"


def absolute(path: str | os.PathLike[str]) -> Path | ValueError:
    """Make a path absolute, and expand ``~``, which no shell does in a container."""
    try:
        path = Path(path).expanduser().absolute()
    except RuntimeError:
        return ValueError("path begins with ~, and this user has no home folder")
    return path if path.name else ValueError("path must be a file's, and not the root folder")


def read(path: Path) -> Token | None:
    """Read a token; ignore a damaged file, with a warning, and refuse one that is no session's."""
    with failing_as("read", path):
        try:
            with open(path, "rb", opener=_open) as file:
                found = read_record(file.read(LIMIT + 1))
        except FileNotFoundError:
            return None
    if isinstance(found, ForeignRecordError):
        raise _not_a_session(path)
    if isinstance(found, ValueError):
        # Left where it is: without the lock, another process may have replaced it by now.
        log.warning("%s is passed over: %s", path, found)
        return None
    return found


def write(path: Path, token: Token) -> None:
    """Replace the file by one with this token; if the process is killed here, the old one stays."""
    with failing_as("written", path):
        if path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if _is_of_others(path):
            raise _not_a_session(path)
        make_folder(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb", opener=_open) as file:
                _fill(file, token)
            temporary.replace(path)
        except OSError as exc:
            if exc.errno not in _IS_MOUNT:
                raise
            with open(path, "r+b", opener=_open) as file:
                _fill(file, token)
        finally:
            with contextlib.suppress(OSError):  # already renamed, or the disk is gone
                temporary.unlink()
        _sync_folder(path.parent)
        _sweep(path)


def _open(path: str, flags: int) -> int:
    """
    Open a file that only this user may write.

    The check applies to the open descriptor, so nobody can swap the file between check and use.

    Raises:
        StoreError: The file is not safe; the message says what to do.
    """
    descriptor = os.open(path, flags | _NO_FOLLOW | NO_WAIT, 0o600)
    why = _refusal(os.fstat(descriptor), shlex.quote(path))
    if why is None:
        return descriptor
    os.close(descriptor)
    raise StoreError(f"{path} is refused: {why}")


def _refusal(status: os.stat_result, path: str) -> str | None:
    match distrust(status):
        case None:
            return None
        case Distrust.NO_FILE:
            return "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is no regular file"
        case Distrust.FOREIGN:
            return (
                f"it belongs to the user {status.st_uid}, and not to this one; run "
                f"`chown {os.geteuid()} {path}` if you trust what it holds, or remove it"
            )
        case Distrust.WRITABLE:
            return (
                f"other users may write to it; run `chmod 600 {path}` if you trust what it holds, "
                "or use a file system that has permissions"
            )


def _is_of_others(path: Path) -> bool:
    """Return whether this is no file, or holds something else than a session, such as user data."""
    try:
        with open(path, "rb", opener=_open_any) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a pipe, or /dev/null
                return True
            return isinstance(read_record(file.read(LIMIT + 1)), ForeignRecordError)
    except (FileNotFoundError, IsADirectoryError):
        return False
    except OSError as exc:
        if exc.errno in _TAKEN_FOR_SYMLINK:
            return False
        raise


def _open_any(path: str, flags: int) -> int:
    return os.open(path, flags | _NO_FOLLOW | NO_WAIT)


def _not_a_session(path: Path) -> StoreError:
    return StoreError(f"{path} is no session file, and is left as it is: give another path")


def _fill(file: BinaryIO, token: Token) -> None:
    file.write(write_record(token).encode())
    file.truncate()
    file.flush()
    os.fsync(file.fileno())


def remove(path: Path) -> None:
    """
    Remove the file, and the leftovers of killed writers; of a symlink, remove only the link.

    A file that is no session's stays: it holds no token.
    """
    with failing_as("removed", path):
        if not _is_of_others(path):
            _unlink(path)
            _sweep(path)
        _sync_folder(path.parent)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as exc:
        if exc.errno not in _IS_MOUNT:
            raise
        with open(path, "r+b", opener=_open) as file:
            file.truncate()
            os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Create the missing folders of a file, accessible only to this user."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, if the file system can; only log a failure."""
    if os.name == "nt":  # pragma: no cover - Windows cannot open a folder
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        log.debug("%s cannot be synced: %s", folder, _why(exc))


def _sweep(path: Path) -> None:
    """Remove the temporary files of killed writers, as they contain tokens."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # its writer has just renamed it
            if time.time() - temporary.stat().st_mtime > _STALE:
                temporary.unlink()
