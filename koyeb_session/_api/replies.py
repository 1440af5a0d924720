"""
Make an error of a reply without a result: the message names the request, the cause and a remedy.

The module is imported with the first such reply, as most replies bring a result.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import httpx

from .._core.errors import (
    AccountLockedError,
    ApiError,
    BadRequestError,
    EndpointGoneError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    WireError,
    error_class,
)
from .._core.log import time_from_now
from .._core.redaction import TEXT_LIMIT
from .._core.timestamps import retry_after
from .messages import ErrorReply
from .wire import json_object, read_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .wire import Reply

    class Asked(Protocol):
        """The attributes of an operation that an error message needs."""

        @property
        def name(self) -> str: ...
        @property
        def method(self) -> str: ...
        @property
        def path(self) -> str: ...
        @property
        def instead(self) -> str: ...
        @property
        def forbidden(self) -> str: ...
        @property
        def signs_in(self) -> bool: ...


_NOT_KOYEB: Final = "this is no reply of Koyeb's API: base_url may be wrong"
_REDIRECT: Final = "operations follow no redirect: base_url may be wrong"
_NOT_THERE: Final = (
    "base_url may be wrong; if it is right, the service no longer has this operation"
)


def error_of(
    asked: Asked, reply: Reply, wall: float, base_url: str, redact: Callable[[str], str]
) -> ApiError:
    """
    Make the error for an error reply.

    Args:
        asked: The operation.
        reply: The reply.
        wall: The time of its arrival, in seconds since the epoch.
        base_url: The service's URL.
        redact: A function that removes secrets from the service's texts.
    """
    body = read_error(reply.body)
    kind = error_class(reply.status, body.code, body.message or "", signs_in=asked.signs_in)
    wait = retry_after(reply.headers, wall)
    fields = {redact(k): redact(v) for k, v in body.fields.items()}
    is_koyebs = body.code is not None or reply.status == 429 or reply.status >= 500
    kind_of_body = _content_type(reply, redact)
    is_page = kind_of_body == "text/html" and not is_koyebs
    is_elsewhere = kind is EndpointGoneError and body.code is None
    what = _what(kind, body, redact) + _listed(kind, fields)
    advice: list[str] = []
    if 300 <= reply.status < 400:
        what = _redirected(reply, redact) or what
        advice.append(_REDIRECT)
    elif is_elsewhere:
        what = "there is no such operation at this URL"
        advice.append(_NOT_THERE)
    elif is_page:
        advice.append(_NOT_KOYEB)
    advice += _advice(kind, asked, wait)
    request = _request(asked, reply, base_url, kind_of_body)
    request_id = reply.headers.get("x-request-id")
    error = kind(
        "; ".join([f"{asked.name}: {what} ({request})", *advice]),
        status=reply.status,
        code=redact(body.code) if isinstance(body.code, str) else body.code,
        request_id=None if request_id is None else redact(request_id),
        retry_after=wait,
    )
    if isinstance(error, BadRequestError):
        error.fields = fields
    return error


def unfit(
    asked: Asked, reply: Reply, problem: WireError, base_url: str, redact: Callable[[str], str]
) -> WireError:
    """Make the error for a successful reply whose body breaks the API's description."""
    kind_of_body = _content_type(reply, redact)
    request = _request(asked, reply, base_url, kind_of_body)
    text = f"{asked.name}: {problem.message} ({request})"
    is_json = not isinstance(reply.body, WireError) and not isinstance(
        json_object(reply.body), WireError
    )
    is_koyebs = is_json or (isinstance(reply.body, WireError) and kind_of_body != "text/html")
    return WireError(text if is_koyebs else f"{text}; {_NOT_KOYEB}")


def _what(kind: type[ApiError], body: ErrorReply, redact: Callable[[str], str]) -> str:
    """Say what happened, in the service's own words if it sent any."""
    if kind is EndpointGoneError:
        return "the service no longer has this operation"
    said = None if body.message is None else redact(body.message)
    if kind is RateLimitedError:
        return f"too many requests: {said}" if said else "too many requests"
    return "no message" if said is None else said


def _listed(kind: type[ApiError], fields: Mapping[str, str]) -> str:
    """List the invalid fields and their problems, up to the length limit."""
    if kind is not BadRequestError or not fields:
        return ""
    listed = ", ".join(f"{name}: {problem}" for name, problem in fields.items())
    return f": {listed[:TEXT_LIMIT]}"


def _redirected(reply: Reply, redact: Callable[[str], str]) -> str | None:
    """Name the target of a redirect, without its path and query, which may hold secrets."""
    try:
        url = httpx.URL(reply.headers.get("location", ""))
        host = url.netloc.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        return None
    return f"redirected to {redact(f'{url.scheme}://{host}')}" if host and url.scheme else None


def _advice(kind: type[ApiError], asked: Asked, wait: float | None) -> list[str]:
    """Return advice for the user, if there is any."""
    if kind is EndpointGoneError:
        return [asked.instead]
    if kind is AccountLockedError:
        return ["wait before you try again, or ask Koyeb's support"]
    if issubclass(kind, PermissionDeniedError) and asked.forbidden:
        return [asked.forbidden]
    if wait is not None and issubclass(kind, RateLimitedError | ServerError):
        return [f"try again {time_from_now(wait)}"]
    return ["try again later"] if kind is RateLimitedError else []


def _request(asked: Asked, reply: Reply, base_url: str, kind_of_body: str) -> str:
    """Describe a request and its reply, without the query, which may name the user."""
    answered = f"status {reply.status}"
    if kind_of_body and "json" not in kind_of_body:
        answered = f"{answered}, {kind_of_body}"
    return f"{asked.method} {base_url}{asked.path}: {answered}"


def _content_type(reply: Reply, redact: Callable[[str], str]) -> str:
    """Return the media type of a reply's body; an empty text if it has no valid one."""
    name = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return redact(name) if re.fullmatch(r"[\w.+-]{1,40}/[\w.+-]{1,60}", name, re.ASCII) else ""
