"""
Write the blocking half from the async half, so that the library is written by hand once.

``--check`` writes nothing. It fails on any difference between what is there and what would be
written, on a rule that found nothing, and on an async name that no rule dealt with.

Text rules rather than a syntax tree: they reach docstrings, comments and strings too, keep
comments in place, and give the same output on every Python.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

RUFF = str(Path(sysconfig.get_path("scripts"), "ruff"))
TREES = {"koyeb_session/_async": "koyeb_session/_sync", "tests/_async": "tests/_sync"}
HEADER = "# Generated from {} by .ci/generate_sync.py: edit that, not this.\n\n"
RULES = [  # in order
    (r"\basync_auth_flow\b", "sync_auth_flow"),  # httpx's own names for the pair
    (r"\bAsyncByteStream\b", "SyncByteStream"),
    (r"\basync (?=(?:def|with|for)\b)", ""),
    (r"\bawait\s+(?=[\w.]+[(\[])", ""),  # of a call, also in a docstring; not the verb in prose
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b(redis|valkey)\.asyncio\b", r"\1"),
    (r", plain or async,", ""),  # said of a user's function
    (r"\baclose\b", "close"),
    (r"(?<=[a-z])_async(?=_[a-z])", ""),  # handle_async_request, enter_async_context
    (r"\b(_*)async_(?=[a-z])", r"\1"),  # async_thing -> thing
    (r"\bASYNC_(?=[A-Z])", ""),  # ASYNC_THING -> THING
    (r"Async(?=[A-Z])", ""),  # AsyncThing -> Thing, AbstractAsyncThing -> AbstractThing
]
LEFTOVER = re.compile(
    r"_*async|aiter_|__a(enter|exit|iter|next)__$"
    r"|(aclose|aread|aiter|anext|anyio|trio|await|awaitable|coroutine)$",
    re.IGNORECASE,
)


def convert(source: str, used: set[str]) -> str:
    """Apply the rules in their order, and add to ``used`` those that found something."""
    for pattern, replacement in RULES:
        source, count = re.subn(pattern, replacement, source)
        if count:
            used.add(pattern)
    return source


def leftovers(source: str) -> Iterator[tuple[int, str]]:
    """Find async syntax and names in the code; strings and comments may say what they like."""
    line = 0
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", line)
        if isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await):
            yield line, type(node).__name__
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield node.target.lineno, "AsyncFor"
        elif isinstance(node, ast.Constant):
            continue
        for _, value in ast.iter_fields(node):
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and any(map(LEFTOVER.match, name.split("."))):
                    yield line, name


def tidy(source: str, path: Path, root: Path) -> bytes:
    """Sort the imports and format, as the settings below ``root`` say."""
    text = source.encode()
    for command in (["check", "--select=I", "--fix-only", "--exit-zero"], ["format"]):
        call = [RUFF, *command, "--quiet", "--no-cache", "--stdin-filename", str(path), "-"]
        text = subprocess.run(call, input=text, stdout=subprocess.PIPE, check=True, cwd=root).stdout
    return text


def files(tree: Path) -> list[Path]:
    """List the files below ``tree``, without Python's caches."""
    return [p for p in sorted(tree.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]


def generate(root: Path, problems: list[str]) -> dict[Path, bytes]:
    """Make the files of the blocking half; add to ``problems`` what is wrong with them."""
    made: dict[Path, bytes] = {}
    used: set[str] = set()
    for source, target in TREES.items():
        for path in files(root / source):
            origin = path.relative_to(root)
            goal = Path(target, path.relative_to(root / source))
            try:
                text = convert(path.read_text("utf-8"), used)
                problems += [f"{origin}:{line}: left over: {it}" for line, it in leftovers(text)]
            except (SyntaxError, UnicodeDecodeError) as error:
                sys.exit(f"{origin}: cannot be converted: {error}")
            made[goal] = tidy(HEADER.format(origin.as_posix()) + text, goal, root)
    problems += [f"rule that found nothing: {rule}" for rule, _ in RULES if rule not in used]
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the blocking half, or compare it; give the exit status."""
    parser = argparse.ArgumentParser(description="Write the blocking half from the async half.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    options = parser.parse_args(arguments)
    if shutil.which(RUFF) is None:
        parser.error(f"{RUFF} is missing; install pyproject.toml's dependency group `generate`")
    root: Path = options.root
    problems: list[str] = []
    made = generate(root, problems)
    there = [path for tree in TREES.values() for path in files(root / tree)]
    found = {path.relative_to(root): path.read_bytes() for path in there}
    for path in sorted({*made, *found}):
        if found.get(path) == made.get(path):
            continue
        state = "missing" if path not in found else "changed" if path in made else "orphaned"
        if options.check:
            problems.append(f"{path}: {state}; run .ci/generate_sync.py")
        elif path in made:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(made[path])
            print("wrote", path)
        else:
            (root / path).unlink()
            print("removed", path)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
