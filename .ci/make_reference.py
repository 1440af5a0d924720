"""
Write the reference, one page for each public module, out of the docstrings.

``python .ci/make_reference.py FOLDER``; a warning of pdoc, or markup that it left raw, fails.
"""

from __future__ import annotations

import ast
import html
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pdoc

PACKAGE = "koyeb_session"
REPOSITORY = "https://github.com/koyeb-session/koyeb-session/blob/main"
SOURCE = re.compile(r'<div class="pdoc-code.*?</div>', re.DOTALL)
RAW = re.compile(r":\w+:`|\.\. [\w-]+::|```|^ *(?:Args|Example):$", re.MULTILINE)
_findsource: Any = inspect.findsource
_getmodule: Any = inspect.getmodule


def main() -> None:
    """Write all pages to the folder that is named."""
    folder = Path(sys.argv[1])
    inspect.findsource = find_source
    inspect.getmodule = find_module
    pdoc.render.configure(docformat="google", edit_url_map={PACKAGE: f"{REPOSITORY}/{PACKAGE}/"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # other packages' own
        pdoc.pdoc(*public_modules(), output_directory=folder)
    found = [problem for page in sorted(folder.rglob("*.html")) for problem in raw_markup(page)]
    if found:
        sys.exit("\n".join(found))
    print(folder / "index.html")


def public_modules() -> Iterator[str]:
    """Name the modules that users import."""
    yield PACKAGE
    package = __import__(PACKAGE)
    for module in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        if not re.search(r"\._", module.name):
            yield module.name


def find_home(thing: Any) -> ModuleType | None:
    """Find the module that defines a public thing, whose ``__module__`` says where to import it."""
    name = getattr(thing, "__name__", "")
    if not str(getattr(thing, "__module__", "")).startswith(PACKAGE):
        return None
    definition = re.compile(rf"^(class|def|async def) {name}\b", re.MULTILINE)
    for module in [*sys.modules.values()]:
        is_there = module.__name__.startswith(PACKAGE) and vars(module).get(name) is thing
        if is_there and definition.search(inspect.getsource(module)):
            return module
    return None


def find_module(thing: Any, *arguments: Any) -> ModuleType | None:
    """Stand in for `inspect.getmodule`: type hints are resolved where they are written."""
    return find_home(thing) or _getmodule(thing, *arguments)


def find_source(thing: Any) -> Any:
    """Stand in for `inspect.findsource`."""
    home = find_home(thing) if isinstance(thing, type) else None
    if home is None:
        return _findsource(thing)
    lines: list[str] = _findsource(home)[0]
    (node,) = [
        node
        for node in ast.parse("".join(lines)).body
        if isinstance(node, ast.ClassDef) and node.name == thing.__name__
    ]
    return lines, min([node.lineno, *(it.lineno for it in node.decorator_list)]) - 1


def raw_markup(page: Path) -> Iterator[str]:
    """Find markup of docstrings that a reader would see."""
    text = html.unescape(re.sub(r"<[^>]+>", "", SOURCE.sub("", page.read_text("utf-8"))))
    for match in RAW.finditer(text):
        yield f"{page}: {text[max(0, match.start() - 40) : match.end() + 20]!r}"


if __name__ == "__main__":
    main()
