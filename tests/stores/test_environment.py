"""The ways to sign in that the environment names, and their order."""

from __future__ import annotations

import base64
import inspect
import json
import logging
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    MemoryTokenStore,
    NotSignedInError,
    PasswordCredentials,
    SessionClient,
)
from koyeb_session._environment import look_up
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from ..support import raising

SECRET = "s" * 64
SERVICES = ("KOYEB_URL", "KOYEB_API_HOST", "KOYEB_API_URL")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home, and an environment without any Koyeb account."""
    for name in [name for name in os.environ if name.startswith("KOYEB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(environ: dict[str, str], **overrides: object) -> dict[str, object]:
    """Give the arguments that an environment stands for."""
    arguments = look_up(overrides, {**os.environ, **environ})
    assert isinstance(arguments, dict), arguments
    return arguments


def refused(environ: dict[str, str], **overrides: object) -> str:
    """Return the error for an environment that cannot be used, without its secrets."""
    error = look_up(overrides, {**os.environ, **environ})
    assert type(error) in {NotSignedInError, ValueError}
    assert_no_secret(SECRET, error)
    return str(error)


def cli_file(home: Path, text: str) -> Path:
    """Write the CLI's file, as the CLI does."""
    path = home / ".koyeb.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def jwt(**more: float) -> str:
    """Write a JWT that is good for an hour, unless it is told otherwise."""
    claims = {"exp": time.time() + 3600, **more}
    parts = (base64.urlsafe_b64encode(json.dumps(part).encode()) for part in ({}, claims))
    return ".".join([*(part.decode().rstrip("=") for part in parts), "sig"])


def test_first_that_signs_in_wins(home: Path) -> None:
    """A token comes before an API token, a password and the CLI's file."""
    cli_file(home, "token: from-cli\nurl: https://cli.example\n")
    assert found({}) == {"token": "from-cli", "base_url": "https://cli.example"}
    environ = {"KOYEB_URL": " https://env.example\n"}
    environ |= {"KOYEB_EMAIL": "me@example.com ", "KOYEB_PASSWORD": SECRET}
    assert found(environ)["credentials"] == PasswordCredentials("me@example.com", SECRET)
    environ |= {"KOYEB_ORGANIZATION": "o"}
    assert found(environ)["credentials"] == PasswordCredentials("me@example.com", SECRET, "o")
    environ |= {"KOYEB_API_TOKEN": "api "}
    assert found(environ)["credentials"] == AccessTokenCredentials("api", "o")
    environ |= {"KOYEB_TOKEN": "first"}
    assert found(environ) == {
        "credentials": AccessTokenCredentials("first", "o"),
        "base_url": "https://env.example",
    }
    del environ["KOYEB_ORGANIZATION"]
    assert found(environ) == {"token": "first", "base_url": "https://env.example"}


def test_override_wins_and_makes_the_rest_moot(home: Path) -> None:
    """An argument comes before its variable; with a token the others are not looked at."""
    environ = {"KOYEB_URL": "https://env.example", "KOYEB_EMAIL": "alone"}
    assert found(environ, token="t", base_url="https://mine.example") == {
        "token": "t",
        "base_url": "https://mine.example",
    }


def test_error_says_what_was_looked_at(home: Path) -> None:
    """The error of a missing variable names those that there are."""
    with pytest.raises(NotSignedInError) as caught:
        SessionClient.from_env()
    for name in ("KOYEB_TOKEN", "KOYEB_API_TOKEN", "KOYEB_EMAIL", "KOYEB_PASSWORD", "KOYEB_CONFIG"):
        assert name in str(caught.value)
    assert "~/.koyeb.yaml" in str(caught.value)


@pytest.mark.parametrize(("there", "missing"), [("EMAIL", "PASSWORD"), ("PASSWORD", "EMAIL")])
def test_half_of_a_password_login_is_an_error(home: Path, there: str, missing: str) -> None:
    """An address without a password, or the other way round, is a slip that is named."""
    said = refused({f"KOYEB_{there}": SECRET})
    assert said == f"KOYEB_{there} is set, but KOYEB_{missing} is not"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not there"),
        (b"\xff\xfe\xff", "is not the YAML file"),
        (b"just text", "is not the YAML file"),
        (b"token: [" + SECRET.encode(), "is not the YAML file"),
        (b"organization: o\ntoken: 5", "has no token"),
    ],
)
def test_named_file_that_is_no_use_is_an_error(
    home: Path, content: bytes | None, problem: str
) -> None:
    """A file that KOYEB_CONFIG names has to be one of the CLI's; no error quotes it."""
    path = home / "koyeb.yaml"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o644)
    said = refused({"KOYEB_CONFIG": str(path)})
    assert problem in said
    assert "KOYEB_CONFIG" in said


@pytest.mark.parametrize("text", ["debug: true\n", "", "\n", "# nothing yet\n", "---\n", "null"])
def test_file_in_the_home_without_a_token_is_passed_over(home: Path, text: str) -> None:
    """The CLI's own file need not hold a token; nobody named it."""
    cli_file(home, text)
    assert "looked at" in refused({})


def test_home_is_the_systems_where_no_variable_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HOME the platform's own home counts."""
    cli_file(home, "token: t\n")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: home)
    assert found({}) == {"token": "t"}


def test_user_without_a_home_has_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user whom its system does not know; a store needs no variable."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", raising(RuntimeError()))
    assert "looked at" in refused({})
    store = MemoryTokenStore()
    assert found({}, store=store) == {"store": store}


@pytest.mark.parametrize("name", ["KOYEB_TOKEN", *SERVICES])
def test_blank_variable_counts_as_none(home: Path, name: str) -> None:
    """As one that a template left empty, or a secret that is not filled in."""
    assert found({"KOYEB_API_TOKEN": "api", name: " \n"}) == {"token": "api"}


def test_file_without_the_extra_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyYAML is missing, the error names the extra."""
    cli_file(home, f"token: {SECRET}\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r'pip install "koyeb-session\[cli-config\]"') as caught:
        SessionClient.from_env(http_client=None)
    assert_no_secret(SECRET, caught.value)


@pytest.mark.blocks_loop  # from_env reads a file, before there is anything to keep waiting
async def test_both_halves_begin_with_what_the_environment_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `koyeb login`, a script runs at once."""
    fake = FakeKoyeb()
    cli_file(home, f"token: {fake.issue_api_token()}\n")
    async with AsyncSessionClient.from_env(transport=fake.transport) as session:
        assert (await session.http.get("/v1/apps")).status_code == 200
    with SessionClient.from_env(transport=fake.transport) as blocking:
        assert blocking.http.get("/v1/apps").status_code == 200


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"token": f"{SECRET} {SECRET}"}, ValueError),
        ({"token": "t", "credentials": PasswordCredentials("", SECRET)}, ValueError),
        ({"token": SECRET, "timeout": "soon"}, TypeError),
        ({"token": SECRET, "no_such_argument": 1}, TypeError),
        ({"credentials": PasswordCredentials("me@example.com", SECRET), "timeout": 0}, ValueError),
    ],
)
def test_refused_argument_shows_in_no_frame(
    home: Path, overrides: dict[str, Any], error: type[Exception]
) -> None:
    """The arguments that are handed on are in no local of a frame that the error goes through."""
    with pytest.raises(error) as caught:
        SessionClient.from_env(**overrides)
    frames = [f for f in inspect.getinnerframes(caught.tb) if "koyeb_session" in f.filename]
    assert "from_env" in {frame.function for frame in frames}
    for frame in frames:
        for name, value in frame.frame.f_locals.items():
            if not isinstance(value, SessionClient):  # which is not whole
                assert SECRET not in repr(value), f"{name} in {frame.function}"
    assert SECRET not in str(caught.value)


# The service


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://staging.example", "https://staging.example"),
        (" https://staging.example/\n", "https://staging.example/"),
        ("staging.example", "https://staging.example"),
        ("staging.example:8443/api", "https://staging.example:8443/api"),
        ("localhost:8080", "http://localhost:8080"),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_service_is_named_by_any_tools_variable(home: Path, name: str, text: str, url: str) -> None:
    """A token for a staging service does not go to the production service."""
    environ = {"KOYEB_TOKEN": "t", name: text}
    assert found(environ) == {"token": "t", "base_url": url}
    assert found(environ, base_url="https://mine.example")["base_url"] == "https://mine.example"
    with SessionClient(token="t", base_url=url) as session:
        assert url.rstrip("/") in repr(session)


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("url", ["http://koyeb.example", "https://", "https://a b", "ftp://x"])
def test_impossible_service_is_an_error_that_names_the_variable(
    home: Path, name: str, url: str
) -> None:
    """The reader learns which variable to mend, in the variable's own name."""
    said = refused({"KOYEB_TOKEN": SECRET, name: url})
    assert said.startswith(f"{name} ")
    assert "base_url" not in said


def test_first_service_wins_and_another_one_is_said(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where two tools are set up for two services, the log says which one is used."""
    environ = {"KOYEB_TOKEN": "t", "KOYEB_API_HOST": "https://b.example"}
    environ |= {"KOYEB_API_URL": "b.example"}
    assert found(environ)["base_url"] == "https://b.example"
    assert not caplog.records
    environ |= {"KOYEB_URL": "https://a.example"}
    assert found(environ)["base_url"] == "https://a.example"
    assert [record.getMessage() for record in caplog.records] == [
        "KOYEB_API_HOST names another service than KOYEB_URL, which is used",
        "KOYEB_API_URL names another service than KOYEB_URL, which is used",
    ]


# A token's own service


def test_token_of_the_file_goes_only_to_the_service_that_the_file_names(home: Path) -> None:
    """A variable, or the program, does not redirect a token that was issued elsewhere."""
    path = cli_file(home, f"token: {SECRET}\nurl: app.koyeb.com\n")
    assert found({}) == {"token": SECRET, "base_url": "https://app.koyeb.com"}
    same = {"KOYEB_API_HOST": "https://app.koyeb.com/"}
    assert found(same) == {"token": SECRET, "base_url": "https://app.koyeb.com/"}
    said = refused({"KOYEB_URL": "https://evil.example"})
    assert str(path) in said
    assert "is for https://app.koyeb.com, not for the service of KOYEB_URL" in said
    assert "for the service of the program" in refused({}, base_url="https://staging.example")


def test_file_for_another_service_is_passed_over_beside_a_store(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store may hold a session of the service that is meant; a file that is named is meant."""
    caplog.set_level(logging.INFO)
    path = cli_file(home, f"token: {SECRET}\nurl: https://app.koyeb.com\n")
    store = MemoryTokenStore()
    environ = {"KOYEB_URL": "https://staging.example"}
    assert found(environ, store=store) == {"base_url": "https://staging.example", "store": store}
    assert "not used: the token of" in caplog.text
    assert_no_secret(SECRET, caplog.records)
    assert "is for" in refused({**environ, "KOYEB_CONFIG": str(path)}, store=store)


def test_token_of_a_file_without_a_service_goes_where_the_variable_says(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says that it is for another one; the log tells where it goes."""
    caplog.set_level(logging.INFO)
    path = cli_file(home, f"token: {SECRET}\n")
    environ = {"KOYEB_URL": "https://staging.example"}
    assert found(environ) == {"token": SECRET, "base_url": "https://staging.example"}
    (record,) = caplog.records
    assert record.getMessage() == f"the token of {path} goes to the service of KOYEB_URL"


def test_service_of_the_file_is_not_for_the_variables_token(home: Path) -> None:
    """The settings of the file count for its own token alone."""
    cli_file(home, "token: t\nurl: https://cli.example\norganization: o\n")
    assert found({"KOYEB_TOKEN": "mine"}) == {"token": "mine"}


# The organization


@pytest.mark.parametrize("name", ["KOYEB_TOKEN", "KOYEB_API_TOKEN"])
def test_api_token_acts_in_the_organization(home: Path, name: str) -> None:
    """With an organization the program acts where the CLI does; a JWT acts where it was issued."""
    environ = {name: "t", "KOYEB_ORGANIZATION": " o "}
    assert found(environ) == {"credentials": AccessTokenCredentials("t", "o")}
    assert found({**environ, "KOYEB_ORGANIZATION": " "}) == {"token": "t"}
    token = jwt()
    assert found({**environ, name: token}) == {"token": token}


def test_api_token_of_the_file_acts_in_the_files_organization(home: Path) -> None:
    """As the CLI does on each call; the variable wins over the file."""
    cli_file(home, "token: t\norganization: from-file\nurl: https://cli.example\n")
    credentials = AccessTokenCredentials("t", "from-file")
    assert found({}) == {"credentials": credentials, "base_url": "https://cli.example"}
    environ = {"KOYEB_ORGANIZATION": "from-variable"}
    assert found(environ)["credentials"] == AccessTokenCredentials("t", "from-variable")
    cli_file(home, f"token: {(token := jwt())}\norganization: o\n")
    assert found(environ) == {"token": token}


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"KOYEB_TOKEN": SECRET, "KOYEB_ORGANIZATION": "a/b"}, "KOYEB_ORGANIZATION must be an id"),
        (
            {"KOYEB_EMAIL": "e", "KOYEB_PASSWORD": SECRET, "KOYEB_ORGANIZATION": "a b"},
            "KOYEB_ORGANIZATION must be an id",
        ),
        ({"KOYEB_TOKEN": f"{SECRET} {SECRET}"}, "KOYEB_TOKEN must be"),
        ({"KOYEB_API_TOKEN": f"Bearer {SECRET}"}, "KOYEB_API_TOKEN must be the token alone"),
        ({"KOYEB_TOKEN": jwt(exp=1) + SECRET}, "KOYEB_TOKEN has expired"),
        ({"KOYEB_EMAIL": "\ud800", "KOYEB_PASSWORD": SECRET}, "KOYEB_EMAIL must be text"),
        ({"KOYEB_EMAIL": "e", "KOYEB_PASSWORD": " "}, "KOYEB_PASSWORD must not be empty"),
    ],
)
def test_impossible_variable_is_named(home: Path, more: dict[str, str], named: str) -> None:
    """No error speaks of the client's arguments, which the reader has not given."""
    assert refused(more).startswith(named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (f"token: Bearer {SECRET}", "the token of {} must be the token alone"),
        (f"token: {SECRET}\norganization: a/b", "the organization of {} must be an id"),
        (f"token: {SECRET}\nurl: http://koyeb.example", "the url of {} must be https"),
    ],
)
def test_impossible_field_of_the_file_is_named(home: Path, text: str, named: str) -> None:
    """The error says which field of which file."""
    path = cli_file(home, text)
    assert refused({}).startswith(named.format(path))


def test_expiry_is_told_by_the_given_clock(home: Path) -> None:
    """The token of a variable expires when the client says so."""
    clock = FakeClock()
    environ = {"KOYEB_TOKEN": jwt(exp=clock.time() + 60)}
    assert found(environ, clock=clock)["token"] == environ["KOYEB_TOKEN"]
    clock.advance(timedelta(minutes=1))
    assert "KOYEB_TOKEN has expired" in refused(environ, clock=clock)


# The file


def test_tilde_in_the_files_name_is_the_home(home: Path) -> None:
    """No shell expands it in a unit file or an image."""
    path = cli_file(home, "token: t\n")
    for named in (f"~/{path.name}", f" ~/{path.name} ", f"~/./{path.name}"):
        assert found({"KOYEB_CONFIG": named}) == {"token": "t"}
    assert "is not there" in refused({"KOYEB_CONFIG": "~no-such-user/x"})
    assert "cannot be read" in refused({"KOYEB_CONFIG": "~"})


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_may_write_is_refused(home: Path, mode: int) -> None:
    """Somebody else could choose who this program signs in as, and where its token goes."""
    path = cli_file(home, f"token: {SECRET}\n")
    path.chmod(mode)
    assert f"{path} can be written by others" in refused({})


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no such owners")
def test_file_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its owner and root could have written it; root may."""
    path = cli_file(home, f"token: {SECRET}\n")
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert found({}) == {"token": SECRET}
        os.chown(path, 12_345, -1)
    assert f"{path} belongs to another user" in refused({})


def test_file_that_is_too_large_is_refused(home: Path) -> None:
    """No more than 64 KiB of it are read."""
    cli_file(home, f"token: {SECRET}\n# {'x' * (64 << 10)}\n")
    assert "is larger than 65536 bytes" in refused({})


def test_pipe_is_refused_at_once(home: Path) -> None:
    """Somebody laid it there; nobody writes into it."""
    os.mkfifo(home / ".koyeb.yaml")
    said = list[str]()
    thread = threading.Thread(target=lambda: said.append(refused({})), daemon=True)
    thread.start()
    thread.join(10)
    assert [text for text in said if "is not a file" in text]


@pytest.mark.parametrize(
    "text",
    [
        "x: 2024-13-45",
        "x: 2024-01-01T99:99:99Z",
        "x: !!int ''",
        "x: !!float nope",
        f"x: {'9' * 5000}",
        f"x: {'[' * 3000}",
        "x: !!python/object/apply:os.system [id]",
        "\0",
        "<<: 3",
        "? [a]\n: b",
        "x: !!bool zz",
        "---\na: b",
        "'",
    ],
)
def test_file_that_yaml_cannot_construct_is_a_documented_error(home: Path, text: str) -> None:
    """PyYAML raises ValueError, KeyError, TypeError, RecursionError ... for bad values."""
    cli_file(home, f"token: {SECRET}\n{text}\n")
    with pytest.raises(NotSignedInError, match="is not the YAML file") as caught:
        SessionClient.from_env()
    assert_no_secret(SECRET, caught.value)
