"""
Where a token is kept between processes: a file, Redis or Valkey, the keyring, or your own store.

Importing this module imports no extra. To write a store for your own database, follow
:class:`AsyncTokenStore` or :class:`TokenStore`; ``koyeb_session.testing.check_store`` checks it.
"""

from ._async.file_store import AsyncFileTokenStore
from ._async.keyring_store import AsyncKeyringTokenStore
from ._async.redis_store import AsyncRedisTokenStore
from ._async.stores import AsyncMemoryTokenStore, AsyncTokenStore
from ._sync.file_store import FileTokenStore
from ._sync.keyring_store import KeyringTokenStore
from ._sync.redis_store import RedisTokenStore
from ._sync.stores import MemoryTokenStore, TokenStore

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
    if _public.__module__.startswith("koyeb_session._"):  # the root has some of them, too
        _public.__module__ = __name__
