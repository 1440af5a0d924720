"""The token that a session holds, and the representation of a session."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import timedelta

import pytest

from koyeb_session import AsyncSessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb

from ..support import ME, PASSWORD
from .doubles import Connect


async def test_use_token_refuses_an_expired_token_and_keeps_the_old_one(
    fake: FakeKoyeb, session: AsyncSessionClient
) -> None:
    """A token that is dead on arrival is the caller's mistake."""
    old = session.token
    with pytest.raises(ValueError, match="expired"):
        await session.use_token(fake.issue_token(lifetime=timedelta(0)))
    assert session.token is old


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
