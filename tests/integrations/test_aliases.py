"""Dependencies by a name of their own, as applications write them; type checkers read this too."""

# No `from __future__ import annotations`: FastAPI reads the annotations.

import inspect
from typing import Annotated, Any, get_args

import pytest
from fastapi import APIRouter, Depends, FastAPI

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeKoyeb

from .application import asking

fake = FakeKoyeb()
sessions = KoyebSessions(transport=fake.transport, token=fake.issue_api_token())
app = FastAPI(lifespan=sessions.lifespan)

Service = Annotated[AsyncSessionClient, Depends(sessions.service)]
ServiceSync = Annotated[SessionClient, Depends(sessions.service_sync)]
Caller = Annotated[AsyncSessionClient, Depends(sessions.caller)]
Guest = Annotated[AsyncSessionClient, Depends(sessions.guest)]
router = APIRouter(responses=sessions.responses)


@app.get("/service")
async def use_service(session: Service) -> int:
    """Use the service's session."""
    return (await session.http.get("/v1/apps")).status_code


@app.get("/sync")
def use_service_sync(session: ServiceSync) -> int:
    """Use it in a thread."""
    return session.http.get("/v1/apps").status_code


@app.get("/caller")
async def use_caller(session: Caller) -> int:
    """Use the caller's."""
    return (await session.http.get("/v1/apps")).status_code


@router.get("/guest")
async def use_guest(session: Guest) -> int:
    """Use one that is signed out."""
    return 200 if session.token is None else 500


app.include_router(router)


async def statuses(app: FastAPI, *paths: str) -> list[str]:
    """Ask as a caller with a good bearer."""
    headers = {"Authorization": f"Bearer {fake.issue_token()}"}
    async with sessions.lifespan(), asking(app, headers) as client:
        return [(await client.get(path)).text for path in paths]


async def test_alias_of_the_users() -> None:
    """An alias that type checkers understand gives the session that it names."""
    assert await statuses(app, "/service", "/sync", "/caller", "/guest") == ["200"] * 4


@pytest.mark.parametrize("name", ["Service", "ServiceSync", "Caller", "Guest"])
async def test_alias_ready_made(name: str) -> None:
    """The aliases of `KoyebSessions` are the same."""
    made, written = get_args(getattr(sessions, name)), get_args(globals()[name])
    assert made[0] is written[0]
    assert made[1].dependency == written[1].dependency
    other = FastAPI()

    async def use(session: Any) -> int:
        if name == "Guest":
            await session.login("me@example.com", "correct horse")
        answer = session.http.get("/v1/apps")
        return int((await answer if inspect.isawaitable(answer) else answer).status_code)

    use.__annotations__["session"] = getattr(sessions, name)
    other.get("/")(use)
    assert await statuses(other, "/") == ["200"]
