"""Mutant versions of the package, as ``versions.toml`` lists them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

import attrs
from cattrs import structure

ROOT: Final = Path(__file__).parents[2]


@attrs.frozen
class Edit:
    """One replacement in a file of the project."""

    path: str
    old: str
    new: str


@attrs.frozen
class Mutant:
    """A version of the package that does one thing as naive code does it."""

    pitfalls: tuple[int, ...]
    what: str
    edits: tuple[Edit, ...]

    def files(self) -> dict[str, str]:
        """Give the files that it differs in, as they are in it, by their path."""
        texts: dict[str, str] = {}
        for edit in self.edits:
            text = texts.get(edit.path) or (ROOT / edit.path).read_text("utf-8")
            texts[edit.path] = text.replace(edit.old, edit.new)
        return texts

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.pitfalls))}: {self.what}"


VERSIONS: Final = structure(
    tomllib.loads(Path(__file__).with_name("versions.toml").read_text("utf-8"))["versions"],
    tuple[Mutant, ...],
)
