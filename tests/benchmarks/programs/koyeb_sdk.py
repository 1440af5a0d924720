"""A first login with the official SDK."""

import sys

from koyeb import api  # type: ignore[import-untyped] # pyright: ignore[reportMissingTypeStubs] - untyped

with api.ApiClient(api.Configuration(host=sys.argv[1])) as client:
    request = api.LoginRequest(email="me@example.com", password="correct horse")
    token = api.SessionsApi(client).login(request).token
    assert token is not None
