"""Common fixtures and helpers of the testing kit: blocking clients on the fake's transport."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from koyeb_session.testing import FakeKoyeb

from ..support import ME, PASSWORD

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


@pytest.fixture
def client(fake: FakeKoyeb, connect: Connect) -> httpx.Client:
    """Connect to the service, signed in."""
    return connect(fake, fake.issue_token())


@pytest.fixture
async def async_client(fake: FakeKoyeb) -> AsyncIterator[httpx.AsyncClient]:
    """Connect to the service, signed in, for awaiting."""
    headers = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with httpx.AsyncClient(
        transport=fake.transport, base_url=fake.base_url, headers=headers
    ) as client:
        yield client


def sign_in(client: httpx.Client, **changes: object) -> httpx.Response:
    """Send a login, right unless it is changed."""
    return client.post("/v1/account/login", json={"email": ME, "password": PASSWORD, **changes})


def claims(token_id: str) -> dict[str, Any]:
    """Read the claims of a JWT, as a client does: without verifying."""
    payload = token_id.split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return read
