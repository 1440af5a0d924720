"""The store that keeps a session in a file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import pytest

from koyeb_session import StoreError, Token
from koyeb_session.stores import AsyncFileTokenStore
from koyeb_session.testing import async_check_store

from ..support import names, raising

EIO, LATE = (OSError(code, os.strerror(code)) for code in (errno.EIO, errno.ETIMEDOUT))


async def test_file_store_does_what_a_store_has_to_do(tmp_path: Path) -> None:
    """It passes the conformance suite, and a folder is made where there is none."""
    await async_check_store(lambda: AsyncFileTokenStore(tmp_path / "new" / "session.json"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_file_is_its_owners_alone_when_the_umask_is_zero(tmp_path: Path) -> None:
    """
    Nobody else may read the file or the lock, and no temporary file is left.

    All folders that are made are closed to others, too; one that is there stays as it is.
    """
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    path = tmp_path / "there" / "a" / "b" / "session.json"
    store = AsyncFileTokenStore(path)
    before = os.umask(0)
    try:
        async with store.lock():
            await store.save(Token("secret"))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(it.stat().st_mode) for it in (path, *path.parents[:3])]
    assert modes == [0o600, 0o700, 0o700, 0o755]
    assert names(path.parent) <= {"session.json", "session.json.lock"}
    assert "secret" not in repr(store)


@pytest.mark.parametrize(
    "content",
    [
        b'{"format": "koyeb-session", "version": 1, "tok',
        b'{"for',
        b'{\n  "format" : "koyeb-session",\n',
        b"\0" * 300,  # as after a power failure
        b'{"format": "koyeb-session", "version": ' + b"[" * 1_000_000,  # deeper than Python can go
        b'{"format": "koyeb-session", "version": 3, "token": {"id": "a"}}',
        b'{"format": "koyeb-session", "version": [2], "token": {"id": "a"}}',
        b'{"format": "koyeb-session", "version": 2, "token": {"id": "a", "renewal": 5}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a b"}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "user_id": 1}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "expires_at": "soon"}}',
        b'{"format": "koyeb-session", "version": 1, "token": {"id": "a", "expires_at": 5}}',
        (
            b'{"format": "koyeb-session", "version": 1,'
            b' "token": {"id": "a", "expires_at": "2030-01-01T00:00:00"}}'
        ),
    ],
    ids=range(13),
)
async def test_file_that_holds_no_token_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """
    A truncated or future file is no session, with a warning, and is replaced or removed.

    A reader leaves it there: another process may just be replacing it.
    """
    path = tmp_path / "session.json"
    path.write_bytes(content)
    store = AsyncFileTokenStore(path)
    assert await store.load() is None
    assert f"{path} is passed over: " in caplog.text
    assert names(tmp_path) == {path.name}
    assert path.read_bytes() == content
    await store.save(Token("b"))
    assert await store.load() == Token("b")
    path.write_bytes(content)
    await store.delete()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "content",
    [
        b"url: app.koyeb.com\ntoken: mine\n",
        b"KOYEB_TOKEN=mine",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 1_000_000,  # nested deeper than Python can go
        b'{"token": {"id": "a"}}',
    ],
    ids=range(7),
)
async def test_file_of_another_program_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    """Catches a path given by mistake whose file is renamed, replaced or deleted."""
    path = tmp_path / ".env"
    path.write_bytes(content)
    store = AsyncFileTokenStore(path)
    with pytest.raises(StoreError, match="no session file, and is left as it is"):
        await store.load()
    with pytest.raises(StoreError, match="give another path"):
        await store.save(Token("a"))
    await store.delete()
    assert path.read_bytes() == content
    assert names(tmp_path) == {".env"}


@pytest.mark.parametrize("content", [b"", b"\n"])
async def test_empty_file_counts_as_no_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    """A file that was made to be mounted holds nothing yet, and stays where it is."""
    path = tmp_path / "session.json"
    path.write_bytes(content)
    assert await AsyncFileTokenStore(path).load() is None
    assert names(tmp_path) == {"session.json"}
    assert caplog.text == ""


async def test_record_of_the_first_version_is_read(tmp_path: Path) -> None:
    """A session that an older release has saved goes on."""
    path = tmp_path / "session.json"
    path.write_text('{"format": "koyeb-session", "version": 1, "token": {"id": "a"}}')
    assert await AsyncFileTokenStore(path).load() == Token("a")


async def test_renewal_and_provenance_are_kept(tmp_path: Path) -> None:
    """The fields that do not count for a token's equality are saved too."""
    store = AsyncFileTokenStore(tmp_path / "session.json")
    await store.save(Token("a", renewal="b", provenance="c"))
    found = await store.load()
    assert found is not None
    assert (found.renewal, found.provenance) == ("b", "c")


async def test_large_file_is_not_read_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is larger than any session is passed over after its first part."""
    path = tmp_path / "session.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert await AsyncFileTokenStore(path).load() is None
    assert "is damaged" in caplog.text


async def test_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user could have put their own session there; the error says how to go on."""
    path = tmp_path / "session.json"
    store = AsyncFileTokenStore(path)
    await store.save(Token("a"))
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(StoreError, match=r"belongs to the user .* run `chown"):
        await store.load()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid)
        assert await store.load() == Token("a")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
async def test_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Others could have put their own session there; once that is mended, it is read."""
    path = tmp_path / "session.json"
    store = AsyncFileTokenStore(path)
    await store.save(Token("a"))
    path.chmod(mode)
    with pytest.raises(StoreError, match="other users may write to it; run `chmod 600"):
        await store.load()
    path.chmod(0o600)
    assert await store.load() == Token("a")


async def test_file_system_without_permissions_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is saved that would be refused when it is read."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if os.getuid() == 0:
        monkeypatch.setattr("koyeb_session._core.file_trust._ROOT", -1)
    with pytest.raises(StoreError, match="belongs to the user"):
        await AsyncFileTokenStore(tmp_path / "session.json").save(Token("a"))
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("function", "call", "error", "says"),
    [
        (
            "replace",
            partial(AsyncFileTokenStore.save, token=Token("a")),
            EIO,
            rf"written: {EIO.strerror} \(errno \d+\)",
        ),
        (
            "unlink",
            AsyncFileTokenStore.delete,
            OSError("quota exceeded"),
            "removed: quota exceeded",
        ),
    ],
)
async def test_file_that_cannot_be_replaced_or_removed_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    function: str,
    call: Callable[[AsyncFileTokenStore], Any],
    error: OSError,
    says: str,
) -> None:
    """A disk that fails is a `StoreError`, with all that the system says, be it no number."""
    path = tmp_path / "session.json"
    path.write_text("{")
    monkeypatch.setattr(Path, function, raising(error))
    with pytest.raises(StoreError, match=says) as caught:
        await call(AsyncFileTokenStore(path))
    assert repr(caught.value.__cause__) == repr(error)


async def test_folder_that_cannot_be_synced_has_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems sync no folders: the written file counts as written."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store = AsyncFileTokenStore(tmp_path / "session.json")
    await store.save(Token("a"))
    assert await store.load() == Token("a")
    await store.delete()
    assert caplog.text == ""


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
async def test_old_token_stays_when_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A full, read-only or broken disk is a `StoreError`; the old file is whole."""
    store = AsyncFileTokenStore(tmp_path / "session.json")
    await store.save(Token("old"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raising(OSError(code, os.strerror(code))))
        with pytest.raises(StoreError, match=os.strerror(code)) as caught:
            await store.save(Token("new"))
    assert isinstance(caught.value.__cause__, OSError)
    assert await store.load() == Token("old")
    assert names(tmp_path) == {"session.json"}


@pytest.mark.parametrize(
    ("error", "says", "cause"),
    [
        (NotImplementedError(), "has no locks", ""),
        (LATE, "locked", LATE.strerror),
    ],
)
async def test_lock_that_the_file_system_does_not_give_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str, cause: str
) -> None:
    """No cause is a `TimeoutError`, which would say that another process renews the token."""
    monkeypatch.setattr(filelock.FileLock, "acquire", raising(error))
    with pytest.raises(StoreError, match=says) as caught:
        async with AsyncFileTokenStore(tmp_path / "session.json").lock():
            raise AssertionError
    assert not isinstance(caught.value.__cause__, TimeoutError)
    assert cause in str(caught.value.__cause__)


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


@pytest.mark.parametrize(
    "call",
    [partial(AsyncFileTokenStore.save, token=Token("a")), AsyncFileTokenStore.delete],
    ids=["save", "delete"],
)
@pytest.mark.parametrize("file", ["session.json", "session[1].json"])
async def test_leftover_of_a_killed_writer_is_swept(
    tmp_path: Path, file: str, call: Callable[[AsyncFileTokenStore], Any]
) -> None:
    """A temporary file holds a token, too: an old one is removed, a young one is somebody's."""
    young, old = (tmp_path / f".{file}.{name}.tmp" for name in ("young", "old"))
    for path in (young, old):
        path.touch()
    os.utime(old, (hour_ago := time.time() - 3600, hour_ago))
    await call(AsyncFileTokenStore(tmp_path / file))
    assert young.exists()
    assert not old.exists()


async def test_lock_that_cannot_be_released_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that goes away under the lock is a `StoreError`."""
    stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    with pytest.raises(StoreError, match="unlocked") as caught:
        async with AsyncFileTokenStore(tmp_path / "session.json").lock():
            monkeypatch.setattr(filelock.FileLock, "release", raising(stale))
    monkeypatch.undo()
    del caught, stale  # their frames hold the lock, which the garbage collector may release now
