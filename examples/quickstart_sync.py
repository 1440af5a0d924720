"""The same without async: a session in a script, shared by twenty threads."""

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from koyeb_session import SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb


def tour(url: str, email: str, password: str, clock: FakeClock | None) -> None:
    with (
        SessionClient(base_url=url, clock=clock or time) as session,
        ThreadPoolExecutor(20) as pool,
    ):
        token = session.login(email, password)
        print(f"Signed in as {email}; its token is good until {token.expires_at or 'who knows'}.")
        if clock is not None:
            clock.advance(timedelta(hours=23, minutes=59, seconds=30))
            print("Most of a day goes by; the token has half a minute left.")
        answers = list(pool.map(session.http.get, ["/v1/apps"] * 20))
        good = sum(answer.is_success for answer in answers)
        renewed = "renewed on the way" if session.token != token else "still the first one"
        print(f"Twenty threads asked for the apps: {good} answered, and the token is {renewed}.")
        session.logout()
        print("Signed out, here and at the service.")


with contextlib.ExitStack() as stack:
    if "KOYEB_EMAIL" in os.environ and "KOYEB_PASSWORD" in os.environ:
        clock, where = None, "https://app.koyeb.com"
        who, secret = os.environ["KOYEB_EMAIL"], os.environ["KOYEB_PASSWORD"]
    else:
        clock, who, secret = FakeClock(datetime.now(UTC)), "me@example.com", "correct horse"
        where = stack.enter_context(FakeKoyeb(clock=clock).serve())
        print(f"Without KOYEB_EMAIL and KOYEB_PASSWORD, this plays on a fake Koyeb at {where}.")
    tour(where, who, secret, clock)
