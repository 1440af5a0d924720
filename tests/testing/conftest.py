"""Common fixtures of the testing kit: a blocking client on the fake's transport."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb

Connect = Callable[..., httpx.Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Give a function that connects to a fake, signed in with a token if it is given one."""
    with ExitStack() as stack:

        def connect(fake: FakeKoyeb, token: str | None = None) -> httpx.Client:
            client = httpx.Client(transport=fake.transport, base_url=fake.base_url)
            if token is not None:
                client.headers["Authorization"] = f"Bearer {token}"
            return stack.enter_context(client)

        yield connect
