"""Looks for secrets where they have no business: in logs, representations and tracebacks."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import quote, quote_plus

# Pairs of where and what, so that a finding can be named without being shown.
_Texts = Iterator[tuple[str, str]]
_KIT = Path(__file__).parent
_RUNNERS = frozenset({"_pytest", "pluggy"})
_CONTAINERS = (list, tuple, set, frozenset, deque)
# What pytest's caplog, recwarn, ExceptionInfo and CaptureResult keep, and where.
_PYTEST_HOLDS = ("records", "text", "list", "value", "out", "err")


def assert_no_secret(
    secrets: str | Iterable[str], *things: object, packages: Sequence[str] | None = None
) -> None:
    """
    Assert that none of the things shows any of the secrets.

    What is searched depends on the thing. Text and bytes are taken as they are, and containers
    item by item. Log records are searched with their arguments, extras and exceptions, warnings
    with their messages; pytest's ``caplog``, ``recwarn``, ``ExceptionInfo`` and captured output
    can be given as they are. An exception is searched with its arguments, notes, attributes,
    pickle and traceback, the local variables of each frame included, and so are its causes, its
    contexts and the members of a group. Of any other object it is the ``repr``, ``str`` and
    ``format``.

    Args:
        secrets: one secret or several.
        things: where to look.
        packages: names of packages or modules; of tracebacks, only the frames of these are
            searched. ``None``: all frames but those of the calling file, which knows the secrets by
            right, and those of pytest. The frames of this kit, which plays the service, are never
            searched.

    Raises:
        AssertionError: a secret was found; it says where, and does not show the secret.
        ValueError: no secret is given, or an empty one.

    Example:
        >>> assert_no_secret("hunter2", ValueError("no such user"), ["a line", b"some bytes"])
    """
    __tracebackhide__ = True  # pytest would show the arguments
    wanted = [secrets] if isinstance(secrets, str) else list(secrets)
    if not wanted or not all(wanted):
        raise ValueError("give at least one secret, and no empty one")
    caller = traceback.extract_stack(limit=2)[0].filename
    search = _Search(_frame_filter(caller, packages))
    forms = [_forms(secret) for secret in wanted]
    clean: set[str] = set()  # records of logs show the same few texts again and again
    found: dict[str, None] = {}
    for where, text in search.walk("things", things):
        if text in clean:
            continue
        shown = [n for n, ways in enumerate(forms, start=1) if any(form in text for form in ways)]
        found |= dict.fromkeys(f"secret {n} of {len(wanted)} found in {where}" for n in shown)
        if not shown:
            clean.add(text)
    if found:
        raise AssertionError("\n".join(found))


class _Search:
    """Walks through things and tells all the text that they show."""

    def __init__(self, wants_frames_of: Callable[[str], bool]) -> None:
        self._wants_frames_of = wants_frames_of
        self._seen: dict[int, object] = {}  # holds the objects, so that no id is used twice

    def walk(self, where: str, thing: object) -> _Texts:
        if isinstance(thing, str):
            yield where, thing
        elif isinstance(thing, bytes | bytearray):
            yield where, thing.decode(errors="replace")
        elif id(thing) not in self._seen:
            self._seen[id(thing)] = thing
            yield from self._walk_object(where, thing)

    def _walk_object(self, where: str, thing: object) -> _Texts:
        if isinstance(thing, BaseException):
            yield from self._walk_exception(f"{where} ({type(thing).__name__})", thing)
        elif isinstance(thing, logging.LogRecord):
            yield from self._walk_record(where, thing)
        elif isinstance(thing, warnings.WarningMessage):
            yield from self.walk(f"{where}.message", thing.message)
        elif isinstance(thing, dict):
            # Numbered, not named: a key may be the secret.
            pairs = cast("dict[object, object]", thing).items()
            yield from self._walk_items(where, (item for pair in pairs for item in pair))
        elif isinstance(thing, _CONTAINERS):
            yield from self._walk_items(where, cast("Iterable[object]", thing))
        elif type(thing).__module__.startswith("_pytest."):
            for name in _PYTEST_HOLDS:
                yield from self.walk(f"{where}.{name}", getattr(thing, name, ""))
        else:
            yield from _shown(where, thing)

    def _walk_items(self, where: str, items: Iterable[object]) -> _Texts:
        for number, item in enumerate(items):
            yield from self.walk(f"{where}[{number}]", item)

    def _walk_record(self, where: str, record: logging.LogRecord) -> _Texts:
        with contextlib.suppress(Exception):  # the arguments may not fit the message
            yield f"{where}.getMessage()", record.getMessage()
        yield from self._walk_attributes(where, record)

    def _walk_exception(self, where: str, error: BaseException) -> _Texts:
        yield from _shown(where, error)
        yield from self.walk(f"{where}.args", error.args)
        yield from self._walk_attributes(where, error)
        with contextlib.suppress(Exception):  # not every exception can be pickled
            yield from self.walk(f"the pickle of {where}", pickle.dumps(error))
        yield from self._walk_traceback(where, error)
        for name in ("__cause__", "__context__"):  # a group has its members in ``args``
            yield from self.walk(f"{where}.{name}", getattr(error, name))

    def _walk_attributes(self, where: str, thing: object) -> _Texts:
        for name, value in vars(thing).items():
            yield from self.walk(f"{where}.{name}", value)

    def _walk_traceback(self, where: str, error: BaseException) -> _Texts:
        for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
            if not self._wants_frames_of(frame.filename):
                continue
            place = f"{frame.name}, {frame.filename}:{frame.lineno}, of {where}"
            yield f"the line {place}", frame.line or ""
            for name, shown in (frame.locals or {}).items():
                yield f"the local {name!r} in {place}", shown


def _shown(where: str, thing: object) -> _Texts:
    for show in (repr, str, format):
        with contextlib.suppress(Exception):  # what cannot be shown shows nothing
            yield f"{show.__name__}() of {where}", show(thing)


def _forms(secret: str) -> set[str]:
    """Return how the secret reads in a URL, in a form, in JSON, and in the ``repr`` of each."""
    in_json = (json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    plain = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), *in_json}
    return {form for text in plain for form in (text, *_in_repr(text))}


def _in_repr(text: str) -> Iterator[str]:
    """Give how the text reads in a ``repr``, of bytes too, whichever quotation marks it has."""
    for shown in (repr(f'{text}"')[1:-2], repr(f'{text}"'.encode())[2:-2]):
        yield from (shown, shown.replace("\\'", "'"))


def _frame_filter(caller: str, packages: Sequence[str] | None) -> Callable[[str], bool]:
    def wants(filename: str) -> bool:
        path = Path(filename)
        names = {*path.parts[:-1], path.stem}
        if _KIT in path.parents:
            return False
        if packages is not None:
            return not names.isdisjoint(packages)
        return filename != caller and names.isdisjoint(_RUNNERS)

    return wants
