"""The speed of the package, as counts that are the same on every machine."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Coroutine, Iterator
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session._concurrency.runtime import state_lock
from koyeb_session.testing import FakeKoyeb

from .concurrency import async_advance

SYNC = """
from koyeb_session import SessionClient
with SessionClient(base_url={url!r}) as session:
    session.login("me@example.com", "correct horse")
"""
ASYNC = """
import asyncio
from koyeb_session import AsyncSessionClient
async def main():
    async with AsyncSessionClient(base_url={url!r}) as session:
        await session.login("me@example.com", "correct horse")
asyncio.run(main())
"""
HOOKS = """
import os, types
hooks = []
os.register_at_fork = lambda **given: hooks.extend(given.values())
from koyeb_session import SessionClient
SessionClient()
for hook in hooks:
    held = getattr(hook, "__globals__", {})
    if held.get("__name__", "").startswith("koyeb_session"):
        for it in held.values():
            name = it.__name__ if isinstance(it, types.ModuleType) else type(it).__module__
            print("itself" if name == held["__name__"] else name.split(".")[0])
"""
IMPORT = """
import os, sys, threading, typing
import httpx
class Forbidden(dict):
    def __getitem__(self, name): sys.exit(f"{{name}} is read")
    get = __contains__ = __getitem__
os.environ = Forbidden()
threading.Thread.start = lambda thread: sys.exit(f"{{thread.name}} begins")
from koyeb_session import {client}, ApiError, Token
assert typing.get_type_hints({client}.__init__)["token"] == Token | str | None
assert typing.get_type_hints({client}.login)["return"] is Token
print("done")
"""
FIRST = """
import sys, threading
from koyeb_session import {client}
def start(thread):
    those = [name for name in sys.modules if name == "attrs" or name.endswith(".engine")]
    print(thread.name, "with" if those else "without", "engine")
threading.Thread.start = start
{client}{call}
"""
FROZEN = """
import atexit, gc, runpy, sys
import koyeb_session
before = gc.get_freeze_count()
atexit.register(lambda: print("frozen" if gc.get_freeze_count() > before else "not frozen"))
sys.argv = ["koyeb_session", "--version"]
{}
"""
CLIENTS = {"sync": "SessionClient", "async": "AsyncSessionClient"}
OURS = {"attr", "attrs", "cattrs", "koyeb_session", "typing_extensions"}
ANYIO = {"anyio", "sniffio"}


def loaded(program: str) -> set[str]:
    """Run a program, and give the names of the modules that it ends with."""
    return set(printed(f"{program}\nimport sys; print(*sys.modules)").split())


def printed(program: str) -> str:
    """Run a program, and return its output."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def foreign(names: set[str]) -> set[str]:
    """Return the packages that do not belong to the standard library."""
    started_with = {name.split(".")[0] for name in loaded("")}  # by .pth files, say
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - started_with


def below(name: str, names: set[str]) -> set[str]:
    """Return the modules of one package."""
    return {it for it in names if f"{it}.".startswith(f"{name}.")}


# Imports


def test_import_of_the_root_brings_in_no_httpx() -> None:
    """Errors need no client, so a program that catches errors loads none."""
    names = loaded("import koyeb_session; koyeb_session.ApiError")
    assert foreign(names) == {"koyeb_session"}
    assert len(below("koyeb_session", names)) <= 4
    assert len(names - loaded("import httpx")) <= 6


@pytest.mark.parametrize("half", CLIENTS)
def test_import_of_a_client_costs_little_more_than_that_of_httpx(half: str) -> None:
    """The libraries of a client, such as attrs and cattrs, come with the first client."""
    names = loaded(f"from koyeb_session import {CLIENTS[half]}")
    new = names - loaded("import httpx")
    assert foreign(new) == {"koyeb_session"}
    assert f"koyeb_session._{half}.client" in new
    assert len(new) <= 12


@pytest.mark.parametrize("half", CLIENTS)
def test_import_starts_no_thread_and_reads_no_environment(half: str) -> None:
    """Nothing happens before there is a client, also where a tool reads the hints."""
    assert printed(IMPORT.format(client=CLIENTS[half])) == "done"


@pytest.mark.parametrize("half", CLIENTS)
@pytest.mark.parametrize("call", ["()", ".from_env(token='t')"])
def test_first_client_is_imported_while_certificates_are_read(half: str, call: str) -> None:
    """Their thread has begun by the time that the import of the engine begins, or of attrs."""
    begun = printed(FIRST.format(client=CLIENTS[half], call=call))
    assert begun == "koyeb-session-tls without engine"


@pytest.mark.parametrize("half", CLIENTS)
def test_first_client_brings_in_its_half(half: str) -> None:
    """Nothing of the other half, of the connections, or of an event loop."""
    client = CLIENTS[half]
    names = loaded(f"from koyeb_session import {client}; {client}(base_url='http://127.0.0.1')")
    names -= loaded("import ssl, threading, httpx; httpx.create_ssl_context()")
    assert foreign(names) <= (OURS if half == "sync" else OURS | ANYIO)
    other = "sync" if half == "async" else "async"
    for name in (f"koyeb_session._{other}", "httpcore", "anyio._backends", "asyncio"):
        assert below(name, names) == set()
    assert len(below("koyeb_session", names)) <= 55


@pytest.mark.parametrize(("program", "other"), [(SYNC, "_async"), (ASYNC, "_sync")])
def test_first_login_brings_in_what_httpx_does(program: str, other: str) -> None:
    """A whole sign-in needs attrs, cattrs and httpx; the blocking one no event loop's back end."""
    with FakeKoyeb().serve() as url:
        names = loaded(program.format(url=url))
        bare = loaded(f"import httpx, cattrs; httpx.Client().get({url!r})")
    assert foreign(names - bare) <= OURS | ANYIO
    assert below(f"koyeb_session.{other}", names) == set()
    assert len(below("koyeb_session", names)) <= 55
    if program is SYNC:
        assert below("anyio._backends", names) == set()
        assert len(names - bare - below("koyeb_session", names)) <= 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_end_of_a_program_is_not_put_off() -> None:
    """
    A hook for forks holds its module until the interpreter has ended, and all that is in it.

    Letting go of httpx and its types that late, object by object, takes milliseconds.
    """
    held = set(printed(HOOKS).split())
    assert "threading" in held
    held.discard("itself")
    assert held <= sys.stdlib_module_names - {"typing"}  # typing's caches hold types of httpx


def test_shell_command_ends_without_a_last_look_at_all_objects() -> None:
    """It freezes the garbage collector as it ends; the library leaves that to the program."""
    program = FROZEN.format("runpy.run_module('koyeb_session', run_name='__main__')")
    assert printed(program).splitlines()[-1] == "frozen"
    assert printed(FROZEN.format("koyeb_session.SessionClient().close()")) == "not frozen"


# The hot path


class Counting:
    """Stands for the lock of the process, and counts."""

    def __init__(self) -> None:
        self.taken = 0

    def __enter__(self) -> None:
        self.taken += 1
        state_lock.__enter__()

    def __exit__(self, *_: object) -> None:
        state_lock.__exit__(None, None, None)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """Count how often the lock of the process is taken."""
    for client in (AsyncSessionClient, SessionClient):
        client(transport=FakeKoyeb().transport)  # imports the modules that hold the lock
    counting = Counting()
    for name, module in list(sys.modules.items()):
        if name.startswith("koyeb_session.") and getattr(module, "state_lock", None) is state_lock:
            monkeypatch.setattr(module, "state_lock", counting)
    return counting


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that never waits, without an event loop."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


@pytest.mark.pitfall(19)
def test_async_hook_on_a_fresh_token_waits_for_nothing(lock: Counting) -> None:
    """No event loop runs here, so any real await would fail; no lock is taken."""
    fake = FakeKoyeb()
    session = AsyncSessionClient(transport=fake.transport, token=fake.issue_token())
    assert lock.taken == 1  # the token's own
    request = httpx.Request("GET", "https://app.koyeb.com/v1/apps")
    flow = session.auth.async_auth_flow(request)
    assert at_once(async_advance(flow)) is request
    assert session.token is not None
    assert request.headers["Authorization"] == f"Bearer {session.token.id}"
    assert at_once(async_advance(flow, httpx.Response(200, request=request))) is None
    assert at_once(session.current_token()) is session.token
    assert lock.taken == 1


def test_sync_hook_on_a_fresh_token_takes_no_lock(lock: Counting) -> None:
    """A whole request through httpx takes none; a sign-in takes one."""
    fake = FakeKoyeb()
    with SessionClient(transport=fake.transport) as session:
        session.login("me@example.com", "correct horse")
        signing_in = lock.taken
        assert signing_in > 0
        for _ in range(3):
            assert session.http.get("/v1/apps").status_code == 200
        session.current_token()
        assert lock.taken == signing_in


# Sessions for others


@pytest.fixture
def quiet() -> Iterator[None]:
    """Keep the garbage collector and the tracer to this test."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("client", [AsyncSessionClient, SessionClient])
def test_a_session_for_another_token_is_small(client: type[Any]) -> None:
    """A thousand are held in less than 1 KiB each, and make seven objects for the collector."""
    fake = FakeKoyeb()
    session = client(transport=fake.transport)
    tokens = [fake.issue_token() for _ in range(1000)]
    session.for_token(tokens[0])
    gc.collect()
    objects, (before, _) = len(gc.get_objects()), tracemalloc.get_traced_memory()
    held = [session.for_token(token) for token in tokens]
    after, _ = tracemalloc.get_traced_memory()
    grown = len(gc.get_objects()) - objects
    assert (after - before) / len(held) < 1024
    assert grown / len(held) < 7.1
