"""A session, opened, used, renewed and closed: on a fake Koyeb, or on the real one."""

import asyncio
import contextlib
import os
from datetime import UTC, datetime, timedelta

from koyeb_session import AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb


async def tour(url: str, email: str, password: str, clock: FakeClock | None) -> None:
    async with AsyncSessionClient(base_url=url, clock=clock) as session:
        token = await session.login(email, password)
        print(f"Signed in as {email}; its token is good until {token.expires_at or 'who knows'}.")
        answer = await session.http.get("/v1/apps")
        print(f"Asked for the apps: {answer.status_code} {answer.reason_phrase}.")
        changes: list[object] = []
        session.on_token_change(changes.append)
        if clock is None:
            await session.refresh()
        else:
            clock.advance(timedelta(hours=23, minutes=59.5))
            print("Most of a day goes by; the token has half a minute left.")
        answers = await asyncio.gather(*(session.http.get("/v1/apps") for _ in range(20)))
        good = sum(answer.is_success for answer in answers)
        print(f"Twenty requests at once: {good} answered, by {len(changes)} exchange of the token.")
        await session.logout()
        print("Signed out, here and at the service.")


with contextlib.ExitStack() as stack:
    if "KOYEB_EMAIL" in os.environ and "KOYEB_PASSWORD" in os.environ:
        clock, where = None, "https://app.koyeb.com"
        who, secret = os.environ["KOYEB_EMAIL"], os.environ["KOYEB_PASSWORD"]
    else:
        clock, who, secret = FakeClock(datetime.now(UTC)), "me@example.com", "correct horse"
        where = stack.enter_context(FakeKoyeb(clock=clock).serve())
        print(f"Without KOYEB_EMAIL and KOYEB_PASSWORD, this plays on a fake Koyeb at {where}.")
    asyncio.run(tour(where, who, secret, clock))
