"""
Validate arguments before sending anything.

Each function returns the error to raise, or `None`. No message quotes a value that may be secret.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias, cast

import attrs

from .models import AccessTokenCredentials, PasswordCredentials, Token
from .redaction import printable
from .results import frameless
from .tokens import TOKEN_LIMIT, fill_from_jwt, is_header_safe

BadArgument: TypeAlias = ValueError | TypeError

TIMEOUT_LIMIT: Final = 1_000_000
"""Seconds; sockets and locks overflow beyond a limit that depends on the platform."""

VALIDITY_LIMITS: Final = timedelta(seconds=1), timedelta(hours=24)
"""The shortest and the longest validity of an access token."""


@frameless
def parse_token(token: Token | str, wall: float, name: str = "token") -> Token | BadArgument:
    """Check a token from outside, and complete its times from its id."""
    if not isinstance(token, Token | str):
        return TypeError(f"{name} must be a Token or a str, not {type(token).__name__}")
    token = Token(token) if isinstance(token, str) else token
    wrong = (
        _token_error(name, token.id)
        or _text_or_none_error("renewal", token.renewal)
        or _text_or_none_error("user_id", token.user_id)
        or _text_or_none_error("organization_id", token.organization_id)
        or _time_error("expires_at", token.expires_at)
        or _time_error("issued_at", token.issued_at)
    )
    if wrong:
        return wrong
    token = fill_from_jwt(_printable(token))
    if token.expires_at is None:
        return token
    if token.expires_at.timestamp() <= wall:
        return ValueError(f"{name} has expired; sign in again for a new one")
    return attrs.evolve(
        token,
        expires_at=token.expires_at.astimezone(UTC),
        issued_at=token.issued_at or datetime.fromtimestamp(wall, UTC),
    )


def _printable(token: Token) -> Token:
    """Escape characters that could forge log lines: a session's `repr` shows these fields."""
    odd: dict[str, Any] = {
        name: printable(text)
        for name, text in (("user_id", token.user_id), ("organization_id", token.organization_id))
        if text is not None and not text.isprintable()
    }
    return attrs.evolve(token, **odd) if odd else token


def _token_error(name: str, token_id: object) -> BadArgument | None:
    """Check a token's id, which is sent as ``Authorization: Bearer``."""
    if not isinstance(token_id, str):
        return TypeError(f"{name} must be a str, not {type(token_id).__name__}")
    wrong = _unfit_for_header(token_id)
    return None if wrong is None else ValueError(f"{name} must {wrong}")


def _unfit_for_header(token_id: str) -> str | None:
    if not token_id.strip():
        return "not be empty"
    if re.match(r"\s*bearer\s", token_id, re.IGNORECASE):
        return "be the token alone, without 'Bearer' before it"
    if token_id[0] == token_id[-1] and token_id[0] in "'\"":  # as from a file of variables
        return "be the token alone, without quotation marks around it"
    if is_header_safe(token_id):
        return None
    if is_header_safe(token_id.strip()):
        return "have no space or line break around it: use .strip()"
    return (
        f"be visible ASCII without spaces or line breaks, and at most {TOKEN_LIMIT} characters long"
    )


def _text_or_none_error(name: str, text: object) -> TypeError | None:
    if isinstance(text, str | None):
        return None
    wrong = f"token.{name} must be a str, not {type(text).__name__}"
    return TypeError(f"{wrong}: write expires_at=..." if isinstance(text, datetime) else wrong)


def _time_error(name: str, at: object) -> BadArgument | None:
    if not isinstance(at, datetime | None):
        return TypeError(f"token.{name} must be a datetime, not {type(at).__name__}")
    if at is None:
        return None
    if at.utcoffset() is None:
        return ValueError(
            f"token.{name} must be aware: give it a time zone, as in datetime.now(UTC)"
        )
    try:
        at.astimezone(UTC)
    except OverflowError:
        return ValueError(f"token.{name} must be in the years 1 to 9999 in UTC")
    return None


def not_copied(name: str) -> str:
    """Return the message for copying or pickling an object of a session."""
    return (
        f"{name} cannot be copied or pickled: make a client in each process, with the same store=, "
        "or hand current_token() over, for token= or for_token() there"
    )


def kind_error(name: str, value: object, kind: type) -> TypeError | None:
    """Check an optional argument of one class."""
    if value is None or isinstance(value, kind):
        return None
    package, _, _ = kind.__module__.partition(".")
    wrong = f"{name} must be of class {package}.{kind.__name__}, not {type(value).__name__}"
    is_async = kind.__name__.startswith("Async")
    twin = kind.__name__.removeprefix("Async") if is_async else f"Async{kind.__name__}"
    if isinstance(value, getattr(sys.modules[package], twin, ())):
        wrong += f", which is for {'a SessionClient' if is_async else 'an AsyncSessionClient'}"
    elif isinstance(getattr(value, name, None), kind):  # as of a `FakeKoyeb`
        wrong += f": give its .{name}"
    return TypeError(wrong)


def credentials_error(credentials: object) -> BadArgument | None:
    """Check the credentials of a blocking session, which awaits no async function."""
    if _is_async(credentials):
        return TypeError(
            "credentials must be a plain function: give the async one to an AsyncSessionClient"
        )
    return async_credentials_error(credentials)


def async_credentials_error(credentials: object) -> BadArgument | None:
    """Check the credentials of an async session."""
    if credentials is None:
        return None
    if isinstance(credentials, PasswordCredentials):
        return _password_error(credentials)
    if isinstance(credentials, AccessTokenCredentials):
        return _api_token_error(credentials)
    if not callable(credentials):
        return TypeError(
            "credentials must be PasswordCredentials, AccessTokenCredentials, or a callable that "
            f"returns a token, not {type(credentials).__name__}"
        )
    if not _takes_a_token_at_most(credentials):
        return TypeError(
            "credentials must be a callable without arguments, or with one for the token that is "
            "to be replaced"
        )
    return None


def _password_error(credentials: PasswordCredentials) -> BadArgument | None:
    wrong = text_error("credentials.email", credentials.email) or text_error(
        "credentials.password", credentials.password
    )
    if wrong:
        return type(wrong)(f"{wrong}: give PasswordCredentials(email, password)")
    if credentials.organization_id is None:
        return None
    return id_error(credentials.organization_id)


def _api_token_error(credentials: AccessTokenCredentials) -> BadArgument | None:
    wrong = _token_error("credentials.api_token", credentials.api_token) or id_error(
        credentials.organization_id
    )
    if wrong:
        return type(wrong)(f"{wrong}: give AccessTokenCredentials(api_token, organization_id)")
    return validity_error("credentials.validity", credentials.validity)


def takes_token(source: Callable[..., Any]) -> bool:
    """
    Return whether to call a callable with the token to replace.

    It gets the token if its first argument is required, or is annotated as a `Token`. Any other
    optional argument is its own affair, as in ``lambda cache=cache: ...``. A callable without a
    readable signature is called without arguments.
    """
    parameters = _positional(source)
    return bool(parameters) and (
        parameters[0].default is inspect.Parameter.empty
        or bool(re.search(r"\bToken\b", str(parameters[0].annotation)))
    )


def _takes_a_token_at_most(source: Callable[..., Any]) -> bool:
    """Return whether a callable requires no argument, or one by position."""
    required = [p for p in _parameters(source) if p.default is inspect.Parameter.empty]
    by_name = any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in required)
    return len(required) <= 1 and not by_name


def _positional(source: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in _parameters(source) if p.kind is not inspect.Parameter.KEYWORD_ONLY]


def _parameters(source: Callable[..., Any]) -> list[inspect.Parameter]:
    """List the parameters of a callable without ``*args`` and ``**kwargs``; empty if unknown."""
    try:
        signature = inspect.signature(source)
    except Exception:  # noqa: BLE001 - the user's object; some builtins have no signature
        return []
    various = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [p for p in signature.parameters.values() if p.kind not in various]


def timeout_error(timeout: object, name: str = "timeout") -> BadArgument | None:
    """Check a number of seconds."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        return TypeError(f"{name} must be a number of seconds, not {type(timeout).__name__}")
    if not 0 < timeout <= TIMEOUT_LIMIT:
        return ValueError(f"{name} must be above 0 and at most {TIMEOUT_LIMIT} s, not {timeout}")
    return None


def text_error(name: str, text: object) -> BadArgument | None:
    """Check a text that must not be empty."""
    if not isinstance(text, str):
        return TypeError(f"{name} must be a str, not {type(text).__name__}")
    if not text.strip():
        return ValueError(f"{name} must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        return ValueError(f"{name} must be text that can be written as UTF-8")
    return None


def id_error(organization_id: object, name: str = "organization_id") -> BadArgument | None:
    """Check an id that becomes a part of a path, which errors and logs show; a token is longer."""
    if not isinstance(organization_id, str):
        return TypeError(f"{name} must be a str, not {type(organization_id).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,36}", organization_id):
        return ValueError(f"{name} must be an id: 1 to 36 letters, digits, '-' and '_'")
    return None


@frameless
def header_error(name: str, value: object) -> BadArgument | None:
    """Check an optional value that is sent as a header."""
    if value is None:
        return None
    if not isinstance(value, str):
        return TypeError(f"{name} must be a str, not {type(value).__name__}")
    return None if is_header_safe(value) else ValueError(f"{name} must be visible ASCII")


def validity_error(name: str, validity: object) -> BadArgument | None:
    """Check the validity of an access token to issue."""
    if not isinstance(validity, timedelta):
        return TypeError(f"{name} must be a timedelta, not {type(validity).__name__}")
    if not VALIDITY_LIMITS[0] <= validity <= VALIDITY_LIMITS[1]:
        return ValueError(f"{name} must be from one second to 24 hours, not {validity}")
    return None


def access_token_error(organization_id: object, validity: object) -> BadArgument | None:
    """Check the arguments for a new access token; `None` leaves its validity to the service."""
    return id_error(organization_id) or (
        None if validity is None else validity_error("validity", validity)
    )


@frameless
def switch_error(organization_id: object, seon_fp: object) -> BadArgument | None:
    """Check the arguments for a switch to another organization."""
    return id_error(organization_id) or header_error("seon_fp", seon_fp)


def path_error(path: object, name: object) -> BadArgument | None:
    """Check the path of a session's file, which excludes a name."""
    if path is None:
        return None
    if not isinstance(path, str | os.PathLike):
        return TypeError(f"path must be a str or an os.PathLike, not {type(path).__name__}")
    text = os.fspath(cast("os.PathLike[str]", path))
    if not isinstance(text, str):
        return TypeError("path must be text, not bytes")
    if not text.strip() or "\0" in text:
        return ValueError("path must not be empty: leave it out for the user's own folder")
    if name != "default":
        return ValueError("give path or name, not both")
    return None


def name_error(name: object) -> BadArgument | None:
    """Check the name of a session, which becomes a part of a file name."""
    if not isinstance(name, str):
        return TypeError(f"name must be a str, not {type(name).__name__}")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        return ValueError("name must be 1 to 64 letters, digits, '-' and '_'")
    return None


# Twins for the two halves, as each half has its own stores: `async_x_error` and `x_error`.


def async_store_error(store: object) -> BadArgument | None:
    """Check the store of an async session."""
    return _store_error(store, "Async", awaited=True)


def store_error(store: object) -> BadArgument | None:
    """Check the store of a blocking session."""
    return _store_error(store, "", awaited=False)


def _store_error(store: object, prefix: str, *, awaited: bool) -> TypeError | None:
    if store is None:
        return None
    methods = {name: getattr(store, name, None) for name in ("load", "save", "delete", "lock")}
    wrong = _not_a_store(store, prefix, [name for name in methods if not callable(methods[name])])
    if wrong is None and _is_of_other_half(methods, awaited=awaited):
        half = "asynchronous" if awaited else "blocking"
        wrong = f"{type(store).__name__}, which is not of the {half} half"
    return None if wrong is None else TypeError(f"store must be a token store, not {wrong}")


def _not_a_store(store: object, prefix: str, missing: list[str]) -> str | None:
    """Describe a value that is no store, and suggest one; `None` if no method is missing."""
    if isinstance(store, type):
        return f"a class: call {store.__name__}()"
    if not missing:
        return None
    if isinstance(store, str) and "://" in store:
        return f"a URL: give {prefix}RedisTokenStore(client, key=...), or another store"
    if isinstance(store, str | os.PathLike):
        return f"a path: give {prefix}FileTokenStore(path)"
    if callable(getattr(store, "execute_command", None)):
        return f"a Redis client: give {prefix}RedisTokenStore(client, key=...)"
    return f"{type(store).__name__}, which has no {', '.join(missing)}"


def _is_of_other_half(methods: Mapping[str, Any], *, awaited: bool) -> bool:
    """Return whether a store is one of the other half; `False` in case of doubt."""
    lock = inspect.unwrap(methods["lock"])
    if awaited and (inspect.isasyncgenfunction(lock) or inspect.iscoroutinefunction(lock)):
        return False
    calls = [methods[name] for name in ("load", "save", "delete")]
    if awaited:  # a plain function may return an awaitable, but hardly all three of them
        return all(map(_is_plain, calls))
    return inspect.isasyncgenfunction(lock) or any(map(inspect.iscoroutinefunction, calls))


def _is_plain(function: object) -> bool:
    """Return whether this is a Python function that is not ``async``; `False` for a mock."""
    written = inspect.isfunction(getattr(function, "__func__", function))
    return written and not inspect.iscoroutinefunction(function)


def async_client_error(client: object) -> TypeError | None:
    """Check the Redis client of an async store."""
    wrong = _client_error(client, "redis.asyncio.Redis")
    if wrong is not None:
        return wrong
    execute: Any = getattr(client, "execute_command", None)
    library = getattr(execute, "__module__", None) or ""
    if library.partition(".")[0] in {"redis", "valkey"} and _is_plain(execute):
        return TypeError("client must be an asynchronous one: give redis.asyncio.Redis(...)")
    return None


def client_error(client: object) -> TypeError | None:
    """Check the Redis client of a blocking store."""
    wrong = _client_error(client, "redis.Redis")
    if wrong is None and inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
        return TypeError("client must be a blocking one: give redis.Redis(...)")
    return wrong


def _client_error(client: object, wanted: str) -> TypeError | None:
    if isinstance(client, str):
        return TypeError(f"client must be a client, not a URL: give {wanted}.from_url(...)")
    if isinstance(client, type) or not callable(getattr(client, "execute_command", None)):
        kind = client.__name__ if isinstance(client, type) else type(client).__name__
        return TypeError(f"client must be one of Redis or Valkey, such as {wanted}(), not {kind}")
    return None


def async_listener_error(listener: object) -> TypeError | None:
    """Check a listener for token changes, plain or async."""
    if callable(listener):
        return None
    return TypeError(f"listener must be a function of a token, not {type(listener).__name__}")


def listener_error(listener: object) -> TypeError | None:
    """Check a listener for token changes that must be plain."""
    if _is_async(listener):
        return TypeError("listener must be a plain function: nobody awaits an async one here")
    return async_listener_error(listener)


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - asks whether it is async, not callable
    )


def clock_error(clock: object) -> TypeError | None:
    """Check the clock of a client."""
    if isinstance(clock, type):
        return TypeError(f"clock must be a clock, not a class: call {clock.__name__}()")
    if clock is None or all(callable(getattr(clock, name, None)) for name in ("time", "monotonic")):
        return None
    return TypeError("clock must have time() and monotonic(), as the module time has them")
