"""The shared work inside which some code runs, so that no code waits for itself."""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def is_inside(owner: object) -> bool:
    """
    Tell whether work of ``owner`` has called this code, and goes on only when it returns.

    A task or thread that the work has started is not inside: nobody may be waiting for it.
    """
    callers = [*_callers()]
    return bool(callers) and callers[-1].runs_here and any(it.owner is owner for it in callers)


def enter(work: _Work) -> None:
    """Note, in the current context, that the code which follows is ``work``."""
    _inside.set((*map(weakref.ref, _callers()), weakref.ref(work)))


def _callers() -> Iterator[_Work]:
    for ref in _inside.get():
        if (work := ref()) is not None and work.is_running:
            yield work
