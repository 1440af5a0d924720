"""What stores write: a versioned JSON record of a token, and the scripts that Redis runs."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, cast

from ._models import Token
from ._outcomes import frameless
from ._wire import is_header_safe

VERSION: Final = 2
_READ: Final = (1, VERSION)
"""Version 1 has neither ``renewal`` nor ``provenance``."""
LIMIT: Final = 1 << 20
"""Bytes; no record comes near."""
_TEXTS: Final = ("user_id", "organization_id", "renewal", "provenance")
_TIMES: Final = ("expires_at", "issued_at")


@frameless
def write_record(token: Token) -> str:
    """Write a token with all its fields."""
    return json.dumps(
        {
            "format": "koyeb-session",
            "version": VERSION,
            "token": {
                "id": token.id,
                **{name: getattr(token, name) for name in _TEXTS},
                **{name: _iso(getattr(token, name)) for name in _TIMES},
            },
        }
    )


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


@frameless
def read_record(text: str | bytes | None) -> Token | ValueError | None:
    """
    Read a token back; the error says what is wrong and quotes nothing.

    `None`, and a text that is empty, as a file that was made to be mounted, hold no token.
    """
    return _record(text) if text and text.strip() else None


def _record(text: str | bytes) -> Token | ValueError:
    if len(text) > LIMIT:
        return ValueError("it is too large for a session")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ValueError("it is not JSON, or is cut off")
    record = _object(value)
    if record.get("format") != "koyeb-session":
        return ValueError("another program wrote it")
    if record.get("version") not in _READ:
        return ValueError("another version of koyeb-session wrote it")
    try:
        return _token(_object(record.get("token")))
    except (TypeError, ValueError):
        return ValueError("it holds no token")


def _token(fields: dict[str, Any]) -> Token:
    token_id = fields["id"] if isinstance(fields.get("id"), str) else ""
    if not is_header_safe(token_id):
        raise ValueError
    texts = {name: fields.get(name) for name in _TEXTS}
    if not all(isinstance(text, str | None) for text in texts.values()):
        raise TypeError
    times: dict[str, Any] = {
        name: None if fields.get(name) is None else datetime.fromisoformat(fields[name])
        for name in _TIMES
    }
    if any(at is not None and at.tzinfo is None for at in times.values()):
        raise ValueError
    return Token(token_id, **texts, **times)


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


class Command:
    """One command of Redis. It shows no argument, as one of them may be a record."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts

    def send(self, client: Any) -> Any:
        """Send it on a client, which may have to be awaited."""
        return client.execute_command(*self._parts)


# Redis. One hash for each session, so that a cluster keeps all of it in one slot:
#   record  the token                      saved   the fencing value that it was written with
#   fence   grows with each lock           owner, until   who holds the lock, and how long (ms)
# A fence is the time at least, so that it grows although Redis has lost its data.

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

LOCK: Final = (
    _NOW
    + """
local owner = redis.call('HGET', KEYS[1], 'owner')
if number('until') > now and not string.find(ARGV[4], owner, 1, true) then return 0 end
local fence = raised()
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
set('until', now + ARGV[2])
keep(tonumber(ARGV[3]))
return fence
"""
)
"""
``owner, lease in ms, least life of the key in ms, owners who are gone`` -> the fencing value, 0
while somebody else holds the lock.
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
    + """
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
"""``record, fencing value (0: none), ms to live (0: for ever)`` -> 0 if it came too late."""

DELETE: Final = (
    _NOW
    + """
redis.call('HDEL', KEYS[1], 'record')
if number('fence') == 0 then raised() end
set('saved', number('fence'))
keep(math.max(tonumber(ARGV[1]), number('until') - now))
return 1
"""
)
"""``ms to remember`` -> 1; a writer whose lock is older than the deletion comes too late."""
