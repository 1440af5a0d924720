"""The errors where an extra is missing, and the keyring store."""

from __future__ import annotations

import copy
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import koyeb_session
from koyeb_session import StoreError, Token
from koyeb_session.stores import (
    AsyncFileTokenStore,
    AsyncKeyringTokenStore,
    FileTokenStore,
    KeyringTokenStore,
)
from koyeb_session.testing import assert_no_secret, async_check_store, check_store

from ..keyrings import Ring, machine_keyring
from ..support import raising


@pytest.fixture
def ring() -> Iterator[Ring]:
    """Put a keyring in memory in place of the machine's."""
    with machine_keyring(ring := Ring()):
        yield ring


@pytest.fixture
def ring_on_disk(tmp_path: Path) -> Iterator[Path]:
    """Put a keyring that people use where there is no desktop in place of the machine's."""
    plain: Any = import_module("keyrings.alt.file").PlaintextKeyring()  # has no types
    plain.file_path = str(path := tmp_path / "keyring.cfg")
    with machine_keyring(plain):
        yield path
    assert path.is_file()


def test_keyring_store_does_what_a_store_has_to_do(ring_on_disk: Path) -> None:
    """The blocking store passes the conformance suite; one object holds the lock."""
    store = KeyringTokenStore()
    check_store(lambda: store)


async def test_async_keyring_store_does_what_a_store_has_to_do(ring_on_disk: Path) -> None:
    """The async store passes it, too."""
    store = AsyncKeyringTokenStore()
    await async_check_store(lambda: store)


def test_sessions_have_entries_of_their_own(ring: Ring) -> None:
    """Two names are two sessions."""
    KeyringTokenStore(name="a").save(Token("one"))
    assert KeyringTokenStore(name="b").load() is None
    assert list(ring.entries) == [("koyeb-session", "a")]


def test_entry_that_cannot_be_read_is_passed_over(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged entry is nothing, with a warning, and is replaced."""
    ring.entries["koyeb-session", "default"] = '{"format": "koyeb-session", "vers'
    store = KeyringTokenStore()
    assert store.load() is None
    assert "passed over" in caplog.text
    store.save(Token("a"))
    assert store.load() == Token("a")


def test_entry_of_another_program_is_left_as_it_is(ring: Ring) -> None:
    """It may be the only copy of somebody's password."""
    entries = {("git:https://github.com", "me"): "their only copy"}
    ring.entries |= entries
    store = KeyringTokenStore("git:https://github.com", "me")
    refused = "^the entry me of git:https://github.com in the keyring is no session, and is left"
    with pytest.raises(StoreError, match=refused):
        store.load()
    with pytest.raises(StoreError, match=refused):
        store.save(Token("a"))
    store.delete()  # there is no token
    assert ring.entries == entries


@pytest.mark.parametrize("method", ["get_password", "set_password", "delete_password"])
def test_keyring_that_fails_is_a_store_error(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A keyring that is locked is a `StoreError` that says what the keyring said."""
    store = KeyringTokenStore()
    store.save(Token("a"))
    monkeypatch.setattr(ring, method, raising(RuntimeError("the collection\nis locked")))

    def use() -> None:
        store.load()
        store.save(Token("a"))
        store.delete()

    with pytest.raises(StoreError, match=r"RuntimeError: the collection\\nis locked$") as caught:
        use()
    assert str(caught.value.__cause__) == r"the collection\nis locked"


def test_keyring_that_takes_no_long_entry_is_told(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows has a limit that some tokens exceed: the error says so, and quotes no token."""
    secret = "0123456789" * 150
    error = RuntimeError(f"(1783, 'CredWrite', '{secret}')")
    monkeypatch.setattr(ring, "set_password", raising(error))
    with pytest.raises(StoreError, match="too long for this keyring: use a file") as caught:
        KeyringTokenStore().save(Token(secret))
    assert "1783" in str(caught.value)
    assert_no_secret(secret, caught.value, str(caught.value))


def copied(store: KeyringTokenStore) -> KeyringTokenStore:
    """Hand a store to another process, and take it back."""
    copy_of: KeyringTokenStore = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    return copy_of


@pytest.mark.parametrize("copy_of", [copied, copy.deepcopy])
def test_copies_of_a_keyring_store_are_of_the_same_entry(
    ring: Ring, copy_of: Callable[[KeyringTokenStore], KeyringTokenStore]
) -> None:
    """A store is configuration; in one process its copies exclude each other, too."""
    store = KeyringTokenStore(name="a")
    twin = copy_of(store)
    check_store(iter([store, twin]).__next__)
    assert repr(twin) == "KeyringTokenStore('koyeb-session', 'a')"
    twin_of_async = pickle.loads(pickle.dumps(AsyncKeyringTokenStore()))  # noqa: S301 - our own
    assert repr(twin_of_async) == "AsyncKeyringTokenStore('koyeb-session', 'default')"


@pytest.mark.parametrize("entry", [("", "a"), ("a", "")])
def test_entry_without_a_name_is_refused(entry: tuple[str, str]) -> None:
    """An entry that cannot be found again is none."""
    with pytest.raises(ValueError, match="must not be empty"):
        KeyringTokenStore(*entry)


@pytest.mark.parametrize(
    ("store", "module", "extra"),
    [
        (FileTokenStore, "filelock", "file"),
        (AsyncFileTokenStore, "platformdirs", "file"),
        (KeyringTokenStore, "keyring", "keyring"),
        (AsyncKeyringTokenStore, "keyring", "keyring"),
    ],
)
def test_store_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, store: type, module: str, extra: str
) -> None:
    """The error of a missing extra is the command that brings it."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        store()
    assert f'pip install "koyeb-session[{extra}]"' in str(caught.value)
    assert caught.value.name == module


@pytest.mark.parametrize(
    ("module", "library"), [("fastapi", "fastapi"), ("httpx2", "httpx2"), ("koyeb_sdk", "koyeb")]
)
def test_integration_without_its_extra_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, library: str
) -> None:
    """The error of the import is the command, too."""
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"koyeb_session.{module}", raising=False)
    extra = module.replace("_", "-")
    with pytest.raises(ImportError, match=rf'pip install "koyeb-session\[{extra}\]"'):
        import_module(f"koyeb_session.{module}")


def test_command_to_install_is_quoted_for_every_shell() -> None:
    """Windows' cmd takes single quotes for a part of the name."""
    package = Path(koyeb_session.__file__).parent
    sources = "".join(path.read_text("utf-8") for path in package.rglob("*.py"))
    commands = re.findall(r"pip install (.{2})", sources)
    assert len(commands) >= 6
    assert {command[0] for command in commands} == {'"'}


async def test_async_keyring_store_fails_and_passes_over_alike(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The async store does the same with a damaged entry, and with a failure."""
    ring.entries["koyeb-session", "default"] = '{"format"'
    assert await AsyncKeyringTokenStore().load() is None
    monkeypatch.setattr(ring, "get_password", raising(RuntimeError("locked")))
    with pytest.raises(StoreError, match="RuntimeError: locked"):
        await AsyncKeyringTokenStore().load()
