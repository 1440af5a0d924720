"""A service and its callers, on a fake Koyeb: `uvicorn --app-dir examples fastapi_app:app`."""

from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeKoyeb

own = PasswordCredentials("me@example.com", "correct horse")
sessions = KoyebSessions(transport=FakeKoyeb().transport, credentials=own)
app = FastAPI(lifespan=sessions.lifespan, responses=sessions.responses)
sessions.add_exception_handlers(app)
Caller = Annotated[AsyncSessionClient, Depends(sessions.caller)]
Guest = Annotated[AsyncSessionClient, Depends(sessions.guest)]
Service = Annotated[SessionClient, Depends(sessions.service_sync)]
NotBlank = Annotated[str, Body(pattern=r"\S")]


@app.post("/login")
async def login(guest: Guest, email: NotBlank, password: NotBlank) -> str:
    return (await guest.login(email, password)).id


@app.get("/me")
async def me(caller: Caller) -> Any:
    return (await caller.http.get("/v1/account/profile")).raise_for_status().json()


@app.post("/logout")
async def logout(caller: Caller) -> None:
    await caller.logout()


@app.get("/public")
def public(service: Service) -> Any:
    return {"apps": service.http.get("/v1/apps").raise_for_status().json()["count"]}
