"""The map for contributors names parts of the project that are there, and all of them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "koyeb_session"
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")


def test_named_paths_are_there() -> None:
    """A file that is moved or renamed is moved in the guide as well."""
    paths = re.findall(r"`((?:koyeb_session|tests|\.ci)/[\w/.]+)`|\]\(([\w/.]+)\)", GUIDE)
    assert len(paths) >= 15
    for path, link in paths:
        assert (ROOT / path if path else ROOT / ".github" / link).exists(), path or link


def test_map_has_each_private_part_once() -> None:
    """A newcomer finds every folder of the package in the table of layers."""
    rows = re.findall(r"^\| `koyeb_session/(_\w+)(?:/|\.py)` \|", GUIDE, re.MULTILINE)
    parts = {path.stem for path in PACKAGE.glob("_*") if not path.name.startswith("__")}
    assert sorted(rows) == sorted(parts)


def test_glossary_is_short() -> None:
    """A newcomer has at most a dozen nouns of this project's own to learn."""
    glossary = GUIDE.partition("## Glossary")[2].partition("## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", glossary, re.MULTILINE)
    assert 1 <= len(rows) - 1 <= 12  # less the head
