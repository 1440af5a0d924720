"""The public names: they are complete and documented, and import nothing unexpected."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import koyeb_session

EDGES = [name for _, name, _ in pkgutil.iter_modules(koyeb_session.__path__) if name[0] != "_"]
PUBLIC = ["koyeb_session", *(f"koyeb_session.{name}" for name in EDGES)]
# The packages that only an extra, or a test, brings in, as they are imported. Not trio, which
# httpcore imports wherever it is installed.
OPTIONAL = {
    *{"aiohttp", "fastapi", "filelock", "httpx2", "httpx_aiohttp", "keyring", "koyeb"},
    *{"platformdirs", "redis", "starlette", "yaml"},
    *{"_pytest", "coverage", "hypothesis", "pytest", "uvicorn"},
}
# The public modules that exist for one of them.
ALLOWED = {
    "koyeb_session.fastapi": {"fastapi", "starlette"},
    "koyeb_session.httpx2": {"httpx2"},
    "koyeb_session.koyeb_sdk": {"koyeb"},
}


def members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public names of a module, with their objects."""
    for name in module.__all__:
        yield name, getattr(module, name)


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """Yield the public methods and properties that a class itself defines."""
    for name, value in vars(cls).items():
        is_one = callable(value) or isinstance(value, property | classmethod)
        if is_one and not name.startswith("_"):
            yield name, value


@pytest.mark.skipif(
    "NOX_CURRENT_SESSION" not in os.environ, reason="outside nox the checkout may be under test"
)
def test_tests_import_the_wheel() -> None:
    """The package under test is the installed one, not the folder beside the tests."""
    checkout = Path(__file__).resolve().parent.parent / "koyeb_session"
    assert Path(koyeb_session.__path__[0]).resolve() != checkout


@pytest.mark.parametrize("module_name", PUBLIC)
def test_all_is_complete(module_name: str) -> None:
    """``__all__`` names each public thing once, and nothing that is not there."""
    module = importlib.import_module(module_name)
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith("koyeb_session")
        and getattr(value, "__module__", "") not in {*PUBLIC} - {module_name}  # a use of it
    }
    assert own <= set(module.__all__) <= {*dir(module), *vars(module)}
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("module_name", PUBLIC)
def test_public_name_tells_where_to_import_it(module_name: str) -> None:
    """A class or function says that it comes from the public module, not from a private one."""
    for name, value in members(importlib.import_module(module_name)):
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ in PUBLIC, name
            assert value.__qualname__ == name
            assert getattr(sys.modules[value.__module__], name) is value


@pytest.mark.parametrize("module_name", PUBLIC)
def test_public_name_is_documented(module_name: str) -> None:
    """Each public module, class, function and method has a docstring."""
    module = importlib.import_module(module_name)
    assert module.__doc__
    for name, value in members(module):
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for method_name, method in methods(value):
                assert inspect.getdoc(method), f"{name}.{method_name}"


@pytest.mark.parametrize("module_name", PUBLIC)
def test_import_brings_in_no_extra(module_name: str) -> None:
    """A public module imports neither a test tool nor an extra other than its own."""
    program = f"import sys, {module_name}; print(*{{name.split('.')[0] for name in sys.modules}})"
    # The tools that measure the tests would be imported too.
    alone = {k: value for k, value in os.environ.items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=alone
    )
    assert set(done.stdout.split()) & OPTIONAL <= ALLOWED.get(module_name, set())


@pytest.mark.pitfall(25)
def test_core_needs_no_extra() -> None:
    """Catches an optional import at the top: without a framework nothing could be imported."""
    code = (
        "import sys\n"
        "for name in ('fastapi', 'httpx2', 'koyeb', 'redis', 'keyring', 'filelock', 'yaml'):\n"
        "    sys.modules[name] = None\n"
        "import koyeb_session\n"
        "koyeb_session.SessionClient().close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.pitfall(49)
@pytest.mark.parametrize("module_name", PUBLIC)
def test_public_hints_resolve(module_name: str) -> None:
    """No name in a public signature is imported for type checkers alone: injectors read them."""
    for _, value in members(importlib.import_module(module_name)):
        if inspect.isclass(value) or inspect.isfunction(value):
            typing.get_type_hints(value)
        if inspect.isclass(value):
            for method in (value.__init__, *(it for _, it in methods(value))):
                typing.get_type_hints(getattr(method, "__func__", getattr(method, "fget", method)))
