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
)
from koyeb_session.testing import Fault

from .scenario import EMAIL, LIFE, PASSWORD, PHASES, AgedSession
from .steps import AtAwait

pytestmark = pytest.mark.anyio

MOST: Final = 200
"""More awaits than any call has."""


class CallInTask(AgedSession):
    """An asynchronous session, and one call of it."""

    session: AsyncSessionClient

    def __init__(self, phase: str, *, keeps: bool = True) -> None:
        super().__init__(AsyncSessionClient, phase, keeps=keeps)

    async def run(self, call: Call, act: Act, at: int) -> bool:
        """Make the call, with the act after its await ``at``; tell whether it has that many."""
        caller = AtAwait(lambda: act(self), at)
        try:
            self.result = await caller.run(lambda: call(self))
        except KoyebSessionError as exc:
            self.error = exc
        return caller.reached


Call = Callable[[CallInTask], Any]
Act = Callable[[CallInTask], Awaitable[object]]


async def current_token(scenario: CallInTask) -> str:
    """Ask for a token; the token that comes is good."""
    started = scenario.clock.time()
    token = await scenario.session.current_token()
    assert token.expires_at is not None
    assert token.expires_at.timestamp() > started, "an expired token was handed out"
    return token.id


async def request(scenario: CallInTask) -> int:
    """Send a request whose body can be sent again."""
    return (await scenario.session.http.get("/v1/apps")).status_code


async def streamed_request(scenario: CallInTask) -> int:
    """Send a request whose body cannot be sent again."""

    async def body() -> AsyncGenerator[bytes]:
        yield b'{"name": "one"}'

    return (await scenario.session.http.post("/v1/apps", content=body())).status_code


async def replay(scenario: CallInTask) -> int:
    """Send a request that is refused once."""
    scenario.fake.fail("apps", Fault(status=401))
    return await request(scenario)


async def new_session(scenario: CallInTask) -> str:
    """Ask for a token of another session."""
    return (await scenario.session.new_session()).id


async def renew(scenario: CallInTask) -> None:
    """Renew the session."""
    await scenario.session.refresh()


async def sign_in(scenario: CallInTask) -> None:
    """Sign in anew."""
    await scenario.session.login(EMAIL, PASSWORD)


async def sign_out(scenario: CallInTask) -> None:
    """Sign out."""
    await scenario.session.logout()


async def expire(scenario: CallInTask) -> None:
    """Let the token expire that the session began with."""
    scenario.clock.advance(max(LIFE + timedelta(seconds=1) - scenario.age, timedelta(0)))


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
        scenario = CallInTask(phase, keeps=call != "current_token")
        reached = await scenario.run(CALLS[call], ACTS[act], at)
        where = f"{call}, {phase}, {act} after await {at}"
        assert scenario.error is None, (where, scenario.error)
        if call == "current_token":
            assert scenario.result in scenario.held, where
        elif act == "expire" and scenario.result == 401:
            # Signed before it expired and sent after it, with no other one to be sent.
            assert call == "streamed_request" or (call, phase) == ("replay", "fresh"), where
        elif call != "new_session":
            assert scenario.result == 200, where
        assert await request(scenario) == 200, where
        await scenario.session.aclose()
        assert scenario.session.token is not None
        assert scenario.session.token.id in scenario.fake.live_tokens(), where
        if not reached:
            return
    pytest.fail("it has no end")


@pytest.mark.parametrize("call", CALLS)
async def test_logout_is_final_when_it_comes_between_any_two_awaits(call: str) -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in range(1, MOST):
        scenario = CallInTask("hard", keeps=False)
        reached = await scenario.run(CALLS[call], sign_out, at)
        await scenario.session.aclose()
        if not reached:
            return
        refusals = (
            NotSignedInError,
            AuthenticationError,
        )  # the latter of the service, as it was sent
        assert scenario.error is None or isinstance(scenario.error, refusals), (at, scenario.error)
        assert scenario.session.token is None, at
    pytest.fail("it has no end")
