"""The examples of stores run as their readers would run them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import redis

from koyeb_session import SessionClient
from koyeb_session.stores import RedisTokenStore
from koyeb_session.testing import FakeKoyeb, check_store

from ..test_examples import EXAMPLES, said
from .conftest import RedisServer


def test_second_run_of_the_script_makes_no_login() -> None:
    """The example of a saved session signs in once for two runs."""
    lines = said("script_with_saved_session.py").splitlines()
    assert lines[1:] == [
        "Asked for the apps: 200.",
        "Run 1 sent: login, apps.",
        "Asked for the apps: 200.",
        "Run 2 sent: apps.",
    ]


def test_sign_in_elsewhere_asks_a_person_once() -> None:
    """The example of an identity provider shows a code in its first run alone."""
    lines = said("sign_in_elsewhere.py").splitlines()
    assert re.fullmatch(r"Open http://127\.0\.0\.1:\d+/device and enter [A-Z-]{9}\.", lines[0])
    assert lines[1:] == [
        "Asked for the apps: 200.",
        "An hour later the token has expired, and the program runs again.",
        "Asked for the apps: 200.",
        "The rotating token was exchanged 1 time(s), and nobody was asked.",
    ]


def test_fleet_signs_in_and_renews_once(redis_server: RedisServer) -> None:
    """The example of a fleet on a Redis: one login and one renewal for eight members."""
    out = said("fleet_with_redis.py", REDIS_URL=f"redis://127.0.0.1:{redis_server.port}")
    assert out.count("8 of 8 members were answered.") == 2
    assert "The service saw 1 login and 1 renewal." in out


def test_fleet_without_redis_says_how_to_get_one() -> None:
    """Without REDIS_URL the example says what to set, and starts nothing."""
    assert "Set REDIS_URL" in said("fleet_with_redis.py")


def test_documented_acl_is_enough_and_no_more(redis_server: RedisServer) -> None:
    """A user of Redis as the security policy has it can keep a session, and reads no other key."""
    policy = (EXAMPLES.parent / ".github" / "SECURITY.md").read_text("utf-8")
    (rule,) = re.findall(r"`ACL SETUSER koyeb on >… ([^`]+)`", policy)
    administrator: Any
    client: Any
    with redis.Redis(port=redis_server.port) as administrator:
        administrator.execute_command("ACL", "SETUSER", "koyeb", "on", ">secret", *rule.split())
        administrator.hset("of-others", "record", "theirs")
    with redis.Redis(port=redis_server.port, username="koyeb", password="secret") as client:
        check_store(lambda: RedisTokenStore(client, key="koyeb-session:one"))
        fake = FakeKoyeb()
        store = RedisTokenStore(client, key="koyeb-session:two")
        with SessionClient(transport=fake.transport, store=store) as session:
            session.login("me@example.com", "correct horse")
            session.refresh()
            session.logout()
        for command in (["HGET", "of-others", "record"], ["KEYS", "*"], ["ACL", "LIST"]):
            with pytest.raises(redis.ResponseError):
                client.execute_command(*command)


def test_own_store_is_shared_by_both_halves() -> None:
    """The example of a store for SQLite signs in once for a blocking and an async program."""
    assert said("own_store_sqlite.py").splitlines() == [
        "The store does what a store has to do.",
        "A blocking program asked for the apps: 200.",
        "An asynchronous program asked for the apps: 200.",
        "The service saw 1 login for both.",
    ]
