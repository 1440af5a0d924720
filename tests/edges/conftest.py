"""What the tests of the public edges share: a real server, on a real socket."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Final, Literal

import pytest
import uvicorn

Serve = Callable[..., AbstractContextManager[str]]
SANSIO: Final = "websockets-sansio"


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio: the frameworks here know no other loop."""
    return "asyncio"


@contextlib.contextmanager
def _serving(
    app: Any, uds: str | None = None, ws: Literal["websockets-sansio", "wsproto"] = SANSIO
) -> Generator[str]:
    # No date of uvicorn's own: the pretend Koyeb sends one, by the clock of the test.
    config = uvicorn.Config(app, log_level="error", ws=ws, date_header=False)
    server = uvicorn.Server(config)
    if uds is None:
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(uds)
        listener.listen()
        url = "http://localhost"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield url  # connections wait in the backlog until the server has started
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture
def serve() -> Serve:
    """Serve an application with uvicorn, in a thread."""
    return _serving
