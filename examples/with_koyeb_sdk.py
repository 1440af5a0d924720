"""The official SDK with a session's token, across an expiry; here on a fake Koyeb."""

from datetime import timedelta

from koyeb import api  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped

from koyeb_session import PasswordCredentials, SessionClient
from koyeb_session.koyeb_sdk import bind
from koyeb_session.testing import FakeClock, FakeKoyeb

clock = FakeClock()
fake = FakeKoyeb(clock=clock)
credentials = PasswordCredentials("me@example.com", "correct horse")

with (
    fake.serve() as url,
    SessionClient(base_url=url, credentials=credentials, clock=clock) as session,
):
    configuration = api.Configuration(host=url)
    bind(session, configuration)
    with api.ApiClient(configuration) as client:
        print(f"The SDK sees {api.AppsApi(client).list_apps().count} apps.")
        clock.advance(timedelta(hours=23, minutes=59, seconds=30))
        print(f"A day later it sees {api.AppsApi(client).list_apps().count} apps.")
    print(f"The token was renewed {fake.exchanges()} time.")
