"""Another task acts between any two awaits of a call that asks for a token."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from typing import Any, Final

import pytest

from koyeb_session import (
    AsyncSessionClient,
    AuthenticationError,
    KoyebSessionError,
    NotSignedInError,
    PasswordCredentials,
    RefreshPolicy,
    RetryPolicy,
    Token,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .scenario import EMAIL, LIFE, PASSWORD
from .steps import AtAwait
from .test_lines import PHASES

pytestmark = pytest.mark.anyio

MOST: Final = 200
"""More awaits than any call has."""


class Scene:
    """A session with credentials, at some age, with its answers and its requests."""

    def __init__(self, phase: str, *, keeps: bool = True) -> None:
        self.clock = FakeClock()
        self.fake = FakeKoyeb(
            clock=self.clock, token_lifetime=LIFE, refresh="keeps" if keeps else "revokes"
        )
        self.session = AsyncSessionClient(
            token=self.fake.issue_token(),
            credentials=PasswordCredentials(EMAIL, PASSWORD),
            transport=self.fake.transport,
            clock=self.clock,
            retry_policy=RetryPolicy(delay=0),
            refresh_policy=RefreshPolicy(jitter=0),
        )
        assert self.session.token is not None
        self.held: list[str] = [self.session.token.id]
        self.session.on_token_change(self._note)
        self.age = PHASES[phase]
        self.clock.advance(self.age)
        self.result: object = None
        self.error: Exception | None = None

    def _note(self, token: Token | None) -> None:
        if token is not None:
            self.held.append(token.id)

    async def run(self, call: Call, act: Act, at: int) -> bool:
        """Make the call, with the act after its await ``at``; tell whether it has that many."""
        caller = AtAwait(lambda: act(self), at)
        try:
            self.result = await caller.run(lambda: call(self))
        except KoyebSessionError as exc:
            self.error = exc
        return caller.reached


Call = Callable[[Scene], Any]
Act = Callable[[Scene], Awaitable[object]]


async def current_token(scene: Scene) -> str:
    """Ask for a token; the token that comes is good."""
    started = scene.clock.time()
    token = await scene.session.current_token()
    assert token.expires_at is not None
    assert token.expires_at.timestamp() > started, "an expired token was handed out"
    return token.id


async def request(scene: Scene) -> int:
    """Send a request whose body can be sent again."""
    return (await scene.session.http.get("/v1/apps")).status_code


async def streamed_request(scene: Scene) -> int:
    """Send a request whose body cannot be sent again."""

    async def body() -> AsyncGenerator[bytes]:
        yield b'{"name": "one"}'

    return (await scene.session.http.post("/v1/apps", content=body())).status_code


async def replay(scene: Scene) -> int:
    """Send a request that is refused once."""
    scene.fake.fail("apps", Fault(status=401))
    return await request(scene)


async def new_session(scene: Scene) -> str:
    """Ask for a token of another session."""
    return (await scene.session.new_session()).id


async def renew(scene: Scene) -> None:
    """Renew the session."""
    await scene.session.refresh()


async def sign_in(scene: Scene) -> None:
    """Sign in anew."""
    await scene.session.login(EMAIL, PASSWORD)


async def sign_out(scene: Scene) -> None:
    """Sign out."""
    await scene.session.logout()


async def expire(scene: Scene) -> None:
    """Let the token expire that the session began with."""
    scene.clock.advance(max(LIFE + timedelta(seconds=1) - scene.age, timedelta(0)))


CALLS: Final[dict[str, Call]] = {
    call.__name__: call for call in (current_token, request, streamed_request, replay, new_session)
}
ACTS: Final[dict[str, Act]] = {act.__name__: act for act in (renew, sign_in, expire)}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("call", CALLS)
async def test_call_is_answered_when_another_task_acts_between_any_two_awaits(
    call: str, phase: str, act: str
) -> None:
    """No expired token is handed out or sent, and nothing fails that has credentials to go on."""
    for at in range(1, MOST):
        scene = Scene(phase, keeps=call != "current_token")
        reached = await scene.run(CALLS[call], ACTS[act], at)
        where = f"{call}, {phase}, {act} after await {at}"
        assert scene.error is None, (where, scene.error)
        if call == "current_token":
            assert scene.result in scene.held, where
        elif act == "expire" and scene.result == 401:
            # Signed before it expired and sent after it, with no other one to be sent.
            assert call == "streamed_request" or (call, phase) == ("replay", "fresh"), where
        elif call != "new_session":
            assert scene.result == 200, where
        assert await request(scene) == 200, where
        await scene.session.aclose()
        assert scene.session.token is not None
        assert scene.session.token.id in scene.fake.live_tokens(), where
        if not reached:
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("call", CALLS)
async def test_logout_is_final_when_it_comes_between_any_two_awaits(call: str) -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in range(1, MOST):
        scene = Scene("hard", keeps=False)
        reached = await scene.run(CALLS[call], sign_out, at)
        await scene.session.aclose()
        if not reached:
            return
        refusals = (
            NotSignedInError,
            AuthenticationError,
        )  # the latter of the service, as it was sent
        assert scene.error is None or isinstance(scene.error, refusals), (at, scene.error)
        assert scene.session.token is None, at
    pytest.fail("it has no end")
