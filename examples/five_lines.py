"""Sign in, and call Koyeb's API; here on a fake Koyeb, whose URL is all that is not real."""

from koyeb_session import SessionClient
from koyeb_session.testing import FakeKoyeb

with FakeKoyeb().serve() as url, SessionClient(base_url=url) as session:
    session.login("me@example.com", "correct horse")
    print(session.http.get("/v1/apps").json())
