"""Tools that show variables show no secret in a frame of the package, after any failure."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import anyio
import attrs
import httpcore
import httpx
import pytest

import koyeb_session
from koyeb_session import (
    AsyncSessionClient,
    KoyebSessionError,
    PasswordCredentials,
    RetryPolicy,
    SessionClient,
)
from koyeb_session.testing import FakeKoyeb, Fault, assert_no_secret

from .walkers import WALKERS

EMAIL: Final = "me@example.com"
PASSWORD: Final = "canary-password-3e5d81"
FINGERPRINT: Final = "canary-fingerprint-77ab02"
ODD: Final = "canary odd 51aa0e"
"""A token, or a fingerprint, that fits into no header."""
ORGANIZATION: Final = FakeKoyeb(users={EMAIL: PASSWORD}).organizations[EMAIL][0]
PACKAGE: Final = Path(koyeb_session.__file__).parent
KIT: Final = PACKAGE / "testing"

Entry: TypeAlias = Callable[[Any], Any]
Point: TypeAlias = Literal["request", "reply", "body", "close"]
"""Where in a request something happens: before it, before its reply, in the body, at the end."""
POINTS: Final[tuple[Point, ...]] = get_args(Point)

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


class Interrupting(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The fake's transport, on which something happens at one point of each request."""

    def __init__(self, fake: FakeKoyeb, point: Point, event: Callable[[], Any]) -> None:
        self._inner = fake.transport
        self._point = point
        self._event = event

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        self.at("request")
        response = self._inner.handle_request(request)
        self.at("reply")
        response.stream = Body(response.stream, self)
        return response

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""
        await self.async_at("request")
        response = await self._inner.handle_async_request(request)
        await self.async_at("reply")
        response.stream = Body(response.stream, self)
        return response

    def at(self, point: Point) -> None:
        """Let it happen, if this is where."""
        if self._point == point:
            self._event()

    async def async_at(self, point: Point) -> None:
        """Let it happen, if this is where."""
        if self._point == point:
            await self._event()


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body, of which all has arrived but its end."""

    def __init__(self, inner: Any, transport: Interrupting) -> None:
        self._inner = inner
        self._transport = transport

    def __iter__(self) -> Iterator[bytes]:
        yield from self._inner
        self._transport.at("body")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk
        await self._transport.async_at("body")

    def close(self) -> None:
        """End it."""
        self._inner.close()
        self._transport.at("close")

    async def aclose(self) -> None:
        """End it."""
        await self._inner.aclose()
        await self._transport.async_at("close")


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
        issued = [token.id for token in self.fake._ledger._tokens.values()]
        secrets = [PASSWORD, FINGERPRINT, ODD, *issued]
        assert_no_secret(secrets, *things)
        if error is None:
            return
        if not isinstance(error, httpx.TransportError):  # which carries the request that it is of
            assert_no_secret(secrets, error, packages=["koyeb_session"])
        for name, walk in WALKERS.items():
            shown = {text for file, text in walk(error) if is_ours(Path(file))}
            try:
                assert_no_secret(secrets, *shown)
            except AssertionError:
                pytest.fail(f"{name} shows a secret")


def is_ours(file: Path) -> bool:
    """Tell whether a frame is one of the package's own."""
    return PACKAGE in file.parents and KIT not in file.parents


def interrupt() -> None:
    """Do what Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt
    raise RuntimeError  # a thread of the client's is not interrupted


def fail() -> None:
    """Do what a broken transport does."""
    raise RuntimeError


def time_out() -> None:
    """Do what httpx does when nothing comes."""
    message = "timed out"
    raise httpx.ReadTimeout(message)


async def async_fail() -> None:
    """Do what a broken transport does."""
    fail()


EVENTS: Final[Mapping[str, Callable[[], None]]] = {
    "success": lambda: None,
    "interruption": interrupt,
    "error": fail,
    "timeout": time_out,
}


def test_every_public_entry_is_looked_at() -> None:
    """The tables above contain every public method of the clients."""
    public = {name for name, _ in inspect.getmembers(AsyncSessionClient, inspect.isfunction)}
    known = {*ENTRIES, *MISUSED, *SAY_NOTHING}
    assert {name for name in public if not name.startswith("_")} <= known


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", SENDS)
def test_no_tool_shows_a_secret(name: str, event: str, caplog: pytest.LogCaptureFixture) -> None:
    """In the blocking half: on success, an interruption, an error and a timeout."""
    caplog.set_level(logging.DEBUG, "koyeb_session")
    for point in POINTS:
        scene = Scene(point, EVENTS[event])
        session = scene.session(SessionClient)
        error: BaseException | None = None
        try:
            ENTRIES[name](session)
        except BaseException as exc:  # noqa: BLE001 - whatever it is
            error = exc
        scene.seen(error, caplog.records, repr(session), error if event == "success" else None)
        session.close()
        caplog.clear()


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


@pytest.mark.parametrize("event", [async_fail, anyio.sleep_forever])
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
        error: BaseException | None = None
        try:
            ENTRIES[name](session)
        except KoyebSessionError as exc:
            error = exc
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


class BrokenStream(httpcore.NetworkStream):
    """Breaks at the first write."""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Break."""
        raise httpcore.WriteError


def test_no_tool_shows_what_is_written_to_a_broken_connection() -> None:
    """The package's own layer between httpcore and the socket shows no header."""
    from koyeb_session._http.deadline_network import _Stream

    with pytest.raises(httpcore.WriteError) as caught:
        _Stream(BrokenStream()).write(f"Authorization: Bearer {PASSWORD}".encode())
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
