"""A first login with ``AsyncSessionClient``, on asyncio."""

import asyncio
import sys

from koyeb_session import AsyncSessionClient


async def main() -> None:
    """Sign in."""
    async with AsyncSessionClient(base_url=sys.argv[1], timeout=60) as session:
        assert (await session.login("me@example.com", "correct horse")).id


asyncio.run(main())
