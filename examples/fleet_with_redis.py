"""A fleet that shares one session through Redis or Valkey: one sign-in, one renewal for all."""

import asyncio
import os
from datetime import timedelta

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from koyeb_session import AsyncSessionClient, PasswordCredentials
from koyeb_session.stores import AsyncRedisTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb

KEY = f"koyeb-session:example:{os.getpid()}"  # a real fleet agrees on one
ME = PasswordCredentials("me@example.com", "correct horse")


async def member(url: str, redis_url: str, clock: FakeClock) -> bool:
    """Do the work of one machine of the fleet; here it is a task, with its own session."""
    client = redis.asyncio.from_url(redis_url, socket_timeout=2, retry=Retry(NoBackoff(), 0))
    store = AsyncRedisTokenStore(client, key=KEY)
    session = AsyncSessionClient(base_url=url, credentials=ME, store=store, clock=clock)
    async with client, session:
        return (await session.http.get("/v1/apps")).is_success


async def main(redis_url: str) -> None:
    fake = FakeKoyeb(clock=(clock := FakeClock()))
    with fake.serve() as url:
        for hours in (0, 23.995):
            clock.advance(timedelta(hours=hours))
            answers = await asyncio.gather(*(member(url, redis_url, clock) for _ in range(8)))
            print(f"{sum(answers)} of 8 members were answered.")
    sent = [request.operation for request in fake.requests]
    print(f"The service saw {sent.count('login')} login and {fake.exchanges()} renewal.")


if "REDIS_URL" not in os.environ:
    print("Set REDIS_URL; `docker run -p 6379:6379 valkey/valkey` serves redis://localhost.")
else:
    asyncio.run(main(os.environ["REDIS_URL"]))
