"""Turns and tickets of threads: nothing is lost, and nothing waits for itself."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import httpx
import pytest

from koyeb_session._concurrency.event_loop.tickets import AsyncTicket
from koyeb_session._concurrency.threads.tickets import Ticket
from koyeb_session._sync.http.queue import RequestQueue

from .concurrency import PATIENCE


def interrupted(work: Callable[[], object], handler: Callable[[], object], line: int) -> bool:
    """Do work in a thread, and run a handler before its ``line``-th line; tell if there is one."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == line:
                handler()
        return trace

    def run() -> None:
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), f"line {line}: it waits for itself"
    return count >= line


def test_a_ticket_may_be_called_in_the_middle_of_its_own_methods() -> None:
    """A signal handler, or the garbage collector, may run in between any two lines."""
    for line in itertools.count(1):
        ticket = Ticket()

        def work(ticket: Ticket = ticket) -> None:
            ticket.wait(0)
            ticket.call()
            ticket.wait(None)

        if not interrupted(work, ticket.call, line):
            break


def test_a_turn_may_be_given_back_in_the_middle_of_taking_one() -> None:
    """It is taken, or free for the next one; no line is the one where it is lost."""
    for line in itertools.count(1):
        turns = RequestQueue(1)
        turns.acquire(0)
        taken: list[bool] = []

        def work(turns: RequestQueue = turns, taken: list[bool] = taken) -> None:
            try:
                turns.acquire(0)
            except httpx.PoolTimeout:
                taken.append(False)
            else:
                taken.append(True)

        if not interrupted(work, turns.release, line):
            break
        assert len(turns._free) == (not taken[0])
        assert not turns._queue


@pytest.mark.parametrize("seconds", [-1, 0, 0.001])
def test_a_ticket_that_is_not_called_waits_for_no_longer(seconds: float) -> None:
    """Less than no time is none."""
    ticket = Ticket()
    ticket.wait(seconds)
    ticket.call()
    ticket.wait(1e12)  # as long as the system can wait
    ticket.call()
    ticket.call()  # nothing more
    ticket.wait(None)


async def test_a_ticket_of_an_event_loop_that_has_ended_is_left_alone() -> None:
    """Its task is gone."""
    ticket = AsyncTicket()
    ticket._home = object()
    ticket.call()
    await ticket.wait(0)
    assert not ticket._called.is_set()


def test_a_ticket_may_be_called_where_no_event_loop_runs() -> None:
    """The garbage collector may close a response anywhere."""
    ticket = AsyncTicket.__new__(AsyncTicket)
    ticket._home = object()
    ticket.call()
