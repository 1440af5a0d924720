"""Read the caller's bearer token, and describe it in the OpenAPI page."""
# No `from __future__ import annotations`: older FastAPIs cannot read it on a callable object.

import re
from itertools import pairwise
from typing import Final

from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection

from .._core.models import Token

_CREDENTIALS: Final = re.compile(r"bearer +([a-z0-9._~+/-]+=*)", re.ASCII | re.IGNORECASE)
"""The format of RFC 6750, section 2.1: no blanks but spaces, no quotation marks, no comma."""


class _CallerBearer(SecurityBase):
    """
    Reads the caller's bearer token, also from a WebSocket, as browsers cannot set its headers.

    FastAPI passes the value from one dependency to the next. A `Token` hides its secret there, for
    example from a traceback with local variables.
    """

    def __init__(self) -> None:
        self.model = HTTPBearer(description="A Koyeb session or API token")
        self.scheme_name = "KoyebToken"

    async def __call__(self, connection: HTTPConnection) -> Token | ValueError | None:
        """
        Return the bearer token, `None` if there is none, or an error if it is invalid.

        Two bearers are an error: a proxy before this application may check the other one.
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
