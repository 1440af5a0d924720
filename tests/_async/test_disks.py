"""The file store on a disk that is full, or read-only, for real."""

from __future__ import annotations

import pytest

from koyeb_session import StoreError, Token
from koyeb_session.stores import AsyncFileTokenStore
from koyeb_session.testing import FakeClock

from ..stores.disk import Disk, disk
from .doubles import Connect

__all__ = ["disk"]  # a fixture

FILES = {"session.json", "session.json.lock"}


async def test_old_token_stays_when_the_disk_is_full(disk: Disk) -> None:
    """The old file is whole, no half-written one is left, and with space the saves go on."""
    store = AsyncFileTokenStore(disk.path / "session.json")
    await store.save(Token("old"))
    disk.fill()
    async with store.lock():
        with pytest.raises(StoreError, match="No space left on device"):
            await store.save(Token("new"))
    assert await store.load() == Token("old")
    assert disk.names() <= FILES
    disk.empty()
    await store.save(Token("new"))
    assert await store.load() == Token("new")


async def test_old_token_can_be_read_when_the_disk_is_read_only(disk: Disk) -> None:
    """Any failed write is a `StoreError`."""
    store = AsyncFileTokenStore(disk.path / "session.json")
    await store.save(Token("old"))
    disk.freeze()
    for use in (store.delete, lambda: store.save(Token("new"))):
        with pytest.raises(StoreError, match="Read-only file system"):
            await use()
    with pytest.raises(StoreError, match="locked: Read-only file system"):
        async with store.lock():
            raise AssertionError
    assert await store.load() == Token("old")


async def test_file_that_is_mounted_by_itself_is_written_in_place(disk: Disk) -> None:
    """A file that a container mounts can be neither replaced nor removed, with a real mount."""
    path = disk.path / "session.json"
    with disk.mounted(path):
        store = AsyncFileTokenStore(path)
        assert await store.load() is None
        for token in (Token("a" * 2000), Token("b")):
            async with store.lock():
                await store.save(token)
            assert await store.load() == token
        await store.delete()
        assert await store.load() is None
        assert disk.names() <= FILES


@pytest.mark.parametrize("trouble", ["full", "read-only"])
async def test_session_goes_on_in_memory_while_the_disk_cannot_be_written(
    disk: Disk, connect: Connect, clock: FakeClock, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """Sign-in and renewal work, with a warning; the token is saved as soon as it can be."""
    store = AsyncFileTokenStore(disk.path / "session.json")
    session = connect(store=store)
    first = await session.login("me@example.com", "correct horse")
    fails, works = (disk.fill, disk.empty) if trouble == "full" else (disk.freeze, disk.thaw)
    fails()
    clock.advance(1)
    second = await session.refresh()
    assert (await session.http.get("/v1/apps")).status_code == 200
    assert "kept in memory only" in caplog.text or "without its store" in caplog.text
    # A record that cannot be replaced is deleted, where that is possible.
    assert await store.load() == (None if trouble == "full" else first)
    works()
    await session.aclose()
    assert await store.load() == second
