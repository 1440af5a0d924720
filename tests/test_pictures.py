"""The pictures of the documentation are as their scripts draw them."""

from __future__ import annotations

import runpy
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from koyeb_session import RefreshPolicy

FOLDER = Path(__file__).parents[1] / ".github" / "pictures"
DRAWN = runpy.run_path(str(FOLDER / "token_life.py"))


def test_picture_is_what_its_script_draws() -> None:
    """A change of the defaults, or of the script, is seen in the picture that is committed."""
    picture = (FOLDER / "token_life.svg").read_text("utf-8")
    assert picture == DRAWN["draw"](RefreshPolicy())
    assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (RefreshPolicy(soft_window=10_800), "3 h before it expires"),
        (RefreshPolicy(hard_window=30), "30 s before"),
        (RefreshPolicy(backoff=2, backoff_max=90), "after 2 s, then later and later, up to 90 s"),
    ],
)
def test_picture_tells_what_the_policy_says(policy: RefreshPolicy, text: str) -> None:
    """Its numbers are the policy's."""
    assert text in DRAWN["draw"](policy)
    assert text not in DRAWN["draw"](RefreshPolicy())
