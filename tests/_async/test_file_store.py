"""The store that keeps a session in a file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import filelock
import pytest

from koyeb_session import AsyncSessionClient, StoreError, Token
from koyeb_session.stores import AsyncFileTokenStore
from koyeb_session.testing import FakeKoyeb, async_check_store

Connect = Callable[..., AsyncSessionClient]


def names(folder: Path) -> set[str]:
    """Give what lies in a folder."""
    return {path.name for path in folder.iterdir()}


async def test_file_store_does_what_a_store_has_to_do(tmp_path: Path) -> None:
    """It passes the conformance suite, and a folder is made where there is none."""
    await async_check_store(lambda: AsyncFileTokenStore(tmp_path / "new" / "session.json"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_file_is_its_owners_alone_when_the_umask_is_zero(tmp_path: Path) -> None:
    """Nobody else may read the file or the lock, and no temporary file is left."""
    path = tmp_path / "session.json"
    store = AsyncFileTokenStore(path)
    before = os.umask(0)
    try:
        async with store.lock():
            await store.save(Token("secret"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) <= {"session.json", "session.json.lock"}
    assert "secret" not in repr(store)


async def test_file_lies_in_the_users_own_folder_when_no_path_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default place is where the platform keeps a program's state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    await AsyncFileTokenStore().save(Token("a"))
    assert (tmp_path / "koyeb-session" / "session.json").is_file()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": "koyeb-session", "version": 1, "tok',
        b"\xff\xfe",
        b"[]",
        b'{"token": {"id": "a"}}',
        b'{"format": "koyeb-session", "version": 2, "token": {"id": "a"}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a b"}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "user_id": 1}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "expires_at": "soon"}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "expires_at": 5}}',
        (
            b'{"format": "koyeb-session", "version": 1,'
            b' "token": {"id": "a", "expires_at": "2030-01-01T00:00:00"}}'
        ),
    ],
)
async def test_file_is_put_aside_when_it_holds_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """A truncated, foreign or future file is renamed with a warning, and is not fatal."""
    path = tmp_path / "session.json"
    path.write_bytes(content)
    store = AsyncFileTokenStore(path)
    assert await store.load() is None
    assert "put aside" in caplog.text
    (aside,) = (name for name in names(tmp_path) if name.endswith(".unreadable"))
    assert (tmp_path / aside).read_bytes() == content
    await store.save(Token("b"))
    assert await store.load() == Token("b")


async def test_pipe_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pipe with nobody at its other end is not waited for."""
    path = tmp_path / "session.json"
    os.mkfifo(path)
    assert await AsyncFileTokenStore(path).load() is None
    assert "put aside" in caplog.text


def descriptors() -> int:
    """Count what this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors")
async def test_folder_in_its_place_is_told(tmp_path: Path) -> None:
    """Each time, and nothing of it stays open."""
    store = AsyncFileTokenStore(tmp_path)
    before = descriptors()
    for _ in range(10):
        with pytest.raises(StoreError, match="cannot be read: Is a directory"):
            await store.load()
    assert descriptors() < before + 10


async def test_symlink_is_refused(tmp_path: Path) -> None:
    """A link that somebody laid there is neither followed nor replaced."""
    target = tmp_path / "target"
    target.write_text("untouched")
    path = tmp_path / "session.json"
    path.symlink_to(target)
    store = AsyncFileTokenStore(path)
    with pytest.raises(StoreError, match="symlink"):
        await store.load()
    with pytest.raises(StoreError, match="symlink"):
        await store.save(Token("a"))
    assert target.read_text() == "untouched"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_old_token_stays_when_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full, read-only or broken disk is a `StoreError`; what was there is whole."""
    store = AsyncFileTokenStore(tmp_path / "session.json")
    await store.save(Token("old"))

    def fail(_: int) -> NoReturn:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match=os.strerror(code)) as caught:
            await store.save(Token("new"))
    assert isinstance(caught.value.__cause__, OSError)
    assert await store.load() == Token("old")
    assert names(tmp_path) == {"session.json"}


async def test_folder_that_is_a_file_is_a_store_error(tmp_path: Path) -> None:
    """Where no folder can be, nothing can be read, written, removed or locked."""
    (tmp_path / "file").touch()
    store = AsyncFileTokenStore(tmp_path / "file" / "session.json")
    for use in (store.load, store.delete, lambda: store.save(Token("a"))):
        with pytest.raises(StoreError):
            await use()
    with pytest.raises(StoreError, match="locked"):
        async with store.lock():
            raise AssertionError


async def test_lock_that_the_file_system_lacks_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without locks is said to be one."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(StoreError, match="has no locks"):
        async with AsyncFileTokenStore(tmp_path / "session.json").lock():
            raise AssertionError


async def test_lock_that_is_held_for_too_long_is_a_store_error(tmp_path: Path) -> None:
    """Waiting for somebody else's renewal ends, and then the lock is still theirs."""
    path = tmp_path / "session.json"
    async with AsyncFileTokenStore(path).lock():
        for _ in range(2):
            with pytest.raises(StoreError, match="held for over"):
                async with AsyncFileTokenStore(path, lock_timeout=0.02).lock():
                    raise AssertionError


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_lock_timeout_without_a_beginning_or_an_end_is_refused(
    tmp_path: Path, seconds: float
) -> None:
    """A lock that nobody waits for would let two renew at once; and a wait has to have an end."""
    with pytest.raises(ValueError, match="lock_timeout must be above 0 and at most"):
        AsyncFileTokenStore(tmp_path / "session.json", lock_timeout=seconds)


@pytest.mark.parametrize("file", ["session.json", "session[1].json"])
async def test_leftover_of_a_killed_writer_is_swept(tmp_path: Path, file: str) -> None:
    """A temporary file holds a token, too: an old one is removed, a young one is somebody's."""
    young, old = (tmp_path / f".{file}.{name}.tmp" for name in ("young", "old"))
    for path in (young, old):
        path.touch()
    os.utime(old, (hour_ago := time.time() - 3600, hour_ago))
    await AsyncFileTokenStore(tmp_path / file).save(Token("a"))
    assert young.exists()
    assert not old.exists()


async def test_second_session_makes_no_login(
    tmp_path: Path, connect: Connect, fake: FakeKoyeb
) -> None:
    """A session that was saved goes on in the next one, which signs nobody in."""

    def session() -> Any:
        return connect(store=AsyncFileTokenStore(tmp_path / "session.json"))

    await session().login("me@example.com", "correct horse")
    assert (await session().http.get("/v1/apps")).status_code == 200
    assert [request.operation for request in fake.requests] == ["login", "apps"]
    await session().refresh()


async def test_session_goes_on_in_memory_when_the_store_fails(
    tmp_path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that cannot be written is logged, and is told of the token once it can be."""
    folder = tmp_path / "folder"
    folder.touch()
    session = connect(store=AsyncFileTokenStore(folder / "session.json"))
    token = await session.login("me@example.com", "correct horse")
    assert "kept in memory only" in caplog.text
    assert (await session.http.get("/v1/apps")).status_code == 200
    folder.unlink()
    await session.aclose()
    assert await AsyncFileTokenStore(folder / "session.json").load() == token


async def test_lock_that_cannot_be_given_back_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that goes away under the lock is a `StoreError`."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.raises(StoreError, match="unlocked"):
        async with AsyncFileTokenStore(tmp_path / "session.json").lock():
            monkeypatch.setattr(filelock.FileLock, "release", fail)
    monkeypatch.undo()
