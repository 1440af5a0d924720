"""Search for secrets in logs, representations and tracebacks, where none may appear."""

from __future__ import annotations

import contextlib
import inspect
import linecache
import logging
import pickle
import re
import traceback
import types
import warnings
from collections import UserList, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from .._core.redaction import spellings

_KIT: Final = Path(__file__).parent
_RUNNERS: Final = frozenset({"_pytest", "pluggy"})
_PLAIN: Final = (list, tuple, set, frozenset, dict, deque, UserList)
"""Collections whose ``repr`` consists of the items' own."""
_OPENED: Final = (list, tuple, set, frozenset, Mapping)
"""Collections whose items Sentry shows, even if they have their own ``repr``."""
_LONGEST: Final = 10_000
"""The number of items to search in a mapping that is not a `dict`, as it may be infinite."""
# The attributes with the contents of pytest's caplog, recwarn, ExceptionInfo and CaptureResult.
_PYTEST_HOLDS: Final = ("records", "text", "list", "value", "out", "err")


def assert_no_secret(
    secrets: str | Iterable[str], *things: object, packages: Sequence[str] | None = None
) -> None:
    """
    Assert that none of the things shows any of the secrets.

    The search depends on the thing:

    - Text and bytes are searched as they are, and collections item by item.
    - Log records are searched with their arguments, extras and exceptions, warnings with their
      messages. Give pytest's ``caplog``, ``recwarn``, ``ExceptionInfo`` and captured output as they
      are.
    - An exception is searched with its arguments, notes, attributes, pickle and traceback, with the
      local variables of each frame. So are its causes, its contexts and the members of a group.
    - Of any other object the ``repr``, ``str`` and ``format`` are searched.

    Tools that show local variables do not all ask for the ``repr``. So objects and variables are
    also searched as rich, structlog and Sentry walk them: by the fields of attrs classes and
    dataclasses, except those with ``repr=False``, by the items of mappings, lists, tuples and sets,
    and by ``__rich_repr__`` and ``__sentry_repr__``. None of the tools need be installed.

    A secret is found in every usual spelling: in JSON, URLs, HTML, base64 and ``repr``.

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

    >>> assert_no_secret("hunter2", ValueError("no such user"), ["a line", b"some bytes"])
    """
    __tracebackhide__ = True  # otherwise pytest would show the arguments
    wants = _frame_filter(_caller(inspect.currentframe()), packages)
    problem = _examine([secrets] if isinstance(secrets, str) else list(secrets), things, wants)
    del secrets, things  # a report of the failed test may show the variables of this frame
    if problem is not None:
        raise problem


def _examine(
    wanted: Sequence[str], things: object, wants_frames_of: Callable[[str], bool]
) -> AssertionError | ValueError | None:
    """Say where the secrets are found."""
    if not wanted or not all(wanted):
        return ValueError("give at least one secret, and no empty one")
    search = _Search(wants_frames_of)
    patterns = [_Pattern.of(secret) for secret in wanted]
    clean: set[str] = set()  # log records repeat the same few texts
    found: dict[str, None] = {}
    for where, text in search.texts(things):
        if text in clean:
            continue
        shown = [n for n, pattern in enumerate(patterns, start=1) if pattern.is_in(text)]
        found |= dict.fromkeys(f"secret {n} of {len(wanted)} found in {where}" for n in shown)
        if not shown:
            clean.add(text)
    return AssertionError("\n".join(found)) if found else None


def _caller(frame: types.FrameType | None) -> str:
    """Return the file of the code that called the function of this frame."""
    return frame.f_back.f_code.co_filename if frame and frame.f_back else ""


class _Pattern(NamedTuple):
    """The spellings of one secret; most contain its ``core``, so the search starts with that."""

    core: str
    with_core: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, secret: str) -> _Pattern:
        core = max(re.findall("[A-Za-z0-9]+", secret) or [""], key=len)
        forms = {form for text in spellings(secret) for form in (text, *_in_repr(text))}
        others = {form for form in forms if core not in form}
        return cls(core, tuple(forms - others), tuple(others))

    def is_in(self, text: str) -> bool:
        """Return whether a text shows the secret."""
        forms = (*self.with_core, *self.others) if self.core in text else self.others
        return any(form in text for form in forms)


def _in_repr(text: str) -> Iterator[str]:
    """Yield the spellings of a text in a ``repr``, of a string or of bytes, with either quotes."""
    raw = f'{text}"'.encode(errors="surrogatepass")
    for shown in (repr(f'{text}"')[1:-2], repr(raw)[2:-2]):
        yield from (shown, shown.replace("\\'", "'"))


class _Piece(NamedTuple):
    """An object to search, with a name, so that a message need not show the object itself."""

    where: str
    thing: object
    whole: bool
    """Whether to search the parts of exceptions and log records, or only their ``repr``."""


_Pieces = Iterator[_Piece]


class _Search:
    """Walks through objects, and yields all text that they show."""

    def __init__(self, wants_frames_of: Callable[[str], bool]) -> None:
        self._wants_frames_of = wants_frames_of
        # The values keep the objects alive, so that no id is reused.
        self._seen: dict[tuple[int, bool], object] = {}

    def texts(self, things: object) -> Iterator[tuple[str, str]]:
        """Yield pairs of a name and a text."""
        left = [_Piece("things", things, whole=True)]
        while left:
            piece = left.pop()
            where, thing, whole = piece
            if isinstance(thing, str):
                yield where, str.__str__(thing)
            elif isinstance(thing, bytes | bytearray):
                yield where, thing.decode(errors="replace")
            elif (id(thing), whole) not in self._seen:
                self._seen[id(thing), whole] = thing
                left += reversed(list(self._open(piece)))

    def _open(self, piece: _Piece) -> _Pieces:
        where, thing, whole = piece
        if not whole:
            yield from _as_variable(piece)
        elif isinstance(thing, BaseException):
            yield from self._exception(f"{where} ({type(thing).__name__})", thing)
        elif isinstance(thing, logging.LogRecord):
            with contextlib.suppress(Exception):  # the arguments may not match the message
                yield _Piece(f"{where}.getMessage()", thing.getMessage(), whole)
            yield from _attributes(where, thing)
        elif isinstance(thing, warnings.WarningMessage):
            yield _Piece(f"{where}.message", thing.message, whole)
        elif type(thing).__module__.startswith("_pytest."):
            for name in _PYTEST_HOLDS:
                yield _Piece(f"{where}.{name}", getattr(thing, name, ""), whole)
        else:
            yield from _as_variable(piece)

    def _exception(self, where: str, error: BaseException) -> _Pieces:
        yield from _shown(where, error)
        yield _Piece(f"{where}.args", error.args, whole=True)
        yield from _attributes(where, error)
        with contextlib.suppress(Exception):  # not every exception can be pickled
            yield _Piece(f"the pickle of {where}", pickle.dumps(error), whole=True)
        yield from self._frames(where, error)
        for name in ("__cause__", "__context__"):  # the members of a group are in ``args``
            yield _Piece(f"{where}.{name}", getattr(error, name), whole=True)

    def _frames(self, where: str, error: BaseException) -> _Pieces:
        for frame, number in traceback.walk_tb(error.__traceback__):
            filename = frame.f_code.co_filename
            if not self._wants_frames_of(filename):
                continue
            place = f"{frame.f_code.co_name}, {filename}:{number}, of {where}"
            yield _Piece(f"the line {place}", linecache.getline(filename, number), whole=False)
            for name, value in frame.f_locals.items():
                yield _Piece(f"the local {name!r} in {place}", value, whole=False)


def _as_variable(piece: _Piece) -> _Pieces:
    """Yield the parts of a value that tools show for a variable."""
    where, thing, whole = piece
    kind = type(thing)
    if kind not in _PLAIN:
        yield from _shown(where, thing)
    for name, value in _fields(thing):
        yield _Piece(f"{where}.{name}", value, whole)
    for name in ("__rich_repr__", "__sentry_repr__"):
        if callable(getattr(kind, name, None)):
            with contextlib.suppress(Exception):  # the tools then use the repr
                result = getattr(thing, name)()
                items = list(result) if name == "__rich_repr__" else result
                yield _Piece(f"{name}() of {where}", items, whole)
    if kind in _PLAIN or isinstance(thing, _OPENED):
        with contextlib.suppress(Exception):  # a collection that cannot be read shows nothing
            # Numbered, not named, as a key may be the secret.
            for number, item in enumerate(_items(cast("Iterable[object]", thing))):
                yield _Piece(f"{where}[{number}]", item, whole)


def _items(collection: Iterable[object]) -> Iterator[object]:
    if not isinstance(collection, Mapping):
        return iter(collection)
    mapping = cast("Mapping[object, object]", collection)
    pairs = islice(mapping.items(), None if isinstance(mapping, dict) else _LONGEST)
    return (item for pair in pairs for item in pair)


def _fields(thing: Any) -> Iterator[tuple[str, object]]:
    """Yield the fields that rich shows, of attrs classes and dataclasses with a generated repr."""
    kind = cast("Any", type(thing))
    fields: Iterable[Any] = getattr(kind, "__attrs_attrs__", ())
    if hasattr(kind.__repr__, "__wrapped__"):  # dataclasses use `reprlib.recursive_repr`
        fields = getattr(kind, "__dataclass_fields__", {}).values() or fields
    for field in fields:
        if field.repr:
            with contextlib.suppress(Exception):  # the field has no value yet
                value = getattr(thing, field.name)
                yield field.name, field.repr(value) if callable(field.repr) else value


def _attributes(where: str, thing: object) -> _Pieces:
    """Yield all attributes of an object, from its ``__dict__`` and the slots of its classes."""
    held = dict(vars(thing))
    for kind in type(thing).__mro__:
        for name, slot in vars(kind).items():
            if isinstance(slot, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # the slot is empty
                    held[name] = slot.__get__(thing)
    for name, value in held.items():
        yield _Piece(f"{where}.{name}", value, whole=True)


def _shown(where: str, thing: object) -> _Pieces:
    for show in (repr, str, format):
        with contextlib.suppress(Exception):  # an object whose method raises shows nothing
            yield _Piece(f"{show.__name__}() of {where}", show(thing), whole=False)


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
