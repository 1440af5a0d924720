"""Where the file of a session may lie."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import pickle
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from koyeb_session import StoreError, Token
from koyeb_session.stores import AsyncFileTokenStore

from ..support import names, raising


def make_socket(path: Path) -> None:
    """Leave a socket there that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def descriptors() -> int:
    """Count the open files of this process, where that is possible."""
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.exists() else 0


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, make_socket])
async def test_a_path_that_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """A pipe, which is not waited for, a folder or a socket is told each time; none stays open."""
    monkeypatch.chdir(tmp_path)
    make(Path("session.json"))  # the path of a socket has to be short
    store = AsyncFileTokenStore(tmp_path / "session.json")
    before = descriptors()
    for _ in range(10):
        with pytest.raises(StoreError, match=r"is refused: it is|cannot be read: No such device"):
            await store.load()
        with pytest.raises(StoreError, match=re.escape("session.json")):
            await store.save(Token("a"))
        with contextlib.suppress(StoreError):
            await store.delete()
    assert descriptors() < before + 10
    assert names(tmp_path) == {"session.json"}
    assert not (tmp_path / "session.json").is_file()


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EXDEV])
async def test_file_that_is_a_mount_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """A container's single file can be neither replaced nor removed: it is filled and emptied."""
    path = tmp_path / "session.json"
    path.write_text('{"format": "koyeb-session"' + " " * 1000)

    fail = raising(OSError(code, os.strerror(code)))
    monkeypatch.setattr(Path, "replace", fail)
    real = Path.unlink

    def unlink(self: Path, **options: bool) -> None:
        fail() if self == path else real(self, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    before = path.stat().st_ino
    store = AsyncFileTokenStore(path)
    assert await store.load() is None
    assert "passed over" in caplog.text
    for token in (Token("a" * 2000), Token("b")):
        await store.save(token)
        assert await store.load() == token
    await store.delete()
    assert await store.load() is None
    assert path.stat().st_ino == before
    assert names(tmp_path) == {"session.json"}


async def test_names_are_sessions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie where the platform keeps a program's state; an account needs no more than a name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for store in (AsyncFileTokenStore(), AsyncFileTokenStore(name="ci")):
        assert await store.load() is None
        await store.save(Token("a"))
        assert await store.load() == Token("a")
    assert names(tmp_path / "koyeb-session") == {"session.json", "session-ci.json"}


async def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell has expanded it, where the path comes from a file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    await AsyncFileTokenStore("~/new/session.json").save(Token("a"))
    assert names(tmp_path) == {"new"}


class BytesPath:
    """A path that is no text."""

    def __fspath__(self) -> bytes:
        return b"session.json"


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"path": ""}, ValueError, "path must not be empty"),
        ({"path": "a\0b"}, ValueError, "path must not be empty"),
        ({"path": "/"}, ValueError, "path must be a file's"),
        ({"path": "~/session.json"}, ValueError, "no home"),
        ({"path": 5}, TypeError, "path must be a str or an os.PathLike, not int"),
        ({"path": os.scandir}, TypeError, "path must be a str"),
        ({"path": BytesPath()}, TypeError, "path must be text"),
        ({"path": "a", "name": "ci"}, ValueError, "path or name, not both"),
        ({"name": 5}, TypeError, "name must be a str, not int"),
        ({"name": ""}, ValueError, "name must be 1 to 64 letters"),
        ({"name": "../etc"}, ValueError, "name must be 1 to 64 letters"),
    ],
)
def test_impossible_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A file has to have one place, by its path or by a name."""
    monkeypatch.setattr(Path, "expanduser", raising(RuntimeError()))
    if arguments.get("path") == "/":
        monkeypatch.undo()
    with pytest.raises(error, match=says):
        AsyncFileTokenStore(**arguments)


def copied(thing: Any) -> Any:
    """Hand something to another process, and take it back."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own


@pytest.mark.parametrize("copy_of", [copied, copy.copy, copy.deepcopy])
async def test_copies_are_of_the_same_file(tmp_path: Path, copy_of: Callable[[Any], Any]) -> None:
    """A store is configuration: a spawned process, or a fixture, has one of the same session."""
    store = AsyncFileTokenStore(tmp_path / "session.json", lock_timeout=3)
    async with store.lock():
        await copy_of(store).save(Token("a"))
    assert await store.load() == Token("a")
    assert repr(copy_of(store)) == repr(store)


async def test_symlink_is_refused(tmp_path: Path) -> None:
    """A link that somebody laid there is neither followed nor replaced."""
    target = tmp_path / "target"
    target.write_text("untouched")
    path = tmp_path / "session.json"
    path.symlink_to(target)
    store = AsyncFileTokenStore(path)
    for use in (store.load, lambda: store.save(Token("a"))):
        with pytest.raises(StoreError, match="symlink"):
            await use()
    assert target.read_text() == "untouched"
