"""Tools that show variables show no secret in a frame of the package, after any failure."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import anyio
import attrs
import httpcore
import httpx
import pytest

from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    SessionClient,
    Token,
)
from koyeb_session._api import wire
from koyeb_session.stores import MemoryTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault, assert_no_secret

from .interrupted import EVENTS, POINTS, Interrupting, Point, fail
from .support import raising
from .walkers import assert_no_tool_shows, error_of

EMAIL: Final = "me@example.com"
PASSWORD: Final = "canary-password-3e5d81"
FINGERPRINT: Final = "canary-fingerprint-77ab02"
ODD: Final = "canary odd 51aa0e"
"""A token, or a fingerprint, that fits into no header."""
ORGANIZATION: Final = FakeKoyeb(users={EMAIL: PASSWORD}).organizations[EMAIL][0]

Entry: TypeAlias = Callable[[Any], Any]

ENTRIES: Final[Mapping[str, Entry]] = {
    "login": lambda session: session.login(
        EMAIL, PASSWORD, organization_id=ORGANIZATION, seon_fp=FINGERPRINT
    ),
    "passwordless_login": lambda session: session.passwordless_login(EMAIL),
    "refresh": lambda session: session.refresh(),
    "logout": lambda session: session.logout(),
    "new_session": lambda session: session.new_session(),
    "switch_organization": lambda session: session.switch_organization(
        ORGANIZATION, seon_fp=FINGERPRINT
    ),
    "login_method": lambda session: session.login_method(EMAIL),
    "create_access_token": lambda session: session.create_access_token(ORGANIZATION),
    "unscope_organization_token": lambda session: session.unscope_organization_token(
        seon_fp=FINGERPRINT
    ),
    "current_token": lambda session: session.current_token(),
    "http": lambda session: session.http.post("/v1/apps", json={"name": "a"}),
}
SENDS: Final = [name for name in ENTRIES if hasattr(SessionClient, name)]
MISUSED: Final[Mapping[str, Entry]] = {
    "client": lambda session: type(session)(token=ODD),
    "login": lambda session: session.login(5, PASSWORD, seon_fp=FINGERPRINT),
    "login with half a character": lambda session: session.login(EMAIL, f"{PASSWORD}\ud800"),
    "login with an odd fingerprint": lambda session: session.login(EMAIL, PASSWORD, seon_fp=ODD),
    "login in no time": lambda session: session.login(EMAIL, PASSWORD, timeout=0),
    "switch_organization": lambda session: session.switch_organization("org", seon_fp=ODD),
    "use_token": lambda session: session.use_token(ODD),
    "for_token": lambda session: session.for_token(ODD),
}
SAY_NOTHING: Final = {"aclose", "guest", "keep_current", "on_token_change"}
"""Methods that get no secret, and send no request for their caller."""


@attrs.define
class Scene:
    """A fake service, and the event that its client runs into."""

    point: Point = "request"
    event: Callable[[], Any] = lambda: None
    timeout: float = 10.0
    fake: FakeKoyeb = attrs.field(factory=lambda: FakeKoyeb(users={EMAIL: PASSWORD}))

    def session(self, kind: type[Any]) -> Any:
        """Make a client that is signed in, with a password to do so again."""
        return kind(
            token=self.fake.issue_token(EMAIL),
            credentials=PasswordCredentials(EMAIL, PASSWORD),
            transport=Interrupting(self.fake, self.point, self.event),
            retry_policy=RetryPolicy(attempts=1),
            timeout=self.timeout,
        )

    def seen(self, error: BaseException | None, *things: object) -> None:
        """Fail if a tool shows a secret in a frame of the package's; the kit plays the service."""
        issued = [token.id for token in self.fake._registry._tokens.values()]
        secrets = [PASSWORD, FINGERPRINT, ODD, *issued]
        assert_no_secret(secrets, *things)
        if error is None:
            return
        if not isinstance(error, httpx.TransportError):  # which carries the request that it is of
            assert_no_secret(secrets, error, packages=["koyeb_session"])
        assert_no_tool_shows(error, secrets)


def test_every_public_entry_is_looked_at() -> None:
    """The tables above contain every public method of the clients."""
    public = {name for name, _ in inspect.getmembers(AsyncSessionClient, inspect.isfunction)}
    known = {*ENTRIES, *MISUSED, *SAY_NOTHING}
    assert {name for name in public if not name.startswith("_")} <= known


@pytest.mark.pitfall(38)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", SENDS)
def test_no_tool_shows_a_secret(name: str, event: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the blocking half: on success, an interruption, an error and a timeout."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for point in POINTS:
        scene = Scene(point, EVENTS[event])
        session = scene.session(SessionClient)
        error = error_of(partial(ENTRIES[name], session))
        scene.seen(error, caplog.records, repr(session), error if event == "success" else None)
        session.close()
        caplog.clear()


@pytest.mark.parametrize("name", ["login", "new_session", "create_access_token"])
def test_no_tool_shows_a_reply_whose_reading_is_interrupted(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come while a reply is read; catches the body among the variables of a frame."""
    scene = Scene()
    session = scene.session(SessionClient)
    broken = SimpleNamespace(loads=raising(KeyboardInterrupt()), dumps=json.dumps)
    monkeypatch.setattr(wire, "json", broken)
    error = error_of(lambda: ENTRIES[name](session))
    monkeypatch.undo()
    assert isinstance(error, KeyboardInterrupt)
    scene.seen(error)
    session.close()


@pytest.mark.parametrize("name", SENDS)
async def test_no_tool_shows_a_secret_of_a_cancelled_task(name: str) -> None:
    """In the asynchronous half, wherever in the operation a cancellation comes."""
    for point in POINTS:
        released = anyio.Event()
        scope = anyio.CancelScope()

        async def cancel(scope: anyio.CancelScope = scope, end: anyio.Event = released) -> None:
            scope.cancel()
            await end.wait()

        scene = Scene(point, cancel)
        session = scene.session(AsyncSessionClient)
        error: BaseException | None = None
        with scope:
            try:
                await ENTRIES[name](session)
            except BaseException as exc:
                error = exc
                raise
        scene.seen(error)
        del error
        released.set()
        await session.aclose()


@pytest.mark.parametrize("event", [fail, anyio.sleep_forever])
@pytest.mark.parametrize("name", SENDS)
async def test_no_tool_shows_a_secret_in_a_task(
    name: str, event: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """In the asynchronous half, on an error and at the deadline."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for point in POINTS[:3]:  # nothing bounds how long a transport takes to close
        scene = Scene(point, event, timeout=0.01 if event is anyio.sleep_forever else 10.0)
        session = scene.session(AsyncSessionClient)
        error: BaseException | None = None
        with anyio.move_on_after(0.05 if name == "http" else None):  # a phase has no deadline here
            try:
                await ENTRIES[name](session)
            except (KoyebSessionError, RuntimeError) as exc:
                error = exc
        scene.seen(error, caplog.records)
        await session.aclose()
        caplog.clear()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
@pytest.mark.parametrize("name", [name for name in SENDS if name not in {"http", "current_token"}])
def test_no_tool_shows_a_secret_of_a_refused_operation(name: str, status: int) -> None:
    """An error reply is told without the request that it answers."""
    scene = Scene()
    scene.fake.fail(name, Fault(status=status), times=3)
    with scene.session(SessionClient) as session:
        error = error_of(lambda: ENTRIES[name](session))
        assert error is None or isinstance(error, KoyebSessionError)
        scene.seen(error, error)


@pytest.mark.blocks_loop
@pytest.mark.parametrize("name", MISUSED)
async def test_no_tool_shows_a_secret_of_a_wrong_argument(name: str) -> None:
    """Where arguments are refused, the others are not shown."""
    scene = Scene()
    with scene.session(SessionClient) as session, pytest.raises((ValueError, TypeError)) as caught:
        MISUSED[name](session)
    scene.seen(caught.value)
    async with scene.session(AsyncSessionClient) as session:
        with pytest.raises((ValueError, TypeError)) as caught:
            await MISUSED[name](session)
    scene.seen(caught.value)


def test_no_tool_shows_what_is_written_to_a_broken_connection() -> None:
    """The package's own layer between httpcore and the socket shows no header."""
    from koyeb_session._http.deadline_network import _Stream

    broken: Any = httpcore.NetworkStream()
    broken.write = raising(httpcore.WriteError())
    with pytest.raises(httpcore.WriteError) as caught:
        _Stream(broken).write(f"Authorization: Bearer {PASSWORD}".encode())
    Scene().seen(caught.value)


def test_no_field_shows_a_secret() -> None:
    """A field that may hold a secret hides by itself: tools walk fields, and ask no class."""
    from koyeb_session._api import messages, operations
    from koyeb_session._core import models

    hidden = {"password", "secrets", "headers", "body", "params", "api_token", "renewal", "id"}
    found: set[str] = set()
    for module in (messages, models, operations):
        for kind in vars(module).values():
            if isinstance(kind, type) and attrs.has(kind):
                shown = [field.name for field in attrs.fields(kind) if field.repr]
                assert hidden.isdisjoint(shown), kind
                texts = [f for f in attrs.fields(kind) if f.repr and f.type in {str, "str"}]
                assert not {"token", "secret"} & {field.name for field in texts}, kind
                found.add(kind.__name__)
    assert {"Token", "LoginRequest", "Operation"} <= found


class BrokenClock(FakeClock):
    """Raises where a saved record is compared with the session's own token."""

    def time(self) -> float:
        """Return the time."""
        if sys._getframe(1).f_code.co_name == "newer":
            raise ZeroDivisionError
        return super().time()


def test_no_tool_shows_the_secret_of_a_record_that_the_session_knows() -> None:
    """Catches an identity in a variable that is the secret itself, where the clock raises."""
    clock, store = BrokenClock(), MemoryTokenStore()
    fake = FakeKoyeb(clock=clock)
    with SessionClient(
        token=fake.issue_token(), store=store, transport=fake.transport, clock=clock
    ) as session:
        held = session.refresh()
        clock.advance(timedelta(days=2))
        saved = Token(fake.issue_token())
        store.save(saved)
        with pytest.raises(ZeroDivisionError) as caught:
            session.current_token()
    assert_no_tool_shows(caught.value, [held.id, saved.id])
