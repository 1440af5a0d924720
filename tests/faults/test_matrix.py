"""
The fault matrix: each operation meets each fault on asyncio, on trio or in a thread.

In the long form, which ``nox -s faults`` runs too, on all three.
"""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import pytest

from koyeb_session import (
    AsyncMemoryTokenStore,
    AsyncSessionClient,
    MemoryTokenStore,
    NotSignedInError,
    SessionClient,
)

from ..soak import SOAK
from .cell import Cell, attempts, held_token
from .certificates import client_context
from .matrix import ACTIONS, ALL, EMAIL, FAULTS, PASSWORD, Fault
from .replies import bomb

BACKENDS: Final = ("asyncio", "trio")
HALVES: Final = (*BACKENDS, "thread")


# A client that knows nothing of the tests' certificates can meet these.
ON_GIVEN_CLIENTS: Final = {
    fault.name: fault for fault in FAULTS if fault.server in {"plain", "nobody"}
}


def cells(*halves: str) -> Iterator[Any]:
    """Give the cells of some halves: all of them, or every third, which no other half has."""
    for row, fault in enumerate(FAULTS):
        for column, operation in enumerate(ACTIONS):
            for half in halves:
                if SOAK or HALVES[(row + column) % len(HALVES)] == half:
                    name = f"{fault.name}-{operation}-{half}"
                    yield pytest.param(fault, operation, half, id=name)


@pytest.fixture(scope="session", autouse=True)
def big_things_are_made() -> None:
    """Prepare all that takes a while before any deadline runs."""
    bomb()


@pytest.mark.parametrize(("fault", "operation", "anyio_backend"), [*cells(*BACKENDS)])
async def test_async_half_meets_a_fault(
    fault: Fault,
    operation: str,
    anyio_backend: str,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    """An awaited operation has the outcome of the matrix, the session too, and no secret shows."""
    for cell in attempts(fault, operation, caplog):
        await _run_async(cell)
    record_property("cell", (fault.name, operation, anyio_backend, cell.summary))
    cell.judge()


@pytest.mark.parametrize(("fault", "operation", "half"), [*cells("thread")])
def test_blocking_half_meets_a_fault(
    fault: Fault,
    operation: str,
    half: str,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    """A blocking operation has the outcome of the matrix, the session too, and no secret shows."""
    for cell in attempts(fault, operation, caplog):
        _run_blocking(cell)
    record_property("cell", (fault.name, operation, half, cell.summary))
    cell.judge()


def given() -> dict[str, Any]:
    """Return the arguments of a user's client; reading all trusted certificates would take long."""
    return {"auth": ("user", PASSWORD), "follow_redirects": True, "verify": client_context()}


@pytest.mark.parametrize("name", ON_GIVEN_CLIENTS)
async def test_given_async_client_meets_a_fault(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On the user's own client, whose auth and redirects are not used, nothing is different."""
    for cell in attempts(ON_GIVEN_CLIENTS[name], "login", caplog):
        async with httpx.AsyncClient(**given()) as client:
            await _run_async(cell, http_client=client)
    cell.judge()


@pytest.mark.parametrize("name", sorted(ON_GIVEN_CLIENTS.keys() - {"headers that drip for ever"}))
def test_given_client_meets_a_fault(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """
    On the user's own client, whose auth and redirects are not used, one thing is different.

    Its connections are not ours to bound: headers that drip are limited by httpx alone.
    """
    for cell in attempts(ON_GIVEN_CLIENTS[name], "login", caplog):
        with httpx.Client(**given()) as client:
            _run_blocking(cell, http_client=client)
    cell.judge()


def test_a_fault_says_what_each_operation_comes_to() -> None:
    """A row of the matrix names each operation once."""
    for fault in FAULTS:
        assert sorted(ALL) == sorted(name for names in fault.expected for name in names)


async def _run_async(cell: Cell, **more: Any) -> None:
    store = AsyncMemoryTokenStore()
    await store.save(held_token())
    arguments = cell.arguments(httpx.AsyncHTTPTransport)
    async with AsyncSessionClient(store=store, **arguments, **more) as session:
        for _ in range(cell.fault.warm_ups):
            await session.login_method(EMAIL)
        with cell.met():
            await ACTIONS[cell.operation](session)
        cell.look_at(session)
        with contextlib.suppress(NotSignedInError):
            cell.current = await session.current_token()
    cell.stored = await store.load()


def _run_blocking(cell: Cell, **more: Any) -> None:
    store = MemoryTokenStore()
    store.save(held_token())
    arguments = cell.arguments(httpx.HTTPTransport)
    with SessionClient(store=store, **arguments, **more) as session:
        for _ in range(cell.fault.warm_ups):
            session.login_method(EMAIL)
        with cell.met():
            ACTIONS[cell.operation](session)
        cell.look_at(session)
        with contextlib.suppress(NotSignedInError):
            cell.current = session.current_token()
    cell.stored = store.load()
