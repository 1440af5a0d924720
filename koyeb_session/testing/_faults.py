"""Faults as values, so that a test can script one in a single line."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

import attrs

from ._gate import Gate

_FRAMING = {"content-length", "transfer-encoding"}
_BODILESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_LOWEST_STATUS, _HIGHEST_STATUS = 200, 599


@attrs.frozen(kw_only=True)
class Fault:
    """
    A fault of one request, for ``FakeKoyeb.fail``.

    All that is not given stays as the service would have it. So ``Fault()`` lets one request pass,
    and ``Fault(latency=0.2)`` is the right reply, late.

    Attributes:
        status: the status to answer with, 200 to 599. With no ``body``, the body is the API's own
            for this status.
        body: the body to answer with: a ``dict`` or a ``list`` is sent as JSON, text as UTF-8,
            bytes as they are. With no ``status``, the status is 200.
        headers: headers to add to the reply, or to replace in it.
        latency: how long to hold the reply, in seconds of real time.
        gate: holds the reply until it is opened.
        hold: the part that is held up: the ``"reply"`` of a service that has done its
            work, or the ``"request"`` before the service sees it. A client that gives up on a held
            request leaves nothing behind.
        refuse: there is no connection: the request does not arrive, and is not logged. A socket
            or an application that is already connected can only be reset.
        reset: the connection is reset before any reply.
        truncate: the connection ends after this many bytes of the body.
        processed: whether the service carries the operation out. ``None``: it does, unless
            ``status``, ``body`` or ``reset`` are given. ``Fault(reset=True, processed=True)`` is a
            lost reply.

    Raises:
        ValueError: a value is out of its range, or the values exclude each other.

    >>> Fault(status=503, headers={"retry-after": "3"})
    Fault(status=503, headers={'retry-after': '3'})
    """

    status: int | None = None
    body: bytes | str | dict[str, Any] | list[Any] | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    latency: float = 0.0
    gate: Gate | None = None
    hold: Literal["reply", "request"] = "reply"
    refuse: bool = False
    reset: bool = False
    truncate: int | None = None
    processed: bool | None = None

    def __attrs_post_init__(self) -> None:
        _check(self)

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in _given(self))
        return f"Fault({given})"

    @property
    def replaces_reply(self) -> bool:
        """Whether the service's own reply is never seen."""
        return self.status is not None or self.body is not None or self.breaks_connection

    @property
    def breaks_connection(self) -> bool:
        """Whether there is no reply at all."""
        return self.refuse or self.reset

    @property
    def carries_out(self) -> bool:
        """Whether the service carries the operation out."""
        return not self.replaces_reply if self.processed is None else self.processed

    @property
    def content(self) -> bytes | None:
        """The body as it goes over the wire; ``None`` if there is none."""
        if isinstance(self.body, str):
            return self.body.encode()
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


def _check(fault: Fault) -> None:
    if fault.status is not None and not _LOWEST_STATUS <= fault.status <= _HIGHEST_STATUS:
        raise ValueError(f"status is {_LOWEST_STATUS} to {_HIGHEST_STATUS}, not {fault.status}")
    if not (math.isfinite(fault.latency) and fault.latency >= 0):
        raise ValueError(f"latency is a number of seconds from 0, not {fault.latency}")
    if fault.truncate is not None and fault.truncate < 0:
        raise ValueError(f"truncate is a number of bytes from 0, not {fault.truncate}")
    if fault.hold not in ("reply", "request"):
        raise ValueError(f"hold is 'reply' or 'request', not {fault.hold!r}")
    _check_headers(fault.headers)
    _check_combination(fault)


def _check_headers(headers: Mapping[str, str]) -> None:
    if _FRAMING & {name.lower() for name in headers}:
        raise ValueError("the length of a body follows from the body; truncate cuts it short")
    if any(char in name + value for name, value in headers.items() for char in "\r\n\0"):
        raise ValueError("a header holds no line break and no NUL")


def _given(fault: Fault) -> list[str]:
    untouched = Fault()
    names = [field.name for field in attrs.fields(Fault)]
    return [name for name in names if getattr(fault, name) != getattr(untouched, name)]


def _check_combination(fault: Fault) -> None:
    if fault.refuse and _given(fault) != ["refuse"]:
        raise ValueError("a refused connection goes wrong in no other way")
    if fault.status in _BODILESS and fault.body is not None:
        raise ValueError(f"a reply with status {fault.status} has no body")
    shapes_reply = fault.status is not None or fault.body is not None or fault.headers
    if fault.reset and (shapes_reply or fault.truncate is not None):
        raise ValueError("a reset leaves no reply: drop status, body, headers and truncate")
    if fault.processed is False and not fault.replaces_reply:
        raise ValueError("processed=False leaves nothing to reply: give status, body or reset")
    if fault.hold == "request" and fault.gate is None and not fault.latency:
        raise ValueError("hold='request' needs a gate or a latency")
