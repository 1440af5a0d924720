"""The docstrings are the reference: their examples run, and their defaults are true."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import anyio
import attrs
import fastapi
import httpx
import httpx2
import pytest

import koyeb_session
from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    RefreshPolicy,
    RetryPolicy,
    SessionClient,
)
from koyeb_session.testing import FakeKoyeb, Fault

from .keyrings import Ring, machine_keyring
from .support import replace_network

PACKAGE = Path(koyeb_session.__path__[0])
PUBLIC = [
    "koyeb_session",
    *(
        module.name
        for module in pkgutil.walk_packages(koyeb_session.__path__, "koyeb_session.")
        if not re.search(r"\._", module.name)
    ),
]
for _name in ("koyeb.api", "redis.asyncio"):
    importlib.import_module(_name)
KOYEB: Any = importlib.import_module("koyeb")
REDIS: Any = importlib.import_module("redis")
ROLE = re.compile(r":\w+:`|\.\. [\w-]+::|^=+ =+$", re.MULTILINE)
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def public_docstrings() -> Iterator[tuple[str, object, str]]:
    """Give each public module, class, function, method and property with its docstring."""
    for name in PUBLIC:
        module = importlib.import_module(name)
        yield name, module, module.__doc__ or ""
        for public in getattr(module, "__all__", ()):
            thing: object = getattr(module, public)
            yield f"{name}.{public}", thing, inspect.getdoc(thing) or ""
            if inspect.isclass(thing):
                for member, value in vars(thing).items():
                    if not member.startswith("_"):
                        text = inspect.getdoc(value) or ""
                        yield f"{name}.{public}.{member}", value, text


DOCSTRINGS = [*public_docstrings()]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, _, text in DOCSTRINGS])
def test_docstring_has_no_raw_markup(name: str, text: str) -> None:
    """A reader, and an editor's hover, see Markdown: no roles, directives or tables of another."""
    assert not ROLE.search(text), name
    assert text.count("```") % 2 == 0, name


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, thing, text in DOCSTRINGS if inspect.isclass(thing)]
)
def test_class_has_an_example(name: str, text: str) -> None:
    """A reader sees how each public class is used."""
    assert "```python\n" in text or ">>> " in text, name


def test_init_arguments_are_all_documented() -> None:
    """Each argument of a public class has its line, in the class itself and not elsewhere."""
    for name, thing, text in DOCSTRINGS:
        if not inspect.isclass(thing) or "Args:" not in text:
            continue
        try:
            names = set(inspect.signature(thing).parameters)
        except ValueError:
            continue
        if names == {"arguments"}:  # those of the client, by name
            names = set(inspect.signature(AsyncSessionClient).parameters)
        assert {each for each in names if not re.search(rf"^ +{each}: ", text, re.MULTILINE)} == (
            set()
        ), name


@pytest.mark.parametrize("name", ["http", "auth"])
@pytest.mark.parametrize("half", [AsyncSessionClient, SessionClient])
def test_requests_name_both_families_of_errors(half: type[object], name: str) -> None:
    """A reader of `session.http` learns to catch both this package's errors and httpx's."""
    text = inspect.getdoc(getattr(half, name)) or ""
    assert "httpx" in text
    assert "KoyebSessionError" in text or "Auth` names" in text


def test_tree_of_errors_is_in_the_packages_docstring() -> None:
    """The tree has each error once, below its own kind."""
    rows = re.findall(r"^( *)- `(\w+Error)`: ", koyeb_session.__doc__ or "", re.MULTILINE)
    errors = [each for each in koyeb_session.__all__ if each.endswith("Error")]
    assert sorted(name for _, name in rows) == sorted(errors)
    above: list[type] = [Exception]
    for indent, name in rows:
        error = getattr(koyeb_session, name)
        del above[len(indent) // 4 + 1 :]
        assert error.__base__ is above[-1], name
        above.append(error)


WORDS = {
    "12 hours": 43_200.0,
    "60 seconds": 60.0,
    "10 seconds": 10.0,
    "1 second": 1.0,
    "0.2 seconds": 0.2,
    "2 seconds": 2.0,
    "5 seconds": 5.0,
}


@pytest.mark.parametrize("policy", [RefreshPolicy, RetryPolicy])
def test_defaults_of_a_policy_are_in_its_docstring(policy: type[Any]) -> None:
    """Each field says its default, in words."""
    text = " ".join((inspect.getdoc(policy) or "").split())
    for field in attrs.fields(policy):
        (said,) = re.findall(rf"{field.name}: [^;]+; ([\w. ]+?) by default", text)
        assert WORDS.get(said) or float(said) == getattr(policy(), field.name), field.name


# Examples


def examples() -> Iterator[tuple[str, str]]:
    """Give each block of Python in the docstrings of the package, and where it begins."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            text = getattr(getattr(node, "value", None), "value", None)
            if isinstance(node, ast.Expr) and isinstance(text, str):
                for found in FENCE.finditer(text):
                    line = node.lineno + text.count("\n", 0, found.start())
                    where = f"{path.relative_to(PACKAGE)}:{line}"
                    assert found[1] == "python", where
                    yield where, textwrap.dedent(found[2])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKoyeb]:
    """Put a fake service in place of the network, and keep stores away from the machine's own."""
    fake = FakeKoyeb()
    replace_network(monkeypatch, fake)

    def send2(_: object, request: httpx2.Request) -> httpx2.Response:
        with httpx.Client(transport=fake.transport) as client:
            reply = client.request(request.method, str(request.url), headers=request.headers.raw)
        return httpx2.Response(reply.status_code, content=reply.content)

    async def send2_async(_: object, request: httpx2.Request) -> httpx2.Response:
        return send2(_, request)

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", send2)
    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", send2_async)

    def folder(_: str) -> Path:
        return tmp_path

    monkeypatch.setattr(KOYEB.api.AppsApi, "list_apps", list)
    monkeypatch.setattr("platformdirs.user_state_path", folder)
    monkeypatch.setenv("KOYEB_TOKEN", fake.issue_api_token())
    with machine_keyring(Ring()):
        yield fake


def names(fake: FakeKoyeb) -> dict[str, Any]:
    """Give the names that a reader has imported, and has at hand."""
    found: dict[str, Any] = {}
    for module in PUBLIC:
        public = importlib.import_module(module)
        found |= {name: getattr(public, name) for name in getattr(public, "__all__", ())}
    organization = fake.organizations["me@example.com"][0]
    api_token = fake.issue_api_token()
    return found | {
        "Annotated": Annotated,
        "Any": Any,
        "Depends": fastapi.Depends,
        "UTC": UTC,
        "APIRouter": fastapi.APIRouter,
        "FastAPI": fastapi.FastAPI,
        "koyeb": KOYEB,
        "datetime": datetime,
        "httpx": httpx,
        "httpx2": httpx2,
        "redis": REDIS,
        "time": time,
        "api_token": api_token,
        "organization_id": organization,
        "timedelta": timedelta,
        "credentials": AccessTokenCredentials(api_token, organization),
    }


# An operation that a block tries fails with the error that the block expects.
STATUSES = {
    "BadRequestError": 400,
    "InvalidCredentialsError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "EndpointGoneError": 410,
    "ServerError": 500,
    "ApiError": 500,
}


EXAMPLES = [*examples()]


@pytest.mark.parametrize(("where", "block"), EXAMPLES, ids=[where for where, _ in EXAMPLES])
def test_example_runs(where: str, block: str, fake: FakeKoyeb) -> None:
    """Code copied from the reference works; only the network is replaced."""
    at_hand = names(fake)
    token = fake.issue_token()
    if re.search(r"\bawait\b|async with", block):

        async def run() -> None:
            async with AsyncSessionClient(token=token) as session:
                program = f"async def example(session):\n{textwrap.indent(block, '    ')}"
                exec(program, at_hand)  # noqa: S102 - our own text
                await at_hand["example"](session)

        anyio.run(run)
    else:
        expected = re.search(r"except (\w+)", block)
        operation = re.search(r"session\.(login|refresh|switch_organization)\(", block)
        if expected and operation and expected[1] in STATUSES:
            fake.fail(operation[1], Fault(status=STATUSES[expected[1]]))
        with SessionClient(token=token) as session:
            at_hand["session"] = session
            exec(block, at_hand)  # noqa: S102 - our own text
            if "def test_my_store" in block:
                at_hand["test_my_store"]()


def test_examples_are_of_both_halves() -> None:
    """The blocking half's examples are blocking ones."""
    for where, block in EXAMPLES:
        assert not (where.startswith("_sync") and re.search(r"await|[Aa]sync", block)), where
    assert any(where.startswith("_sync") for where, _ in EXAMPLES)
