"""The service as an ASGI application, for ``httpx.ASGITransport`` and any ASGI server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import httpx

from ._bodies import Body
from ._calls import arespond
from ._replies import Reply
from ._service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class FakeApp:
    """
    The ASGI application.

    An application cannot break a connection. So a reset or a truncation raises the exception of
    ``httpx`` for it. A client of ``httpx.ASGITransport`` receives that exception; a server answers
    with a 500 or ends the connection.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        content = await _read(receive)
        if content is None:
            return
        target = f"{_path(scope)}?{scope['query_string'].decode('latin-1')}"
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        call = self._service.receive(scope["method"], target, headers, content)
        reply = await arespond(self._service, call)
        if reply is None:
            raise httpx.ReadError("[Errno 104] Connection reset by peer")
        await _send(reply, send)


async def _read(receive: Receive) -> bytes | None:
    body = Body()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body.add(message.get("body", b""))
        if not message.get("more_body", False):
            return body.content


async def _send(reply: Reply, send: Send) -> None:
    headers = list(reply.headers)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    cut = reply.is_truncated
    await send({"type": "http.response.body", "body": reply.received_body, "more_body": cut})
    if cut:
        raise httpx.RemoteProtocolError(reply.cut_short)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _path(scope: Scope) -> str:
    root = scope.get("root_path", "")
    raw: bytes | None = scope.get("raw_path")
    path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
    # The path that the application is mounted at is not part of the service's own paths.
    return path.removeprefix(quote(root)) if root else path
