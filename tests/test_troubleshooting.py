"""Each mistake of TROUBLESHOOTING.md is made here; the document has the message that is printed."""

from __future__ import annotations

import gc
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from koyeb_session.testing import FakeClock, FakeKoyeb

from .mistakes import MISTAKES, Mistake
from .printed import Setup, message

DOCUMENT: Final = (Path(__file__).parents[1] / ".github" / "TROUBLESHOOTING.md").read_text("utf-8")


def documented() -> Iterator[tuple[str, str]]:
    """Give each section of the document and the message that it shows."""
    for section in re.split(r"^### ", DOCUMENT, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        (message,) = re.findall(r"^```text\n(.*?)\n```$", rest, re.DOTALL | re.MULTILINE)
        yield heading, message


MESSAGES: Final = dict(documented())


@pytest.fixture
def setup(
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Setup:
    """Make a fake service, and forget the machine's own settings."""
    for variable in [name for name in os.environ if name.startswith("KOYEB_")]:
        monkeypatch.delenv(variable)
    return Setup(fake_koyeb, koyeb_clock, tmp_path / "session.json", monkeypatch, caplog)


@pytest.mark.parametrize("heading", MISTAKES)
def test_message_is_what_is_printed(heading: str, setup: Setup) -> None:
    """A reader searches for the text on the screen: the document has it word for word."""
    assert show(MISTAKES[heading], setup) == MESSAGES.get(heading)


def show(make: Mistake, setup: Setup) -> str:
    """Make a mistake, and return the printed text, with another folder in place of the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # some mistakes leave sockets open
        text = message(lambda: make(setup))
        gc.collect()
    return text.replace(str(setup.path.parent), "/home/me")


def test_each_entry_is_provoked() -> None:
    """Nothing is in the document that no mistake of these tests prints."""
    assert list(MESSAGES) == list(MISTAKES)
