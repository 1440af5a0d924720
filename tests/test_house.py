"""The house rules that no tool knows: who imports whom, what lies where, and how long a file is."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

import koyeb_session

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "koyeb_session"
TOP_LEVEL = {
    *{"CHANGELOG.md", "LICENSE", "README.md", "noxfile.py", "pyproject.toml"},
    *{"examples", "koyeb_session", "tests"},
}
BUILT = {"PKG-INFO", "__pycache__", "build", "dist", "htmlcov"}  # git does not hold these
LONGEST = 320
"""Lines of code: docstrings, comments and blank lines do not count."""
LONG = {"koyeb_session._async.client"}  # the public contract: long signatures, short bodies

# A part of the package imports parts of its own rank and of those before it. A part is a module
# or a folder right below koyeb_session/; what has no underscore is a public edge.
RANKS = (
    {
        "_errors",
        "_deadline",
        "_failures",
        "_messages",
        "_models",
        "_concurrency",
        "_log",
        "_network",
        "_outcomes",
        "_origins",
        "_proxies",
        "_redaction",
        "_timestamps",
        "_version",
    },
    {"_snapshot", "_wire", "_policy", "_arguments", "_replies", "_endings"},
    {"_operations", "_provenance", "_state", "_records", "_environment"},
    {"_files", "_keyring", "_redis"},
    {"_async", "_sync"},
    {"_following", "_fastapi"},
    {"__init__"},
)
HALVES = {"_async", "_sync"}
# What only some parts may import.
OWNERS = {
    "anyio": {"_concurrency", "_following"},
    "asyncio": {"_concurrency"},
    "trio": {"_concurrency"},
    "threading": {"_concurrency"},
    "cattrs": {"_wire"},
}
EXEMPT = "testing"  # a server for tests has threads of its own


def part(module: str) -> str:
    """Give the part of the package that a module belongs to."""
    return (module.split(".")[1:] or ["__init__"])[0]


def rank(name: str) -> int:
    """Give the rank of a part."""
    for number, names in enumerate(RANKS):
        if name in names:
            return number
    if name == "__main__":  # uses the public edges
        return len(RANKS) + 1
    assert not name.startswith("_"), f"{name} has no rank in {Path(__file__).name}"
    return len(RANKS)


def modules() -> dict[str, ast.Module]:
    """Read every module of the package."""
    trees: dict[str, ast.Module] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text("utf-8"))
    return trees


MODULES = modules()
FOLDERS = {name.rpartition(".")[0] for name in MODULES}


def imports(name: str) -> Iterator[str]:
    """Give what a module imports, anywhere in it; a module of the package by its full name."""
    package = name if name in FOLDERS else name.rpartition(".")[0]
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_nothing_above_it(name: str) -> None:
    """Imports go down the ranks, and neither half knows of the other."""
    own = part(name)
    for target in imports(name):
        if target.split(".")[0] == "koyeb_session":
            other = part(target)
            assert rank(other) <= rank(own), f"{name} imports {target}"
            assert not (own != other and {own, other} == HALVES), f"{name} imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_by_statements(name: str) -> None:
    """What packs programs, and what checks types, does not see an import of a name in a string."""
    names = {node.id for node in ast.walk(MODULES[name]) if isinstance(node, ast.Name)}
    assert not names & {"import_module", "__import__"}


def test_no_module_imports_itself_through_others() -> None:
    """The imports make no circle."""
    graph = {name: {t for t in imports(name) if t in MODULES} for name in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", MODULES)
def test_library_is_imported_only_by_its_owner(name: str) -> None:
    """One part knows about threads and event loops, and one about the wire's converter."""
    for target in imports(name):
        owners = OWNERS.get(target.split(".")[0], {part(name)})
        assert part(name) in owners | {EXEMPT}, f"{name} imports {target}"


@pytest.mark.parametrize(
    "name", [it for it in MODULES if part(it) == "_concurrency" and ".async_" not in it]
)
def test_blocking_twin_imports_no_event_loop(name: str) -> None:
    """What the blocking half uses brings in neither anyio nor an awaited twin."""
    assert not [it for it in imports(name) if it.split(".")[0] == "anyio" or ".async_" in it]


@pytest.mark.parametrize("name", MODULES)
def test_module_says_why_it_exists(name: str) -> None:
    """Every module has a docstring."""
    assert ast.get_docstring(MODULES[name])


def code_lines(tree: ast.Module) -> int:
    """Count the lines that hold code."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            prose.update(range(node.lineno, (node.end_lineno or 0) + 1))
    numbers = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)}
    return len(numbers - prose)


def test_module_is_short() -> None:
    """What is written by hand can be read in one sitting."""
    lines = {
        name: code_lines(tree)
        for name, tree in MODULES.items()
        if part(name) != "_sync" and name not in LONG
    }
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_top_level_is_fixed() -> None:
    """Nothing is added to the project's top level, dotfiles apart."""
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in names - BUILT if not name.endswith(".egg-info")} == TOP_LEVEL
    scripts = {path.name for path in (ROOT / ".ci").iterdir()} - BUILT
    assert scripts == {"generate_sync.py", "make_reference.py", "run"}


def test_all_pythons_are_tested() -> None:
    """What the project says it runs on is what its checks run on, here and elsewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = " ".join(project["classifiers"])
    minors = sorted(re.findall(r":: 3\.(\d+)", named), key=int)
    (pattern,) = re.findall(r"grep -E '(.*)'", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert [n for n in map(str, range(30)) if re.match(pattern, f"3.{n}.1")] == minors
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if workflow.exists():  # it is in no sdist
        (versions,) = re.findall(r'python-version: "(.*)"', workflow.read_text("utf-8"))
        assert sorted(versions.split("\\n")) == [f"3.{n}" for n in minors]


def test_changelog_begins_with_current_version() -> None:
    """The newest entry of the changelog is about the version that would be released."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    entries = re.findall(
        r"^## \[?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert entries[0] == project["version"] == koyeb_session.__version__
