"""
Where a token is kept between processes: a file, Redis or Valkey, the keyring, or your own store.

Importing this module imports no extra. ``redis.asyncio`` and ``valkey.asyncio`` run on asyncio
alone: on trio, give `AsyncRedisTokenStore` an object whose ``execute_command`` is an async function
that calls a blocking client in a thread.

Everybody who may read a store is signed in: keep files in your own folder, and give Redis a
password, TLS and an ACL. Several accounts on one machine need no more than a name each:
``FileTokenStore(name="ci")``, ``KeyringTokenStore(name="ci")``, ``RedisTokenStore(client,
key="koyeb-session:ci")``.

Stores in a file or the keyring are configuration: they can be pickled for another process, and
copied. A memory store is for one process, and a Redis store is made beside its client in each.

No store can save a session without ``credentials``, at a service that revokes a token as it is
refreshed, when

- its process is killed after the exchange and before the save,
- the store is away until the token is about to expire, so that each process renews for itself,
- the lock is held until the token expires, as by a process that was stopped and not ended,
- Redis loses its data while one process exchanges the token and another is about to.

A store of your own has the four methods of :class:`TokenStore`, or of :class:`AsyncTokenStore`, and
no base class. This one keeps a session in SQLite, for all processes of a machine; another database
needs other SQL in the same places:

.. code-block:: python

    class SqliteTokenStore:
        def __init__(self, path):
            self._path = path

        def create(self):  # once for all
            self._run(
                "CREATE TABLE session (id TEXT, user_id TEXT, organization_id TEXT,"
                " expires_at TEXT, issued_at TEXT, renewal TEXT, provenance TEXT,"
                " owner TEXT, until REAL)"
            )
            self._run("INSERT INTO session (until) VALUES (0)")

        def load(self):
            (row,), _ = self._run(
                "SELECT id, user_id, organization_id, expires_at, issued_at, renewal, provenance"
                " FROM session"
            )
            token_id, user_id, organization_id, *times, renewal, provenance = row
            if token_id is None:
                return None
            expires_at, issued_at = (at and datetime.fromisoformat(at) for at in times)
            return Token(
                *(token_id, user_id, organization_id, expires_at),
                issued_at=issued_at, renewal=renewal, provenance=provenance,
            )

        def save(self, token):
            times = (at and at.isoformat() for at in (token.expires_at, token.issued_at))
            self._run(
                "UPDATE session SET id = ?, user_id = ?, organization_id = ?,"
                " expires_at = ?, issued_at = ?, renewal = ?, provenance = ?",
                *(token.id, token.user_id, token.organization_id, *times),
                *(token.renewal, token.provenance),
            )

        def delete(self):
            self._run("UPDATE session SET id = NULL, renewal = NULL")

        @contextlib.contextmanager
        def lock(self):
            owner = secrets.token_hex(16)
            ends = time.monotonic() + 10
            while not self.take(owner):
                if time.monotonic() > ends:
                    raise TimeoutError("somebody else is renewing for too long")
                time.sleep(0.02)
            try:
                yield
            finally:
                self.release(owner)

        def take(self, owner, lease=15):
            now = time.time()
            statement = "UPDATE session SET owner = ?, until = ? WHERE until < ?"
            _, changed = self._run(statement, owner, now + lease, now)
            return changed == 1

        def release(self, owner):
            self._run("UPDATE session SET until = 0 WHERE owner = ?", owner)

        def _run(self, statement, *values):
            opened = contextlib.closing(sqlite3.connect(self._path, timeout=2))
            with opened as database, database:
                cursor = database.execute(statement, values)
                return cursor.fetchall(), cursor.rowcount

What to mind:

- The lock is a row with an owner and an end, taken by one statement that changes nothing while
  somebody has it. The end frees it when its holder was killed; it is longer than the session's
  ``timeout``. A transaction that is open for the whole block is a lock, too, if `load` and `save`
  go through its own connection: they are called inside the block.
- Who outlives that end may overwrite a newer token. It is rare, and ``AND owner = ?`` in `save`
  rules it out where the lock is held; `RedisTokenStore` has a number that grows with each lock.
- Many threads, or tasks, enter the lock of one object at once. What a block needs, like ``owner``,
  belongs to the block and not to the object.
- A token's ``id`` is a secret of some thousand characters, and its ``renewal`` is one of any
  length. All fields are kept, times to the microsecond.
- Machines that share a session have clocks that differ: where there are many, use the database's.
- A `TimeoutError` of `lock` says that somebody else has it, and is renewing the token. Whatever
  else a method raises, the session goes on without the store, and its class and text are logged,
  less what looks like a token. Do not wait long.

The async half must not block the event loop, not even where it is made, and releases the lock
although it is cancelled:

.. code-block:: python

    class AsyncSqliteTokenStore:
        def __init__(self, path):
            self._store = SqliteTokenStore(path)

        async def load(self):
            return await to_thread.run_sync(self._store.load)

        async def save(self, token):
            await to_thread.run_sync(self._store.save, token)

        async def delete(self):
            await to_thread.run_sync(self._store.delete)

        @contextlib.asynccontextmanager
        async def lock(self):
            owner = secrets.token_hex(16)
            try:
                with anyio.fail_after(10):
                    while not await to_thread.run_sync(self._store.take, owner):
                        await anyio.sleep(0.02)
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(self._store.release, owner)

``koyeb_session.testing.check_store`` and ``async_check_store`` check a store:

.. code-block:: python

    def test_my_store(tmp_path):
        path = tmp_path / "session.db"
        SqliteTokenStore(path).create()
        check_store(lambda: SqliteTokenStore(path))
"""

from ._async.stores.file import AsyncFileTokenStore
from ._async.stores.keyring import AsyncKeyringTokenStore
from ._async.stores.protocol import AsyncMemoryTokenStore, AsyncTokenStore
from ._async.stores.redis import AsyncRedisTokenStore
from ._sync.stores.file import FileTokenStore
from ._sync.stores.keyring import KeyringTokenStore
from ._sync.stores.protocol import MemoryTokenStore, TokenStore
from ._sync.stores.redis import RedisTokenStore

__all__ = [
    "AsyncFileTokenStore",
    "AsyncKeyringTokenStore",
    "AsyncMemoryTokenStore",
    "AsyncRedisTokenStore",
    "AsyncTokenStore",
    "FileTokenStore",
    "KeyringTokenStore",
    "MemoryTokenStore",
    "RedisTokenStore",
    "TokenStore",
]

for _public in map(globals().__getitem__, __all__):
    if _public.__module__.startswith("koyeb_session._"):  # some are also exported by the root
        _public.__module__ = __name__
