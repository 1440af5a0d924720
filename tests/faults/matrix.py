"""
The matrix, as data: the outcome of each fault, for each operation.

The three rules behind the numbers: an operation is sent again only if nothing was sent, or after a
status that says that it may be (`SENT_AGAIN`). A failure leaves the session as it was. After a
logout there is no session, with any answer of the service.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import attrs
import pytest

from koyeb_session import (
    ApiError,
    KoyebSessionError,
    RateLimitedError,
    RetryPolicy,
    ServerError,
    TransportError,
    TransportTimeoutError,
    WireError,
)

from . import replies
from .replies import ORGANIZATION, busy, busy_until, error, redirect, reply
from .server import Behavior, Exchange

EMAIL: Final = "me@example.com"
PASSWORD_CORE: Final = "canary-password-3e5d81"
"""The text that no way of escaping changes."""
PASSWORD: Final = f"{PASSWORD_CORE} ÿ\"'%"
RETRY: Final = RetryPolicy(delay=0)
TRIES: Final = RETRY.attempts
YEAR: Final = 365 * 86_400
Operations: TypeAlias = frozenset[str]

ACTIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "login": lambda session: session.login(EMAIL, PASSWORD),
    "passwordless_login": lambda session: session.passwordless_login(EMAIL),
    "refresh": lambda session: session.refresh(),
    "logout": lambda session: session.logout(),
    "new_session": lambda session: session.new_session(),
    "switch_organization": lambda session: session.switch_organization(ORGANIZATION),
    "unscope_organization_token": lambda session: session.unscope_organization_token(),
    "create_access_token": lambda session: session.create_access_token(ORGANIZATION),
    "login_method": lambda session: session.login_method(EMAIL),
}

ALL: Final[Operations] = frozenset(ACTIONS)
PROMISES_NOTHING: Final[Operations] = frozenset({"passwordless_login", "logout"})
"""The reply is `{}`, so that a body of any shape, or none, will do."""
SENT_AGAIN: Final[Operations] = frozenset({"logout", "login_method"})
"""May be done twice."""
SENT_AGAIN_UNDONE: Final[Operations] = SENT_AGAIN | {"refresh", "create_access_token"}
"""May be sent again after a status that says that nothing was done: 429 and 503."""
RENEWS: Final[Operations] = frozenset(
    {"login", "refresh", "switch_organization", "unscope_organization_token"}
)
"""The session goes on with the token that comes back."""


@attrs.frozen
class Expected:
    """
    The outcomes of a cell.

    Attributes:
        error: The error's class; `None`: the operation succeeds.
        requests: How many requests reach a server.
        shows: Attributes of the error.
        connects: How often a connection is tried; `None`: as it comes.
    """

    error: type[KoyebSessionError] | None = None
    requests: int = 1
    shows: Mapping[str, object] = attrs.field(factory=dict[str, object])
    connects: int | None = None


@attrs.frozen
class Fault:
    """
    One row of the matrix.

    Attributes:
        behaviors: The server's reaction to the first request, the second one and so on.
        expected: The outcomes; each operation is in one of the sets.
        server: Whether there is one, and the owner of its certificate.
        timeout: The operation's deadline in seconds.
        warm_ups: How many good requests come before it on the same connection.
        megabytes: The limit of the memory used and of the bytes taken; `None`: not measured.
    """

    name: str
    expected: Mapping[Operations, Expected]
    behaviors: tuple[Behavior, ...] = ()
    server: Literal["plain", "nobody", "trusted", "other name", "other issuer"] = "plain"
    timeout: float = 5.0
    warm_ups: int = 0
    megabytes: int | None = None

    def expects(self, operation: str) -> Expected:
        """Find the outcome of an operation."""
        (expected,) = (e for operations, e in self.expected.items() if operation in operations)
        return expected


def everywhere(
    error: type[KoyebSessionError] | None = None,
    requests: int = 1,
    connects: int | None = None,
    **shows: object,
) -> Mapping[Operations, Expected]:
    """Expect the same of all operations."""
    return {ALL: Expected(error, requests, shows, connects)}


def needs_a_reply(kind: type[KoyebSessionError]) -> Mapping[Operations, Expected]:
    """Expect success of those that want nothing of the reply's body, and an error of all others."""
    return {ALL - PROMISES_NOTHING: Expected(kind), PROMISES_NOTHING: Expected()}


def repeated(
    kind: type[KoyebSessionError], by: Operations, **shows: object
) -> Mapping[Operations, Expected]:
    """Expect an error, after all tries for some operations and at once for the others."""
    return {by: Expected(kind, TRIES, shows), ALL - by: Expected(kind, 1, shows)}


SHORT: Final = 0.15
"""Seconds: the deadline where there is nothing to wait for but that."""


def _no_reply(name: str, *behaviors: Behavior, warm_ups: int = 0) -> Fault:
    return Fault(name, everywhere(TransportError), behaviors, warm_ups=warm_ups)


def _late(name: str, behavior: Behavior) -> Fault:
    return Fault(name, everywhere(TransportTimeoutError), (behavior,), timeout=SHORT)


def _redirected(
    name: str, behavior: Behavior, status: int, server: Literal["plain", "trusted"] = "plain"
) -> Fault:
    # Another attempt at the refresh would be sent there, too: the password is asked instead.
    refresh = frozenset({"refresh"})
    expected = {
        refresh: Expected(ApiError, 2, {"status": status}),
        ALL - refresh: Expected(ApiError, 1, {"status": status}),
    }
    return Fault(name, expected, (behavior,), server=server)


def _busy(name: str, behavior: Behavior, *, repeats: bool, retry_after: object) -> Fault:
    by = SENT_AGAIN_UNDONE if repeats else frozenset[str]()
    expected = repeated(RateLimitedError, by, status=429, retry_after=retry_after)
    return Fault(name, expected, (behavior,))


FAULTS: Final = (
    # nobody there, or nobody who answers
    Fault(
        "connection refused",
        everywhere(TransportError, requests=0, connects=TRIES),
        server="nobody",
    ),
    _no_reply("reset before the reply", Exchange.reset),
    _no_reply("closed before the reply", Exchange.close),
    _no_reply("reset inside the headers", replies.reset_in_headers),
    _no_reply("reset inside the body", replies.reset_in_body),
    _no_reply("chunked body cut off", replies.cut_chunks),
    _no_reply("another protocol", replies.not_http),
    _late("a hang", Exchange.hang),
    _late("a hang inside the body", replies.hang_in_body),
    _late("headers that drip for ever", replies.drip_headers),
    _late("a body that drips for ever", replies.drip_body),
    Fault("one byte at a time", everywhere(), (replies.one_byte_at_a_time,)),
    # a reply, but not the one that was promised
    Fault("JSON cut off", everywhere(WireError), (reply(content=replies.cut_json),)),
    Fault("JSON array", everywhere(WireError), (reply(content=replies.ARRAY),)),
    Fault("JSON of wrong types", needs_a_reply(WireError), (reply(content=replies.TYPES),)),
    Fault("invalid UTF-8", everywhere(WireError), (reply(content=replies.NOT_UTF8),)),
    Fault("HTML with 200", everywhere(WireError), (reply(content=replies.HTML),)),
    Fault("empty 200", needs_a_reply(WireError), (reply(content=b""),)),
    Fault("204", needs_a_reply(WireError), (reply(204, b""),)),
    Fault(
        "gzip that is none", everywhere(WireError), (reply(headers=("Content-Encoding: gzip",)),)
    ),
    Fault(
        "gzip bomb",
        everywhere(WireError),
        (reply(content=lambda _: replies.bomb(), headers=("Content-Encoding: gzip",)),),
        megabytes=8,
    ),
    Fault("100 MiB", everywhere(WireError), (replies.huge(200),), megabytes=12),
    # errors
    Fault(
        "HTML with 502",
        repeated(ServerError, SENT_AGAIN, status=502),
        (reply(502, replies.HTML, headers=("Content-Type: text/html",)),),
    ),
    Fault("500", everywhere(ServerError, status=500), (error(500),)),
    Fault("503", repeated(ServerError, SENT_AGAIN_UNDONE, status=503), (error(503),)),
    Fault("504", repeated(ServerError, SENT_AGAIN, status=504), (error(504),)),
    Fault(
        "503 once",
        {
            SENT_AGAIN_UNDONE: Expected(requests=2),
            ALL - SENT_AGAIN_UNDONE: Expected(ServerError, 1, {"status": 503}),
        },
        (error(503), reply()),
    ),
    Fault(
        "503 cut off", repeated(ServerError, SENT_AGAIN_UNDONE, status=503), (replies.cut_error,)
    ),
    Fault(
        "500 with 100 MiB", everywhere(ServerError, status=500), (replies.huge(500),), megabytes=12
    ),
    # asked to wait
    _busy("429", busy(), repeats=True, retry_after=None),
    _busy("429, Retry-After: 0", busy("0"), repeats=True, retry_after=0.0),
    _busy("429, Retry-After: 30", busy("30"), repeats=False, retry_after=30.0),
    _busy("429, Retry-After: a year", busy(str(YEAR)), repeats=False, retry_after=float(YEAR)),
    _busy("429, Retry-After: -1", busy("-1"), repeats=True, retry_after=None),
    _busy("429, Retry-After: NaN", busy("NaN"), repeats=True, retry_after=None),
    _busy(
        "429, Retry-After: a date to come",
        busy_until(3600),
        repeats=False,
        retry_after=pytest.approx(3600, abs=30),
    ),
    _busy("429, Retry-After: a past date", busy_until(-60), repeats=True, retry_after=0.0),
    # sent elsewhere
    _redirected("redirect to the same origin", redirect(307, "{0.server.url}/new"), 307),
    _redirected("redirect in a loop", redirect(308, "{0.server.url}{0.request.path}"), 308),
    _redirected(
        "redirect to another host", redirect(302, "{0.server.elsewhere}{0.request.path}"), 302
    ),
    _redirected(
        "redirect to http", redirect(301, "{0.server.elsewhere}{0.request.path}"), 301, "trusted"
    ),
    # TLS
    Fault("TLS", everywhere(), (reply(),), server="trusted"),
    Fault(
        "certificate of another name",
        everywhere(TransportError, requests=0),
        (reply(),),
        server="other name",
    ),
    Fault(
        "certificate of an unknown issuer",
        everywhere(TransportError, requests=0),
        (reply(),),
        server="other issuer",
    ),
    # the end of a connection
    Fault(
        "Connection: close on every reply",
        everywhere(),
        (reply(headers=("Content-Type: application/json", "Connection: close")),),
        warm_ups=2,
    ),
    Fault(
        "half-closed keep-alive connection", everywhere(), (replies.half_close, reply()), warm_ups=1
    ),
    _no_reply("keep-alive connection closed on use", reply(), Exchange.close, warm_ups=1),
)
