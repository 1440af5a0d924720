"""Another task acts between any two awaits of a call that asks for a token."""

from __future__ import annotations

import itertools

import pytest

from koyeb_session import (
    AsyncSessionClient,
    AuthenticationError,
    KoyebSessionError,
    NotSignedInError,
)

from .scenario import ACTS, CALLS, CASES, AgedSession, Work
from .steps import AtAwait


async def run(scenario: AgedSession, call: Work, act: Work, at: int) -> bool:
    """Make the call, with the act after its await ``at``; tell whether it has that many."""
    caller = AtAwait(lambda: act(scenario), at)
    try:
        scenario.keep(await caller.run(lambda: call(scenario)))
    except KoyebSessionError as exc:
        scenario.error = exc
    return caller.reached


@pytest.mark.parametrize(("call", "phase", "act"), CASES)
async def test_call_is_answered_when_another_task_acts_between_any_two_awaits(
    call: str, phase: str, act: str
) -> None:
    """No expired token is handed out or sent, and nothing fails that has credentials to go on."""
    for at in itertools.count(1):
        scenario = AgedSession(AsyncSessionClient, phase, keeps=call != "current_token")
        reached = await run(scenario, CALLS[call], ACTS[act], at)
        scenario.after = (await scenario.session.http.get("/v1/apps")).status_code
        await scenario.session.aclose()
        scenario.check(call, act, at)
        if not reached:
            return


@pytest.mark.parametrize("call", CALLS)
async def test_logout_is_final_when_it_comes_between_any_two_awaits(call: str) -> None:
    """A caller that asks meanwhile gets a token, or learns that the session is signed out."""
    for at in itertools.count(1):
        scenario = AgedSession(AsyncSessionClient, "hard", keeps=False)
        reached = await run(scenario, CALLS[call], lambda it: it.session.logout(), at)
        await scenario.session.aclose()
        if not reached:
            return
        # The service raises the latter, if the request was on its way already.
        refusals = (NotSignedInError, AuthenticationError)
        assert scenario.error is None or isinstance(scenario.error, refusals), (at, scenario.error)
        assert scenario.session.token is None, at
