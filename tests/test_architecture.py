"""The house rules that no tool checks: imports, files, their length, and the prose in them."""

from __future__ import annotations

import ast
import io
import re
import tokenize
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
LONGEST = 350
"""Lines of code: docstrings, comments and blank lines do not count."""

# The parts that each part of the package may import. A part is a folder or a module right below
# koyeb_session/; one without an underscore is a public edge, which may import them all.
ENGINE = {"_core", "_api", "_concurrency", "_http", "_storage", "_environment"}
MAY_IMPORT = {
    "_concurrency": set[str](),
    "_core": {"_concurrency"},  # the lock alone
    "_api": {"_core"},
    "_storage": {"_core", "_api"},
    "_http": {"_core", "_concurrency"},
    "_environment": {"_core"},
    "_async": ENGINE,
    "_sync": ENGINE,
    "_fastapi": {*ENGINE, "_async", "_sync"},
    "__init__": {"_core", "_api", "_async", "_sync"},
}
# Libraries that only some parts may import.
OWNERS = {
    "anyio": {"_concurrency", "_http", "_fastapi"},
    "asyncio": {"_concurrency", "_http"},
    "trio": {"_concurrency"},
    "threading": {"_concurrency", "_http"},
    "cattrs": {"_api", "_storage"},
}
EXEMPT = "testing"  # a server for tests has threads of its own

# Headless clauses: "`what` is checked" instead of a noun, or "who asks" instead of "the caller".
ASKING = ("decide", "decides", "say", "says", "show", "shows", "tell", "tells")
"""Verbs before a question rather than a clause, as in "the message says what to do"."""
HEADLESS = re.compile(
    "".join(rf"(?<!\b{verb} )" for verb in ASKING)
    + r"\b(?:what|whatever|whoever|whomever)\b"
    + r"|(?:^|[.:;(] |\b(?:and|but|by|for|from|is|are|of|or|than|that|to|with) )who(?:m|se)?\b",
    re.IGNORECASE,
)
CODE = re.compile(r"``[^`]*``|`[^`]*`")
ARGUMENT = re.compile(r"^ +\w+: ", re.MULTILINE)
TESTS = ROOT / "tests"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def written_by_hand(folder: Path) -> list[Path]:
    """List the modules below a folder that the generator does not write."""
    return [path for path in sorted(folder.rglob("*.py")) if "_sync" not in path.parts]


def part(module: str) -> str:
    """Return the part of the package that a module belongs to."""
    return (module.split(".")[1:] or ["__init__"])[0]


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
    """Yield the imports of a module, at any level; modules of the package by their full names."""
    package = name if name in FOLDERS else name.rpartition(".")[0]
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


def test_each_part_has_a_row() -> None:
    """Each part but the public edges has its imports listed above."""
    parts = {part(name) for name in MODULES} - {"__main__"}
    assert {own for own in parts if own.startswith("_")} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("own", MAY_IMPORT)
def test_part_imports_only_what_it_may(own: str) -> None:
    """Imports go down the layers, and neither half knows of the other."""
    wrong = {
        (name, target)
        for name in MODULES
        if part(name) == own
        for target in imports(name)
        if target.split(".")[0] == "koyeb_session" and part(target) not in {own, *MAY_IMPORT[own]}
    }
    assert wrong == set()


def test_core_takes_the_lock_and_no_more() -> None:
    """The core knows of no event loop and of no thread."""
    targets = {target for name in MODULES if part(name) == "_core" for target in imports(name)}
    assert {it for it in targets if "_concurrency" in it} == {"koyeb_session._concurrency.runtime"}


@pytest.mark.pitfall(49)
def test_modules_import_by_statements() -> None:
    """Tools that pack programs, or check types, do not see an import of a name in a string."""
    for name, tree in MODULES.items():
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"import_module", "__import__"}, name


def test_no_module_imports_itself_through_others() -> None:
    """The imports make no circle."""
    graph = {name: {t for t in imports(name) if t in MODULES} for name in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", OWNERS)
def test_library_is_imported_only_by_its_owners(library: str) -> None:
    """One part knows about threads and event loops, and one about the wire's converter."""
    importers = {
        part(name)
        for name in MODULES
        if any(target.split(".")[0] == library for target in imports(name))
    }
    assert importers - {EXEMPT} <= OWNERS[library]


def test_blocking_twins_import_no_event_loop() -> None:
    """The modules of the blocking half import neither anyio nor an awaited twin."""
    twins = [name for name in MODULES if re.search(r"_(concurrency|http)[.]threads", name)]
    assert twins
    for name in twins:
        targets = set(imports(name))
        assert not [it for it in targets if it.split(".")[0] == "anyio" or ".event_loop" in it]


def test_modules_say_why_they_exist() -> None:
    """Every module has a docstring."""
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield each string that stands for itself."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                yield text
            case _:
                pass


def prose(source: str) -> Iterator[str]:
    """Yield the comments, and the paragraphs of the docstrings, of a module."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")
    for text in docstrings(ast.parse(source)):
        yield from str(text.value).split("\n\n")


def headless(text: str) -> list[str]:
    """Find the headless clauses of a text, with the words around them."""
    text = " ".join(CODE.sub("it", ARGUMENT.sub(". ", text)).split())
    return [text[max(0, it.start() - 30) : it.end() + 30] for it in HEADLESS.finditer(text)]


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=["package", "tests"])
def test_prose_names_its_subjects(folder: Path) -> None:
    """Docstrings and comments name their subjects with nouns, which a reader can look up."""
    for path in written_by_hand(folder):
        name = path.relative_to(ROOT).as_posix()
        found = [it for text in prose(path.read_text("utf-8")) for it in headless(text)]
        assert found == [], name


def test_names_of_tests_have_subjects() -> None:
    """A test's name is a sentence about a thing, as its docstring is."""
    sources = "".join(path.read_text("utf-8") for path in written_by_hand(TESTS))
    assert re.findall(r"def (test_(?:who|what)(?:ever)?_\w+)", sources) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("What is checked before anything is sent.", 1), ("Whoever brings news tells it.", 1)),
        *(("Return what was saved last.", 1), ("Wait for whatever comes of it.", 1)),
        *(("It is for\n    who asks.", 1), ("Args:\n    user_id: Whose it is (a UUID).", 1)),
        ("It raises nothing: what goes wrong is in the log.", 1),
        # questions, and clauses with a noun, are plain English
        *(("The message says what to do.", 0), ("A connection whose peer is gone.", 0)),
        ("The user who has approved it, who is known.", 0),
        ("Args:\n    what: The beginning of the message.", 0),
    ],
)
def test_headless_clause_is_found(text: str, count: int) -> None:
    """Otherwise the check above would pass on anything, or on nothing."""
    assert len(headless(text)) == count


def code_lines(tree: ast.Module) -> int:
    """Count the lines on which code begins."""
    prose = {node.lineno for node in docstrings(tree)}
    numbers = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr | ast.stmt)}
    return len(numbers - prose)


def test_module_is_short() -> None:
    """A file that is written by hand can be read in one sitting."""
    lines = {name: code_lines(tree) for name, tree in MODULES.items() if part(name) != "_sync"}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_top_level_is_fixed() -> None:
    """Nothing is added to the project's top level, dotfiles apart."""
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in names - BUILT if not name.endswith(".egg-info")} == TOP_LEVEL
    scripts = {path.name for path in (ROOT / ".ci").iterdir()} - BUILT
    assert scripts == {"generate_sync.py", "make_reference.py", "run"}


def test_all_pythons_are_tested() -> None:
    """The checks run on every Python that the project supports, here and elsewhere."""
    named = " ".join(PROJECT["classifiers"])
    minors = sorted(re.findall(r":: 3\.(\d+)", named), key=int)
    (pattern,) = re.findall(r"grep -E '(.*)'", (ROOT / ".ci" / "run").read_text("utf-8"))
    assert [n for n in map(str, range(30)) if re.match(pattern, f"3.{n}.1")] == minors
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if workflow.exists():  # it is in no sdist
        (versions,) = re.findall(r'python-version: "(.*)"', workflow.read_text("utf-8"))
        assert sorted(versions.split("\\n")) == [f"3.{n}" for n in minors]


def test_changelog_begins_with_current_version() -> None:
    """The newest entry of the changelog is about the version that would be released."""
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    entries = re.findall(r"^## \[?(\d[\w.]*)", changelog, re.MULTILINE)
    assert entries[0] == PROJECT["version"] == koyeb_session.__version__


@pytest.mark.pitfall(25)
def test_majors_are_capped_where_they_are_announced() -> None:
    """With an open bound, a fresh install breaks on the day of a new major version."""
    (httpx,) = [need for need in PROJECT["dependencies"] if "httpx" in need]
    assert "<1" in httpx


def test_each_pitfall_has_a_test() -> None:
    """The README of the tests lists all pitfalls, and each one marks a test at least."""
    listed = re.findall(r"^(\d+)\. ", (TESTS / "README.md").read_text("utf-8"), re.MULTILINE)
    assert [*map(int, listed)] == [*range(1, 51)]
    sources = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    marked = re.findall(r"^@pytest\.mark\.pitfall\((\d+)\)", sources, re.MULTILINE)
    assert {*listed} == {*marked}


def test_tests_look_inside_a_session_by_one_door() -> None:
    """A private name of the client that changes costs one line in ``tests/support.py``."""
    nodes = ast.walk(MODULES["koyeb_session._async.client"])
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    private = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    assert {"_keeper", "_state"} <= private
    for path in written_by_hand(TESTS):
        found = {
            f"{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
            and node.attr in {*private, "_opened"}
            and ast.unparse(node.value) != "self"
        }
        assert not found or path == TESTS / "support.py", path


def test_readme_of_the_tests_is_complete() -> None:
    """It names each folder, and each file of tests at the top level."""
    text = (TESTS / "README.md").read_text("utf-8")
    names = [it.name for it in TESTS.iterdir() if it.is_dir() and it.name not in BUILT]
    names += [path.name for path in TESTS.glob("*.py") if path.name != "conftest.py"]
    assert [name for name in names if f"`{name}`" not in text] == []
