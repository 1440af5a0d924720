"""Two accounts, and two services, on one store of each kind: nobody acts as somebody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import attrs
import keyring
import pytest
from fastapi import FastAPI

from koyeb_session import (
    AccessTokenCredentials,
    AsyncMemoryTokenStore,
    MemoryTokenStore,
    PasswordCredentials,
    SessionClient,
    Token,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import (
    AsyncFileTokenStore,
    AsyncKeyringTokenStore,
    AsyncRedisTokenStore,
    FileTokenStore,
    KeyringTokenStore,
    RedisTokenStore,
)
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..keyrings import Ring, machine_keyring
from .conftest import RedisServer
from .fleet import async_redis_client, redis_client
from .test_own_store import AsyncSqliteTokenStore, SqliteTokenStore

ANN, BOB = "ann@example.com", "bob@example.com"
USERS: Final = {ANN: "correct horse", BOB: "battery staple"}
HERE, ELSEWHERE = "https://app.koyeb.com", "https://staging.example.com"
KINDS: Final = ["memory", "file", "redis", "keyring", "own"]
KEY: Final = "session"


@attrs.frozen
class Place:
    """Where the sessions of several programs are kept, in one record."""

    kind: str
    folder: Path
    ring: Ring
    memory: Any
    port: int = 0
    client: Any = None
    async_client: Any = None

    def store(self, *, asynchronous: bool = False) -> Any:
        """Make one program's store."""
        file, database = self.folder / "session.json", self.folder / "sessions.db"
        makers: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "memory": (lambda: self.memory[0], lambda: self.memory[1]),
            "file": (partial(FileTokenStore, file), partial(AsyncFileTokenStore, file)),
            "redis": (
                partial(RedisTokenStore, self.client, key=KEY),
                partial(AsyncRedisTokenStore, self.async_client, key=KEY),
            ),
            "keyring": (KeyringTokenStore, AsyncKeyringTokenStore),
            "own": (partial(SqliteTokenStore, database), partial(AsyncSqliteTokenStore, database)),
        }
        return makers[self.kind][asynchronous]()

    def write(self, record: str, token: Token) -> None:
        """Put a record there as another version of this package has; it holds ``token``."""
        if self.kind == "file":
            path = self.folder / "session.json"
            path.write_text(record, "utf-8")
            path.chmod(0o600)
        elif self.kind == "redis":
            self.client.hset(KEY, "record", record)
        elif self.kind == "keyring":
            keyring.set_password("koyeb-session", "default", record)
        else:  # they hold fields, and these have no others
            self.store().save(token)


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Make an empty place of each kind."""
    kind: str = request.param
    with machine_keyring(ring := Ring()):
        made = Place(kind, tmp_path, ring, (MemoryTokenStore(), AsyncMemoryTokenStore()))
        if kind == "own":
            SqliteTokenStore(tmp_path / "sessions.db").create()
        if kind == "redis":
            server: RedisServer = request.getfixturevalue("redis_server")
            with redis_client(server.port) as client:
                yield attrs.evolve(made, client=client, port=server.port)
        else:
            yield made


Begin: TypeAlias = Callable[[FakeKoyeb, str, dict[str, Any]], SessionClient]


def by_credentials(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Sign in with a password when it is needed."""
    return SessionClient(credentials=PasswordCredentials(email, USERS[email]), **given)


def by_login(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Sign in with a password at once."""
    session = SessionClient(**given)
    session.login(email, USERS[email])
    return session


def by_token(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Begin with a token."""
    return SessionClient(token=fake.issue_token(email), **given)


def by_access_token(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Have tokens of an organization issued."""
    organization = fake.organizations[email][0]
    credentials = AccessTokenCredentials(fake.issue_api_token(email), organization)
    return SessionClient(credentials=credentials, **given)


def by_environment(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Do as the environment says."""
    names = {"KOYEB_EMAIL": email, "KOYEB_PASSWORD": USERS[email]}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KOYEB_")]:
            patch.delenv(name)
        for name, value in names.items():
            patch.setenv(name, value)
        return SessionClient.from_env(**given)


BEGINNINGS: Final[dict[str, Begin]] = {
    "credentials": by_credentials,
    "login": by_login,
    "token": by_token,
    "access token": by_access_token,
    "environment": by_environment,
}


@pytest.mark.parametrize("what", ["account", "service"])
@pytest.mark.parametrize("begins", BEGINNINGS)
def test_no_session_acts_as_another(
    place: Place, begins: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The record of a first program is not sent by a second one, taken over or revoked."""
    theirs = FakeKoyeb(users=USERS)
    first = BEGINNINGS[begins](theirs, ANN, {"store": place.store(), "transport": theirs.transport})
    with first:
        first.refresh() if begins == "token" else first.current_token()
    record = place.store().load()
    assert record is not None
    ours, email, url = (
        (theirs, BOB, HERE) if what == "account" else (FakeKoyeb(users=USERS), ANN, ELSEWHERE)
    )
    before = len(ours.requests)
    given = {"store": place.store(), "transport": ours.transport, "base_url": url}
    with BEGINNINGS[begins](ours, email, given) as second:
        assert second.http.get("/v1/apps").status_code == 200
        assert second.token is not None
        assert second.token.id != record.id
        second.logout()
    assert record.id not in {request.bearer for request in ours.requests[before:]}
    assert record.id in theirs.live_tokens()
    if begins in {"credentials", "access token", "environment"}:  # which look before they sign in
        assert "the store holds a session of" in caplog.text


@pytest.mark.parametrize("what", ["account", "service"])
async def test_no_application_acts_as_another(
    place: Place, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The service's own session of a FastAPI application is one account's at one service."""
    theirs = FakeKoyeb(users=USERS)
    ours, email, url = (
        (theirs, BOB, HERE) if what == "account" else (FakeKoyeb(users=USERS), ANN, ELSEWHERE)
    )
    # The client belongs to this event loop. It connects only if the place is a Redis.
    async with async_redis_client(place.port) as client:
        place = attrs.evolve(place, async_client=client)

        async def answer(fake: FakeKoyeb, email: str, url: str) -> str:
            sessions = KoyebSessions(
                base_url=url,
                credentials=PasswordCredentials(email, USERS[email]),
                store=place.store(asynchronous=True),
                transport=fake.transport,
            )
            async with sessions.lifespan(FastAPI()):
                session = await sessions.service()
                assert (await session.http.get("/v1/apps")).status_code == 200
                return "" if session.token is None else session.token.id

        first = await answer(theirs, ANN, HERE)
        before = len(ours.requests)
        second = await answer(ours, email, url)
    assert second != first
    assert first not in {request.bearer for request in ours.requests[before:]}
    assert first in theirs.live_tokens()
    assert "the store holds a session of" in caplog.text


@pytest.mark.parametrize("begins", ["nothing", "credentials", "environment"])
def test_record_of_the_first_version_is_a_session(place: Place, begins: str) -> None:
    """It says neither which service nor which account: it is used, and noted down with both."""
    clock = FakeClock()
    fake = FakeKoyeb(users=USERS, clock=clock)
    token = Token(fake.issue_token(ANN), expires_at=at(clock, 24), issued_at=at(clock, 0))
    fields = {"id": token.id, "user_id": None, "organization_id": None}
    times = {"expires_at": at(clock, 24).isoformat(), "issued_at": at(clock, 0).isoformat()}
    record = {"format": "koyeb-session", "version": 1, "token": fields | times}
    place.write(json.dumps(record), token)
    given: dict[str, Any] = {"store": place.store(), "transport": fake.transport, "clock": clock}
    begin: dict[str, Begin] = {"nothing": by_nothing, **BEGINNINGS}
    with begin[begins](fake, ANN, given) as session:
        assert session.http.get("/v1/apps").status_code == 200
        assert {request.bearer for request in fake.requests} == {token.id}
        new = session.refresh()
    saved = place.store().load()
    assert saved == new
    assert saved.provenance.startswith(f"koyeb-session/1 {HERE} ")
    with by_credentials(fake, ANN, given | {"store": place.store()}) as session:
        assert session.current_token() == new
    assert {request.operation for request in fake.requests} == {"apps", "refresh"}


def by_nothing(fake: FakeKoyeb, email: str, given: dict[str, Any]) -> SessionClient:
    """Begin with the token of the store."""
    return SessionClient(**given)


def at(clock: FakeClock, hours: float) -> datetime:
    """Give a time of the service's."""
    return datetime.fromtimestamp(clock.time() + 3600 * hours, UTC)
