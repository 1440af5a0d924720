"""Every block of the README runs, against a fake Koyeb, and its facts are those of the package."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest

import koyeb_session
from koyeb_session import RefreshPolicy, RetryPolicy, SessionClient
from koyeb_session.testing import FakeKoyeb

from .support import replace_network

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
REPOSITORY = "https://github.com/koyeb-session/koyeb-session"
RAW = "https://raw.githubusercontent.com/koyeb-session/koyeb-session"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeKoyeb:
    """Put a fake service in place of the network."""
    fake = FakeKoyeb()
    replace_network(monkeypatch, fake)
    monkeypatch.setenv("KOYEB_API_TOKEN", fake.issue_api_token())
    monkeypatch.setenv("KOYEB_ORGANIZATION", fake.organizations["me@example.com"][0])
    return fake


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_it_stands(block: str, service: FakeKoyeb, fake_koyeb: FakeKoyeb) -> None:
    """Code copied from the README works; only the network is replaced."""
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own text
    if "FastAPI(" in block:  # examples/fastapi_app.py is run
        assert {route.path for route in names["app"].routes} >= {"/apps", "/me"}
    elif "def test_" in block:
        names["test_outage"](fake_koyeb)
        assert [request.status for request in fake_koyeb.requests] == [503]
    elif "these are the defaults" not in block:
        assert service.requests
        assert all(request.status == 200 for request in service.requests)


@pytest.mark.parametrize("policy", [RefreshPolicy, RetryPolicy])
def test_policies_are_shown_with_their_defaults(policy: type[Any]) -> None:
    """The block about configuration names each field of a policy, with its default."""
    given = {each.arg: ast.literal_eval(each.value) for each in call(policy.__name__).keywords}
    assert given == attrs.asdict(policy())


def test_arguments_are_shown_with_their_defaults() -> None:
    """The block about configuration names each argument of a client, with its default."""
    given = {each.arg: each.value for each in call("SessionClient").keywords}
    parameters = inspect.signature(SessionClient).parameters
    assert list(given) == list(parameters)
    for name, value in given.items():
        if isinstance(value, ast.Call):  # a policy
            assert parameters[str(name)].default is None
        else:
            assert ast.literal_eval(value) == parameters[str(name)].default


def call(name: str) -> ast.Call:
    """Find the call of a class in the block about configuration."""
    (block,) = [block for block in BLOCKS if "these are the defaults" in block]
    (found,) = [
        node
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]
    return found


def test_tree_of_errors_names_each_of_them() -> None:
    """The README's tree holds each error below the one that it is a kind of."""
    (tree,) = re.findall(r"```text\n(KoyebSessionError.*?)```", README, re.DOTALL)
    shown = re.findall(r"\w+Error", tree)
    assert sorted(shown) == sorted(it for it in koyeb_session.__all__ if it.endswith("Error"))
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        first, *others = re.findall(r"\w+Error", line)
        depth = line.index(first)
        above = [each for each in above if each[0] < depth]
        parent = above[-1][1] if above else "KoyebSessionError"
        assert parent in {base.__name__ for base in getattr(koyeb_session, first).__mro__}
        for other in others:  # beside it, or below it
            assert getattr(koyeb_session, other).__base__.__name__ in {first, parent}
        above.append((depth, first))


def test_extras_are_those_that_there_are() -> None:
    """The table of extras is whole, and each is quoted for every shell."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = re.findall(r'`"koyeb-session\[([\w-]+)\]"`', README)
    assert sorted(named) == sorted(project["optional-dependencies"])


def test_links_are_absolute_and_lead_somewhere() -> None:
    """The README is read on other pages than the repository's: each link names the repository."""
    links = re.findall(r"\]\(([^)]+)\)", README)
    own = [link for link in links if link.startswith((REPOSITORY, RAW))]
    assert len(own) >= 8
    for link in links:
        assert link.startswith("https://")
    for link in own:
        path = re.sub(rf"({REPOSITORY}/blob|{RAW})/main/", "", link)
        assert (ROOT / path).is_file(), link


def test_readme_is_short() -> None:
    """The README can be read in one sitting."""
    assert len(README.splitlines()) <= 200
