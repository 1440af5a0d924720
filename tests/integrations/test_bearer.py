"""The caller's bearer: how it is read from raw headers, and where it shows."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

import contextlib
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI, WebSocket

from koyeb_session import AsyncSessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeClock, FakeKoyeb, assert_no_secret

from .application import ask_raw

A = b"authorization"
CANARY = "CANARYtokenCANARYtoken0123456789"
Headers = list[tuple[bytes, bytes]]


@pytest.fixture
async def app(fake_koyeb: FakeKoyeb, koyeb_clock: FakeClock) -> AsyncIterator[FastAPI]:
    """Run an application that says who the caller is."""
    sessions = KoyebSessions(transport=fake_koyeb.transport, token="service", clock=koyeb_clock)
    app = FastAPI(lifespan=sessions.lifespan)

    @app.get("/")
    async def who(session: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> str:
        return "" if session.token is None else session.token.id

    @app.websocket("/")
    async def stream(
        websocket: WebSocket, session: Annotated[AsyncSessionClient, Depends(sessions.caller)]
    ) -> None:
        await websocket.accept(subprotocol=session.token.id if session.token else None)

    async with sessions.lifespan():
        yield app


@pytest.mark.parametrize(
    "headers",
    [
        [(A, b"Bearer one")],
        [(A, b"bearer one")],
        [(A, b"BEARER  one")],
        [(A, b" Bearer one\t")],
    ],
    ids=lambda headers: repr(headers[0][1]),
)
async def test_one_bearer_is_the_callers(app: FastAPI, headers: Headers) -> None:
    """The scheme may be written in any case, and blanks around it are HTTP's own."""
    answer, *_, rest = await ask_raw(app, "/", headers)
    assert (answer["status"], rest["body"]) == (200, b'"one"')


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(A, b"Bearer one"), (A, b"Bearer two")],
        [(A, b"Bearer one"), (A, b"Bearer one")],
        [(A, b"Basic eDp5"), (A, b"Bearer two")],
        [(A, b"Bearer one"), (A, b"Basic eDp5")],
        [(A, b"Bearer one"), (A, b"")],
        *[
            [(A, value)]
            for value in (
                b"",
                b"Bearer",
                b"Bearer ",
                b"Token one",
                b"Basic eDp5",
                b"Bearer one, Bearer two",
                b"Bearer one,two",
                b"Bearer one two",
                b"Basic eDp5, Bearer one",
                b"Bearer\tone",
                b"Bearer \xa0one\xa0",
                b"Bearer\xa0one",
                b"Bearer \x1fone\x1c",
                b"Bearer \x85one",
                b"\x85Bearer one",
                b"Bearer o\x00ne",
                b"Bearer one\r\nX-Evil: 1",
                b"Bearer \xe9",
                b'Bearer "one"',
                b"Bearer =one",
                b"Bearer " + b"a" * 16_385,
            )
        ],
    ],
    ids=lambda headers: repr([value[:32] for _, value in headers]),
)
async def test_anything_but_one_bearer_is_refused(app: FastAPI, headers: Headers) -> None:
    """A check in front of us may look at another token than we do: none is taken."""
    answer, *_ = await ask_raw(app, "/", headers)
    assert answer["status"] == 401
    assert dict(answer["headers"])[b"www-authenticate"].startswith(b"Bearer")


@pytest.mark.parametrize(
    ("headers", "subprotocols", "taken"),
    [
        ([(A, b"Bearer one")], [], "one"),
        ([], ["Bearer", "one"], "one"),
        ([], ["chat", "bearer", "one"], "one"),
        ([(A, b"Basic eDp5")], ["Bearer", "one"], "one"),  # of a page behind a password
        ([(A, b"Bearer one")], ["Bearer", "one"], None),
        ([(A, b"Bearer one")], ["Bearer", "two"], None),
        ([(A, b"Bearer one")], ["Bearer"], None),
        ([], ["Bearer", "one", "Bearer", "two"], None),
        ([], ["Bearer", "bearer", "two"], None),
        ([], ["Bearer"], None),
        ([], ["Bearer", ""], None),
        ([], ["one"], None),
        ([], ["Bearer", "\u017fecret"], None),
        ([(A, b"Basic eDp5"), (A, b"Basic eDp5")], ["Bearer", "one"], None),
    ],
    ids=repr,
)
async def test_websocket_has_one_bearer(
    app: FastAPI, headers: Headers, subprotocols: list[str], taken: str | None
) -> None:
    """A header and a subprotocol are two bearers; a password of another layer is none."""
    answer, *_ = await ask_raw(app, "/", headers, subprotocols)
    assert answer.get("subprotocol") == taken
    if taken is None:
        assert (answer["type"], answer["code"]) == ("websocket.close", 1008)


@pytest.mark.parametrize("make", [KoyebSessions, KoyebSessions.from_env])
def test_configuration_shows_its_token_in_no_frame(make: Callable[..., KoyebSessions]) -> None:
    """A wrong argument beside the service's token shows the argument, not the token."""
    with pytest.raises(ValueError, match="timeout") as caught:
        make(token=CANARY, timeout=-1)
    shown: list[str] = []
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        if "koyeb_session" in frame.f_code.co_filename.rpartition("/")[0]:
            for value in frame.f_locals.values():
                with contextlib.suppress(AttributeError):  # a client that is not made yet
                    shown.append(repr(value))
    assert_no_secret(CANARY, shown)
