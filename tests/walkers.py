"""The output of tools that show an exception with the local variables of its frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from traceback import TracebackException
from typing import Any, Final, TypeAlias

import pytest
from rich.traceback import Traceback
from sentry_sdk.consts import DEFAULT_OPTIONS
from sentry_sdk.utils import event_from_exception
from structlog.tracebacks import ExceptionDictTransformer

import koyeb_session
from koyeb_session.testing import assert_no_secret

Shown: TypeAlias = Iterator[tuple[str, str]]
"""Pairs of a frame's file and the variables of that frame, as the tool shows them."""

PACKAGE: Final = Path(koyeb_session.__file__).parent
KIT: Final = PACKAGE / "testing"

_TRANSFORM: Final = ExceptionDictTransformer(
    locals_max_length=10_000, locals_max_string=1_000_000, locals_hide_dunder=False, max_frames=1000
)
_SENTRY: Final = {**DEFAULT_OPTIONS, "max_value_length": 1_000_000}


def stdlib(error: BaseException) -> Shown:
    """Yield the output of ``traceback`` with ``capture_locals``, including hidden contexts."""
    left = [TracebackException.from_exception(error, capture_locals=True)]
    while left:
        shown = left.pop()
        for frame in shown.stack:
            yield frame.filename, "\n".join((frame.locals or {}).values())
        others = (shown.__cause__, shown.__context__, *(shown.exceptions or ()))
        left += [other for other in others if other is not None]


def rich(error: BaseException) -> Shown:
    """Yield the output of rich with ``show_locals``."""
    trace = Traceback.extract(
        *(type(error), error, error.__traceback__),
        show_locals=True,
        locals_max_length=10_000,
        locals_max_string=1_000_000,
        locals_hide_dunder=False,
    )
    left = [trace]
    while left:
        for stack in left.pop().stacks:
            left += stack.exceptions
            for frame in stack.frames:
                nodes = (frame.locals or {}).values()
                yield frame.filename, "\n".join(node.render() for node in nodes)


def structlog(error: BaseException) -> Shown:
    """Yield the output of structlog's ``dict_tracebacks``."""
    left: list[Mapping[str, Any]] = list(_TRANSFORM((type(error), error, error.__traceback__)))
    while left:
        stack = left.pop()
        left += [entry for group in stack["exceptions"] for entry in group]
        for frame in stack["frames"]:
            yield frame["filename"], "\n".join(frame["locals"].values())


def sentry(error: BaseException) -> Shown:
    """Yield the variables that Sentry's SDK collects, before it filters them by name."""
    event: dict[str, Any] = dict(event_from_exception(error, client_options=_SENTRY)[0])
    for entry in event["exception"]["values"]:
        trace: dict[str, list[dict[str, Any]]] = entry.get("stacktrace") or {}
        for frame in trace.get("frames", []):
            yield frame["abs_path"], json.dumps(frame.get("vars"), ensure_ascii=False)


WALKERS: Final[Mapping[str, Callable[[BaseException], Shown]]] = {
    "stdlib": stdlib,
    "rich": rich,
    "structlog": structlog,
    "sentry": sentry,
}


def assert_no_tool_shows(error: BaseException, secrets: Iterable[str]) -> None:
    """Fail if a tool shows a secret in a frame of the package's; the kit plays the service."""
    wanted = list(secrets)
    for name, walk in WALKERS.items():
        shown = {text for file, text in walk(error) if is_ours(Path(file))}
        try:
            assert_no_secret(wanted, *shown)
        except AssertionError as exc:
            pytest.fail(f"{name} shows a secret: {exc}")


def error_of(work: Callable[[], object]) -> BaseException | None:
    """Catch the error of a call."""
    try:
        work()
    except BaseException as exc:  # noqa: BLE001 - any error
        return exc
    return None


def is_ours(file: Path) -> bool:
    """Return whether a frame is one of the package's own."""
    return PACKAGE in file.parents and KIT not in file.parents
