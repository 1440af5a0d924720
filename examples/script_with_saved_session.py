"""A script that signs in once: it saves its session in a file, and the next run goes on with it."""

import contextlib
import os
import tempfile
from pathlib import Path

from koyeb_session import PasswordCredentials, SessionClient
from koyeb_session.stores import FileTokenStore
from koyeb_session.testing import FakeKoyeb


def run(url: str, credentials: PasswordCredentials, path: Path | None) -> None:
    """Do the script's work; the password is read each time, but used only where it must be."""
    store = FileTokenStore(path)  # None: the user's own folder for state
    with SessionClient(base_url=url, credentials=credentials, store=store) as session:
        print(f"Asked for the apps: {session.http.get('/v1/apps').status_code}.")


with contextlib.ExitStack() as stack:
    if "KOYEB_EMAIL" in os.environ and "KOYEB_PASSWORD" in os.environ:
        who = PasswordCredentials(os.environ["KOYEB_EMAIL"], os.environ["KOYEB_PASSWORD"])
        run("https://app.koyeb.com", who, None)
    else:
        fake = FakeKoyeb()
        where = stack.enter_context(fake.serve())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(f"Without KOYEB_EMAIL and KOYEB_PASSWORD, this plays on a fake Koyeb at {where}.")
        for number in (1, 2):
            before = len(fake.requests)
            me = PasswordCredentials("me@example.com", "correct horse")
            run(where, me, folder / "session.json")
            operations = [str(request.operation) for request in fake.requests[before:]]
            print(f"Run {number} sent: {', '.join(operations)}.")
