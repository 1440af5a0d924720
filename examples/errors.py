"""Catch the errors of a bad night, and tell which of them are worth another try."""

from datetime import timedelta

import httpx

from koyeb_session import KoyebSessionError, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

fake = FakeKoyeb(clock=(clock := FakeClock()))


def ask(what: str, session: SessionClient) -> None:
    """Catch both families: this package's errors are about the token, httpx's about the request."""
    try:
        session.http.get("/v1/apps").raise_for_status()
    except KoyebSessionError as error:
        print(f"{what}: {type(error).__name__}. Try again later? {error.retryable}.")
    except httpx.HTTPError as error:
        print(f"{what}: {type(error).__name__}, of httpx.")
    else:
        print(f"{what}: answered.")


with SessionClient(transport=fake.transport, clock=clock) as session:
    ask("Before anybody has signed in", session)
    try:
        session.login("me@example.com", "a guess")
    except KoyebSessionError as error:
        print(f"With a wrong password: {type(error).__name__}. Try again later? {error.retryable}.")
    session.login("me@example.com", "correct horse")
    ask("After the login", session)
    fake.fail("apps", Fault(status=500))
    ask("When Koyeb's API fails", session)
    fake.fail("apps", Fault(reset=True))
    ask("When the network fails", session)
    clock.advance(timedelta(hours=25))
    ask("A day later", session)
