"""The caller's bearer, as FastAPI reads it and shows it in the OpenAPI page."""
# No `from __future__ import annotations`: older FastAPIs cannot read it on a callable object.

import re
from itertools import pairwise
from typing import Final

from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from .._core.models import Token

_CREDENTIALS: Final = re.compile(r"bearer +([a-z0-9._~+/-]+=*)", re.ASCII | re.IGNORECASE)
"""RFC 6750, section 2.1: no blank but the space, no quotation marks, no comma."""


class _CallerBearer(SecurityBase):
    """
    Reads the caller's bearer, also of a WebSocket, whose browser cannot set headers.

    A `Token` hides it from those who show the values that FastAPI hands from one dependency to the
    next, such as a traceback with local variables.
    """

    def __init__(self) -> None:
        self.model = HTTPBearer(description="A Koyeb session or API token")
        self.scheme_name = "KoyebToken"

    async def __call__(self, connection: HTTPConnection) -> Token | ValueError | None:
        """
        Return the bearer, `None` where there is none, or what is wrong with it.

        What checks a request before us may look at another one than we do, so two are none.
        """
        headers = [it.strip(" \t") for it in connection.headers.getlist("authorization")]
        bearers = [value for value in headers if _is_bearer(value.partition(" ")[0])]
        if connection.scope["type"] == "websocket":
            offered = [*connection.scope.get("subprotocols", ()), ""]
            bearers += [f"{name} {token}" for name, token in pairwise(offered) if _is_bearer(name)]
        if len(headers) > 1 or len(bearers) > 1:
            return ValueError("there must be one bearer token, and no other authorization")
        if not bearers:
            return None
        found = _CREDENTIALS.fullmatch(bearers[0])
        return Token(found[1]) if found else ValueError("the bearer token is malformed")


def _is_bearer(scheme: str) -> bool:
    return scheme.lower() == "bearer"


BEARER: Final = _CallerBearer()
