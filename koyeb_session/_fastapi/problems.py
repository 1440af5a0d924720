"""
Turn errors behind a FastAPI application into responses: problem details, RFC 9457.

Errors of the caller's own session are reported to the caller. Any other error is the application's
fault: the caller learns only whether to try again.
"""

from __future__ import annotations

import contextlib
import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import httpx
from fastapi import HTTPException, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response
from fastapi.websockets import WebSocketState

from .._core.errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    KoyebSessionError,
    NotSignedInError,
    SessionExpiredError,
    TransportError,
    TransportTimeoutError,
    WireError,
    error_class,
)
from .._core.log import log
from .._core.results import RAISED_BY
from .._core.timestamps import retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import HTTPConnection

    from .._async.client import AsyncSessionClient
    from .._core.models import Clock
    from .._core.origins import Origins

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
_MEDIA_TYPE: Final = "application/problem+json"
_RETRY_AFTER: Final = 5
"""The ``Retry-After`` in seconds if Koyeb sends none."""
_HANDED_ON: Final = {400, 401, 403, 404, 409, 429}
"""The statuses of Koyeb that callers receive, as they can act on them."""
_WAITING: Final = {429, 503}
"""The statuses that have a ``Retry-After``."""
_OWN: Final = "koyeb_session.own"
"""The key in a connection's scope for the marks of the sessions of its caller."""
_DESCRIPTIONS: Final = {
    400: "Koyeb found the request wrong.",
    401: "The bearer token or the password is missing, wrong or expired.",
    403: "Koyeb does not allow this.",
    404: "There is no such thing at Koyeb.",
    409: "Koyeb has a conflict with this.",
    429: "Too many requests: wait for as long as Retry-After says.",
    502: "Koyeb gave no useful answer.",
    503: "Try again, once the time in Retry-After is over.",
    504: "Koyeb did not answer in time.",
}
_SCHEMA: Final = {
    "title": "Problem",
    "description": "Problem details, RFC 9457",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "fields": {"type": "object", "additionalProperties": {"type": "string"}},
        "request_id": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}
RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": text, "content": {_MEDIA_TYPE: {"schema": _SCHEMA}}}
    for status, text in _DESCRIPTIONS.items()
}
"""The description of these responses for OpenAPI."""


class CallerRejected(HTTPException):
    """The caller's bearer token is missing or invalid."""


def own(connection: HTTPConnection, session: AsyncSessionClient) -> AsyncSessionClient:
    """Mark the errors of this session as those of the caller of this connection."""
    keeper, _ = session.auth.shared
    connection.scope.setdefault(_OWN, set()).add(keeper.state.mark)
    return session


class ProblemResponder:
    """An exception handler of an application, for errors of Koyeb and of its sessions."""

    def __init__(self) -> None:
        self.services: list[tuple[Origins, Clock]] = []

    async def __call__(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """
        Respond to an error, and log it if the caller is not at fault.

        Raises:
            httpx.HTTPError: The error is about a service other than Koyeb.
        """
        close = _close_of(connection)
        answer = self._answer_to(connection, error)
        is_socket = isinstance(connection, WebSocket)
        del connection  # its headers would show in a traceback
        if answer is None:
            raise error
        if not is_socket:
            return answer
        if close is not None:
            is_ours = answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            with contextlib.suppress(OSError, WebSocketDisconnect):
                await close(INTERNAL_ERROR if is_ours else POLICY_VIOLATION)
        return None

    def _answer_to(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """Make the answer, and log an error for which the caller is not at fault."""
        if isinstance(error, CallerRejected):
            return _problem(error.status_code, error.detail, dict(error.headers or {}))
        if isinstance(error, KoyebSessionError):
            mark, reason = error.raised_by, _reason(error)
        elif isinstance(error, httpx.HTTPError) and (clock := self._clock(error)) is not None:
            mark = error.request.extensions.get(RAISED_BY)
            reason = _translated(error, clock.time())
        else:
            return None
        is_own = mark in connection.scope.get(_OWN, ())
        status = (_callers_status(reason) if is_own else None) or _gateway_status(reason)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log(status, error, is_own=is_own)
        return _answer(status, reason, is_own=is_own)

    def _clock(self, error: httpx.HTTPError) -> Clock | None:
        """Return the clock of the service's sessions, if the failed request was one to Koyeb."""
        try:
            request = error.request
        except RuntimeError:  # httpx has set no request
            return None
        return next((clock for origins, clock in self.services if origins.trusts(request)), None)


def _reason(error: KoyebSessionError) -> KoyebSessionError:
    """Return the cause of an expired token if that is temporary, and otherwise the error itself."""
    cause = error.__cause__
    if isinstance(error, SessionExpiredError) and isinstance(cause, KoyebSessionError):
        return cause if cause.retryable else error
    return error


def _translated(error: httpx.HTTPError, wall: float) -> KoyebSessionError:
    """Return the equivalent error of this package, at a time in seconds since the epoch."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        wait = retry_after(error.response.headers, wall)
        text = f"Koyeb answered with {status} {httpx.codes.get_reason_phrase(status)}."
        return error_class(status, "", "", signs_in=False)(text, status=status, retry_after=wait)
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.PoolTimeout):
        return TransportTimeoutError()
    return TransportError() if isinstance(error, httpx.TransportError) else WireError()


def _callers_status(reason: KoyebSessionError) -> int | None:
    """Return the status of an error that the caller can correct; `None` for any other."""
    if isinstance(reason, AuthenticationError | NotSignedInError):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(reason, EndpointGoneError) or not isinstance(reason, ApiError):
        return None
    return reason.status if reason.status in _HANDED_ON else None


def _gateway_status(reason: KoyebSessionError) -> int:
    """Return the status of an error behind the application: 504, 503 or 502."""
    status = getattr(reason, "status", None)
    if isinstance(reason, TransportTimeoutError) or status == HTTPStatus.GATEWAY_TIMEOUT:
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE if reason.retryable else HTTPStatus.BAD_GATEWAY


def _log(status: int, error: Exception, *, is_own: bool) -> None:
    """Log an error that is not the caller's fault; of an httpx error only the class, not URLs."""
    if isinstance(error, httpx.HTTPStatusError):
        text = f"Koyeb answered with {error.response.status_code}"
    else:
        text = type(error).__name__
        text = f"{text}: {error}" if isinstance(error, KoyebSessionError) else f"httpx.{text}"
    if is_own:
        log.warning("a request was answered with %d: %s", status, text)
    else:
        log.error("a request was answered with %d: the service's session: %s", status, text)


def _answer(status: int, reason: KoyebSessionError, *, is_own: bool) -> Response:
    """Make the response; callers learn no details of failures behind the application."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    headers: dict[str, str] = {}
    wait: float | None = getattr(reason, "retry_after", None)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and wait is None:
        wait = _RETRY_AFTER
    if wait is not None and status in _WAITING:
        headers["Retry-After"] = str(math.ceil(wait))
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    members: dict[str, Any] = {}
    if is_own and isinstance(reason, BadRequestError) and reason.fields:
        members["fields"] = reason.fields
    if is_own and isinstance(reason, ApiError) and reason.request_id:
        members["request_id"] = reason.request_id
    detail = "Koyeb could not be asked, or gave no useful answer." if is_ours else str(reason)
    return _problem(status, detail, headers, members)


def _problem(
    status: int, detail: str, headers: dict[str, str], members: dict[str, Any] | None = None
) -> Response:
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return JSONResponse(problem | (members or {}), status, headers, _MEDIA_TYPE)


def _close_of(connection: HTTPConnection) -> Callable[[int], Awaitable[None]] | None:
    """Return the method that closes a WebSocket, unless either side has closed it already."""
    if not isinstance(connection, WebSocket):
        return None
    states = connection.application_state, connection.client_state
    return None if WebSocketState.DISCONNECTED in states else connection.close
