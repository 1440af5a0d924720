"""
Answers a caller with what went wrong behind a FastAPI application: problem details, RFC 9457.

An error of a session that was made for this caller is the caller's own, and is told. Any other one
is the application's trouble: the caller learns no more than whether to try again.
"""

from __future__ import annotations

import contextlib
import math
import time
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
    from starlette.requests import HTTPConnection

    from .._async.client import AsyncSessionClient
    from .._core.origins import Origins

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
_MEDIA_TYPE: Final = "application/problem+json"
_RETRY_AFTER: Final = 5
"""Seconds to wait where Koyeb does not say."""
_HANDED_ON: Final = {400, 401, 403, 404, 409, 429}
"""What Koyeb says of a caller's own request, and a caller can mend."""
_WAITING: Final = {429, 503}
"""What goes with a `Retry-After`."""
_OWN: Final = "koyeb_session.own"
"""The key of a connection's scope where the marks of its caller's sessions are."""
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
"""What OpenAPI says of these answers."""


class CallerRejected(HTTPException):
    """The caller's bearer is missing or no good."""


def own(connection: HTTPConnection, session: AsyncSessionClient) -> AsyncSessionClient:
    """Note that the errors of this session are for the caller of this connection."""
    keeper, _ = session.auth.shared
    connection.scope.setdefault(_OWN, set()).add(keeper.state.mark)
    return session


class ProblemResponder:
    """Answers for an application, about the services at some origins."""

    def __init__(self) -> None:
        self.origins: list[Origins] = []

    async def __call__(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """
        Tell a caller of an error, and the log if it is no fault of the caller's.

        Raises:
            httpx.HTTPError: It has to do with somebody else than Koyeb.
        """
        if isinstance(error, CallerRejected):
            return _problem(error.status_code, error.detail, dict(error.headers or {}))
        if isinstance(error, KoyebSessionError):
            mark, reason = error.raised_by, _reason(error)
        elif isinstance(error, httpx.HTTPError) and (request := self._request(error)) is not None:
            mark, reason = request.extensions.get(RAISED_BY), _translated(error)
        else:
            raise error
        is_own = mark in connection.scope.get(_OWN, ())
        status = (_callers_status(reason) if is_own else None) or _gateway_status(reason)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _log(status, error, is_own=is_own)
        if isinstance(connection, WebSocket):
            await _close(connection, status)
            return None
        return _answer(status, reason, is_own=is_own)

    def _request(self, error: httpx.HTTPError) -> httpx.Request | None:
        """Return the request that failed, if it was one to Koyeb."""
        try:
            request = error.request
        except RuntimeError:  # it has none
            return None
        return request if any(origins.trusts(request) for origins in self.origins) else None


def _reason(error: KoyebSessionError) -> KoyebSessionError:
    """Look behind an expired token for what kept it from being renewed, if that may pass."""
    cause = error.__cause__
    if isinstance(error, SessionExpiredError) and isinstance(cause, KoyebSessionError):
        return cause if cause.retryable else error
    return error


def _translated(error: httpx.HTTPError) -> KoyebSessionError:
    """Give the error of this package that means the same."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        wait = retry_after(error.response.headers.get("retry-after"), time.time())
        text = f"Koyeb answered with {status} {httpx.codes.get_reason_phrase(status)}."
        return error_class(status, "", "", signs_in=False)(text, status=status, retry_after=wait)
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.PoolTimeout):
        return TransportTimeoutError()
    return TransportError() if isinstance(error, httpx.TransportError) else WireError()


def _callers_status(reason: KoyebSessionError) -> int | None:
    """Say what the caller can mend, if anything."""
    if isinstance(reason, AuthenticationError | NotSignedInError):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(reason, EndpointGoneError) or not isinstance(reason, ApiError):
        return None
    return reason.status if reason.status in _HANDED_ON else None


def _gateway_status(reason: KoyebSessionError) -> int:
    """Say whether the way to Koyeb took too long, is out for a while, or does not work."""
    status = getattr(reason, "status", None)
    if isinstance(reason, TransportTimeoutError) or status == HTTPStatus.GATEWAY_TIMEOUT:
        return HTTPStatus.GATEWAY_TIMEOUT
    return HTTPStatus.SERVICE_UNAVAILABLE if reason.retryable else HTTPStatus.BAD_GATEWAY


def _log(status: int, error: Exception, *, is_own: bool) -> None:
    """Note what is not the caller's fault; an error of httpx quotes URLs, and is not quoted."""
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
    """Make the answer; what failed behind us is no caller's business."""
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


async def _close(websocket: WebSocket, status: int) -> None:
    """Close a WebSocket, unless one of its ends has done so already."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    states = websocket.application_state, websocket.client_state
    if WebSocketState.DISCONNECTED not in states:
        with contextlib.suppress(OSError, WebSocketDisconnect):
            await websocket.close(INTERNAL_ERROR if is_ours else POLICY_VIOLATION)
