"""An application whose endpoints use a session of each kind."""

# No `from __future__ import annotations`: FastAPI reads the annotations of local endpoints.

from collections.abc import Callable, MutableMapping
from typing import Annotated, Any, Final

import anyio
import anyio.lowlevel
import httpx
from fastapi import Depends, FastAPI, Request

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.fastapi import KoyebSessions

USES: Final[dict[str, Callable[[Any], Any]]] = {
    "get": lambda session: session.http.get("/v1/apps"),
    "post": lambda session: session.http.post("/v1/apps", json={"name": "a"}),
    "new": lambda session: session.new_session(),
    "refresh": lambda session: session.refresh(),
}


def told(result: Any) -> Any:
    """Give the status of a reply, unless it is an error, or the id of a token."""
    return result.raise_for_status().status_code if hasattr(result, "status_code") else result.id


def serve_all(sessions: KoyebSessions) -> FastAPI:
    """Make an application of these sessions."""
    app = FastAPI(lifespan=sessions.lifespan)

    @app.get("/service/{use}")
    async def service(
        use: str, session: Annotated[AsyncSessionClient, Depends(sessions.service)]
    ) -> Any:
        return told(await USES[use](session))

    @app.get("/sync/{use}")
    def sync(use: str, session: Annotated[SessionClient, Depends(sessions.service_sync)]) -> Any:
        return told(USES[use](session))

    @app.get("/caller/{use}")
    async def caller(
        use: str, session: Annotated[AsyncSessionClient, Depends(sessions.caller)]
    ) -> Any:
        return told(await USES[use](session))

    @app.get("/cookie")
    async def cookie(request: Request) -> Any:
        token = request.cookies.get("token")
        return told(await sessions.for_token(request, token).new_session())

    @app.get("/login")
    async def login(
        session: Annotated[AsyncSessionClient, Depends(sessions.guest)], password: str
    ) -> Any:
        return told(await session.login("me@example.com", password))

    return app


def asking(
    app: FastAPI, headers: dict[str, str] | None = None, **options: Any
) -> httpx.AsyncClient:
    """Make a client of an application in this event loop."""
    transport = httpx.ASGITransport(app, **options)
    return httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers)


async def ask_raw(
    app: FastAPI,
    path: str,
    headers: list[tuple[bytes, bytes]],
    subprotocols: list[str] | None = None,
    send: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Call an application as a server does, for a WebSocket too, and return the messages."""
    sent: list[dict[str, Any]] = []
    kind = "http" if subprotocols is None else "websocket"

    async def receive() -> dict[str, Any]:
        return {"type": "http.request" if kind == "http" else "websocket.connect"}

    async def keep(message: MutableMapping[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        sent.append({**message})

    scope: dict[str, Any] = {"type": kind, "method": "GET", "path": path, "query_string": b""}
    await app(scope | {"headers": headers, "subprotocols": subprotocols}, receive, send or keep)
    return sent
