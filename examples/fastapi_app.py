"""A FastAPI application: log in, list my apps, and a page for all; here on a pretend Koyeb."""

from typing import Annotated, Any

import uvicorn
from fastapi import Body, Depends, FastAPI

from koyeb_session import AsyncSessionClient, PasswordCredentials, SessionClient
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.testing import FakeKoyeb


def make_app(url: str) -> FastAPI:
    credentials = PasswordCredentials("me@example.com", "correct horse")
    sessions = KoyebSessions(base_url=url, credentials=credentials)
    app = FastAPI(lifespan=sessions.lifespan)
    sessions.add_exception_handlers(app)

    @app.post("/login")
    async def login(email: Annotated[str, Body()], password: Annotated[str, Body()]) -> str:
        async with AsyncSessionClient(base_url=url) as session:
            return (await session.login(email, password)).id

    @app.get("/my/apps")
    async def my_apps(caller: Annotated[AsyncSessionClient, Depends(sessions.caller)]) -> Any:
        return (await caller.http.get("/v1/apps")).raise_for_status().json()

    @app.get("/public")
    def public(service: Annotated[SessionClient, Depends(sessions.service_sync)]) -> Any:
        return {"apps": service.http.get("/v1/apps").raise_for_status().json()["count"]}

    return app


if __name__ == "__main__":
    with FakeKoyeb().serve() as url:
        uvicorn.run(make_app(url))  # try http://127.0.0.1:8000/docs
