"""A first login with the official SDK, on asyncio."""

import asyncio
import sys

from koyeb import api_async as api  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped


async def main() -> None:
    """Sign in."""
    async with api.ApiClient(api.Configuration(host=sys.argv[1])) as client:
        request = api.LoginRequest(email="me@example.com", password="correct horse")
        token = (await api.SessionsApi(client).login(request)).token
        assert token is not None


asyncio.run(main())
