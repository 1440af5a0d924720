"""
``python -m koyeb_session``, as people and scripts run it: its streams, and its status.

Most commands run in the process of the tests; those about a terminal, a pipe or a disk, and one of
each kind of the others, are processes of their own.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from koyeb_session import Token, __main__
from koyeb_session.__main__ import _life, main
from koyeb_session.testing import FakeKoyeb, Fault

from .shells import Done, Shell, make_due, make_older, shell, terminal

__all__ = ["shell"]  # a fixture


@pytest.mark.parametrize("run", [Shell.run, Shell.start])
def test_token_is_printed_alone(shell: Shell, run: Callable[[Shell, str], Done]) -> None:
    """Standard output is the token and a line feed: made for ``$(...)``."""
    token_id = shell.sign_in()
    done = run(shell, "token")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{token_id}\n", "")


@pytest.mark.parametrize("signed_in", [True, False])
def test_line_for_curl_shows_the_token_to_nobody(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, signed_in: bool
) -> None:
    """It is in no argument, as those show in the list of processes; nothing runs without one."""
    curl, seen = tmp_path / "curl", tmp_path / "seen"
    curl.write_text(f'#!/bin/sh\necho "$@" >"{seen}"\ncat >>"{seen}"\n')
    curl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    token_id = shell.sign_in() if signed_in else None
    _, _, lines = str(__main__.__doc__).partition("each time it needs one:\n\n")
    lines, _, _ = lines.replace("python", sys.executable, 1).partition("\n\n")
    done = subprocess.run(["/bin/sh", "-c", lines], capture_output=True, check=False)
    assert (done.returncode == 0) is signed_in
    if signed_in:
        given, header = seen.read_text().splitlines()
        assert given == "-H @- https://app.koyeb.com/v1/apps"
        assert header == f"Authorization: Bearer {token_id}"
    else:
        assert not seen.exists()


def test_printed_token_outlives_a_renewal_ahead_of_need(shell: Shell) -> None:
    """The command waits for the renewal that it begins: it prints the token that is good after."""
    shell.sign_in()
    due = make_due(shell)
    done = shell.run("token")
    assert shell.fake.exchanges() == 1
    assert done.stdout.strip() != due.id
    assert done.stdout.strip() in shell.fake.live_tokens()


def test_status_says_where_the_session_stands(shell: Shell) -> None:
    """It names the service, the account and how long the token is good, and not the token."""
    token = shell.sign_in_with_password()
    done = shell.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.environ["KOYEB_URL"] in done.stdout
    assert str(token.user_id) in done.stdout
    assert f"until {token.expires_at:%Y-%m-%d %H:%M:%S} UTC" in done.stdout
    assert token.id not in done.stdout


def test_service_is_read_from_variables_as_by_a_client(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A blank variable counts as unset, and the SDK's may hold only a host."""
    url = os.environ["KOYEB_URL"]
    shell.sign_in()
    monkeypatch.setenv("KOYEB_URL", " ")
    monkeypatch.setenv("KOYEB_API_HOST", url.removeprefix("http://"))
    assert f"Signed in to {url}" in shell.run("status").stdout


def test_status_says_what_does_not_expire(shell: Shell) -> None:
    """An API access token is called one."""
    shell.sign_in(shell.fake.issue_api_token())
    assert "API access token" in shell.run("status").stdout


def test_status_says_what_is_unknown(shell: Shell) -> None:
    """A token that does not say when it ends is still good."""
    shell.store.save(Token(shell.fake.issue_token(), issued_at=datetime.now(UTC)))
    done = shell.run("status")
    assert done.returncode == 0
    assert "good for" in done.stdout


@pytest.mark.parametrize("command", ["status", "token"])
@pytest.mark.parametrize("has_ended", [False, True])
def test_way_to_sign_in_is_named_where_there_is_no_session(
    shell: Shell, command: str, *, has_ended: bool
) -> None:
    """The status is 1, and an expired token is not printed."""
    if has_ended:
        expired = datetime.now(UTC) - timedelta(hours=1)
        shell.store.save(Token("old", expires_at=expired, issued_at=expired - timedelta(hours=1)))
    done = shell.run(command)
    assert done.returncode == 1
    assert "koyeb_session login" in done.stdout + done.stderr
    assert shell.fake.requests == []


@pytest.mark.parametrize("command", ["status", "token"])
def test_end_of_the_saved_session_is_told(shell: Shell, command: str) -> None:
    """Catches "not signed in", and the calls of a program, a day after a login with a password."""
    shell.sign_in_with_password()
    make_older(shell, -timedelta(hours=2))
    done = shell.run(command)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).removeprefix("koyeb_session: ") == (
        "the saved session expired 2 h 0 min ago\nSign in with: python -m koyeb_session login\n"
    )


@pytest.mark.parametrize("option", ["--name ci", "--file 'my session.json'"])
def test_way_to_sign_in_is_that_of_the_same_session(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    """It repeats the options, as another login would be of another session."""
    monkeypatch.chdir(shell.folder)
    options = f"--url https://koyeb.example {option}"
    done = shell.run("token", *shlex.split(options))
    assert f"python -m koyeb_session login {options}\n" in done.stderr


@pytest.mark.parametrize("command", ["status", "token"])
def test_failure_is_told_once(shell: Shell, command: str) -> None:
    """The log tells it as well, and with the remedies of a program, which a shell lacks."""
    shell.sign_in_with_password()
    make_older(shell, timedelta(seconds=30))
    shell.fake.revoke_all()
    done = shell.run(command)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert told.count("Token rejected") == 1
    assert "login()" not in told
    assert "credentials=" not in told


@pytest.mark.parametrize("status", [410, 503])
def test_failure_ahead_of_need_is_told_beside_the_token(shell: Shell, status: int) -> None:
    """The token is good for an hour; the command warns of the failure, in the shell's words."""
    shell.sign_in()
    due = make_due(shell)
    shell.fake.fail("refresh", Fault(status=status), times=10)
    done = shell.run("token")
    assert (done.returncode, done.stdout) == (0, f"{due.id}\n")
    assert done.stderr.count("renewal failed") == 1
    assert "credentials=" not in done.stderr
    assert ("login --api-token" in done.stderr) is (status == 410)


def test_refusal_of_a_printed_token_is_told(shell: Shell) -> None:
    """The command learns of it only after it has the token, so that it has no error to print."""
    shell.sign_in()
    make_due(shell)
    shell.fake.revoke_all()
    done = shell.run("token")
    assert done.stderr.count("Token rejected") == 1


def test_status_tells_of_an_api_token_that_was_revoked(shell: Shell) -> None:
    """Nothing in the token says so: the service is asked."""
    shell.sign_in(shell.fake.issue_api_token())
    shell.fake.revoke_all()
    done = shell.run("status")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("the API access token is refused")
    assert "Sign in with:" in done.stdout


@pytest.mark.parametrize(
    ("command", "operation", "fault"),
    [
        ("logout", "logout", Fault(status=503)),
        ("status", "profile", Fault(reset=True)),
        ("login", "profile", Fault(reset=True)),
    ],
)
def test_service_that_is_away_is_worth_another_try(
    shell: Shell, command: str, operation: str, fault: Fault
) -> None:
    """Trouble that may pass has the status 3; a status and a login change nothing then."""
    token_id = shell.sign_in()
    shell.fake.fail(operation, fault, times=10)
    arguments = [command, "-"] if command == "login" else [command]
    done = shell.run(*arguments, stdin=shell.fake.issue_api_token())
    assert done.returncode == 3
    assert command == "logout" or shell.saved.id == token_id


def test_logout_ends_the_session(shell: Shell) -> None:
    """The token is revoked and the file is empty; a second logout has nothing to do."""
    shell.sign_in()
    assert shell.run("logout").returncode == 0
    assert shell.fake.live_tokens() == []
    assert shell.store.load() is None
    again = shell.run("logout")
    assert again.returncode == 0
    assert "no session" in again.stderr


@pytest.mark.parametrize("command", ["status", "token", "logout"])
def test_session_of_another_service_is_named(shell: Shell, command: str) -> None:
    """Catches a logout that says "Signed out." of a session that it leaves as it is."""
    shell.sign_in()
    with FakeKoyeb().serve() as other:
        done = shell.run(command, "--url", other)
    assert done.returncode == 2
    url = os.environ["KOYEB_URL"]
    assert f"the saved session is for {url}: add --url {url}" in done.stderr
    assert shell.store.load() is not None
    assert len(shell.fake.live_tokens()) == 1


def test_standard_input_that_is_closed_is_told(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that closes it before it starts this one has no token to give."""
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it then
    assert main(["login", "-", "--file", str(shell.folder / "a")]) == 2
    assert "standard input is closed" in capsys.readouterr().err


def test_logout_removes_a_damaged_file(shell: Shell) -> None:
    """It may still hold a token."""
    shell.sign_in()
    file = shell.folder / "koyeb-session" / "session.json"
    file.write_bytes(file.read_bytes()[:-5])
    done = shell.run("logout")
    assert done.returncode == 0
    assert "There is no session." in done.stderr
    assert not file.exists()


def test_logout_leaves_an_api_token_to_others(shell: Shell) -> None:
    """It is removed from this machine and not revoked, and the message says so."""
    token_id = shell.sign_in(shell.fake.issue_api_token())
    done = shell.run("logout")
    assert done.returncode == 0
    assert "still valid" in done.stderr
    assert token_id in shell.fake.live_tokens()
    assert shell.store.load() is None


@pytest.mark.parametrize("option", [("--name", "ci"), ("--file", "other.json")])
def test_session_is_of_the_name_or_file_that_is_given(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    """``--name`` keeps the sessions of two accounts apart, and ``--file`` any two."""
    monkeypatch.chdir(shell.folder)
    first = shell.sign_in()
    second = shell.sign_in(None, *option)
    assert shell.run("token").stdout.strip() == first
    assert shell.run("token", *option).stdout.strip() == second


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("token", "--name", "../elsewhere"), "--name"),
        (("login", "-", "--url", "http://example.com"), "--url"),  # no token over plain http
        (("status", "--url", "https://app.koyeb.com/v1"), "--url"),
        ((), "COMMAND"),
    ],
)
def test_wrong_usage_is_named(shell: Shell, arguments: tuple[str, ...], named: str) -> None:
    """The mistake is named as the user made it."""
    done = shell.run(*arguments, stdin="abc\n")
    assert done.returncode == 2
    assert named in done.stderr


def test_session_of_another_service_is_not_used(shell: Shell) -> None:
    """A token that one service issued is not printed for another one."""
    shell.sign_in()
    done = shell.run("token", "--url", "https://elsewhere.example.com")
    assert (done.returncode, done.stdout) == (2, "")


def test_missing_extra_is_told(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install."""
    monkeypatch.setitem(sys.modules, "filelock", None)
    done = shell.run("status")
    assert done.returncode == 2
    assert "koyeb-session[file]" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["login", "--help"], ["token", "--help"]])
def test_help_is_had_without_a_session(shell: Shell, arguments: list[str]) -> None:
    """Each level has its help, on standard output."""
    done = shell.run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m koyeb_session")


def test_help_tells_the_exit_statuses(shell: Shell) -> None:
    """A script finds the statuses that it may rely on."""
    text = shell.run("--help").stdout
    assert all(f"  {status} " in text for status in (0, 1, 2, 3, 130))


def test_no_color_is_printed_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """``NO_COLOR`` holds on a terminal too."""
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal("--help") as person:
        assert person.end() == 0
    assert "login" in person.shown
    assert "\x1b" not in person.shown


def test_broken_pipe_is_quiet(shell: Shell) -> None:
    """A reader that has gone away is no news."""
    shell.sign_in()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = shell.start("token", stdout=writer)
        assert (done.returncode, done.stderr) == (141, "")
    finally:
        os.close(writer)


def test_full_disk_is_told(shell: Shell) -> None:
    """A failed write to standard output is an error, in one line."""
    shell.sign_in()
    with Path("/dev/full").open("wb") as full:
        done = shell.start("token", stdout=full.fileno())
    assert done.returncode == 3
    assert "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_life_of_a_token_is_said_as_far_as_it_is_known() -> None:
    """One that a callable brought may say nothing of its end."""
    assert _life(Token("t", issued_at=datetime.now(UTC))) == "good for an unknown time"
