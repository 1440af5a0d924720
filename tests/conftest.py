"""Fixtures of all tests: the event loops of the async tests, and a guard against blocking them."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx


def pytest_collection_finish() -> None:
    """Freeze the objects that live until the end, as many tests call the garbage collector."""
    # Imported first: hypothesis asks the collector for references to trio's random numbers, and the
    # collector does not report frozen objects.
    importlib.import_module("hypothesis")
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each async test on asyncio and on trio."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def loop_stays_free(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which the package blocks a running asyncio loop."""
    if request.node.get_closest_marker("blocks_loop"):
        yield
    else:
        with blockbuster_ctx("koyeb_session") as guard:
            lock = guard.functions["threading.Lock.acquire"]
            # coverage takes its own lock inside the code that it measures.
            lock.can_block_in("coverage/collector.py", {"lock_data"})
            # The end of the block waits for the fake service's thread.
            lock.can_block_in("koyeb_session/testing/_server.py", {"serving"})
            # A new client checks whether the certificates have changed since they were loaded.
            stat = guard.functions["os.stat"]
            stat.can_block_in("koyeb_session/_http/tls.py", {"_stamp"})
            # If two threads import one module, the second one waits.
            lock.can_block_in("<frozen importlib._bootstrap>", {"acquire"})
            yield
