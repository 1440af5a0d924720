"""Serve a fake Koyeb for programs in any language: ``python -m koyeb_session.testing``."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Sequence

from . import FakeKoyeb

_HELLO = """\
A fake Koyeb listens at {url}
Sign in as me@example.com with the password "correct horse",
or with the API access token {token}
"""


def _port(text: str) -> int:
    if text.isdecimal() and len(text) < 6 and int(text) < 65_536:
        return int(text)
    raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m koyeb_session.testing",
        description="Serve a fake Koyeb sign-in service; its state is gone when it ends.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="0: any free one (%(default)s)")
    options = parser.parse_args(arguments)
    # Like SIGINT. As the first process of a container, this one would ignore SIGTERM otherwise.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fake = FakeKoyeb()
    try:
        with contextlib.suppress(KeyboardInterrupt), fake.serve(options.host, options.port) as url:
            sys.stdout.write(_HELLO.format(url=url, token=fake.issue_api_token()))
            sys.stdout.flush()
            threading.Event().wait()
    except OSError as exc:
        parser.exit(1, f"cannot listen at {options.host}, port {options.port}: {exc}\n")


if __name__ == "__main__":
    main()
