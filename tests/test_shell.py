"""``python -m koyeb_session``, as people and scripts run it: a process, its streams, its status."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from koyeb_session import SessionClient, Token
from koyeb_session.__main__ import _life
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeKoyeb, Fault

EMAIL, PASSWORD = "me@example.com", "correct horse"
SHELL = [sys.executable, "-m", "koyeb_session"]
# Makes its standard input the terminal that it is controlled by, and becomes the shell. A test run
# in the background of a script ignores SIGINT, and its children would inherit that.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "koyeb_session", *sys.argv[1:]])
"""


class Shell:
    """Runs commands on one folder and one service."""

    def __init__(self, folder: Path, fake: FakeKoyeb, url: str) -> None:
        self.folder = folder
        self.fake = fake
        kept = {name: value for name, value in os.environ.items() if name[:6] != "KOYEB_"}
        self.environ = {**kept, "KOYEB_URL": url, "XDG_STATE_HOME": str(folder)}

    @property
    def store(self) -> FileTokenStore:
        """The store that the commands use when they are not told of another."""
        return FileTokenStore(self.folder / "koyeb-session" / "session.json")

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, without a terminal."""
        return subprocess.run(
            [*SHELL, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environ,
            start_new_session=True,  # away from the terminal that runs the tests
            check=False,
        )

    def sign_in(self) -> str:
        """Save a session, and return its token."""
        token_id = self.fake.issue_token()
        assert self.run("login", "--api-token", stdin=f"{token_id}\n").returncode == 0
        return token_id


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose service is a fake one."""
    fake = FakeKoyeb()
    with fake.serve() as url:
        yield Shell(tmp_path, fake, url)


class Terminal:
    """A person's end of a terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor = descriptor
        self._process = process
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Read until something is shown."""
        while text not in self.shown:
            chunk = self._read()
            assert chunk, f"the terminal shows only {self.shown!r}"

    def type(self, text: str) -> None:
        """Type on the keyboard."""
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C; once more if it came just before Python began to read, and was not seen."""
        self.type("\x03")
        while not select.select([self._descriptor], [], [], 10)[0]:
            self.type("\x03")

    def end(self) -> int:
        """Read to the end, and return the exit status."""
        while self._read():
            pass
        return self._process.wait()

    def _read(self) -> str:
        try:
            chunk = os.read(self._descriptor, 4096).decode()
        except OSError:  # Linux says so when the other end is closed
            return ""
        self.shown += chunk
        return chunk


@contextlib.contextmanager
def terminal(shell: Shell, *arguments: str) -> Generator[Terminal]:
    """Run a command on a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=shell.environ,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


# Signing in


def test_password_is_asked_for_and_not_echoed(shell: Shell) -> None:
    """A person types address and password; the password is nowhere on the terminal."""
    with terminal(shell, "login") as person:
        person.wait_for("Email: ")
        person.type(f"{EMAIL}\n")
        person.wait_for("Password: ")
        person.type(f"{PASSWORD}\n")
        assert person.end() == 0
    assert EMAIL in person.shown
    assert PASSWORD not in person.shown
    (request,) = shell.fake.requests
    assert request.json == {"email": EMAIL, "password": PASSWORD}
    saved = shell.store.load()
    assert saved is not None
    assert [saved.id] == shell.fake.live_tokens()


def test_wrong_password_is_refused_in_words(shell: Shell) -> None:
    """The status is 1, the message is the service's, and nothing is saved."""
    with terminal(shell, "login", "--email", EMAIL) as person:
        person.wait_for("Password: ")
        person.type("wrong horse\n")
        assert person.end() == 1
    assert "password is incorrect" in person.shown
    assert "Traceback" not in person.shown
    assert "wrong horse" not in person.shown
    assert shell.store.load() is None


def test_organization_goes_with_the_password(shell: Shell) -> None:
    """``--organization`` is the one that the password signs in to."""
    organization = "6f0a1c9e-0000-4000-8000-000000000001"
    shell.fake.organizations[EMAIL].append(organization)
    with terminal(shell, "login", "--email", EMAIL, "--organization", organization) as person:
        person.wait_for("Password: ")
        person.type(f"{PASSWORD}\n")
        assert person.end() == 0
    saved = shell.store.load()
    assert saved is not None
    assert saved.organization_id == organization


def test_api_token_is_asked_for_on_a_terminal(shell: Shell) -> None:
    """Typed or pasted, it is not echoed."""
    token_id = shell.fake.issue_api_token()
    with terminal(shell, "login", "--api-token") as person:
        person.wait_for("API access token: ")
        person.type(f"{token_id}\n")
        assert person.end() == 0
    assert token_id not in person.shown
    assert shell.run("token").stdout == f"{token_id}\n"


@pytest.mark.parametrize("form", [["--api-token"], ["-"], ["--api-token", "-"]])
def test_api_token_comes_by_standard_input(shell: Shell, form: list[str]) -> None:
    """All forms read the token from standard input, and it is the session."""
    token_id = shell.fake.issue_api_token()
    done = shell.run("login", *form, stdin=f"{token_id}\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert shell.run("token").stdout == f"{token_id}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--api-token", "canary"], "standard input"),
        (["--api-token", "-canary"], "unrecognized"),
        (["--api-token=canary"], "--api-token"),
        (["--password", "canary"], "standard input"),
    ],
)
def test_secret_as_an_argument_is_refused_and_not_repeated(
    shell: Shell, arguments: list[str], told: str
) -> None:
    """Arguments show in the list of processes: the mistake is named, the secret is not."""
    done = shell.run("login", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "canary" not in done.stderr


def sign_in_for_an_organization(shell: Shell) -> str:
    """Save a session of an organization, and return its API access token."""
    api_token = shell.fake.issue_api_token()
    organization = shell.fake.organizations[EMAIL][0]
    arguments = ("login", "--api-token", "--organization", organization)
    done = shell.run(*arguments, stdin=f"{api_token}\n")
    assert done.returncode == 0, done.stderr
    return api_token


def test_api_token_issues_tokens_of_an_organization(shell: Shell) -> None:
    """With an organization a short-lived token is printed, and the next one after it is due."""
    api_token = sign_in_for_an_organization(shell)
    first = shell.run("token").stdout.strip()
    assert first in shell.fake.live_tokens()
    assert first != api_token
    make_due(shell)
    second = shell.run("token")
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() in {*shell.fake.live_tokens()} - {first, api_token}
    assert shell.fake.exchanges() == 0


def test_api_token_of_an_organization_replaces_another_one(shell: Shell) -> None:
    """A second login is the session from then on, not the one that the first has begun."""
    sign_in_for_an_organization(shell)
    first = shell.run("token").stdout
    api_token = sign_in_for_an_organization(shell)
    saved = shell.store.load()
    assert saved is not None
    assert saved.renewal == api_token
    assert shell.run("token").stdout == f"{saved.id}\n" != first


def test_refused_api_token_replaces_nothing(shell: Shell) -> None:
    """An API access token that may not issue leaves the session that there was, and is told."""
    token_id = shell.sign_in()
    arguments = ("login", "--api-token", "--organization", shell.fake.organizations[EMAIL][0])
    done = shell.run(*arguments, stdin="unknown\n")
    assert done.returncode == 1
    assert "API access token" in done.stderr
    assert "Traceback" not in done.stderr
    assert shell.run("token").stdout == f"{token_id}\n"


def test_session_of_no_known_organization_is_told(shell: Shell) -> None:
    """Where the file lacks what the next token is issued for, signing in again is the way."""
    sign_in_for_an_organization(shell)
    saved = shell.store.load()
    assert saved is not None
    expired = datetime.now(UTC) - timedelta(hours=1)
    shell.store.save(attrs.evolve(saved, organization_id=None, expires_at=expired))
    done = shell.run("token")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_nothing_can_be_asked_without_a_terminal(shell: Shell) -> None:
    """Rather than to echo a password, it says what to do."""
    done = shell.run("login", "--email", EMAIL)
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert shell.fake.requests == []


def test_end_of_input_is_no_password(shell: Shell) -> None:
    """Ctrl-D at the prompt is a mistake in words."""
    with terminal(shell, "login", "--email", EMAIL) as person:
        person.wait_for("Password: ")
        person.type("\x04")
        assert person.end() == 2
    assert "nothing was entered" in person.shown
    assert shell.fake.requests == []


def test_interrupt_is_quiet(shell: Shell) -> None:
    """Ctrl-C at the prompt ends the command with 130, and prints nothing."""
    with terminal(shell, "login", "--email", EMAIL) as person:
        person.wait_for("Password: ")
        person.interrupt()
        assert person.end() == 130
    assert "Traceback" not in person.shown
    assert "Interrupt" not in person.shown


def test_session_that_cannot_be_saved_is_an_error(shell: Shell) -> None:
    """A login that the next command would know nothing of is no success."""
    done = shell.run(
        *("login", "--api-token", "--file", "/proc/nowhere/session.json"),
        stdin=f"{shell.fake.issue_api_token()}\n",
    )
    assert done.returncode == 3
    assert "not saved in" in done.stderr
    assert "Traceback" not in done.stderr


# Using the session


def make_due(shell: Shell) -> Token:
    """Make the saved session one that is to be renewed ahead of need, and return its token."""
    store = shell.store
    saved = store.load()
    assert saved is not None
    now = datetime.now(UTC)
    due = Token(
        shell.fake.issue_token(lifetime=timedelta(hours=1)) if saved.renewal is None else saved.id,
        saved.user_id,
        saved.organization_id,
        now + timedelta(hours=1),
        issued_at=now - timedelta(hours=23),
        renewal=saved.renewal,
        provenance=saved.provenance,
    )
    store.save(due)
    return due


def test_token_is_printed_alone(shell: Shell) -> None:
    """Standard output is the token and a line feed: made for ``$(...)``."""
    token_id = shell.sign_in()
    done = shell.run("token")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{token_id}\n", "")


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
    with SessionClient(base_url=shell.environ["KOYEB_URL"], store=shell.store) as session:
        token = session.login(EMAIL, PASSWORD)
    done = shell.run("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell.environ["KOYEB_URL"] in done.stdout
    assert str(token.user_id) in done.stdout
    assert f"until {token.expires_at:%Y-%m-%d %H:%M:%S} UTC" in done.stdout
    assert token.id not in done.stdout


def test_status_says_what_does_not_expire(shell: Shell) -> None:
    """An API access token is called one."""
    shell.run("login", "-", stdin=f"{shell.fake.issue_api_token()}\n")
    assert "API access token" in shell.run("status").stdout


def test_status_says_what_is_unknown(shell: Shell) -> None:
    """A token that does not say when it ends is still good."""
    store = shell.store
    store.save(Token(shell.fake.issue_token(), issued_at=datetime.now(UTC)))
    shell.fake.requests.clear()
    done = shell.run("status")
    assert done.returncode == 0
    assert "good for" in done.stdout


@pytest.mark.parametrize("command", ["status", "token"])
def test_nobody_has_signed_in(shell: Shell, command: str) -> None:
    """The status is 1, and the way to sign in is named."""
    done = shell.run(command)
    assert done.returncode == 1
    assert "koyeb_session login" in done.stdout + done.stderr
    assert shell.fake.requests == []


@pytest.mark.parametrize("command", ["status", "token"])
def test_session_that_has_ended_is_told(shell: Shell, command: str) -> None:
    """An expired token is not printed."""
    expired = datetime.now(UTC) - timedelta(hours=1)
    shell.store.save(Token("old", expires_at=expired, issued_at=expired - timedelta(hours=1)))
    done = shell.run(command)
    assert done.returncode == 1
    assert "koyeb_session login" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_service_that_is_away_is_worth_another_try(shell: Shell) -> None:
    """Trouble that may pass has the status 3."""
    shell.sign_in()
    shell.fake.fail("logout", Fault(status=503), times=10)
    done = shell.run("logout")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


# Signing out


def test_logout_ends_the_session(shell: Shell) -> None:
    """The token is revoked and the file is empty; a second logout has nothing to do."""
    shell.sign_in()
    assert shell.run("logout").returncode == 0
    assert shell.fake.live_tokens() == []
    assert shell.store.load() is None
    again = shell.run("logout")
    assert again.returncode == 0
    assert "no session" in again.stderr


def test_logout_leaves_an_api_token_to_others(shell: Shell) -> None:
    """It is removed from this machine and not revoked, and the message says so."""
    token_id = shell.fake.issue_api_token()
    shell.run("login", "-", stdin=f"{token_id}\n")
    done = shell.run("logout")
    assert done.returncode == 0
    assert "still valid" in done.stderr
    assert token_id in shell.fake.live_tokens()
    assert shell.store.load() is None


# The rim


def test_session_is_of_the_file_that_is_named(shell: Shell) -> None:
    """``--file`` keeps two sessions apart."""
    first = shell.sign_in()
    other = str(shell.folder / "other.json")
    second = shell.fake.issue_token()
    shell.run("login", "-", "--file", other, stdin=f"{second}\n")
    assert shell.run("token").stdout.strip() == first
    assert shell.run("token", "--file", other).stdout.strip() == second


def test_session_is_of_the_account_that_is_named(shell: Shell) -> None:
    """``--name`` keeps the sessions of two accounts apart."""
    first = shell.sign_in()
    second = shell.fake.issue_token()
    shell.run("login", "-", "--name", "ci", stdin=f"{second}\n")
    assert shell.run("token").stdout.strip() == first
    assert shell.run("token", "--name", "ci").stdout.strip() == second
    done = shell.run("token", "--name", "../elsewhere")
    assert done.returncode == 2
    assert "--name" in done.stderr
    assert "Traceback" not in done.stderr


def test_session_of_another_service_is_not_used(shell: Shell) -> None:
    """A token that one service issued is not printed for another one."""
    shell.sign_in()
    done = shell.run("token", "--url", "https://elsewhere.example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr


def test_url_is_checked(shell: Shell) -> None:
    """A token does not go over plain http: the mistake is named as the user made it."""
    done = shell.run("login", "-", "--url", "http://example.com", stdin="abc\n")
    assert done.returncode == 2
    assert "--url" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_extra_is_told(shell: Shell, tmp_path: Path) -> None:
    """One line says which extra to install."""
    (tmp_path / "filelock.py").write_text("raise ImportError", "utf-8")
    old = shell.environ.get("PYTHONPATH")
    shell.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), old]))
    done = shell.run("status")
    assert done.returncode == 2
    assert "koyeb-session[file]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["login", "--help"], ["token", "--help"]])
def test_help_is_had_without_a_session(shell: Shell, arguments: list[str]) -> None:
    """Each level has its help, on standard output."""
    done = shell.run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m koyeb_session")


def test_help_tells_the_exit_statuses(shell: Shell) -> None:
    """A script finds what it may rely on."""
    told = shell.run("--help").stdout
    assert all(f"  {status} " in told for status in (0, 1, 2, 3, 130))


def test_no_color_is_printed_where_it_is_not_wanted(shell: Shell) -> None:
    """``NO_COLOR`` holds on a terminal too."""
    shell.environ["NO_COLOR"] = "1"
    with terminal(shell, "--help") as person:
        assert person.end() == 0
    assert "login" in person.shown
    assert "\x1b" not in person.shown


def test_command_is_wanted(shell: Shell) -> None:
    """Nothing at all is wrong usage."""
    done = shell.run()
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def into(shell: Shell, stdout: int) -> tuple[int, str]:
    """Print the token into a descriptor; return the exit status and the messages."""
    process = subprocess.run(
        [*SHELL, "token"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=shell.environ,
        check=False,
    )
    return process.returncode, process.stderr


def test_broken_pipe_is_quiet(shell: Shell) -> None:
    """A reader that has gone away is no news."""
    shell.sign_in()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert into(shell, writer) == (141, "")
    finally:
        os.close(writer)


def test_full_disk_is_told(shell: Shell) -> None:
    """A failed write to standard output is an error, in one line."""
    shell.sign_in()
    with Path("/dev/full").open("wb") as full:
        status, said = into(shell, full.fileno())
    assert status == 3
    assert "No space left" in said
    assert len(said.splitlines()) == 1


def test_life_of_a_token_is_said_as_far_as_it_is_known() -> None:
    """One that a callable brought may say nothing of its end."""
    assert _life(Token("t", issued_at=datetime.now(UTC))) == "good for an unknown time"
