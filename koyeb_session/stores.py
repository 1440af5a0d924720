"""
Where a token is kept between processes: a file, Redis or Valkey, the keyring, or your own store.

```python
with SessionClient(store=FileTokenStore()) as session:
    session.login("me@example.com", "correct horse")  # the next run finds the session
```

Importing this module imports no extra. ``redis.asyncio`` and ``valkey.asyncio`` run on asyncio
alone: on trio, give `AsyncRedisTokenStore` an object whose ``execute_command`` is an async function
that calls a blocking client in a thread. A client of theirs serves one event loop: make it, and
its store, in each.

Everybody who may read a store is signed in. Keep files in your own folder, and give Redis a
password, TLS and an ACL. Several accounts on one machine need no more than a name each:
``FileTokenStore(name="ci")``, ``KeyringTokenStore(name="ci")``, ``RedisTokenStore(client,
key="koyeb-session:ci")``.

Stores in a file or the keyring are configuration: they can be pickled for another process, and
copied. A memory store is for one process, and a Redis store is made beside its client in each.

Without ``credentials``, no store can save a session in these cases, where the service revokes the
old token on refresh:

- The process is killed after the refresh and before the save.
- The store is away until the token is about to expire, so that each process renews for itself.
- The lock is held until the token expires, as by a process that was stopped and not ended.
- Redis loses its data while one process refreshes the token and another is about to.

## Your own store

Your own store has the four methods of `TokenStore`, or of `AsyncTokenStore`, and no base class.
``examples/own_store_sqlite.py`` is a whole one, of both halves, for all processes of a machine.
`koyeb_session.testing.check_store` and `koyeb_session.testing.async_check_store` check a store:

```python
def test_my_store() -> None:
    store = MemoryTokenStore()  # yours
    check_store(lambda: store)
```

Mind these:

- A lock in a database is a row with an owner and an end, taken by one statement that changes
  nothing while another process has it. The end frees the lock when its holder was killed; it is
  longer than twice the session's ``timeout``. A transaction that is open for the whole block is a
  lock as well, if ``load`` and ``save`` use its connection: they are called inside the block.
- A process that outlives that end may overwrite a newer token. It is rare; ``AND owner = ?`` in
  ``save`` rules it out. `RedisTokenStore` has a number that grows with each lock.
- Many threads, or tasks, enter the lock of one object at once. The state of a block, such as its
  ``owner``, belongs to the block and not to the object.
- A token's ``id`` is a secret of some thousand characters, and its ``renewal`` is one of any
  length. Keep all fields, times to the microsecond.
- Clocks of machines differ. Where many machines share a session, use the database's clock.
- A `TimeoutError` of ``lock`` means that another process has it, and is renewing the token. After
  any other error the session goes on without the store. The log has its class and text, less
  everything that looks like a token. Do not wait long.
- A database that is away may be a `TimeoutError`, too, as from its driver, a socket or
  `asyncio.timeout`. ``lock`` must raise another error for that, as `ConnectionError`: else no
  session renews its token until it has expired, as if another process did it.
- A store of the asynchronous half must not block the event loop, not even in its constructor. It
  releases the lock although its task is cancelled.
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
