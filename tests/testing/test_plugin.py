"""The pytest plugin, and its cost for those who do not use it."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import koyeb_session.testing
from koyeb_session.testing import FakeClock, FakeKoyeb


def test_fixtures_share_a_clock(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> None:
    """The service of the plugin lives on the clock of the plugin."""
    token = fake_koyeb.issue_token("me@example.com")
    assert fake_koyeb.live_tokens() == [token]
    koyeb_clock.advance(24 * 3_600)
    assert fake_koyeb.live_tokens() == []


def run(program: str) -> set[str]:
    """Run a program, and give the names of the modules it has imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_plugin_loads_nothing_of_the_kit() -> None:
    """Every pytest run of an environment loads the plugin, so it loads no more than itself."""
    modules = run("import koyeb_session.testing.pytest_plugin")
    kit = {name for name in modules if name.startswith("koyeb_session.testing")}
    assert kit == {"koyeb_session.testing", "koyeb_session.testing.pytest_plugin"}


def test_kit_needs_neither_pytest_nor_the_client() -> None:
    """The kit works without a test runner and without the code that it is to test."""
    modules = run("from koyeb_session.testing import FakeKoyeb; FakeKoyeb().serve()")
    assert "koyeb_session.testing._server" in modules
    assert not {"pytest", "_pytest"} & modules
    used = {name for name in modules if name.startswith("koyeb_session._")}
    assert all(name.startswith("koyeb_session._core") for name in used)


def test_examples_are_true() -> None:
    """The code of the docstrings works as they show."""
    for name in koyeb_session.testing.__all__:
        assert getattr(koyeb_session.testing, name).__module__ == "koyeb_session.testing"
    failed, attempted = doctest.testmod(koyeb_session.testing)
    assert (failed, attempted > 0) == (0, True)


def test_public_names_are_there_when_asked_for() -> None:
    """Names are listed before they are loaded, and an unknown one is an ordinary error."""
    assert set(koyeb_session.testing.__all__) <= set(dir(koyeb_session.testing))
    assert koyeb_session.testing.FakeKoyeb is FakeKoyeb
    with pytest.raises(AttributeError, match="has no attribute 'FakeKoeyb'"):
        getattr(koyeb_session.testing, "FakeKoeyb")  # noqa: B009 - no checker may know the name
