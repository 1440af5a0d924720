"""Every block of the README runs, against a fake Koyeb."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from koyeb_session import AsyncSessionClient, SessionClient

if TYPE_CHECKING:
    from koyeb_session.testing import FakeKoyeb

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TESTS = Path(__file__).parent


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_it_stands(
    block: str,
    fake_koyeb: FakeKoyeb,
    koyeb_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What a reader copies out of the README works; only the network is replaced."""
    organization = fake_koyeb.organizations["me@example.com"][0]
    monkeypatch.setenv("KOYEB_API_TOKEN", fake_koyeb.issue_api_token())
    monkeypatch.setenv("KOYEB_ORGANIZATION", organization)
    monkeypatch.setenv("VAULT_TOKEN", fake_koyeb.issue_token())
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    fake = {"transport": fake_koyeb.transport, "clock": koyeb_clock}
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own text
    if "FastAPI(" in block:  # examples/fastapi_app.py is run
        assert {route.path for route in names["app"].routes} >= {"/apps", "/me"}
        return
    names["AsyncSessionClient"] = partial(AsyncSessionClient, **fake)
    names["SessionClient"] = partial(SessionClient, **fake)
    client = partial(httpx.Client, transport=fake_koyeb.transport)
    names["httpx"] = SimpleNamespace(Client=client, HTTPError=httpx.HTTPError)
    main = names["main"]
    if "async def main" in block:
        anyio.run(main)
    else:
        main()
    assert all(request.status == 200 for request in fake_koyeb.requests)


def test_guarantees_name_tests_that_are_there() -> None:
    """Each guarantee names a test function that the suite has."""
    rows = re.findall(r"^\| ([^|]+) \| (`test_[^|]+) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    sources = "\n".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    for guarantee, shown_by in rows:
        names = re.findall(r"`(\w+)`", shown_by)
        assert names, guarantee
        for name in names:
            assert re.search(rf"(def|class) {name}\b", sources), name


FIGURES = {
    "whole program": ["cold start to the first login over TLS, {}: wall"],
    "login, refresh": ["warm login, {}", "warm refresh, {}"],
    "a request with a fresh token": ["a request with a fresh token, httpx, {}"],
}


@pytest.mark.parametrize(("half", "column"), [("asyncio", 0), ("sync", 1)])
@pytest.mark.parametrize("begin", FIGURES)
def test_figures_are_those_that_were_measured(begin: str, half: str, column: int) -> None:
    """The README's ratios are those of the last whole run of the benchmarks."""
    (row,) = re.findall(rf"^\| {begin}[^|]*\| ([^|]+) \| ([^|]+) \|$", README, re.MULTILINE)
    measured = [ratio(title.format(half)) for title in FIGURES[begin]]
    assert row[column].split(", ") == measured


def test_many_requests_are_as_much_faster_as_is_said() -> None:
    """The README's "over 30 times", say, is what the last whole run of the benchmarks measured."""
    title = "1,000 concurrent requests of session.http on sockets"
    share = ratio(title, "koyeb_session, as installed").removesuffix("x")
    (said,) = re.findall(r"over (\d+) times as fast", README)
    assert 1 / float(share) > int(said)


def ratio(title: str, contender: str = "koyeb_session") -> str:
    """Read the ratio to the yardstick out of the table of results."""
    table = (TESTS / "benchmarks" / "results" / "table.md").read_text("utf-8")
    part = table.partition(f"### {title}\n")[2].partition("###")[0]
    (row,) = [line for line in part.splitlines() if line.startswith(f"| **{contender}** |")]
    return row.split(" | ")[3]


def test_readme_is_short() -> None:
    """The README can be read in one sitting."""
    assert len(README.splitlines()) <= 230
