"""The naive versions can still be made."""

from __future__ import annotations

import pytest

from .versions import ROOT, VERSIONS, Naive


@pytest.mark.parametrize("naive", VERSIONS, ids=str)
def test_what_is_replaced_is_there_once(naive: Naive) -> None:
    """`nox -s naive` would otherwise run the tests on the package as it is, or on no code."""
    for edit in naive.edits:
        source = (ROOT / edit.path).read_text("utf-8")
        assert source.count(edit.old) == 1
        if edit.path.endswith(".py"):
            compile(source.replace(edit.old, edit.new), edit.path, "exec")


def test_each_pitfall_has_a_naive_version() -> None:
    """All twenty-five numbers are there."""
    assert {number for naive in VERSIONS for number in naive.pitfalls} == set(range(1, 26))
