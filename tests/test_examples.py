"""Every example runs as its reader would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "five_lines.py": ["{'apps': [], "],
    "errors.py": [
        "Before anybody has signed in: NotSignedInError. Try again later? False.",
        "With a wrong password: InvalidCredentialsError. Try again later? False.",
        "After the login: answered.",
        "When Koyeb's API fails: HTTPStatusError, of httpx.",
        "When the network fails: ReadError, of httpx.",
        "A day later: SessionExpiredError. Try again later? False.",
    ],
    "quickstart.py": [
        "this plays on a fake Koyeb at http://127.0.0.1:",
        "Signed in as me@example.com; its token is good until",
        "Asked for the apps: 200 OK.",
        "Twenty requests at once: 20 answered, by 1 exchange of the token.",
        "Signed out, here and at the service.",
    ],
    "quickstart_sync.py": [
        "this plays on a fake Koyeb at http://127.0.0.1:",
        "Twenty threads asked for the apps: 20 answered, and the token is renewed on the way.",
        "Signed out, here and at the service.",
    ],
    "access_token.py": [
        "this plays on a fake Koyeb at http://127.0.0.1:",
        "At first: acting in the organization ",
        "A day later: acting in the organization ",
        "It took 25 tokens of an hour each; the API access token issued them all.",
    ],
    "httpx_auth.py": ["async: 200", "sync: 200", "signed in as"],
}


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the environment's Koyeb account, warnings being errors."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KOYEB_", "REDIS_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=kept | environ,
        check=False,
    )


def said(name: str, **environ: str) -> str:
    """Run an example, and return its output, which holds no password."""
    done = run(str(EXAMPLES / name), **environ)
    assert done.returncode == 0, done.stderr
    assert "correct horse" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_says_what_happens(name: str) -> None:
    """A reader who runs an example sees each step of it, and can check the times in it."""
    before = datetime.now(UTC)
    out = said(name)
    for line in SAYS[name]:
        assert line in out
    expiries = re.findall(r"its token is good until (.+)\.\n", out)
    assert len(expiries) == name.startswith("quickstart")
    for expiry in expiries:  # such a token lives for a day, by the reader's own clock
        issued = datetime.fromisoformat(expiry) - timedelta(days=1)
        assert before <= issued + timedelta(seconds=1)
        assert issued <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("quickstart.py", {"KOYEB_EMAIL": "me@example.com"}),
        ("quickstart_sync.py", {"KOYEB_PASSWORD": "another one"}),
        ("access_token.py", {"KOYEB_TOKEN": "a-token"}),
    ],
)
def test_example_runs_with_half_of_an_account(name: str, given: dict[str, str]) -> None:
    """It plays on the fake service, as without an account; catches a KeyError."""
    assert "this plays on a fake Koyeb" in said(name, **given)


def test_example_for_tests_passes() -> None:
    """``pytest examples/`` needs this package, pytest, and no plugin but the package's own."""
    plugins = (f"-pno:{name}" for name in ("cacheprovider", "timeout", "xdist"))
    done = run("-m", "pytest", "-q", *plugins, str(EXAMPLES))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


LONGER = {"own_store_sqlite.py": 150, "sign_in_elsewhere.py": 60, "fleet_with_redis.py": 45}
"""A whole store, a whole sign-in, and a client of Redis with its settings."""


def test_examples_are_short() -> None:
    """An example is at most 40 lines, but for those that bring a part of their own."""
    for path in EXAMPLES.glob("*.py"):
        longest = LONGER.get(path.name, 40)
        assert len(path.read_text("utf-8").splitlines()) <= longest, path.name


def test_index_lists_each_example_once() -> None:
    """The index is a course: numbered from the first to the last, with all examples in it."""
    index = (EXAMPLES / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| \[`(\w+\.py)`\]\((\w+\.py)\) \| \S", index, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == [*range(1, len(rows) + 1)]
    assert all(name == link for _, name, link in rows)
    assert sorted(name for _, name, _ in rows) == sorted(p.name for p in EXAMPLES.glob("*.py"))
