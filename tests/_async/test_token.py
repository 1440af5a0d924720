"""The token that a session holds, and the representation of a session."""

# pyright: reportPossiblyUnboundVariable=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# A loop over timeouts or moments runs at least once; lists of mixed facts are not typed twice.

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta

import pytest

from koyeb_session import AsyncSessionClient, NotSignedInError
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import ME, PASSWORD
from .doubles import Connect

# The token


async def test_current_token_costs_nothing_while_fresh(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A fresh token is handed out as it is."""
    assert await session.current_token() is session.token
    assert fake.requests == []


async def test_current_token_renews_when_nearly_expired(
    fake: FakeKoyeb, clock: FakeClock, session: AsyncSessionClient
) -> None:
    """A token that is about to expire is not handed out."""
    clock.advance(timedelta(hours=24, seconds=-59))
    token = await session.current_token()
    assert fake.exchanges() == 1
    assert fake.live_tokens() == [token.id]


async def test_current_token_raises_when_not_signed_in(connect: Connect) -> None:
    """There is no token, and nothing to sign in with."""
    with pytest.raises(NotSignedInError):
        await connect().current_token()


async def test_token_is_completed_from_the_jwt_when_given_as_text(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """The expiry and the time of issue are read from the id."""
    token = connect(token=fake.issue_token()).token
    assert token is not None
    assert token.expires_at is not None
    assert token.issued_at is not None
    assert token.issued_at.timestamp() == clock.time()
    assert token.expires_at - token.issued_at == timedelta(hours=24)


async def test_use_token_refuses_an_expired_token_and_keeps_the_old_one(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A token that is dead on arrival is the caller's mistake."""
    old = session.token
    with pytest.raises(ValueError, match="expired"):
        await session.use_token(fake.issue_token(lifetime=timedelta(0)))
    assert session.token is old


# Life cycle


@pytest.mark.pitfall(20)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
async def test_client_cannot_be_copied(
    connect: Connect, copied: Callable[[object], object]
) -> None:
    """Two objects with one session would fork it."""
    with pytest.raises(TypeError, match="for_token"):
        copied(connect())


async def test_repr_tells_the_state_and_no_secret(
    fake: FakeKoyeb, clock: FakeClock, connect: Connect
) -> None:
    """A person reads where the session stands."""
    session = connect()
    name = AsyncSessionClient.__name__
    assert repr(session) == f"<{name} https://app.koyeb.com: not signed in>"
    token = await session.login(ME, PASSWORD)
    wanted = f"<{name} https://app.koyeb.com: signed in as {token.user_id}, token good for 1 d 0 h>"
    assert repr(session) == wanted
    clock.advance(timedelta(hours=24))
    assert repr(session).endswith(f"the session as {token.user_id} has ended: token expired>")
    await session.aclose()
    assert repr(session) == f"<{name} https://app.koyeb.com: closed>"
    assert token.id not in repr(session)
