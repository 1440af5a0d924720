"""Keep a token in Redis: the scripts, and the state of one block of the lock."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._core.models import Token
from .._core.results import frameless
from .records import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence


class Command:
    """A Redis command whose `repr` shows no arguments, as they may contain a record."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts

    def send(self, client: Any) -> Any:
        """Send it on a client; the result is awaitable for an async one."""
        return client.execute_command(*self._parts)


@frameless
def digest(record: str | bytes) -> str:
    """Return the digest of a record, as Redis calculates it, to compare without sending it."""
    content = record.encode() if isinstance(record, str) else record
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class Known(NamedTuple):
    """The record that a store has last loaded or saved."""

    digest: str
    provenance: str | None
    user_id: str | None

    def is_before(self, token: Token) -> bool:
        """Return whether a token has replaced this one, and is not due for renewal for a while."""
        issued, expires = token.issued_at, token.expires_at
        if issued is None or expires is None:
            return False
        same = (token.provenance, token.user_id) == (self.provenance, self.user_id)
        return same and expires - datetime.now(UTC) > (expires - issued) / 2


class Block:
    """The state of one ``lock()`` block. Its `repr` shows nothing, as it may hold the record."""

    __slots__ = ("_record", "fence", "may_hold", "owner", "store", "unread")

    def __init__(self, store: object) -> None:
        self.store = store
        self.owner = secrets.token_hex(16)
        self.fence = 0
        """The fencing token that came with the lock; 0 without the lock."""
        self.may_hold = False
        """Whether Redis may have given the lock to this block."""
        self.unread = False
        """Whether the reply to the lock held a record that is not read yet."""
        self._record: Any = None

    @frameless
    def enter(self, reply: Sequence[Any], known: Known | None) -> bool:
        """
        Process the reply of Redis, and return whether the block may begin.

        It may begin without the lock if another process, which holds it, has just saved a new
        token: this block then takes that token over and refreshes nothing.
        """
        self.fence = int(reply[0])
        self.may_hold = self.fence > 0
        self.unread = len(reply) > 1
        self._record = reply[1] if self.unread else None
        if self.may_hold:
            return True
        token = read_record(self._record)
        return known is not None and isinstance(token, Token) and known.is_before(token)

    def take(self) -> Any:
        """Return the record that came with the lock; `None` if there is none."""
        self.unread = False
        return self._record


# One hash for each session, so that a cluster keeps all of it in one slot:
#   record  the token                      saved          the fencing token of its writer
#   fence   the last fencing token         owner, until   the holder of the lock, and its end (ms)
# A fencing token grows with each lock. It is at least the time, so that it also grows after Redis
# has lost its data.

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function number(field) return tonumber(redis.call('HGET', KEYS[1], field) or '0') end
local function set(field, number)
  redis.call('HSET', KEYS[1], field, string.format('%.0f', number))
end
local function raised()
  local fence = math.max(number('fence') + 1, now)
  set('fence', fence)
  return fence
end
local function keep(ms)
  local ttl = redis.call('PTTL', KEYS[1])
  if redis.call('HEXISTS', KEYS[1], 'record') == 0 or (ttl >= 0 and ttl < ms) then
    redis.call('PEXPIRE', KEYS[1], ms)
  end
end
"""

FOREIGN: Final = -1
"""The reply if another program has written the key, which then stays as it is."""

_FOREIGN: Final = """
local function foreign()
  local record = redis.pcall('HGET', KEYS[1], 'record')
  if type(record) == 'table' then return string.find(record.err, 'WRONGTYPE', 1, true) ~= nil end
  if record then return not string.find(record, 'koyeb-session', 1, true) end
  return redis.call('PTTL', KEYS[1]) ~= -2 and redis.call('HEXISTS', KEYS[1], 'fence') == 0
end
"""

LOCK: Final = (
    _NOW
    + _FOREIGN
    + """
if foreign() then return -1 end
local owner = redis.call('HGET', KEYS[1], 'owner')
local record = redis.call('HGET', KEYS[1], 'record')
if number('until') > now and not string.find(ARGV[4], owner, 1, true) then
  if record and ARGV[5] ~= '' and redis.sha1hex(record) ~= ARGV[5] then return {0, record} end
  return {0}
end
local fence = raised()
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
set('until', now + ARGV[2])
keep(tonumber(ARGV[3]))
return {fence, record}
"""
)
"""
``owner, lease in ms, least life of the key in ms, owners to replace, digest`` -> the fencing token,
and the record. While another owner holds the lock, the fencing token is 0, and there is a record
only if it differs from the digest.
"""

UNLOCK: Final = """
if redis.call('HGET', KEYS[1], 'owner') == ARGV[1] then
  redis.call('HDEL', KEYS[1], 'owner', 'until')
end
return 1
"""
"""``owner`` -> 1; the lock of another owner stays."""

SAVE: Final = (
    _NOW
    + _FOREIGN
    + """
if foreign() then return -1 end
local fence = tonumber(ARGV[2])
if fence == 0 then fence = raised() end
if number('saved') > fence then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[1])
set('saved', fence)
set('fence', math.max(number('fence'), fence))
if ARGV[3] == '0' then return redis.call('PERSIST', KEYS[1]) and 1 end
redis.call('PEXPIRE', KEYS[1], math.max(tonumber(ARGV[3]), number('until') - now))
return 1
"""
)
"""``record, fencing token (0: none), ms to live (0: forever)`` -> 1; 0 if it came too late."""

DELETE: Final = (
    _NOW
    + _FOREIGN
    + """
if foreign() then return 1 end
redis.call('HDEL', KEYS[1], 'record')
if number('fence') == 0 then raised() end
set('saved', number('fence'))
keep(math.max(tonumber(ARGV[1]), number('until') - now))
return 1
"""
)
"""``ms to remember`` -> 1; a writer whose lock is older than the deletion comes too late."""
