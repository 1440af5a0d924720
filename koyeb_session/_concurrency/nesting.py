"""The shared work inside which some code runs, so that no code waits for itself."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    class _Work(Protocol):
        """A shared task of either half."""

        @property
        def owner(self) -> object: ...
        @property
        def is_running(self) -> bool: ...
        @property
        def runs_here(self) -> bool: ...


_inside: Final[ContextVar[tuple[weakref.ref[_Work], ...]]] = ContextVar(
    "koyeb_session_inside", default=()
)
"""The work that has called this code; weakly, as open connections keep their contexts."""


def is_inside_work_of(owner: object) -> bool:
    """Return whether work of ``owner`` has called this code, and goes on only when it returns."""
    return any(work.owner is owner for work in _waiting())


def is_inside(works: Container[object]) -> bool:
    """Return whether one of ``works`` has called this code, and goes on only when it returns."""
    return any(work in works for work in _waiting())


def is_part_of_work() -> bool:
    """Return whether any work has called this code, and goes on only when it returns."""
    return bool(_waiting())


def enter(work: _Work) -> None:
    """Note, in the current context, that the code which follows is ``work``."""
    _inside.set((*map(weakref.ref, _callers()), weakref.ref(work)))


def _waiting() -> list[_Work]:
    """
    List the work that waits for this code to return, the outermost first.

    A task or thread that the work has started is not a part of it: nobody may be waiting for it.
    """
    callers = [*_callers()]
    return callers if callers and callers[-1].runs_here else []


def _callers() -> Iterator[_Work]:
    for ref in _inside.get():
        if (work := ref()) is not None and work.is_running:
            yield work
