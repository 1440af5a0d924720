"""A first login with bare httpx."""

import sys

import httpx

with httpx.Client(base_url=sys.argv[1], timeout=60) as client:
    body = {"email": "me@example.com", "password": "correct horse"}
    reply = client.post("/v1/account/login", json=body)
    assert reply.raise_for_status().json()["token"]["id"]
