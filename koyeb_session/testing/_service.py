"""The fake service without connections: it receives requests and decides the replies."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection
from email.utils import formatdate
from http import HTTPStatus

import attrs

from .._core.models import Clock
from . import _replies
from ._bodies import MAX_BODY
from ._faults import Fault
from ._replies import Reply
from ._requests import RawHeaders, Request
from ._routes import Route, Routes

CarryOut = Callable[[str, Request, str], Reply]
"""A function that carries out a request: ``(operation, request, argument) -> reply``."""


@attrs.define(eq=False)
class Call:
    """One request inside the service, from its arrival to its reply."""

    request: Request
    route: Route
    fault: Fault | None


class Service:
    """
    Decides the replies; the transport, the ASGI application and the server only carry bytes.

    It is thread-safe.

    Attributes:
        requests: the received requests, in order.
        lock: hold it to read or change the state behind ``carry_out``.
    """

    def __init__(
        self, carry_out: CarryOut, routes: Routes, clock: Clock, withdrawn: Collection[str] = ()
    ) -> None:
        self.requests: list[Request] = []
        self.lock: threading.Lock = threading.Lock()
        self._perform = carry_out
        self._routes = routes
        self._withdrawn = self._known(withdrawn)
        self._clock = clock
        self._faults: dict[str, deque[tuple[Fault, int]]] = {}
        self._serials = itertools.count(1)
        self._date: tuple[int, bytes] = (0, b"")

    def fail(self, operation: str, fault: Fault, times: int) -> None:
        """Queue a fault for the next ``times`` requests of one operation."""
        if times < 1:
            raise ValueError(f"times is a number from 1, not {times}")
        (name,) = self._known((operation,))
        with self.lock:
            self._faults.setdefault(name, deque()).append((fault, times))

    def recover(self, operation: str | None) -> None:
        """Drop the queued faults of one operation, or of all."""
        names = self._routes.operations if operation is None else self._known((operation,))
        with self.lock:
            for name in names:
                self._faults.pop(name, None)

    def receive(self, method: str, target: str, headers: RawHeaders, content: bytes) -> Call:
        """
        Log a request, and find its fault.

        Args:
            method: the HTTP method.
            target: the path and query as they were sent.
            headers: the headers, with names in any case.
            content: the whole body.
        """
        path, _, query = target.partition("?")
        route = self._routes.find(method, path)
        request = Request(route.operation, method, path, query, headers, content)
        with self.lock:
            fault = self._next_fault(route.operation)
            if fault is None or not fault.refuse:
                self.requests.append(request)
        return Call(request, route, fault)

    def answer(self, call: Call) -> Reply | None:
        """
        Carry the operation out, unless the fault forbids it, and make the reply.

        Returns:
            The reply with all its headers; ``None`` if the connection breaks instead.
        """
        fault = call.fault
        reply = None
        if fault is None or fault.carries_out:
            with self.lock:
                reply = self._carry_out(call)
        if fault is not None:
            reply = _apply_fault(reply, fault)
        if reply is not None and call.request.method == "HEAD":
            reply = attrs.evolve(reply, body=b"")
        return None if reply is None else self.complete(reply)

    def complete(self, reply: Reply) -> Reply:
        """Add the headers that every reply has."""
        added = {b"date": self._date_header(), b"x-request-id": b"%032x" % next(self._serials)}
        if reply.status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            added[b"content-length"] = b"%d" % len(reply.body)
        for name, _ in reply.headers:
            added.pop(name, None)
        return attrs.evolve(reply, headers=(*added.items(), *reply.headers))

    def _next_fault(self, operation: str | None) -> Fault | None:
        queue = self._faults.get(operation or "")
        if not queue:
            return None
        fault, times = queue.popleft()
        if times > 1:
            queue.appendleft((fault, times - 1))
        return fault

    def _carry_out(self, call: Call) -> Reply:
        route, request = call.route, call.request
        if self._withdrawn.issuperset(route.methods.values()):
            return _replies.rpc_status(404)
        if route.operation is None:
            allowed = ", ".join(route.methods).encode()
            return _replies.rpc_status(405, ((b"allow", allowed),))
        if len(request.content) > MAX_BODY:
            return _replies.rpc_status(413)
        return self._perform(route.operation, request, route.argument)

    def _date_header(self) -> bytes:
        now = int(self._clock.time())
        if now != self._date[0]:
            self._date = (now, formatdate(now, usegmt=True).encode())
        return self._date[1]

    def _known(self, names: Collection[str]) -> frozenset[str]:
        if isinstance(names, str):
            raise TypeError("withdrawn must be a collection of names, not a str")
        if unknown := set(names) - self._routes.operations:
            known = ", ".join(sorted(self._routes.operations))
            raise ValueError(f"no such operation: {', '.join(sorted(unknown))}; there are {known}")
        return frozenset(names)


def _apply_fault(reply: Reply | None, fault: Fault) -> Reply | None:
    if fault.breaks_connection:
        return None
    if reply is None or fault.replaces_reply:
        reply = _replies.expected(200 if fault.status is None else fault.status)
    changed = {name.lower().encode(): value.encode() for name, value in fault.headers.items()}
    kept = tuple(pair for pair in reply.headers if pair[0] not in changed)
    return attrs.evolve(
        reply,
        body=reply.body if fault.content is None else fault.content,
        headers=(*kept, *changed.items()),
        sent=fault.truncate,
    )
