"""A first login with bare httpx, on asyncio."""

import asyncio
import sys

import httpx


async def main() -> None:
    """Sign in."""
    async with httpx.AsyncClient(base_url=sys.argv[1], timeout=60) as client:
        body = {"email": "me@example.com", "password": "correct horse"}
        reply = await client.post("/v1/account/login", json=body)
        assert reply.raise_for_status().json()["token"]["id"]


asyncio.run(main())
