"""Plays a visit to its end, holding it where its fault says so: once blocking, once awaiting."""

from __future__ import annotations

import time

import anyio

from ._faults import Fault
from ._replies import Reply
from ._service import Service, Visit


def play(service: Service, visit: Visit, patience: float | None = None) -> Reply | None:
    """
    Answer a visit, blocking while it is held.

    Args:
        service: the service that admitted it.
        visit: the request inside the service.
        patience: how long the client waits at most, in seconds; ``None`` for as long as it takes.

    Returns:
        The reply; ``None`` if the connection breaks instead.

    Raises:
        TimeoutError: the client's patience is over.
    """
    fault = visit.fault
    if fault is not None and fault.hold == "request":
        _hold(fault, patience)
    reply = service.answer(visit)
    if fault is not None and fault.hold == "reply":
        _hold(fault, patience)
    return _log(visit, reply)


async def aplay(service: Service, visit: Visit, patience: float | None = None) -> Reply | None:
    """Answer a visit without blocking the event loop; see ``play``."""
    fault = visit.fault
    if fault is not None and fault.hold == "request":
        await _ahold(fault, patience)
    reply = service.answer(visit)
    if fault is not None and fault.hold == "reply":
        await _ahold(fault, patience)
    return _log(visit, reply)


def _log(visit: Visit, reply: Reply | None) -> Reply | None:
    if reply is not None:
        visit.request.status = reply.status
    return reply


def _hold(fault: Fault, patience: float | None) -> None:
    until = None if patience is None else time.monotonic() + patience
    if patience is not None and fault.latency >= patience:
        time.sleep(patience)
        raise TimeoutError
    time.sleep(fault.latency)
    if fault.gate is not None:
        fault.gate.pass_through(None if until is None else until - time.monotonic())


async def _ahold(fault: Fault, patience: float | None) -> None:
    with anyio.fail_after(patience):
        await anyio.sleep(fault.latency)
        if fault.gate is not None:
            await fault.gate.apass_through()
