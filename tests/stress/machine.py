"""A state machine over the whole life of a session, with invariants after each step."""

from __future__ import annotations

import contextlib
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Any, Final, TypeAlias, cast

import httpx
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from koyeb_session import (
    KoyebSessionError,
    NotSignedInError,
    RefreshPolicy,
    RetryPolicy,
    Token,
)
from koyeb_session._core.snapshot import Issuer, Phase
from koyeb_session.testing import Fault, Gate

from ..support import inside
from .scenario import Work, current_token, get, login, logout, refresh, switch
from .simulation import ELSEWHERE, LIFE, Simulation, Wire

Outcome: TypeAlias = object
"""Its return value, or the error that it raised."""

SHORT_LIFE: Final = timedelta(minutes=1)
LONG_PAUSE: Final = 7300.0
"""Seconds in which each token dies, and each back-off ends."""
STEPS: Final = [1.0, 29.5, 61.0, 290.0, 1700.0, 3000.0, 3590.0, 4000.0]
JUMPS: Final = [-86400.0, -3600.0, -40.0, -1.5, 1.5, 40.0, 3600.0, 86400.0]

FAULTS: Final = [
    Fault(refuse=True),
    Fault(reset=True),
    Fault(reset=True, processed=True),
    Fault(truncate=10),
    Fault(status=401),
    Fault(status=403),
    Fault(status=429, headers={"retry-after": "90"}),
    Fault(status=500),
    Fault(status=503, processed=True),
    Fault(body="<html>"),
    Fault(body={"token": None}),
    Fault(body={"token": {"id": "x", "expires_at": "2020-01-01T00:00:00Z"}}),
    Fault(body={"token": {"id": "a\r\nb"}}, processed=True),
]
FAULTY: Final = ["refresh", "login", "logout", "switch_organization", "apps"]


class SessionMachine(RuleBasedStateMachine):
    """
    The events in the life of a session; each half below has its own way to call it.

    No rule has a precondition: the thread that meets a fault is not the same one each time, and the
    draws of Hypothesis must not depend on it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.simulation = Simulation()
        self.signed_out = False
        self.faulty = False
        self.expected: AbstractSet[str | None] = {None}
        self.session: Any = None
        self.begin()

    # Differences between the halves

    def begin(self) -> None:
        """Make the session."""
        raise NotImplementedError

    def do(self, *works: Work) -> list[Outcome]:
        """Do all at once, and wait until nothing is under way any more."""
        raise NotImplementedError

    def amid_exchange(self, gate: Gate, work: Work) -> tuple[Outcome, Outcome]:
        """Do something while a refresh stands at the gate; return both outcomes."""
        raise NotImplementedError

    # Shared by the rules

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the session."""
        return {
            "transport": Wire(self.simulation),
            "clock": self.simulation.clock,
            "retry_policy": RetryPolicy(delay=0),
            "refresh_policy": RefreshPolicy(jitter=0),
        }

    def one(self, work: Work) -> Outcome:
        """Do one thing."""
        issued = len(self.simulation.issued)
        provided = self.simulation.provided
        (outcome,) = self.do(work)
        self.learn(issued, provided)
        return outcome

    def learn(self, issued: int, provided: int) -> None:
        """Expect the newest of the tokens that have come."""
        if self.simulation.provided > provided or len(self.simulation.issued) > issued:
            self.signed_out = self.signed_out and self.session.token is None
            newest = self.simulation.issued[issued:]
            held = self.session.token
            # The credentials' token came last, if it is not among those of the wire.
            self.expected = {newest[-1]} if newest else {None if held is None else held.id}
            if self.simulation.provided > provided:
                self.expected = self.expected | {None if held is None else held.id}

    # Signing in and out

    @rule()
    def sign_in(self) -> None:
        """A sign-in with the password."""
        outcome = self.one(login)
        assert isinstance(outcome, Token) or self.faulty, outcome

    @rule(life=st.sampled_from([LIFE, SHORT_LIFE]))
    def adopt(self, life: timedelta) -> None:
        """A token from elsewhere."""
        given = self.simulation.fake.issue_token(lifetime=life)
        outcome = self.one(lambda session: session.use_token(given))
        if isinstance(outcome, ValueError):
            assert self.simulation.skew >= life.total_seconds()
        else:
            assert isinstance(outcome, Token), outcome
            self.expected, self.signed_out = {given}, False

    @rule()
    def sign_out(self) -> None:
        """A sign-out."""
        before = self.session.token
        outcome = self.one(logout)
        assert outcome is None or self.faulty, outcome
        self.expected, self.signed_out = {None}, True
        if before is not None and not self.faulty and not self.simulation.skew:
            assert before.id not in self.simulation.fake.live_tokens()

    @rule()
    def renew(self) -> None:
        """A renewal on demand."""
        outcome = self.one(refresh)
        assert isinstance(outcome, Token | KoyebSessionError), outcome

    @rule()
    def go_over(self) -> None:
        """A switch of the organization."""
        outcome = self.one(switch)
        assert isinstance(outcome, Token | KoyebSessionError), outcome

    # Requests

    @rule(work=st.sampled_from([get, current_token]))
    def request(self, work: Work) -> None:
        """A request, which has to succeed while the token is good."""
        held = self.session.token
        state = inside(self.session).state
        good = (
            held is not None
            and not self.faulty
            and held.id in self.simulation.fake.live_tokens()
            and state.snapshot.phase(self.simulation.clock) is Phase.FRESH
            and state.failure is None
        )
        provided = self.simulation.provided
        outcome = self.one(work)
        if self.signed_out:  # or it is told why a renewal has just failed
            assert isinstance(outcome, NotSignedInError) or state.failure is not None
            assert isinstance(outcome, KoyebSessionError)
            assert self.simulation.provided == provided
        elif good:
            assert isinstance(outcome, Token) or cast("Any", outcome).status_code == 200

    @rule(n=st.integers(2, 6))
    def burst(self, n: int) -> None:
        """Many callers at once."""
        issued, provided = len(self.simulation.issued), self.simulation.provided
        outcomes = self.do(*[get, refresh, current_token, get, refresh, get][:n])
        self.learn(issued, provided)
        assert all(
            isinstance(outcome, httpx.Response | Token | KoyebSessionError | httpx.TransportError)
            for outcome in outcomes
        )

    @rule(url=st.sampled_from([ELSEWHERE, "http://app.koyeb.com/v1/apps", "/v1/away"]))
    def stray(self, url: str) -> None:
        """A request to somebody else, or one that is sent there."""
        self.one(lambda session: session.http.get(url, follow_redirects=True))

    @rule(what=st.sampled_from([logout, login, switch, get, refresh, current_token, None]))
    def overlap(self, what: Work | None) -> None:
        """Something else while an exchange is under way, where one can be."""
        if not self.can_exchange():
            return
        self.simulation.fake.recover()
        self.faulty = False
        gate = Gate()
        self.simulation.fake.fail("refresh", Fault(gate=gate))
        given = self.simulation.fake.issue_token()
        provided = self.simulation.provided

        def adopt(session: Any) -> Any:
            return session.use_token(given)

        shared, outcome = self.amid_exchange(gate, what or adopt)
        renewed = [
            id_ for id_ in self.simulation.issued if id_ in self.simulation.fake.live_tokens()
        ]
        if what is logout:
            self.expected, self.signed_out = {None}, True
            assert outcome is None, outcome
            assert isinstance(shared, NotSignedInError)
            assert not renewed[-1:] or renewed[-1] != self.simulation.issued[-1]
        elif isinstance(outcome, ValueError):  # our clock says that it has expired
            self.expected = {self.simulation.issued[-1]}
        elif what is None:
            self.expected = {given}
        elif what is login:
            assert isinstance(outcome, Token), outcome
            self.expected = {outcome.id}
        else:
            assert not isinstance(outcome, Exception), outcome
            self.expected = {self.simulation.issued[-1]}
        assert self.simulation.provided == provided

    def can_exchange(self) -> bool:
        """Return whether a refresh would be sent now, and be granted."""
        state = inside(self.session).state
        return (
            state.snapshot is not None
            and state.snapshot.issuer is Issuer.KOYEB  # a token of the credentials is not refreshed
            and state.snapshot.phase(self.simulation.clock) is not Phase.EXPIRED
            and state.snapshot.token.id in self.simulation.fake.live_tokens()
            and state.failure is None
            and not self.simulation.skew  # else a token may be dead on arrival
        )

    # Faults

    @rule(operation=st.sampled_from(FAULTY), fault=st.sampled_from(FAULTS), times=st.integers(1, 3))
    def break_down(self, operation: str, fault: Fault, times: int) -> None:
        """Something that goes wrong with the next requests."""
        self.simulation.fake.fail(operation, fault, times=times)
        self.faulty = True

    @rule()
    def repair(self) -> None:
        """An end of all that goes wrong."""
        self.simulation.fake.recover()
        self.faulty = False

    @rule()
    def revoke(self) -> None:
        """A revocation of the token that is held, if there is one."""
        if self.session.token is None:
            return
        with contextlib.suppress(ValueError):
            self.simulation.fake.revoke(self.session.token.id)

    @rule(seconds=st.sampled_from(STEPS))
    def pass_time(self, seconds: float) -> None:
        """Time that passes."""
        self.simulation.advance(seconds)

    @rule(seconds=st.sampled_from(JUMPS))
    def set_clock(self, seconds: float) -> None:
        """A wall clock that is set."""
        self.simulation.jump(seconds)

    @rule(seconds=st.sampled_from(STEPS))
    def suspend(self, seconds: float) -> None:
        """A suspended machine."""
        self.simulation.suspend(seconds)

    @rule()
    def calm_down(self) -> None:
        """A long pause after which all is well, and so is the session."""
        self.repair()
        self.simulation.jump(-self.simulation.skew)
        self.simulation.advance(LONG_PAUSE)
        outcome = self.one(get)
        if self.signed_out:
            assert isinstance(outcome, NotSignedInError)
        else:
            assert cast("Any", outcome).status_code == 200

    # Invariants

    @invariant()
    def one_exchange_at_a_time(self) -> None:
        """At most one exchange is in flight."""
        assert self.simulation.most <= 1
        assert self.simulation.exchanging == 0

    @invariant()
    def no_expired_token_on_the_wire(self) -> None:
        """No request carries a token that the service's clock has seen expire."""
        assert self.simulation.expired == []

    @invariant()
    def no_token_for_others(self) -> None:
        """No other origin sees a token."""
        assert self.simulation.leaks == []

    @invariant()
    def newest_token_is_held(self) -> None:
        """The newest token that was had is the one that is held; signed out stays signed out."""
        held = self.session.token
        assert (None if held is None else held.id) in self.expected
        assert inside(self.session).state.signed_out == self.signed_out

    @invariant()
    def nothing_is_left_open(self) -> None:
        """No reply is left unread."""
        assert self.simulation.fake.transport.open_replies == 0
