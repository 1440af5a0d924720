"""The examples of the integrations run as their readers would run them."""

from __future__ import annotations

import runpy

import httpx
import pytest

from ..test_examples import EXAMPLES, run
from .conftest import Serve

SAYS = {
    "with_koyeb_sdk.py": ["sees 0 apps", "A day later", "renewed 1 time"],
    "websocket_stream.py": ["day 1: running", "day 2: running"],
}


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_says_what_happens(name: str) -> None:
    """A reader who runs an example sees the output that it shows."""
    done = run(str(EXAMPLES / name))
    assert done.returncode == 0, done.stderr
    for line in SAYS[name]:
        assert line in done.stdout


def test_fastapi_app(serve: Serve) -> None:
    """The application logs callers in and out, knows who they are, and has a page for all."""
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"]
    with serve(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/public").json() == {"apps": 0}
        for headers in ({}, {"Authorization": "Bearer nobody's"}):
            refused = client.get("/me", headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Bearer")
        me = {"email": "me@example.com", "password": "correct horse"}
        token = client.post("/login", json=me).json()
        bearer = {"Authorization": f"Bearer {token}"}
        assert client.get("/me", headers=bearer).json()["user"]["email"] == "me@example.com"
        wrong = client.post("/login", json={**me, "password": "wrong"})
        assert wrong.status_code == 401
        assert "wrong" not in wrong.text
        assert client.post("/login", json={**me, "password": " "}).status_code == 422
        assert client.post("/logout", headers=bearer).status_code == 200
        assert client.get("/me", headers=bearer).status_code == 401
