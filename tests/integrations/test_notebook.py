"""Sessions in a notebook: its kernel runs an event loop, in the thread that runs the cells."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from koyeb_session.testing import FakeKoyeb

BLOCKING = """
from koyeb_session import SessionClient
session = SessionClient(base_url="{url}")
token = session.login("me@example.com", "correct horse")
session.refresh()
print(session.http.get("/v1/apps").status_code)
"""
ASYNC = """
from koyeb_session import AsyncSessionClient
other = AsyncSessionClient(base_url="{url}")
token = await other.login("me@example.com", "correct horse")
await other.refresh()
print((await other.http.get("/v1/apps")).status_code)
"""
END = """
session.logout()
session.close()
await other.logout()
await other.aclose()
print(session, other)
"""


class Notebook:
    """A kernel, and its cells."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client: Any = client  # partly typed

    def run(self, cell: str) -> str:
        """Run a cell, and return its output or its last value; an error in it fails the test."""
        printed: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            printed.extend(content.get("traceback", []))
            printed.append(content.get("text", "") or content.get("data", {}).get("text/plain", ""))

        reply = self._client.execute_interactive(cell, output_hook=hear, timeout=30)
        assert reply["content"]["status"] == "ok", "\n".join(printed)
        return "".join(printed).strip()


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    """Start a kernel on sockets of the file system: a port might be taken before it binds it."""
    with tempfile.TemporaryDirectory() as folder:  # the path of a socket has to be short
        yield from kernel(Path(folder))


def kernel(folder: Path) -> Iterator[Notebook]:
    """Start a kernel, and end it."""
    file = str(folder / "kernel.json")
    manager: Any = KernelManager(transport="ipc", ip=str(folder / "socket"), connection_file=file)
    manager.kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=30)
        yield Notebook(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_cells_use_both_sessions(notebook: Notebook) -> None:
    """Cells sign in, renew and ask, with and without `await`, and show sessions without secrets."""
    lifetime = timedelta(hours=36, minutes=30)  # far from where the words change
    with FakeKoyeb(token_lifetime=lifetime).serve() as url:
        assert notebook.run(BLOCKING.format(url=url)) == "200"
        assert notebook.run(ASYNC.format(url=url)) == "200"
        for name in ("session", "other"):
            shown = notebook.run(name)
            assert "signed in as" in shown
            assert "token good for 1 d 12 h" in shown
            assert notebook.run(f"{name}.token.id in repr({name}) + repr({name}.token)") == "False"
        assert notebook.run(END).count("closed") == 2
