"""The tools that show an exception: its frames with their local variables."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from types import TracebackType
from typing import Any

import pytest


def _stdlib(error: BaseException) -> str:
    shown = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(shown.format())


def _rich(error: BaseException) -> str:
    rich: Any = import_module("rich.traceback").Traceback
    shown: Any = rich.extract(
        *(type(error), error, error.__traceback__),
        show_locals=True,
        locals_max_length=None,
        locals_max_string=None,
    )
    frames: list[Any] = [frame for stack in shown.stacks for frame in stack.frames]
    variables = [f"{frame.locals}" for frame in frames]
    return "\n".join([f"{stack.exc_type}: {stack.exc_value}" for stack in shown.stacks] + variables)


def _structlog(error: BaseException) -> str:
    transform: Any = import_module("structlog.tracebacks").ExceptionDictTransformer(
        show_locals=True, locals_max_string=100_000, locals_max_length=1000, max_frames=100
    )
    return json.dumps(transform((type(error), error, error.__traceback__)), default=repr)


def _sentry(error: BaseException) -> str:
    utils: Any = import_module("sentry_sdk.utils")
    serialize: Any = import_module("sentry_sdk.serializer").serialize
    event, _ = utils.event_from_exception(
        error,
        client_options={
            "include_local_variables": True,
            "include_source_context": False,
            "max_value_length": 100_000,
        },
    )
    return json.dumps(serialize(event), default=repr)


WALKERS: dict[str, Callable[[BaseException], str]] = {
    "stdlib": _stdlib,
    "rich": _rich,
    "structlog": _structlog,
    "sentry_sdk": _sentry,
}


def walkers() -> Iterator[tuple[str, Callable[[BaseException], str]]]:
    """Give those that are installed; the standard library's always is."""
    for name, walk in WALKERS.items():
        if name != "stdlib":
            pytest.importorskip(name)
        yield name, walk


def without_frames_of(error: BaseException, file: str) -> BaseException:
    """Cut the first frames off a traceback, where they are of the test: it knows the secret."""
    step: TracebackType | None = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename == file:
        step = step.tb_next
    return error.with_traceback(step)


def assert_none_shows(error: BaseException, secrets: tuple[str, ...], file: str) -> None:
    """Assert that no tool shows a secret of an error that was caught in a test's ``file``."""
    error = without_frames_of(error, file)
    for name, walk in walkers():
        text = walk(error)
        assert type(error).__name__ in text, name
        for number, secret in enumerate(secrets):
            assert secret not in text, f"{name} shows secret {number}"
