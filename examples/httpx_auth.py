"""The session's auth on your own httpx clients, of both kinds; here on a fake Koyeb."""

import asyncio

import httpx

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient
from koyeb_session.testing import FakeKoyeb

credentials = PasswordCredentials("me@example.com", "correct horse")


async def with_async_client(url: str) -> None:
    async with (
        AsyncSessionClient(base_url=url, credentials=credentials) as session,
        httpx.AsyncClient(base_url=url, auth=session.auth) as client,
    ):
        response = await client.get("/v1/apps")  # signs in first: there is no token yet
        print(f"async: {response.status_code}, {session!r}")
        await session.logout()


def with_client(url: str) -> None:
    with (
        SessionClient(base_url=url, credentials=credentials) as session,
        httpx.Client(base_url=url, auth=session.auth) as client,
    ):
        response = client.post("/v1/apps", json={"name": "hello"})
        print(f"sync: {response.status_code}, {session!r}")
        session.logout()


with FakeKoyeb().serve() as url:
    asyncio.run(with_async_client(url))
    with_client(url)
