"""Every block of the README runs, against a pretend Koyeb."""

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


def mint(fake: FakeKoyeb) -> str:
    """Sign in beside the block, for a token from elsewhere."""
    with SessionClient(transport=fake.transport) as session:
        return session.login("me@example.com", "correct horse").id


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs_as_it_stands(
    block: str, fake_koyeb: FakeKoyeb, koyeb_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a reader copies out of the README works; only the network is replaced."""
    monkeypatch.setenv("VAULT_TOKEN", mint(fake_koyeb))
    pretend = {"transport": fake_koyeb.transport, "clock": koyeb_clock}
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102 - our own text
    names["AsyncSessionClient"] = partial(AsyncSessionClient, **pretend)
    names["SessionClient"] = partial(SessionClient, **pretend)
    names["httpx"] = SimpleNamespace(Client=partial(httpx.Client, transport=fake_koyeb.transport))
    main = names["main"]
    if "async def main" in block:
        anyio.run(main)
    else:
        main()
    assert all(request.status == 200 for request in fake_koyeb.requests)


def test_guarantees_name_tests_that_are_there() -> None:
    """Each guarantee names a test function that the suite has."""
    rows = re.findall(r"^\| (?!guarantee|---)(.+?) \| (.+?) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    sources = "\n".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py"))
    for guarantee, shown_by in rows:
        names = re.findall(r"`(\w+)`", shown_by)
        assert names, guarantee
        for name in names:
            assert re.search(rf"(def|class) {name}\b", sources), name


def test_readme_is_short() -> None:
    """The README is at most 120 lines."""
    assert len(README.splitlines()) <= 120
