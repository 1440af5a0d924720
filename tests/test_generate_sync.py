"""The generator of the blocking half: what it writes, and every way in which its check fails."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "generate_sync.py"
ASYNC_CLIENT = "koyeb_session/_async/client.py"
SYNC_CLIENT = "koyeb_session/_sync/client.py"
TREE = {
    ASYNC_CLIENT: '''\
"""The AsyncClient: an `httpx.AsyncClient` with a lock."""

from .._concurrency.async_waiting import AsyncLock, async_sleep


class AsyncClient:
    """
    Never fails.

    >>> await client.get("/")  # await it
    """

    async def __aenter__(self):
        await async_sleep(1)
        return self, "AsyncClient"

    async def aclose(self):  # unlike AsyncLock
        async with AsyncLock(AsyncClient.with_very_long_name, AsyncClient.another_name) as lock:
            return [x async for x in lock]
''',
    "tests/_async/deep/test_it.py": "async def test_it(client):\n    await client.aclose()\n",
}
GENERATED = {
    SYNC_CLIENT: '''\
# Generated from koyeb_session/_async/client.py by .ci/generate_sync.py: edit that, not this.

"""The Client: an `httpx.Client` with a lock."""

from .._concurrency.waiting import Lock, sleep


class Client:
    """
    Never fails.

    >>> client.get("/")  # await it
    """

    def __enter__(self):
        sleep(1)
        return self, "Client"

    def close(self):  # unlike Lock
        with Lock(Client.with_very_long_name, Client.another_name) as lock:
            return [x for x in lock]
''',
    "tests/_sync/deep/test_it.py": """\
# Generated from tests/_async/deep/test_it.py by .ci/generate_sync.py: edit that, not this.


def test_it(client):
    client.close()
""",
}
Run = Callable[..., int]
Refused = Callable[[], list[str]]


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the script, less the rules that the made-up tree has no use for."""
    spec = importlib.util.spec_from_file_location("generate_sync", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    used = [rule for rule in module.RULES if re.search(rule[0], TREE[ASYNC_CLIENT])]
    monkeypatch.setattr(module, "RULES", used)
    return module


@pytest.fixture
def run(generator: ModuleType, tmp_path: Path) -> Run:
    """Give a function that runs the generator on ``tmp_path``."""
    return lambda *arguments: generator.main([*arguments, "--root", str(tmp_path)])


@pytest.fixture
def tree(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> Path:
    """Make a tree with both halves, up to date."""
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text, "utf-8")
    assert run() == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"wrote {name}" for name in GENERATED]
    return tmp_path


@pytest.fixture
def refused(tree: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Give a function that runs the check, sees it fail and write nothing, and gives its words."""

    def check() -> list[str]:
        before = snapshot(tree)
        assert run("--check") == 1
        assert snapshot(tree) == before
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return check


def snapshot(tree: Path) -> dict[str, bytes | None]:
    """Give every file and folder of the tree with what it holds."""
    return {
        str(path.relative_to(tree)): path.read_bytes() if path.is_file() else None
        for path in tree.rglob("*")
    }


def append(path: Path, text: str) -> None:
    """Add a line to the end of a file."""
    path.write_text(path.read_text("utf-8") + text, "utf-8")


def test_generate_writes_both_trees(tree: Path) -> None:
    """Code, docstrings, comments and strings turn into those of the blocking half, formatted."""
    assert {name: (tree / name).read_text("utf-8") for name in GENERATED} == GENERATED


def test_generate_again_writes_nothing(
    tree: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run finds nothing to do."""
    before = snapshot(tree)
    assert run() == 0
    assert snapshot(tree) == before
    assert capsys.readouterr() == ("", "")


def test_check_passes_when_up_to_date(
    tree: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check accepts what was generated, and pays no heed to Python's caches."""
    for half in ("_async", "_sync"):
        cache = tree / "koyeb_session" / half / "__pycache__" / "client.cpython-311.pyc"
        cache.parent.mkdir()
        cache.write_bytes(b"\0")
    assert run("--check") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return self", "return None"),
        ("        sleep(1)\n", ""),
        ("        sleep(1)\n", "        sleep(1)\n        sleep(1)\n"),
        ("# Generated", "# Written"),
        ("  # unlike Lock", ""),
        ("\n", "\r\n"),
    ],
    ids=["changed", "missing", "added", "header", "comment", "line ends"],
)
def test_check_fails_on_line_of_generated_file(
    tree: Path, refused: Refused, run: Run, old: str, new: str
) -> None:
    """A line that was edited by hand is found, and the next run puts it right."""
    path = tree / SYNC_CLIENT
    good = path.read_bytes()
    path.write_bytes(good.replace(old.encode(), new.encode(), 1))
    assert refused() == [f"{SYNC_CLIENT}: changed; run .ci/generate_sync.py"]
    assert run() == 0
    assert path.read_bytes() == good


def test_check_fails_on_orphaned_line(tree: Path, refused: Refused) -> None:
    """A line that went from the async half and stayed in the other is found."""
    path = tree / ASYNC_CLIENT
    path.write_text(path.read_text("utf-8").replace("        await async_sleep(1)\n", ""), "utf-8")
    append(path, "\n\nawake = async_sleep\n")
    assert refused() == [f"{SYNC_CLIENT}: changed; run .ci/generate_sync.py"]


def test_check_fails_on_missing_file(tree: Path, refused: Refused) -> None:
    """A module without its blocking twin is found."""
    (tree / SYNC_CLIENT).unlink()
    assert refused() == [f"{SYNC_CLIENT}: missing; run .ci/generate_sync.py"]


@pytest.mark.parametrize("name", ["stray.py", "deep/stray.py", "py.typed", "notes.txt"])
def test_check_fails_on_orphaned_file(tree: Path, refused: Refused, run: Run, name: str) -> None:
    """A file of the blocking half that comes from nowhere is found, and the next run removes it."""
    path = tree / "koyeb_session" / "_sync" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("", "utf-8")
    assert refused() == [f"koyeb_session/_sync/{name}: orphaned; run .ci/generate_sync.py"]
    assert run() == 0
    assert not path.exists()


def test_check_fails_when_async_half_is_gone(tree: Path, refused: Refused) -> None:
    """Without its source a whole tree is orphaned, and its rules find nothing."""
    (tree / ASYNC_CLIENT).unlink()
    *rules, last = refused()
    assert last == f"{SYNC_CLIENT}: orphaned; run .ci/generate_sync.py"
    assert rules
    assert all(line.startswith("rule that found nothing: ") for line in rules)


def test_check_fails_on_dead_rule(
    generator: ModuleType, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that finds nothing is named."""
    monkeypatch.setattr(generator, "RULES", [*generator.RULES, (r"\bno_such_name\b", "name")])
    assert refused() == [r"rule that found nothing: \bno_such_name\b"]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("async def f(): await x", ["Await"]),
        ("async def f(): return [await x]", ["Await"]),
        ("async def f(): return f'{await x}'", ["Await"]),
        ("import asyncio", ["asyncio"]),
        ("import anyio.abc as a", ["anyio.abc"]),
        ("from trio.lowlevel import checkpoint", ["trio.lowlevel"]),
        ("from collections.abc import Awaitable, Coroutine", ["Awaitable", "Coroutine"]),
        ("x.asyncio.sleep", ["asyncio"]),
        ("def f(async_=1): f(async_=2)", ["async_", "async_"]),
        ("class Async: __aenter__x = __aiter = 1", ["Async"]),
        ("def __aexit__x(): x.aiter_lines_x()", ["aiter_lines_x"]),
        ("x = 'await', 'anyio'  # asyncio, __aenter__", []),
        ("asynchronous = aclosed = areader = 1", ["asynchronous"]),
    ],
)
def test_check_names_async_leftovers(generator: ModuleType, line: str, names: list[str]) -> None:
    """Async syntax and names that no rule turned are found in code, and in code only."""
    source = generator.convert("\n" + line, set())
    assert [name for _, name in generator.leftovers(source)] == names
    assert {number for number, _ in generator.leftovers(source)} <= {2}


def test_check_fails_on_leftover(tree: Path, refused: Refused) -> None:
    """A name that no rule turned is told with its place, beside the change itself."""
    append(tree / ASYNC_CLIENT, "\n\nimport anyio\n")
    assert refused() == [
        f"{ASYNC_CLIENT}:22: left over: anyio",
        f"{SYNC_CLIENT}: changed; run .ci/generate_sync.py",
    ]


@pytest.mark.parametrize("content", [b"def (\n", b"\xff\n"], ids=["syntax", "encoding"])
def test_generate_stops_when_source_is_broken(tree: Path, run: Run, content: bytes) -> None:
    """What cannot be read is named, and nothing is written or removed."""
    (tree / ASYNC_CLIENT).write_bytes(content)
    before = snapshot(tree)
    for arguments in ([], ["--check"]):
        with pytest.raises(SystemExit, match=f"{ASYNC_CLIENT}: cannot be converted"):
            run(*arguments)
    assert snapshot(tree) == before


def test_script_says_what_it_needs(
    tree: Path,
    run: Run,
    generator: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without ruff beside its Python it says so, rather than that something is out of date."""
    monkeypatch.setattr(generator, "RUFF", str(tree / "ruff"))
    with pytest.raises(SystemExit, match="2"):
        run("--check")
    assert f"{tree / 'ruff'} is missing; install" in capsys.readouterr().err


def test_script_checks_project_when_run_from_anywhere(tmp_path: Path) -> None:
    """The script finds the project beside itself, and the project is up to date."""
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
