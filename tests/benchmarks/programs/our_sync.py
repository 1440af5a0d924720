"""A first login with ``SessionClient``."""

import sys

from koyeb_session import SessionClient

with SessionClient(base_url=sys.argv[1], timeout=60) as session:
    assert session.login("me@example.com", "correct horse").id
