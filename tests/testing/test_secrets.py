"""The search for secrets."""

from __future__ import annotations

import dataclasses
import inspect
import json
import linecache
import logging
import warnings
from collections import UserDict, UserList, deque
from collections.abc import Callable, ItemsView, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from itertools import count
from traceback import TracebackException
from typing import Any, NamedTuple, NoReturn, cast

import attrs
import httpx
import pytest

from koyeb_session.testing import FakeKoyeb, Fault, assert_no_secret

from ..walkers import WALKERS

SECRET = "c4nary b1rd"
FAILS = "def f(password):\n    raise ValueError"


class Shown:
    """Shows the secret in one way, and only in that way."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __repr__(self) -> str:
        return SECRET if self.way == "repr" else "<Shown>"

    def __str__(self) -> str:
        return SECRET if self.way == "str" else "shown"

    def __format__(self, spec: str) -> str:
        return SECRET if self.way == "format" else "shown"


class Hidden:
    """Shows nothing by its own `repr`."""

    def __repr__(self) -> str:
        return "<Hidden>"


class PickledError(Exception):
    """Hides a value everywhere but in its pickle."""

    def __init__(self, hidden: str = "") -> None:
        super().__init__()
        self.__hidden: Callable[[], str] = lambda: hidden

    def __reduce__(self) -> tuple[type[PickledError], tuple[str]]:
        return PickledError, (self.__hidden(),)


@attrs.define(repr=False)
class Attrs:
    """Hides its field from `repr` by its class alone."""

    field: object


@attrs.define
class AttrsWithSecretRepr:
    """Has its field shown by a function."""

    field: object = attrs.field(default=None, repr=lambda _: SECRET)


@attrs.define
class HiddenField:
    """Hides its field from everyone."""

    field: object = attrs.field(repr=False)


@dataclasses.dataclass
class Data:
    """Shows its field."""

    field: object


@dataclasses.dataclass(slots=True)
class HiddenData:
    """Hides its field from everyone."""

    field: object = dataclasses.field(repr=False)


@dataclasses.dataclass(repr=False)
class OwnRepr(Hidden):
    """Hides its field by its class, which is enough for a dataclass."""

    field: object


class Pair(NamedTuple):
    """Hides its item from `repr`."""

    item: object

    def __repr__(self) -> str:
        return "<Pair>"


class HiddenDict(Hidden, UserDict[str, object]):
    """Hides its items from `repr`, but not from those who ask for them."""


class HiddenList(Hidden, list[object]):
    """Hides its items from `repr`, but not from those who ask for them."""


@attrs.define
class Empty:
    """Has no value."""

    field: object = attrs.field(init=False)


class EndlessDict(HiddenDict):
    """Never ends."""

    def items(self) -> ItemsView[str, object]:
        """Go on for ever."""
        return cast("ItemsView[str, object]", zip(map(str, count()), count(), strict=False))


class Broken(UserDict[str, object]):
    """Cannot be shown or read in any way."""

    def fail(self) -> NoReturn:
        """Fail."""
        raise RuntimeError

    items = __repr__ = __rich_repr__ = fail


class Rich:
    """Shows the secret to rich alone."""

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        yield "field", {"key": SECRET}


class Sentry:
    """Shows the secret to Sentry alone."""

    def __sentry_repr__(self) -> str:
        return SECRET


class SlottedError(Exception):
    """Keeps a value in a slot, and leaves another one empty."""

    __slots__ = ("empty", "value")

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


@attrs.define
class AttrsError(Exception):
    """Keeps a value in a field that no repr shows."""

    value: object = attrs.field(repr=False)

    def __attrs_post_init__(self) -> None:
        self.args = ()


def elsewhere(source: str, filename: str = "/lib/client.py") -> Callable[..., Any]:
    """Compile a function into another file, for frames that are not the test's own."""
    # With a loader, for which Python 3.15 looks when it shows a frame.
    loader = SourceFileLoader("elsewhere", filename)
    module = module_from_spec(ModuleSpec("elsewhere", loader))
    exec(compile(source, filename, "exec"), module.__dict__)  # noqa: S102 - it is this test's own
    function: Callable[..., Any] = module.__dict__["f"]
    return function


def caught(call: Callable[..., object], *arguments: object) -> BaseException:
    """Give the exception that a call raises."""
    with pytest.raises(BaseException) as info:  # noqa: PT011 - any error
        call(*arguments)
    return info.value


def raises(source: str) -> Callable[..., Any]:
    """Give a function of another file that ends with an error."""
    return elsewhere(f"def f(password):\n    {source}")


def with_note(error: Exception) -> Exception:
    """Add the secret as a note."""
    error.add_note(SECRET)
    return error


def with_attribute(error: Exception, value: object) -> Exception:
    """Add an attribute."""
    vars(error)["detail"] = value
    return error


def chained(*, cause: bool) -> BaseException:
    """Give an error that hangs on one with the secret."""
    source = "try: raise KeyError(password)\n    except KeyError as e: raise ValueError"
    return caught(raises(f"{source} from {'e' if cause else 'None'}"), SECRET)


def record(*arguments: object, **extra: object) -> logging.LogRecord:
    """Give a log record."""
    return logging.makeLogRecord({"msg": "%s", "args": arguments, **extra})


LEAKS: dict[str, tuple[object, str]] = {
    "text": (f"a {SECRET} b", "things[0]"),
    "bytes": (SECRET.encode(), "things[0]"),
    "bytearray": (bytearray(SECRET.encode()), "things[0]"),
    "url": ("q=c4nary%20b1rd", "things[0]"),
    "form": ("q=c4nary+b1rd", "things[0]"),
    "list": ([1, (SECRET,)], "things[0][1][0]"),
    "key": ({SECRET: 1}, "things[0][0]"),
    "value": ({"a": {SECRET}}, "things[0][1][0]"),
    "repr": (Shown("repr"), "repr() of things[0]"),
    "str": (Shown("str"), "str() of things[0]"),
    "format": (Shown("format"), "format() of things[0]"),
    "attrs": (Attrs([SECRET]), "things[0].field[0]"),
    "attrs with a function": (AttrsWithSecretRepr(), "things[0].field"),
    "dataclass": (Data(Attrs(SECRET)), "things[0].field.field"),
    "named tuple": (Pair(SECRET), "things[0][0]"),
    "mapping": (HiddenDict(a=SECRET), "things[0][1]"),
    "headers": (httpx.Headers({"authorization": f"Bearer {SECRET}"}), "things[0][1]"),
    "sequence": (HiddenList([SECRET]), "things[0][0]"),
    "rich": (Rich(), "__rich_repr__() of things[0][0][1][1]"),
    "sentry": (Sentry(), "__sentry_repr__() of things[0]"),
    "slot": (SlottedError(SECRET), "things[0] (SlottedError).value"),
    "attrs error": (AttrsError(SECRET), "things[0] (AttrsError).value"),
    "record": (record(SECRET), "things[0].getMessage()"),
    "extra": (record(1, 2, detail=SECRET), "things[0].detail"),
    "exc_info": (
        record("x", exc_info=(KeyError, KeyError(SECRET), None)),
        "things[0].exc_info[1] (KeyError)",
    ),
    "warning": (
        warnings.WarningMessage(UserWarning(SECRET), UserWarning, "f", 1),
        "things[0].message (UserWarning)",
    ),
    "argument": (KeyError(SECRET), "things[0] (KeyError).args[0]"),
    "note": (with_note(KeyError()), "things[0] (KeyError).__notes__[0]"),
    "attribute": (with_attribute(KeyError(), [SECRET]), "things[0] (KeyError).detail[0]"),
    "pickle": (PickledError(SECRET), "the pickle of things[0] (PickledError)"),
    "member": (
        ExceptionGroup("g", [ValueError(SECRET)]),
        "things[0] (ExceptionGroup).args[1][0] (ValueError)",
    ),
    "cause": (chained(cause=True), "things[0] (ValueError).__cause__ (KeyError)"),
    "context": (chained(cause=False), "things[0] (ValueError).__context__ (KeyError)"),
    "local": (
        caught(raises("raise ValueError"), SECRET),
        "the local 'password' in f, /lib/client.py:2, of things[0] (ValueError)",
    ),
}


@pytest.mark.parametrize(("thing", "where"), LEAKS.values(), ids=LEAKS)
def test_secret_is_found(thing: object, where: str) -> None:
    """Wherever the secret shows, the error says where, and does not show it."""
    with pytest.raises(AssertionError) as info:
        assert_no_secret(SECRET, thing)
    assert f"secret 1 of 1 found in {where}" in str(info.value)
    assert SECRET not in str(info.value)
    assert info.value.__context__ is None


@pytest.mark.parametrize(
    "thing",
    [
        pytest.param("nothing", id="text"),
        pytest.param(None, id="None"),
        pytest.param(record(1, 2), id="no message"),
        pytest.param(HiddenField(SECRET), id="hidden field of attrs"),
        pytest.param(HiddenData(SECRET), id="hidden field of a dataclass"),
        pytest.param(OwnRepr(SECRET), id="dataclass with its own repr"),
        pytest.param(Empty(), id="empty field"),
        pytest.param(Broken(), id="cannot be shown or read"),
        pytest.param(EndlessDict(), id="no end"),
        pytest.param(PickledError(), id="innocent pickle"),
        pytest.param(with_attribute(ValueError(), lambda: None), id="no pickle"),
        pytest.param(caught(raises("raise ValueError"), "another"), id="innocent local"),
        pytest.param(caught(elsewhere(FAILS, __file__), SECRET), id="own frame"),
        pytest.param(caught(elsewhere(FAILS, "/x/_pytest/a.py"), SECRET), id="pytest's frame"),
    ],
)
def test_innocent_thing_passes(thing: object) -> None:
    """Values without a secret pass, and so do those that cannot be shown, and exempt frames."""
    assert_no_secret([SECRET, "0ther"], thing)


VARIABLES: dict[str, Callable[[str], object]] = {
    "text": str,
    "bytes": str.encode,
    "nested": lambda secret: {"a": [(secret,)]},
    "key": lambda secret: {secret: 1},
    "attrs": Attrs,
    "attrs of attrs": lambda secret: Attrs({"a": Attrs(secret)}),
    "dataclass": Data,
    "named tuple": Pair,
    "mapping": lambda secret: HiddenDict(a=secret),
    "headers": lambda secret: httpx.Headers({"authorization": secret}),
    "sequence": lambda secret: HiddenList([secret]),
    "error": ValueError,
    "hidden": HiddenField,
    "hidden data": HiddenData,
    "hidden by a repr": OwnRepr,
    "user's list": lambda secret: UserList([Attrs(secret)]),
    "queue": lambda secret: deque([Attrs(secret)]),
    "hidden in a slot": SlottedError,
    "rich": lambda secret: Rich(),
    "sentry": lambda secret: Sentry(),
}
"""Makes a variable of a secret."""
RAISES: dict[str, Callable[[str], str]] = {
    "plainly": lambda line: f"{line}\n raise KeyError",
    "with a cause": lambda line: (
        f"try:\n  {line}\n  raise KeyError\n except KeyError as e: raise ValueError from e"
    ),
    "with a context": lambda line: (
        f"try:\n  {line}\n  raise KeyError\n except KeyError: raise ValueError"
    ),
    "in a group": lambda line: (
        f"try:\n  {line}\n  raise KeyError\n except KeyError as e: error = e\n"
        ' raise ExceptionGroup("g", [error])'
    ),
}


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("how", RAISES)
def test_variable_is_found_if_any_tool_shows_it(kind: str, how: str) -> None:
    """The search finds the same variables of frames as the tools, without them; no more."""
    source = RAISES[how]("variable = make(secret.decode()); del secret")
    error = caught(elsewhere(f"def f(make, secret):\n {source}"), VARIABLES[kind], SECRET.encode())
    shown = {
        name
        for name, walk in WALKERS.items()
        if any("c4nary b1rd" in text for file, text in walk(error) if file == "/lib/client.py")
    }
    found = False
    try:
        assert_no_secret(SECRET, error, packages=["client"])
    except AssertionError:
        found = True
    assert found is bool(shown), shown
    assert found is not kind.startswith("hidden")


def test_module_without_a_loader_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources of frames are not asked of their modules: newer Pythons warn of odd ones."""
    asked: list[object] = []

    def lazycache(filename: str, module_globals: object) -> bool:
        asked.append(module_globals)
        return False

    error = caught(raises("raise ValueError"), "another")
    monkeypatch.setattr(linecache, "lazycache", lazycache)
    assert_no_secret(SECRET, error)
    assert asked in ([], [None])


def test_caller_without_a_frame_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python does not tell who calls, all frames are searched."""
    error = caught(elsewhere(FAILS, __file__), SECRET)
    assert_no_secret(SECRET, error)
    monkeypatch.setattr(inspect, "currentframe", lambda: None)
    with pytest.raises(AssertionError):
        assert_no_secret(SECRET, error)


def test_kits_own_frames_know_the_secrets(fake: FakeKoyeb) -> None:
    """The kit plays the service: the contents of its frames are not the client's leak."""
    fake.fail("login", Fault(reset=True))
    url = f"{fake.base_url}/v1/account/login"
    request = httpx.Request("POST", url, json={"password": SECRET})
    error = caught(fake.transport.handle_request, request)
    shown = "".join(TracebackException.from_exception(error, capture_locals=True).format())
    assert f'chunk = b\'{{"password":"{SECRET}"}}\'' in shown
    assert_no_secret(SECRET, error)
    assert_no_secret(SECRET, error, packages=["koyeb_session"])


def test_search_may_be_limited_to_packages() -> None:
    """Of tracebacks, only the frames of the named packages or modules may be searched."""
    error = caught(elsewhere(FAILS, "/l/pkg/a.py"), SECRET)
    assert_no_secret(SECRET, error, packages=["other"])
    for name in ("pkg", "a"):
        with pytest.raises(AssertionError):
            assert_no_secret(SECRET, error, packages=["other", name])


def test_circles_end() -> None:
    """Things that hold themselves are searched once."""
    error = ValueError()
    items: list[object] = [error]
    items.append(items)
    with_attribute(error, items)
    assert_no_secret(SECRET, items, error)


def test_each_secret_is_numbered() -> None:
    """Of several secrets the error tells which one was found, and each place once."""
    with pytest.raises(AssertionError) as info:
        assert_no_secret(["other", SECRET], "fine", f"{SECRET} {SECRET}")
    assert str(info.value) == "secret 2 of 2 found in things[1]"


@pytest.mark.parametrize("secrets", [SECRET, ["", SECRET]])
def test_search_shows_no_secret_in_its_own_frames(secrets: Any) -> None:
    """The report of a failed test may show the variables of the frames that it went through."""
    with pytest.raises((AssertionError, ValueError)) as caught:
        assert_no_secret(secrets, [SECRET])
    for walk in WALKERS.values():
        assert_no_secret(SECRET, [text for file, text in walk(caught.value) if file != __file__])


@pytest.mark.parametrize("secrets", [[], "", ["x", ""]])
def test_search_for_nothing_is_refused(secrets: Any) -> None:
    """A search for nothing, or for a text that is everywhere, is a mistake in the test."""
    with pytest.raises(ValueError, match="at least one secret"):
        assert_no_secret(secrets, "x")


def test_pytests_own_things_are_searched(
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The captured output of pytest can be given as it is."""
    logging.getLogger("x").warning("%s", SECRET)
    warnings.warn(SECRET, stacklevel=1)
    print(SECRET)  # noqa: T201 - to be captured
    with pytest.raises(KeyError) as info:
        raise KeyError(SECRET)
    with pytest.raises(AssertionError) as found:
        assert_no_secret(SECRET, caplog, recwarn, capsys.readouterr(), info)
    assert all(f"things[{number}]" in str(found.value) for number in range(4))


@pytest.mark.parametrize("secret", ['a"b\\c\nd', "it's", "'\"", "pässword", "\\'"])
@pytest.mark.parametrize("marks", ["", "'", '"', "'\""])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_escaped_secret_is_found(*, secret: str, marks: str, ascii_only: bool) -> None:
    """A secret with signs that JSON or Python escapes is found in each of the escaped forms."""
    body = json.dumps({"x": secret + marks}, ensure_ascii=ascii_only)
    for text in (secret + marks, body):
        for shown in (text, repr(text), repr(text.encode()), f"{[text]}", text.encode()):
            with pytest.raises(AssertionError):
                assert_no_secret(secret, shown)
