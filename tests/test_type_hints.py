"""Public hints resolve at run time, as injectors, typeguard and documentation tools need it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator

import pytest

import koyeb_session

EDGES = [name for _, name, _ in pkgutil.iter_modules(koyeb_session.__path__) if name[0] != "_"]
MODULES = ["koyeb_session", *(f"koyeb_session.{name}" for name in EDGES)]


def callables() -> Iterator[tuple[str, object]]:
    """List the public classes, functions and methods."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.isclass(thing) and not inspect.isfunction(thing):
                continue
            yield f"{module.__name__}.{name}", thing
            for member, value in vars(thing).items() if inspect.isclass(thing) else ():
                function = getattr(value, "__func__", getattr(value, "fget", value))
                if inspect.isfunction(function) and (member == "__init__" or member[0] != "_"):
                    yield f"{module.__name__}.{name}.{member}", function


@pytest.mark.pitfall(49)
def test_public_hints_resolve() -> None:
    """No name in a public signature is imported for type checkers alone."""
    things = dict(callables())
    assert len(things) > 200
    for name, thing in things.items():
        try:
            typing.get_type_hints(thing)
        except NameError as error:
            raise AssertionError(name) from error
