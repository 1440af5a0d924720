"""Sign in at an identity provider with a code (RFC 8628); the next run asks nobody."""

import logging
import tempfile
import time
from datetime import timedelta
from typing import Any

import httpx

from koyeb_session import NotSignedInError, SessionClient, SessionExpiredError, Token
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeClock, FakeIdentityProvider, FakeKoyeb

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
logging.getLogger("koyeb_session").addHandler(logging.NullHandler())  # a first run is no error
koyeb = FakeKoyeb(clock=(clock := FakeClock()))
provider = FakeIdentityProvider(koyeb, interval=timedelta(0))


def ask(path: str, **form: str) -> Any:
    return httpx.post(f"{login_url}/oauth2/{path}", data={"client_id": "example", **form}).json()


def bring(replaced: Token | None) -> Token:
    """Exchange the rotating token; the session saves the next one before it uses the new token."""
    if replaced is None or replaced.renewal is None:
        raise LookupError("nobody has signed in yet")
    answer = ask("token", grant_type="refresh_token", refresh_token=replaced.renewal)
    return Token(answer["access_token"], renewal=answer["refresh_token"])  # a JWT says its expiry


def sign_in() -> Token:
    """Show a code and wait for a person: an explicit step, for a program that has one."""
    device = ask("device_authorization")
    print(f"Open {device['verification_uri']} and enter {device['user_code']}.")
    provider.approve(device["user_code"])  # the person, not your program
    form = {"grant_type": DEVICE_CODE, "device_code": device["device_code"]}
    while "error" in (answer := ask("token", **form)):
        if answer["error"] not in {"authorization_pending", "slow_down"}:
            raise PermissionError(answer["error"])
        time.sleep(device["interval"])
    return Token(answer["access_token"], renewal=answer["refresh_token"])


def run(url: str, store: FileTokenStore) -> None:
    with SessionClient(base_url=url, credentials=bring, store=store, clock=clock) as session:
        try:
            session.current_token()
        except (NotSignedInError, SessionExpiredError):
            session.use_token(sign_in())
        print(f"Asked for the apps: {session.http.get('/v1/apps').status_code}.")


with koyeb.serve() as koyeb_url, provider.serve() as login_url, tempfile.TemporaryDirectory() as at:
    run(koyeb_url, FileTokenStore(f"{at}/session.json"))
    clock.advance(timedelta(hours=1))
    print("An hour later the token has expired, and the program runs again.")
    run(koyeb_url, FileTokenStore(f"{at}/session.json"))
    print(f"The rotating token was exchanged {provider.exchanges()} time(s), and nobody was asked.")
