# Generated from tests/_async/test_disks.py by .ci/generate_sync.py: edit that, not this.

"""The file store on a disk that is full, or read-only, for real."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from koyeb_session import SessionClient, StoreError, Token
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeClock

from ..stores.disk import Disk, disk

__all__ = ["disk"]  # a fixture

Connect = Callable[..., SessionClient]
FILES = {"session.json", "session.json.lock"}


def test_old_token_stays_when_the_disk_is_full(disk: Disk) -> None:
    """What was there is whole, nothing half-written is left, and with space all goes on."""
    store = FileTokenStore(disk.path / "session.json")
    store.save(Token("old"))
    disk.fill()
    with store.lock():
        with pytest.raises(StoreError, match="No space left on device"):
            store.save(Token("new"))
    assert store.load() == Token("old")
    assert disk.names() <= FILES
    disk.empty()
    store.save(Token("new"))
    assert store.load() == Token("new")


def test_old_token_can_be_read_when_the_disk_is_read_only(disk: Disk) -> None:
    """Whatever writes is a `StoreError`."""
    store = FileTokenStore(disk.path / "session.json")
    store.save(Token("old"))
    disk.freeze()
    for use in (store.delete, lambda: store.save(Token("new"))):
        with pytest.raises(StoreError, match="Read-only file system"):
            use()
    with pytest.raises(StoreError, match="locked: Read-only file system"):
        with store.lock():
            raise AssertionError
    assert store.load() == Token("old")


def test_file_that_is_mounted_by_itself_is_written_in_place(disk: Disk) -> None:
    """What a container mounts as a single file can be neither replaced nor removed, for real."""
    path = disk.path / "session.json"
    with disk.mounted(path):
        store = FileTokenStore(path)
        assert store.load() is None
        for token in (Token("a" * 2000), Token("b")):
            with store.lock():
                store.save(token)
            assert store.load() == token
        store.delete()
        assert store.load() is None
        assert disk.names() <= FILES


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_session_goes_on_in_memory_while_the_disk_cannot_be_written(
    disk: Disk,
    connect: Connect,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    """Sign-in and renewal work, with a warning; the token is saved as soon as it can be."""
    store = FileTokenStore(disk.path / "session.json")
    session = connect(store=store)
    first = session.login("me@example.com", "correct horse")
    fails, works = (disk.fill, disk.empty) if trouble == "full" else (disk.freeze, disk.thaw)
    fails()
    clock.advance(1)
    second = session.refresh()
    assert (session.http.get("/v1/apps")).status_code == 200
    assert "kept in memory only" in caplog.text or "without its store" in caplog.text
    # What cannot be replaced is deleted, where that is possible.
    assert store.load() == (None if trouble == "full" else first)
    works()
    session.close()
    assert store.load() == second
