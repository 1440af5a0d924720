"""Answers a caller with what went wrong behind a FastAPI application: problem details, RFC 9457."""

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

from ._errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    KoyebSessionError,
    NotSignedInError,
    SessionExpiredError,
    StoreError,
    TransportTimeoutError,
)
from ._log import log
from ._timestamps import retry_after

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ._origins import Origins

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
_HANDED_ON: Final = {400, 401, 403, 404, 409, 429, 503, 504}
"""What Koyeb says that is good to know for a caller; what else it says is a bad gateway."""


class Refused(HTTPException):
    """The caller's bearer is missing or no good."""


class Answers:
    """Answers for an application, about the services at some origins."""

    def __init__(self) -> None:
        self.origins: list[Origins] = []

    async def __call__(self, connection: HTTPConnection, error: Exception) -> Response | None:
        """
        Tell a caller of an error, and the log if it is no fault of the caller's.

        Raises:
            httpx.HTTPError: It has to do with somebody else than Koyeb.
        """
        if isinstance(error, httpx.HTTPError) and not self._are_of(error):
            raise error
        status, detail, headers = _explained(error)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("a request was answered with %d: %s", status, _said(error))
        if isinstance(connection, WebSocket):
            await _close(connection, status)
            return None
        problem: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
        }
        if isinstance(error, BadRequestError) and error.fields:
            problem["fields"] = error.fields
        if isinstance(error, ApiError) and error.request_id:
            problem["request_id"] = error.request_id
        return JSONResponse(problem, status, headers, "application/problem+json")

    def _are_of(self, error: httpx.HTTPError) -> bool:
        try:
            request = error.request
        except RuntimeError:  # it has none
            return False
        return any(origins.trusts(request) for origins in self.origins)


async def _close(websocket: WebSocket, status: int) -> None:
    """Close a WebSocket, unless one of its ends has done so already."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    states = websocket.application_state, websocket.client_state
    if WebSocketState.DISCONNECTED not in states:
        with contextlib.suppress(OSError, WebSocketDisconnect):
            await websocket.close(INTERNAL_ERROR if is_ours else POLICY_VIOLATION)


def _explained(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Give status, detail and headers; what failed behind us is no caller's business."""
    if isinstance(error, Refused):
        return error.status_code, error.detail, dict(error.headers or {})
    cause = error.__cause__
    if isinstance(error, SessionExpiredError) and isinstance(cause, KoyebSessionError):
        # Not that it has expired, but why it was not renewed; a refusal says the same as before.
        error = cause if cause.retryable else error
    if isinstance(error, httpx.HTTPError):
        status, wait = _reply(error)
        detail = f"Koyeb answered with {status} {HTTPStatus(status).phrase}."
    else:
        status, wait = _status(error), getattr(error, "retry_after", None)
        detail = str(error)
    headers: dict[str, str] = {}
    if wait is not None:
        headers["Retry-After"] = str(math.ceil(wait))
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        detail = "Koyeb could not be asked, or gave no useful answer."
    return status, detail, headers


def _reply(error: httpx.HTTPError) -> tuple[int, float | None]:
    """Give status, and seconds to wait, for a request by ``session.http``."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _HANDED_ON:
        wait = retry_after(error.response.headers.get("retry-after"), time.time())
        return error.response.status_code, wait
    if isinstance(error, httpx.PoolTimeout):
        return HTTPStatus.SERVICE_UNAVAILABLE, None
    is_late = isinstance(error, httpx.TimeoutException)
    return HTTPStatus.GATEWAY_TIMEOUT if is_late else HTTPStatus.BAD_GATEWAY, None


def _status(error: Exception) -> int:
    if isinstance(error, AuthenticationError | NotSignedInError):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(error, TransportTimeoutError):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, StoreError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, EndpointGoneError) or not isinstance(error, ApiError):
        return HTTPStatus.BAD_GATEWAY
    return error.status if error.status in _HANDED_ON else HTTPStatus.BAD_GATEWAY


def _said(error: Exception) -> str:
    """Say for the log what happened; an error of httpx quotes URLs."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"Koyeb answered with {error.response.status_code}"
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, KoyebSessionError) else f"httpx.{name}"
