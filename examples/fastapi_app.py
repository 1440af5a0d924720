"""A FastAPI application: log in, who am I, log out, and a page for all; on a fake Koyeb."""

from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeKoyeb

NotBlank = Body(pattern=r"\S")


def make_app(url: str) -> FastAPI:
    credentials = PasswordCredentials("me@example.com", "correct horse")
    sessions = KoyebSessions(base_url=url, credentials=credentials)
    app = FastAPI(lifespan=sessions.lifespan)
    sessions.add_exception_handlers(app)
    router = APIRouter(responses=sessions.responses)

    @router.post("/login")
    async def login(
        guest: Annotated[AsyncSessionClient, Depends(sessions.guest)],
        email: Annotated[str, NotBlank],
        password: Annotated[str, NotBlank],
    ) -> str:
        return (await guest.login(email, password)).id

    @router.get("/me")
    async def me(caller: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> Any:
        return (await caller.http.get("/v1/account/profile")).raise_for_status().json()

    @router.post("/logout")
    async def logout(caller: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> None:
        await caller.logout()

    @router.get("/public")
    def public(service: Annotated[SessionClient, Depends(sessions.service_sync)]) -> Any:
        return {"apps": service.http.get("/v1/apps").raise_for_status().json()["count"]}

    app.include_router(router)
    return app


if __name__ == "__main__":
    with FakeKoyeb().serve() as url:
        uvicorn.run(make_app(url))  # try http://127.0.0.1:8000/docs
