"""Answer a call, and hold it where its fault says so: one function blocks, its twin awaits."""

from __future__ import annotations

import time

import anyio

from ._faults import Fault
from ._replies import Reply
from ._service import Call, Service


def respond(service: Service, call: Call, patience: float | None = None) -> Reply | None:
    """
    Answer a call, blocking while it is held.

    Args:
        service: the service that received it.
        call: the request inside the service.
        patience: the client's timeout, in seconds; ``None`` for no limit.

    Returns:
        The reply; ``None`` if the connection breaks instead.

    Raises:
        TimeoutError: the client's timeout has passed.
    """
    fault = call.fault
    if fault is not None and fault.hold == "request":
        _hold(fault, patience)
    reply = service.answer(call)
    if fault is not None and fault.hold == "reply":
        _hold(fault, patience)
    return _log(call, reply)


async def arespond(service: Service, call: Call, patience: float | None = None) -> Reply | None:
    """Answer a call without blocking the event loop; see ``respond``."""
    fault = call.fault
    if fault is not None and fault.hold == "request":
        await _ahold(fault, patience)
    reply = service.answer(call)
    if fault is not None and fault.hold == "reply":
        await _ahold(fault, patience)
    return _log(call, reply)


def _log(call: Call, reply: Reply | None) -> Reply | None:
    if reply is not None:
        call.request.status = reply.status
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
