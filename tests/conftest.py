"""Fixtures of all tests: event loops and a check for blocking them, a service and its clock."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import Phase, settings

from koyeb_session._concurrency.event_loop import shared_task as async_shared_task
from koyeb_session._concurrency.threads import shared_task
from koyeb_session.testing import FakeClock, FakeKoyeb

from .concurrency import idle

# The phase that explains a failure traces each example; `--hypothesis-profile=explain` has it.
settings.register_profile("explain", settings.get_profile("default"))
settings.register_profile(
    "default", phases=[phase for phase in Phase if phase is not Phase.explain]
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Choose pitfalls: ``pytest -m pitfall`` takes all, and ``pytest --pitfall 6`` one."""
    parser.addoption("--pitfall", action="append", type=int, help="run the tests of a pitfall")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other pitfalls."""
    if wanted := set(config.getoption("pitfall") or ()):
        items[:] = [it for it in items if wanted & {*pitfalls(it)}]


def pitfalls(item: pytest.Item) -> Iterator[int]:
    """Give the numbers of the pitfalls that a test is about."""
    for mark in item.iter_markers("pitfall"):
        yield from mark.args


def pytest_collection_finish() -> None:
    """Freeze the objects that live until the end, as many tests call the garbage collector."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on asyncio and on trio."""
    backend: str = request.param
    return backend


@pytest.fixture
def clock() -> FakeClock:
    """Make a clock that stands still until the test moves it."""
    return FakeClock()


@pytest.fixture
def fake(clock: FakeClock) -> FakeKoyeb:
    """Make a service whose tokens live for a day, and die when they are refreshed."""
    return FakeKoyeb(clock=clock)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have work count as late as soon as its time is up, not a second after that."""
    for module in (async_shared_task, shared_task):
        monkeypatch.setattr(module, "GRACE", 0.0)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the proxies of the machine that the tests run on."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.fixture(autouse=True)
def nobody_else_draws(request: pytest.FixtureRequest) -> None:
    """Wait for the threads of earlier tests, whose use of `random` Hypothesis takes for its own."""
    if request.node.get_closest_marker("hypothesis"):
        idle()


@pytest.fixture(autouse=True)
def loop_stays_free(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which the package blocks a running asyncio loop."""
    if request.node.get_closest_marker("blocks_loop"):
        yield
    else:
        with blockbuster_ctx("koyeb_session") as blocked:
            lock = blocked.functions["threading.Lock.acquire"]
            # coverage takes its own lock inside the code that it measures.
            lock.can_block_in("coverage/collector.py", {"lock_data"})
            # The end of the block waits for the fake service's thread.
            lock.can_block_in("koyeb_session/testing/_server.py", {"serving"})
            # A new client checks whether the certificates have changed since they were loaded.
            stat = blocked.functions["os.stat"]
            stat.can_block_in("koyeb_session/_http/tls.py", {"_stamp"})
            # If two threads import one module, the second one waits.
            lock.can_block_in("<frozen importlib._bootstrap>", {"acquire"})
            yield
