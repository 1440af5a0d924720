"""Answers a caller with what went wrong behind a FastAPI application: problem details, RFC 9457."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from fastapi import HTTPException, WebSocket
from fastapi.responses import JSONResponse, Response

from ._errors import (
    ApiError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RateLimitedError,
    StoreError,
    TransportTimeoutError,
)

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from ._errors import KoyebSessionError

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
_HANDED_ON: Final = (BadRequestError, PermissionDeniedError, NotFoundError, RateLimitedError)
_UNAVAILABLE: Final = {503, 504}
"""What is handed on of the service's own failures; any other one is a bad gateway."""


class Refused(HTTPException):
    """The caller's bearer is missing or no good."""


async def answer(connection: HTTPConnection, error: Exception) -> Response | None:
    status, detail, headers = _explained(error)
    if isinstance(connection, WebSocket):
        is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        await connection.close(INTERNAL_ERROR if is_ours else POLICY_VIOLATION)
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


def _explained(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Give status, detail and headers; what failed behind us is no caller's business."""
    if isinstance(error, Refused):
        return error.status_code, error.detail, dict(error.headers or {})
    headers: dict[str, str] = {}
    wait = getattr(error, "retry_after", None)
    if wait is not None:
        headers["Retry-After"] = str(math.ceil(wait))
    status = _status(error)
    if status == HTTPStatus.UNAUTHORIZED:
        headers |= CHALLENGE
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return status, cast("KoyebSessionError", error).message, headers
    return status, "Koyeb could not be asked, or gave no useful answer.", headers


def _status(error: Exception) -> int:
    if isinstance(error, AuthenticationError | NotSignedInError):
        return HTTPStatus.UNAUTHORIZED
    if isinstance(error, _HANDED_ON):
        return error.default_status
    if isinstance(error, TransportTimeoutError):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, StoreError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, ApiError) and error.status in _UNAVAILABLE:
        return error.status
    return HTTPStatus.BAD_GATEWAY
