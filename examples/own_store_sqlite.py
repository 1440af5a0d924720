"""Your own store, here a row in SQLite: one session for all processes of a machine."""

import contextlib
import secrets
import sqlite3
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient, Token
from koyeb_session.testing import FakeKoyeb, check_store

COLUMNS = "id, user_id, organization_id, expires_at, issued_at, renewal, provenance"
CREATE = f"CREATE TABLE IF NOT EXISTS session ({COLUMNS}, owner TEXT, until REAL)"
LOAD = f"SELECT {COLUMNS} FROM session"  # noqa: S608 - no user's text
SAVE = f"UPDATE session SET ({COLUMNS}) = (?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
TAKE = "UPDATE session SET owner = ?, until = ? WHERE until < ?"
ME = PasswordCredentials("me@example.com", "correct horse")
PATIENCE = 10  # seconds
LEASE = 30  # seconds; longer than twice the session's timeout: frees a killed process's lock


class SqliteTokenStore:
    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:  # once for all
        self._run(CREATE)
        self._run("INSERT INTO session (until) SELECT 0 WHERE NOT EXISTS (SELECT * FROM session)")

    def load(self) -> Token | None:
        (row,), _ = self._run(LOAD)
        token_id, user_id, organization_id, *times, renewal, provenance = row
        if token_id is None:
            return None
        expires_at, issued_at = (at and datetime.fromisoformat(at) for at in times)
        whose = token_id, user_id, organization_id
        more = {"renewal": renewal, "provenance": provenance}
        return Token(*whose, expires_at, issued_at=issued_at, **more)

    def save(self, token: Token) -> None:
        times = (at and at.isoformat() for at in (token.expires_at, token.issued_at))
        whose = token.id, token.user_id, token.organization_id
        self._run(SAVE, *whose, *times, token.renewal, token.provenance)

    def delete(self) -> None:
        self._run("UPDATE session SET id = NULL, renewal = NULL")

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        owner, end = secrets.token_hex(16), time.monotonic() + PATIENCE
        while not self.take(owner):
            if time.monotonic() > end:
                raise TimeoutError("another process is renewing for too long")
            time.sleep(0.02)
        try:
            yield
        finally:
            self.release(owner)

    def take(self, owner: str, lease: float = LEASE) -> bool:
        """Change the row only while nobody else has it."""
        now = time.time()
        _, changed = self._run(TAKE, owner, now + lease, now)
        return changed == 1

    def release(self, owner: str) -> None:
        self._run("UPDATE session SET until = 0 WHERE owner = ?", owner)

    def _run(self, statement: str, *values: object) -> tuple[list[Any], int]:
        opened = contextlib.closing(sqlite3.connect(self._path, timeout=2))
        with opened as database, database:
            cursor = database.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount


class AsyncSqliteTokenStore:
    """The other half: in threads, as a store must not block the event loop."""

    def __init__(self, path: Path) -> None:
        self._store = SqliteTokenStore(path)

    async def load(self) -> Token | None:
        return await to_thread.run_sync(self._store.load)

    async def save(self, token: Token) -> None:
        await to_thread.run_sync(self._store.save, token)

    async def delete(self) -> None:
        await to_thread.run_sync(self._store.delete)

    @contextlib.asynccontextmanager
    async def lock(self) -> AsyncGenerator[None]:
        owner = secrets.token_hex(16)
        try:
            with anyio.fail_after(PATIENCE):
                while not await to_thread.run_sync(self._store.take, owner):  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            yield
        finally:
            with anyio.CancelScope(shield=True):  # also when the task was cancelled
                await to_thread.run_sync(self._store.release, owner)


def blocking_program(url: str, path: Path) -> None:
    with SessionClient(base_url=url, credentials=ME, store=SqliteTokenStore(path)) as session:
        print(f"A blocking program asked for the apps: {session.http.get('/v1/apps').status_code}.")


async def asynchronous_program(url: str, path: Path) -> None:
    store = AsyncSqliteTokenStore(path)
    async with AsyncSessionClient(base_url=url, credentials=ME, store=store) as session:
        answer = await session.http.get("/v1/apps")
        print(f"An asynchronous program asked for the apps: {answer.status_code}.")


def main() -> None:
    fake = FakeKoyeb()
    with fake.serve() as url, tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "session.db")
        SqliteTokenStore(path).create()
        check_store(lambda: SqliteTokenStore(path))
        print("The store does what a store has to do.")
        blocking_program(url, path)
        anyio.run(asynchronous_program, url, path)
    sent = [request.operation for request in fake.requests]
    print(f"The service saw {sent.count('login')} login for both.")


if __name__ == "__main__":
    main()
