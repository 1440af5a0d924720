"""What the environment says of how to sign in, and in which order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from koyeb_session import (
    AsyncSessionClient,
    MemoryTokenStore,
    NotSignedInError,
    PasswordCredentials,
    SessionClient,
)
from koyeb_session._environment import settings
from koyeb_session.testing import FakeKoyeb, assert_no_secret

SECRET = "s" * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home, and an environment without any Koyeb account."""
    for name in ("TOKEN", "API_TOKEN", "EMAIL", "PASSWORD", "URL", "ORGANIZATION", "CONFIG"):
        monkeypatch.delenv(f"KOYEB_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(environ: dict[str, str], **overrides: object) -> dict[str, object]:
    """Give the arguments that an environment stands for."""
    arguments = settings(overrides, environ)
    assert isinstance(arguments, dict), arguments
    return arguments


def test_first_that_signs_in_wins(home: Path) -> None:
    """A token comes before an API token, a password and the CLI's file."""
    (home / ".koyeb.yaml").write_text("token: from-cli\nurl: https://cli.example\n")
    environ = {"HOME": str(home)}
    assert found(environ) == {"token": "from-cli", "base_url": "https://cli.example"}
    environ |= {"KOYEB_URL": "https://env.example"}
    assert found(environ) == {"token": "from-cli", "base_url": "https://env.example"}
    environ |= {"KOYEB_EMAIL": "me@example.com", "KOYEB_PASSWORD": SECRET}
    assert found(environ)["credentials"] == PasswordCredentials("me@example.com", SECRET)
    environ |= {"KOYEB_ORGANIZATION": "o"}
    assert found(environ)["credentials"] == PasswordCredentials("me@example.com", SECRET, "o")
    # From here on the organization is the token's own.
    environ |= {"KOYEB_API_TOKEN": "api "}
    assert found(environ) == {"token": "api", "base_url": "https://env.example"}
    environ |= {"KOYEB_TOKEN": "first"}
    assert found(environ) == {"token": "first", "base_url": "https://env.example"}


def test_override_wins_and_makes_the_rest_moot(home: Path) -> None:
    """An argument comes before its variable; with a token the others are not looked at."""
    environ = {"HOME": str(home), "KOYEB_URL": "https://env.example", "KOYEB_EMAIL": "alone"}
    assert found(environ, token="t", base_url="https://mine.example") == {
        "token": "t",
        "base_url": "https://mine.example",
    }


def test_store_may_be_all_there_is(home: Path) -> None:
    """A saved session needs no variable."""
    store = MemoryTokenStore()
    assert found({"HOME": str(home)}, store=store) == {"store": store}


def test_error_says_what_was_looked_at(home: Path) -> None:
    """Whoever forgot to set a variable reads which there are."""
    with pytest.raises(NotSignedInError) as caught:
        SessionClient.from_env()
    for name in ("KOYEB_TOKEN", "KOYEB_API_TOKEN", "KOYEB_EMAIL", "KOYEB_PASSWORD", "KOYEB_CONFIG"):
        assert name in str(caught.value)
    assert "~/.koyeb.yaml" in str(caught.value)


@pytest.mark.parametrize(("there", "missing"), [("EMAIL", "PASSWORD"), ("PASSWORD", "EMAIL")])
def test_half_of_a_password_login_is_an_error(home: Path, there: str, missing: str) -> None:
    """An address without a password, or the other way round, is a slip that is named."""
    error = settings({}, {"HOME": str(home), f"KOYEB_{there}": SECRET})
    assert isinstance(error, NotSignedInError)
    assert str(error) == f"KOYEB_{there} is set, but KOYEB_{missing} is not"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not there"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"just text", "is not the YAML file"),
        (b"token: [" + SECRET.encode(), "is not the YAML file"),
        (b"organization: o\ntoken: 5", "has no token"),
    ],
)
def test_named_file_that_is_no_use_is_an_error(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """A file that KOYEB_CONFIG names has to be one of the CLI's; no error quotes it."""
    path = tmp_path / "koyeb.yaml"
    if content is not None:
        path.write_bytes(content)
    error = settings({}, {"KOYEB_CONFIG": str(path)})
    assert isinstance(error, NotSignedInError)
    assert problem in str(error)
    assert "KOYEB_CONFIG" in str(error)
    assert_no_secret(SECRET, error)


@pytest.mark.parametrize("text", ["debug: true\n", "", "\n", "# nothing yet\n", "---\n", "null"])
def test_file_in_the_home_without_a_token_is_passed_over(home: Path, text: str) -> None:
    """The CLI's own file need not hold a token; nobody named it."""
    (home / ".koyeb.yaml").write_text(text)
    error = settings({}, {"HOME": str(home)})
    assert isinstance(error, NotSignedInError)
    assert "looked at" in str(error)


def test_home_is_the_systems_where_no_variable_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without HOME the platform's own home counts."""
    (home / ".koyeb.yaml").write_text("token: t\n")
    monkeypatch.setattr(Path, "home", lambda: home)
    assert found({}) == {"token": "t"}


def test_user_without_a_home_has_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user whom its system does not know."""

    def homeless() -> Path:
        raise RuntimeError(home)

    monkeypatch.setattr(Path, "home", homeless)
    assert isinstance(settings({}, {}), NotSignedInError)
    store = MemoryTokenStore()
    assert found({}, store=store) == {"store": store}


def test_blank_token_counts_as_none(home: Path) -> None:
    """As a secret that is not filled in does, where a template writes the variables."""
    environ = {"HOME": str(home), "KOYEB_TOKEN": " \n", "KOYEB_API_TOKEN": "api"}
    assert found(environ) == {"token": "api"}


def test_file_without_the_extra_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyYAML is missing, the error names the extra."""
    (home / ".koyeb.yaml").write_text("token: t\n")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"pip install koyeb-session\[cli-config\]"):
        settings({}, {"HOME": str(home)})


@pytest.mark.blocks_loop  # from_env reads a file, before there is anything to keep waiting
async def test_both_halves_begin_with_what_the_environment_says(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has run `koyeb login` runs a script at once."""
    fake = FakeKoyeb()
    (home / ".koyeb.yaml").write_text(f"token: {fake.issue_api_token()}\n")
    async with AsyncSessionClient.from_env(transport=fake.transport) as session:
        assert (await session.http.get("/v1/apps")).status_code == 200
    with SessionClient.from_env(transport=fake.transport) as blocking:
        assert blocking.http.get("/v1/apps").status_code == 200


def test_unusable_token_is_not_quoted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with an impossible value is a `ValueError` without the value."""
    monkeypatch.setenv("KOYEB_TOKEN", f"{SECRET} {SECRET}")
    with pytest.raises(ValueError, match="token must be") as caught:
        SessionClient.from_env()
    assert_no_secret(SECRET, str(caught.value))
