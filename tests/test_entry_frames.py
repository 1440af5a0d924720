"""Tools that show variables show no secret of the shell, of `from_env`, or of the bridges."""

from __future__ import annotations

import importlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import anyio
import attrs
import httpx
import httpx2
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    SessionClient,
)
from koyeb_session import __main__ as shell
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.httpx2 import auth_for
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, assert_no_secret

from .interrupted import EVENTS, POINTS, Interrupting, Point
from .support import raising
from .walkers import assert_no_tool_shows, error_of

EMAIL: Final = "me@example.com"
PASSWORD: Final = "canary-password-3e5d81"
TOKEN: Final = "canary-token-9c41e7"
Environment: TypeAlias = Callable[[dict[str, str]], None]
OUTCOMES: Final = [*EVENTS, "refusal"]
LATE: Final = timedelta(days=2)
"""After so long a token has expired."""
USES: Final = ["status", "token", "logout"]


def typed(_: str) -> str:
    """Stand for a person who is asked."""
    return PASSWORD


def seen(fake: FakeKoyeb | None, error: BaseException | None, *things: object) -> None:
    """Fail if a tool shows a secret in a frame of the package's, or a thing does."""
    secrets = [PASSWORD, TOKEN]
    if fake is not None:
        secrets += [token.id for token in fake._registry._tokens.values()]
    assert_no_secret(secrets, *things)
    if error is not None:
        assert_no_tool_shows(error, secrets)


# The shell


COMMANDS: Final = [
    *("login", "login -", "login - --organization"),
    *(f"{first}; {then}" for first in ("login", "login - --organization") for then in USES),
]
"""Each is searched while its last part runs."""


class Shell:
    """Runs commands in this process, on a fake whose transport something happens to."""

    def __init__(self, patch: pytest.MonkeyPatch, point: Point, outcome: str, file: Path) -> None:
        self.fake = FakeKoyeb(users={EMAIL: PASSWORD})
        self._event: Callable[[], object] = bool  # nothing yet
        self._api_token = self.fake.issue_api_token()
        self._file = str(file)
        self._outcome = outcome
        self._patch = patch
        client = partial(
            SessionClient,
            transport=Interrupting(self.fake, point, lambda: self._event()),  # noqa: PLW0108 - it changes
            retry_policy=RetryPolicy(attempts=1),
        )
        patch.setattr(shell, "SessionClient", client)
        patch.setattr("getpass.getpass", typed)

    def run(self, command: str) -> int:
        """Run a command, below the part that prints its errors for a person."""
        self._patch.setattr(sys, "stdin", io.StringIO(f"{self._api_token}\n"))
        arguments = [*command.split(), "--file", self._file]
        if "--organization" in arguments:
            arguments.insert(-2, self.fake.organizations[EMAIL][0])
        elif "login" in arguments:
            arguments += ["--email", EMAIL]
        options = shell._parser().parse_args(arguments)
        status: int = options.run(options)
        return status

    def begin(self, command: str) -> None:
        """Sign in, with a token that is soon to be renewed; from now on it happens."""
        if command:
            assert self.run(command) == 0
            store = FileTokenStore(self._file)
            saved = store.load()
            assert saved is not None
            store.save(attrs.evolve(saved, expires_at=datetime.now(UTC) + timedelta(seconds=5)))
        self._event = EVENTS.get(self._outcome, bool)
        if self._outcome == "refusal":
            for name in ("login", "refresh", "create_access_token", "logout"):
                self.fake.fail(name, Fault(status=400), times=9)


@pytest.fixture
def make_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Point, str], Shell]:
    """Return a function that makes a shell, with a file of its own."""
    return lambda point, outcome: Shell(monkeypatch, point, outcome, tmp_path / point)


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("commands", COMMANDS)
def test_no_tool_shows_a_secret_of_a_command(
    commands: str,
    outcome: str,
    make_shell: Callable[[Point, str], Shell],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program may call the shell, and a tool may report the error that ends it."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    first, _, command = commands.rpartition("; ")
    points: tuple[Point, ...] = ("request", "body")
    for point in points:
        it = make_shell(point, outcome)
        it.begin(first)
        error = error_of(partial(it.run, command))
        assert error is None or outcome != "success"
        seen(it.fake, error, caplog.records, capsys.readouterr().err)
        caplog.clear()


# Functions that read the environment

ENVIRONMENTS: Final[dict[str, dict[str, str]]] = {
    "token": {"KOYEB_TOKEN": TOKEN},
    "API token": {"KOYEB_API_TOKEN": TOKEN, "KOYEB_ORGANIZATION": "o"},
    "password": {"KOYEB_EMAIL": EMAIL, "KOYEB_PASSWORD": PASSWORD},
    "file": {"KOYEB_CONFIG": "~/.koyeb.yaml"},
}
WRONG: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "argument": {"timeout": -1},
    "type": {"retry_policy": 5},
    "unknown": {"no_such_argument": PASSWORD},
    "own token": {"token": f"{TOKEN} {PASSWORD}"},
    "own credentials": {"credentials": PasswordCredentials("", PASSWORD)},
}
ODD: Final[dict[str, dict[str, str]]] = {
    "odd token": {"KOYEB_TOKEN": f"{TOKEN} {PASSWORD}"},
    "odd organization": {"KOYEB_TOKEN": TOKEN, "KOYEB_ORGANIZATION": "a/b"},
    "odd service": {"KOYEB_TOKEN": TOKEN, "KOYEB_URL": "http://koyeb.example"},
    "half of a password": {"KOYEB_PASSWORD": PASSWORD},
    "odd file": {"KOYEB_CONFIG": "~/odd.yaml"},
}
MAKERS: Final = [SessionClient.from_env, AsyncSessionClient.from_env, KoyebSessions.from_env]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Return a function that sets the variables, in a home with two files of the CLI's."""
    for name in [name for name in os.environ if name.startswith("KOYEB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for file, text in ((".koyeb.yaml", f"token: {TOKEN}"), ("odd.yaml", f"token: [{TOKEN}")):
        (tmp_path / file).write_text(text, "utf-8")
        (tmp_path / file).chmod(0o600)

    def set_variables(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__self__.__name__)
@pytest.mark.parametrize(
    ("variables", "wrong"), [*product(ENVIRONMENTS, WRONG), *product(ODD, ["nothing"])]
)
def test_no_tool_shows_what_is_read_of_the_environment(
    environment: Environment, variables: str, wrong: str, make: Callable[..., object]
) -> None:
    """Neither of a client that is made, nor beside an argument or a value that is refused."""
    environment({**ENVIRONMENTS, **ODD}[variables])
    made: list[object] = []
    error = error_of(lambda: made.append(make(**WRONG[wrong])))
    if variables in ODD:
        assert isinstance(error, KoyebSessionError | ValueError)
        made.append(error)
    else:
        assert (error is None) == (wrong == "nothing") == bool(made)
    seen(None, error, *made)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__self__.__name__)
@pytest.mark.parametrize(
    "where", ["yaml.safe_load", "os.fstat", "koyeb_session._environment.id_error"]
)
def test_no_tool_shows_a_file_whose_reading_is_interrupted(
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    make: Callable[..., object],
) -> None:
    """A signal handler may raise while the file of the CLI is read."""
    environment(ENVIRONMENTS["file"] | {"KOYEB_ORGANIZATION": "o"})
    monkeypatch.setattr(where, raising(KeyboardInterrupt()))
    error = error_of(make)
    monkeypatch.undo()
    assert isinstance(error, KeyboardInterrupt)
    seen(None, error)


# The bridges


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("bridge", ["httpx", "httpx2", "koyeb-sdk"])
def test_no_tool_shows_a_secret_of_a_bridge(
    bridge: str, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Parts that sign other clients' requests renew in the midst of them."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for point in POINTS:
        clock = FakeClock()
        fake = FakeKoyeb(users={EMAIL: PASSWORD}, clock=clock)
        with SessionClient(
            token=fake.issue_token(),
            clock=clock,
            credentials=PasswordCredentials(EMAIL, PASSWORD),
            transport=Interrupting(fake, point, EVENTS.get(outcome, bool)),
            retry_policy=RetryPolicy(attempts=1),
        ) as session:
            clock.advance(LATE)
            if outcome == "refusal":
                for name in ("refresh", "login"):
                    fake.fail(name, Fault(status=400), times=9)
            error = error_of(partial(BRIDGES[bridge], session))
            assert (error is None) == (outcome == "success")
            seen(fake, error, caplog.records)
        caplog.clear()


def send(library: Any, auth: object) -> None:
    """Send a request on a user's own client."""

    def reply(_: object) -> Any:
        return library.Response(200)

    with library.Client(transport=library.MockTransport(reply), auth=auth) as client:
        client.post("https://app.koyeb.com/v1/apps", json={})


def by_sdk(session: SessionClient) -> None:
    """Have the official SDK sign the request that it is about to send."""
    bind = importlib.import_module("koyeb_session.koyeb_sdk").bind  # it takes seconds
    configuration: Any = SimpleNamespace(
        host="https://app.koyeb.com", api_key={}, api_key_prefix={}
    )
    bind(session, configuration)
    configuration.refresh_api_key_hook(configuration)


BRIDGES: Final[dict[str, Callable[[SessionClient], None]]] = {
    "httpx": lambda session: send(httpx, session.auth),
    "httpx2": lambda session: send(httpx2, auth_for(session)),
    "koyeb-sdk": by_sdk,
}


@pytest.mark.parametrize("event", ["cancellation", "deadline"])
async def test_no_tool_shows_a_secret_of_a_bridge_in_a_task(event: str) -> None:
    """The async flow renews, too, while its caller is cancelled or its time is over."""
    for point in POINTS[:3]:
        clock = FakeClock()
        fake = FakeKoyeb(users={EMAIL: PASSWORD}, clock=clock)
        scope = anyio.CancelScope()

        async def happen(scope: anyio.CancelScope = scope) -> None:
            if event == "cancellation":
                scope.cancel()
            await anyio.sleep(0 if event == "cancellation" else math.inf)

        async with AsyncSessionClient(
            token=fake.issue_token(),
            clock=clock,
            credentials=PasswordCredentials(EMAIL, PASSWORD),
            transport=Interrupting(fake, point, happen),
            timeout=10.0 if event == "cancellation" else 0.02,
            retry_policy=RetryPolicy(attempts=1),
        ) as session:
            clock.advance(LATE)
            reply = httpx2.MockTransport(lambda _: httpx2.Response(200))
            client = httpx2.AsyncClient(transport=reply, auth=auth_for(session))
            errors: list[BaseException] = []
            with scope:
                try:
                    await client.post("https://app.koyeb.com/v1/apps", json={})
                except BaseException as exc:
                    errors.append(exc)
                    if not isinstance(exc, KoyebSessionError):
                        raise
            await client.aclose()
            seen(fake, errors.pop())
