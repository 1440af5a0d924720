"""The caller's bearer, as FastAPI reads it and shows it in the OpenAPI page."""

from __future__ import annotations

from typing import Final

from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import HTTPConnection  # FastAPI reads annotations


class _Bearer(HTTPBearer):
    """Reads the caller's bearer, also of a WebSocket, whose browser cannot set headers."""

    async def __call__(self, request: HTTPConnection) -> HTTPAuthorizationCredentials | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" and request.scope["type"] == "websocket":
            scheme, token = [*request.scope.get("subprotocols", ()), "", ""][:2]
        if scheme.lower() != "bearer" or not token.strip():
            return None
        return HTTPAuthorizationCredentials(scheme=scheme, credentials=token.strip())


BEARER: Final = _Bearer(
    scheme_name="KoyebToken", description="A Koyeb session or API token", auto_error=False
)
