"""The sign-in service in a process of its own, on plain sockets and over TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import certifi

EMAIL: Final = "me@example.com"
PASSWORD: Final = "correct horse"
_HOST: Final = "127.0.0.1"
_BACKLOG: Final = 4096
_TIDY: Final = 1.0  # seconds
_LATE: Final = 0.02
_ORIGINS: Final = 12


class Service:
    """
    A handle on the process.

    Attributes:
        http: The base URL on plain sockets.
        https: The base URL over TLS.
        slow: The base URL of the same service, which answers 20 ms later there.
        origins: Base URLs of the same service on ports of their own.
        environment: The environment of a process that trusts the service's certificate, beside
            all that are commonly trusted: to load those is a part of every cold start.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = json.loads(self._told())
        self.http: str = told["http"]
        self.https: str = told["https"]
        self.slow: str = told["slow"]
        self.origins: list[str] = told["origins"]
        self.environment: dict[str, str] = {**os.environ, "SSL_CERT_FILE": told["trusted"]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def exchanges(self) -> int:
        """Return how many refreshes the service has served so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("exchanges\n")
        self._process.stdin.flush()
        return int(self._told())

    def _told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _certified(trusted: Path) -> ssl.SSLContext:
    """Make a server's context, and add who has issued its certificate to those trusted."""
    import trustme

    issuer = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with issuer.issue_cert(_HOST).private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    trusted.write_bytes(trusted.read_bytes() + issuer.cert_pem.bytes())
    return context


async def _serve(tls: ssl.SSLContext, trusted: str) -> None:
    from koyeb_session.testing import FakeKoyeb, _server

    class Slow(_server._Connection):
        def _answer(self, reply: Any, *, keep_alive: bool) -> None:
            loop.call_later(_LATE, partial(super()._answer, reply, keep_alive=keep_alive))

    fake = FakeKoyeb()
    connections: set[Any] = set()
    loop = asyncio.get_running_loop()

    async def listen(
        kind: Callable[..., asyncio.Protocol] = _server._Connection,
        tls: ssl.SSLContext | None = None,
    ) -> str:
        listener = socket.create_server((_HOST, 0), backlog=_BACKLOG)
        await loop.create_server(
            partial(kind, fake._service, connections), sock=listener, ssl=tls, backlog=_BACKLOG
        )
        return f"http{'s' if tls else ''}://{_HOST}:{listener.getsockname()[1]}"

    urls = {"http": await listen(), "https": await listen(tls=tls), "slow": await listen(Slow)}
    origins = [await listen() for _ in range(_ORIGINS)]
    _tell(json.dumps({**urls, "trusted": trusted, "origins": origins}))
    tidying = asyncio.create_task(_tidy(fake.requests))
    while await asyncio.to_thread(sys.stdin.readline):
        _tell(str(fake.exchanges()))
    tidying.cancel()


async def _tidy(log: list[Any]) -> None:
    """Keep the log of a service that answers for minutes from growing."""
    while True:
        await asyncio.sleep(_TIDY)
        log.clear()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        bundle = shutil.copy(certifi.where(), folder)
        asyncio.run(_serve(_certified(Path(bundle)), bundle))
