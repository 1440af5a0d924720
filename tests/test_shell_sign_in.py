"""``python -m koyeb_session login``: passwords, API access tokens, organizations."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import attrs
import pytest

from koyeb_session.testing import FakeKoyeb, Fault

from .shells import EMAIL, PASSWORD, Shell, make_due, make_older, shell, terminal

__all__ = ["shell"]  # a fixture


def test_password_is_asked_for_and_not_echoed(shell: Shell) -> None:
    """A person types address and password; the password is nowhere on the terminal."""
    with terminal("login") as person:
        person.wait_for("Email: ")
        person.type(f"{EMAIL}\n")
        person.wait_for("Password: ")
        person.type(f"{PASSWORD}\n")
        assert person.end() == 0
    assert EMAIL in person.shown
    assert PASSWORD not in person.shown
    (request,) = shell.fake.requests
    assert request.json == {"email": EMAIL, "password": PASSWORD}
    assert [shell.saved.id] == shell.fake.live_tokens()


def test_wrong_password_is_refused_in_words(shell: Shell) -> None:
    """The status is 1, the message is the service's, and nothing is saved."""
    done = shell.run("login", "--email", EMAIL, typed="wrong horse")
    assert done.returncode == 1
    assert "password is incorrect" in done.stderr
    assert "wrong horse" not in done.stdout + done.stderr
    assert shell.store.load() is None


@pytest.mark.parametrize("fault", [Fault(status=403), Fault(status=410)])
def test_refused_password_leads_to_an_api_token(shell: Shell, fault: Fault) -> None:
    """Koyeb drops passwords: the way out is a command, and not the arguments of a program."""
    shell.fake.fail("login", fault)
    done = shell.run("login", "--email", EMAIL, typed=PASSWORD)
    assert done.returncode == 1
    assert "use an API access token: python -m koyeb_session login --api-token\n" in done.stderr
    assert "credentials" not in done.stderr


@pytest.mark.parametrize("form", [["--api-token"], ["--api-token", "--organization", "id"], []])
def test_login_at_another_service_replaces_nothing(shell: Shell, form: list[str]) -> None:
    """The saved session would be lost, and still good at its own service; nothing is asked."""
    token_id = shell.sign_in()
    other = FakeKoyeb()
    with other.serve() as url:
        done = shell.run("login", *form, "--url", url, stdin=f"{other.issue_api_token()}\n")
    assert done.returncode == 2
    here = os.environ["KOYEB_URL"]
    assert f"the saved session is for {here}, and this login is for {url}" in done.stderr
    assert f"python -m koyeb_session logout --url {here}, or keep both" in done.stderr
    assert other.requests == []
    assert shell.run("token").stdout == f"{token_id}\n"


def test_organization_goes_with_the_password(shell: Shell) -> None:
    """``--organization`` is the one that the password signs in to."""
    organization = "6f0a1c9e-0000-4000-8000-000000000001"
    shell.fake.organizations[EMAIL].append(organization)
    arguments = ("login", "--email", EMAIL, "--organization", organization)
    assert shell.run(*arguments, typed=PASSWORD).returncode == 0
    assert shell.saved.organization_id == organization


def test_api_token_is_asked_for_on_a_terminal(shell: Shell) -> None:
    """Typed or pasted, it is asked for as a password is."""
    token_id = shell.fake.issue_api_token()
    done = shell.run("login", "--api-token", typed=token_id)
    assert done.returncode == 0
    assert "API access token: " in done.stderr
    assert shell.run("token").stdout == f"{token_id}\n"


@pytest.mark.parametrize("form", [["--api-token"], ["-"], ["--api-token", "-"]])
def test_api_token_comes_by_standard_input(shell: Shell, form: list[str]) -> None:
    """All forms read the token from standard input, and it is the session."""
    token_id = shell.fake.issue_api_token()
    done = shell.run("login", *form, stdin=f"{token_id}\n")
    assert (done.returncode, done.stdout) == (0, "")
    assert shell.run("token").stdout == f"{token_id}\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--api-token", "canary"], "standard input"),
        (["--api-token", "-canary"], "unrecognized"),
        (["--api-token=canary"], "--api-token"),
        (["--password", "canary"], "standard input"),
    ],
)
def test_secret_as_an_argument_is_refused_and_not_repeated(
    shell: Shell, arguments: list[str], problem: str
) -> None:
    """Arguments show in the list of processes: the mistake is named, the secret is not."""
    done = shell.run("login", *arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert "canary" not in done.stderr


def sign_in_for_an_organization(shell: Shell) -> str:
    """Save a session of an organization, and return its API access token."""
    organization = shell.fake.organizations[EMAIL][0]
    return shell.sign_in(shell.fake.issue_api_token(), "--organization", organization)


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
    saved = shell.saved
    assert saved.renewal == api_token
    assert shell.run("token").stdout == f"{saved.id}\n" != first


def test_withdrawn_access_tokens_lead_to_the_api_token_itself(shell: Shell) -> None:
    """The way out is a command, not an argument of a program."""
    shell.fake.fail("create_access_token", Fault(status=410), times=5)
    arguments = ("--api-token", "--organization", shell.fake.organizations[EMAIL][0])
    done = shell.run("login", *arguments, stdin=shell.fake.issue_api_token())
    assert done.returncode == 1
    assert "use an API access token: python -m koyeb_session login --api-token" in done.stderr
    assert "=" not in done.stderr


@pytest.mark.parametrize("of_organization", [True, False])
def test_refused_api_token_replaces_nothing(shell: Shell, *, of_organization: bool) -> None:
    """The session that there was is left; catches a mistyped token that counts as signed in."""
    token_id = shell.sign_in()
    organization = ["--organization", shell.fake.organizations[EMAIL][0]]
    arguments = ["login", "--api-token", *(organization if of_organization else ())]
    done = shell.run(*arguments, stdin="unknown\n")
    assert done.returncode == 1
    assert done.stderr.count("the API access token is refused") == 1
    assert "refresh()" not in done.stderr
    assert shell.run("token").stdout == f"{token_id}\n"


def test_failure_of_the_next_token_is_told_once(shell: Shell) -> None:
    """Two sessions meet with it, one in the other, and each says when it would try again."""
    sign_in_for_an_organization(shell)
    make_older(shell, -timedelta(hours=1))
    shell.fake.fail("create_access_token", Fault(status=503), times=20)
    done = shell.run("token")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("Service Unavailable") == 1
    assert "again" not in done.stderr
    sent = [it for it in shell.fake.requests if it.status == 503]
    assert len(sent) == 3  # as for any other session


def test_session_of_no_known_organization_is_told(shell: Shell) -> None:
    """Where the file lacks the organization of the next token, the advice is to sign in again."""
    sign_in_for_an_organization(shell)
    expired = datetime.now(UTC) - timedelta(hours=1)
    shell.store.save(attrs.evolve(shell.saved, organization_id=None, expires_at=expired))
    done = shell.run("token")
    assert (done.returncode, done.stdout) == (1, "")


def test_nothing_can_be_asked_without_a_terminal(shell: Shell) -> None:
    """Rather than to echo a password, it says what to do."""
    done = shell.start("login", "--email", EMAIL)
    assert done.returncode == 2
    assert "no terminal" in done.stderr
    assert shell.fake.requests == []


def test_end_of_input_is_no_password(shell: Shell) -> None:
    """Ctrl-D at the prompt is a mistake in words."""
    with terminal("login", "--email", EMAIL) as person:
        person.wait_for("Password: ")
        person.type("\x04")
        assert person.end() == 2
    assert "nothing was entered" in person.shown
    assert shell.fake.requests == []


@pytest.mark.parametrize("form", [[], ["--organization", "id"]])
def test_token_of_two_words_is_refused_in_words(shell: Shell, form: list[str]) -> None:
    """With an organization too, where it becomes a part of a program's credentials."""
    done = shell.run("login", "--api-token", *form, stdin="two words\n")
    assert done.returncode == 2
    assert done.stderr.startswith("koyeb_session: token must be visible ASCII")


def test_empty_line_is_no_address(shell: Shell) -> None:
    """The mistake is told before a password is asked for."""
    done = shell.run("login", stdin="\n")
    assert done.returncode == 2
    assert done.stderr == "Email: koyeb_session: nothing was entered\n"


@pytest.mark.parametrize("form", [["--api-token"], ["--email", EMAIL]])
def test_wrong_organization_is_named_as_the_option(shell: Shell, form: list[str]) -> None:
    """An organization has a name as well, and the user knows no argument of a program."""
    done = shell.run("login", *form, "--organization", "my organization", typed="secret")
    assert done.returncode == 2
    assert "koyeb_session: --organization must be an id: 1 to 36 letters, digits" in done.stderr
    assert "Credentials" not in done.stderr


def test_interrupt_is_quiet(shell: Shell) -> None:
    """Ctrl-C at the prompt ends the command with 130, and prints nothing."""
    with terminal("login", "--email", EMAIL) as person:
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
    assert done.stderr.count("cannot be locked") == 1  # with each attempt to save it
