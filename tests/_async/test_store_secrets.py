"""No store shows a token to a tool that prints a traceback's local variables."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from keyring.backends import fail

from koyeb_session import AsyncMemoryTokenStore, StoreError, Token
from koyeb_session._core.results import store_failure
from koyeb_session.stores import AsyncFileTokenStore, AsyncKeyringTokenStore, AsyncRedisTokenStore

from ..keyrings import machine_keyring
from ..stores.fleet import async_redis_client
from ..stores.walkers import assert_none_shows
from ..support import raising

ID, RENEWAL = "0123456789" * 7, "a refresh token/+"
TOKEN = Token(ID, "user", expires_at=datetime(2100, 1, 1, tzinfo=UTC), renewal=RENEWAL)
SECRETS = (ID, RENEWAL, json.dumps(RENEWAL)[1:-1])
NO_KEYRING: Any = fail.Keyring
USES = ("load", "save", "delete", "lock")


async def use(store: Any, what: str) -> object:
    """Use a store in one way."""
    if what == "save":
        return await store.save(TOKEN)
    if what != "lock":
        return await getattr(store, what)()
    async with store.lock():
        return await store.save(TOKEN)


async def error_of(store: Any, what: str) -> BaseException:
    """Catch the error of a use of a store."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of any kind
        await use(store, what)
    return caught.value


class AsyncQuoting:
    """A client of Redis that quotes its command when it fails."""

    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    async def execute_command(self, *command: Any) -> Any:
        """Fail."""
        raise self._kind(f"unknown command, with args beginning with: {command}")


@pytest.mark.parametrize("what", USES)
@pytest.mark.parametrize("kind", [ConnectionError, TimeoutError])
async def test_redis_that_fails_shows_no_token(what: str, kind: type[Exception]) -> None:
    """Not even where Redis quotes the command."""
    store = AsyncRedisTokenStore(AsyncQuoting(kind), key="k")
    error = await error_of(store, what)
    assert isinstance(error, StoreError)
    assert "unknown command" in str(error)
    assert_none_shows(error, SECRETS, __file__)


@pytest.mark.parametrize("what", USES)
async def test_redis_that_hangs_shows_no_token(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The command is under way, and the caller has gone on."""
    settings: dict[str, Any] = AsyncRedisTokenStore.__init__.__globals__
    monkeypatch.setitem(settings, "_COMMAND_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with async_redis_client(port, socket_timeout=0.2) as client:
            store = AsyncRedisTokenStore(client, key="k")
            error = await error_of(store, what)
    assert "did not answer within 0.05 s (its client may still be trying: with retry=" in str(error)
    assert_none_shows(error, SECRETS, __file__)


@pytest.fixture
def no_keyring() -> Iterator[None]:
    """Put none in place of the machine's keyring."""
    with machine_keyring(NO_KEYRING()):
        yield


@pytest.mark.parametrize("what", USES)
async def test_keyring_that_is_none_shows_no_token(no_keyring: None, what: str) -> None:
    """A machine without a keyring says so."""
    error = await error_of(AsyncKeyringTokenStore(), what)
    assert isinstance(error, StoreError)
    assert "No recommended backend" in str(error)
    assert_none_shows(error, SECRETS, __file__)


@pytest.mark.parametrize("what", USES)
async def test_file_that_fails_shows_no_token(tmp_path: Path, what: str) -> None:
    """A folder that is a file holds none."""
    (tmp_path / "file").touch()
    store = AsyncFileTokenStore(tmp_path / "file" / "session.json")
    error = await error_of(store, what)
    assert isinstance(error, StoreError)
    assert ("cannot be locked" in str(error)) is (what == "lock")
    assert_none_shows(error, SECRETS, __file__)


async def test_disk_that_is_full_shows_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes out of the middle of writing."""
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    store = AsyncFileTokenStore(tmp_path / "session.json")
    error = await error_of(store, "save")
    assert "errno 28" in str(error)
    assert_none_shows(error, SECRETS, __file__)


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("os.fsync", "save"),
        ("json.dumps", "save"),
        ("json.loads", "load"),
        ("koyeb_session._storage.records.is_header_safe", "load"),
        ("pathlib.Path.unlink", "delete"),
    ],
)
async def test_interrupt_shows_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, what: str
) -> None:
    """A signal handler may raise while a token is written, or read."""
    store = AsyncFileTokenStore(tmp_path / "session.json")
    await store.save(TOKEN)
    monkeypatch.setattr(where, raising(KeyboardInterrupt()))
    error = await error_of(store, what)
    monkeypatch.undo()
    assert "KeyboardInterrupt" in f"{error!r}"  # an error of a thread gets a class of its
    assert_none_shows(error, SECRETS, __file__)


@pytest.mark.parametrize("what", ["save", "lock"])
async def test_interrupt_in_the_keyring_shows_no_token(
    no_keyring: None, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The frames of its back end hold the record."""
    monkeypatch.setattr(fail.Keyring, "set_password", raising(KeyboardInterrupt()))
    error = await error_of(AsyncKeyringTokenStore(), what)
    assert "KeyboardInterrupt" in f"{error!r}"
    assert_none_shows(error, SECRETS, __file__)


async def test_copying_a_memory_store_shows_no_token() -> None:
    """It is refused without a word of its contents."""
    store = AsyncMemoryTokenStore()
    await store.save(TOKEN)
    with pytest.raises(TypeError) as caught:
        store.__reduce__()
    assert_none_shows(caught.value, SECRETS, __file__)


class DriverError(Exception):
    """An error of a database's library, with more than a text."""

    def __init__(self, statement: str, parameters: tuple[str, ...]) -> None:
        super().__init__(f"{statement}\n[parameters: {parameters}]")


def test_error_of_ones_own_store_reaches_the_log() -> None:
    """Its class and text are shown, in one line, less the token and all that looks like one."""
    error = store_failure("written", DriverError("UPDATE session", (ID, "user", RENEWAL)), TOKEN)
    assert str(error) == (
        "the token store could not be written: DriverError: UPDATE session\\n"
        "[parameters: ('[secret]', 'user', '[secret]')]"
    )
    assert str(error.__cause__).startswith("DriverError: UPDATE session\\n[parameters: (")
    unknown = store_failure("read", ValueError(f"no record: {ID[:50]}... {'long ' * 200}"))
    assert "no record: [...]" in str(unknown)
    assert len(str(unknown)) < 600
    assert_none_shows(raised(error), (*SECRETS, ID[:45]), __file__)
    assert str(store_failure("read", TimeoutError())) == (
        "the token store could not be read: TimeoutError"
    )


def raised(error: Exception) -> BaseException:
    """Give an error its traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value
