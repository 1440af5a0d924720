"""The fake as a program, for clients in any language."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from koyeb_session.testing.__main__ import main

SERVE = [sys.executable, "-W", "error", "-m", "koyeb_session.testing"]


def heed_interrupts() -> None:
    """Take Ctrl-C as a program in the foreground does; the tests may run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1"])  # noqa: S104 - as in a container
def test_program_serves_until_it_is_told_to_end(number: signal.Signals, host: str) -> None:
    """It says where it listens and how to sign in, and ends in order."""
    command = [*SERVE, "--host", host, "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509 - no thread runs here
    ) as process:
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(3)]
            url = re.sub(r"0\.0\.0\.0", "127.0.0.1", lines[0].split()[-1])
            token = lines[2].split()[-1]
            with httpx.Client(base_url=url, trust_env=False) as client:
                login = {"email": "me@example.com", "password": "correct horse"}
                assert client.post("/v1/account/login", json=login).status_code == 200
                signed = {"Authorization": f"Bearer {token}"}
                assert client.get("/v1/apps", headers=signed).status_code == 200
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_program_says_why_it_cannot_serve() -> None:
    """An address that is not free is one line, and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        done = subprocess.run(
            [*SERVE, "--port", number], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen at 127.0.0.1, port {number}: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("port", ["65536", "-1", "http", "9" * 5000])
def test_impossible_port_is_a_mistake_in_the_command(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is served, and the range is named."""
    with pytest.raises(SystemExit) as caught:
        main(["--port", port])
    assert caught.value.code == 2
    assert capsys.readouterr().err
