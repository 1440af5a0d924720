"""One process of a fleet: it makes requests across expiries that the parent brings about."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import anyio.to_thread
import httpx

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RefreshPolicy,
    SessionClient,
    Token,
)
from koyeb_session.stores import (
    AsyncFileTokenStore,
    AsyncRedisTokenStore,
    FileTokenStore,
    RedisTokenStore,
)

LEASE = 10.0
WITHOUT_JITTER = RefreshPolicy(jitter=0, backoff=0.05, backoff_max=0.2)


class SharedClock:
    """A clock that all processes share: it stands where the parent has written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def time(self) -> float:
        """Seconds since the epoch."""
        return float(self._path.read_text())

    def monotonic(self) -> float:
        """The same, as nobody sets it back."""
        return self.time()


class Threaded:
    """
    A client of Redis on trio, where the libraries' own async ones cannot run.

    It is a blocking client, and each of its methods runs in a thread.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await anyio.to_thread.run_sync(self._client.close)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            return await anyio.to_thread.run_sync(partial(method, *arguments, **options))

        return call


def redis_client(port: int, *, library: str = "redis", half: str = "", **options: Any) -> Any:
    """Make a client that neither waits long nor tries again, of redis-py or valkey-py."""
    name = library.capitalize()
    kind: Any = getattr(import_module(f"{library}{half}"), name)
    retry: Any = import_module(f"{library}{half}.retry").Retry
    patience = retry(import_module(f"{library}.backoff").NoBackoff(), 0)
    timeouts = {"socket_timeout": 1, "socket_connect_timeout": 1}
    return kind(port=port, retry=patience, **(timeouts | options))


def async_redis_client(port: int, **options: Any) -> Any:
    """Make an async one."""
    if "trio" in sys.modules and import_module("trio").lowlevel.in_trio_run():
        return Threaded(redis_client(port, **options))
    return redis_client(port, half=".asyncio", **options)


def store_of(options: dict[str, Any], *, asynchronous: bool) -> Any:
    """Make the store that the parent asks for."""
    if "file" in options:
        return (AsyncFileTokenStore if asynchronous else FileTokenStore)(options["file"])
    client = (async_redis_client if asynchronous else redis_client)(options["redis"])
    kind: Any = AsyncRedisTokenStore if asynchronous else RedisTokenStore
    return kind(client, key=options.get("key", "fleet"), lease=options.get("lease", LEASE))


def credentials_of(told: Any) -> Any:
    """Make the credentials that the parent asks for."""
    if isinstance(told, dict):
        return partial(exchange, told["provider"])
    return PasswordCredentials("me@example.com", "correct horse") if told else None


def exchange(url: str, replaced: Token | None) -> Token:
    """Ask an identity provider for the next token, with the rotating one."""
    assert replaced is not None
    form = {"grant_type": "refresh_token", "client_id": "me", "refresh_token": replaced.renewal}
    answer = httpx.post(f"{url}/oauth2/token", data=form).raise_for_status().json()
    return Token(answer["access_token"], renewal=answer["refresh_token"])


def arguments(options: dict[str, Any], *, asynchronous: bool) -> dict[str, Any]:
    """Give the arguments of a session."""
    return {
        "base_url": options["url"],
        "clock": SharedClock(Path(options["clock"])),
        "credentials": credentials_of(options.get("credentials")),
        "refresh_policy": WITHOUT_JITTER,
        "store": store_of(options, asynchronous=asynchronous),
    }


@contextlib.contextmanager
def opened(options: dict[str, Any]) -> Generator[tuple[SessionClient, Any]]:
    """Open a session of the parent's own, with its store; close the store's client after it."""
    given = arguments(options, asynchronous=False)
    try:
        with SessionClient(**given) as session:
            yield session, given["store"]
    finally:
        if "redis" in options:
            given["store"]._client.close()


def tell(line: str) -> None:
    """Tell the parent something."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def rounds(ask: Callable[[int], list[int]]) -> None:
    """Make as many requests as the parent says, and report the answers."""
    for line in sys.stdin:
        tell(json.dumps(ask(int(line))))


def blocking(options: dict[str, Any]) -> None:
    """Use the blocking half."""
    with SessionClient(**arguments(options, asynchronous=False)) as session:

        def ask(count: int) -> list[int]:
            return [session.http.get("/v1/apps").status_code for _ in range(count)]

        rounds(ask)


def two_loops(options: dict[str, Any]) -> None:
    """Use the async half on two event loops, in two threads."""
    loops = [asyncio.new_event_loop() for _ in range(2)]
    for loop in loops:
        threading.Thread(target=loop.run_forever, daemon=True).start()
    sessions = [AsyncSessionClient(**arguments(options, asynchronous=True)) for _ in loops]

    async def some(session: AsyncSessionClient, count: int) -> list[int]:
        replies = await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(count)))
        return [reply.status_code for reply in replies]

    def ask(count: int) -> list[int]:
        shares = (count // 2, count - count // 2)
        futures = [
            asyncio.run_coroutine_threadsafe(some(session, share), loop)
            for session, share, loop in zip(sessions, shares, loops, strict=True)
        ]
        return [status for future in futures for status in future.result(30)]

    rounds(ask)


def renewing(options: dict[str, Any]) -> None:
    """Renew without end, until killed."""
    with SessionClient(**arguments(options, asynchronous=False)) as session:
        tell("ready")
        while True:
            try:
                session.refresh()
            except KoyebSessionError as exc:
                tell(repr(exc))
                time.sleep(0.01)


def stop_at(options: dict[str, Any]) -> None:
    """Renew once, and stop at the moment that the parent asks for."""

    def stop(moment: str) -> None:
        if moment == options["moment"] and armed:
            tell(moment)
            while True:
                signal.pause()

    def stopping(function: Any, before: str = "", after: str = "") -> Any:
        def stopped(*arguments: Any) -> Any:
            stop(before)
            result = function(*arguments)
            stop(after)
            return result

        return stopped

    @contextlib.contextmanager
    def lock() -> Generator[None]:
        with store.lock():
            stop("locked")
            yield
        stop("unlocked")

    armed = False
    files: Any = import_module("koyeb_session._storage.files")
    files.os.fsync = stopping(files.os.fsync, before="written")
    files._sync_folder = stopping(files._sync_folder, before="renamed")
    given = arguments(options, asynchronous=False)
    store = given["store"]
    given["store"] = SimpleNamespace(
        load=stopping(store.load, after="loaded"),
        save=stopping(store.save, before="exchanged", after="saved"),
        delete=store.delete,
        lock=lock,
    )
    session = SessionClient(**given)
    session.current_token()
    armed = True
    tell(str(os.getpid()))
    session.refresh()


def forker(_: dict[str, Any]) -> None:
    """Fork a process for each line of the parent, and tell it when that has ended."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                stop_at(json.loads(line))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        tell("gone")


ROLES = {"blocking": blocking, "two_loops": two_loops, "renewing": renewing, "forker": forker}

if __name__ == "__main__":
    logging.getLogger("koyeb_session").addHandler(logging.NullHandler())
    given: dict[str, Any] = json.loads(sys.argv[1])
    ROLES[given["role"]](given)
