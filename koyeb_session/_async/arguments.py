"""The client's keyword arguments as a type, for functions that pass them on."""

from __future__ import annotations

# Imported at run time, so that `typing.get_type_hints` can resolve the annotations below.
from collections.abc import Iterable
from typing import TypedDict

import httpx

from .._core.models import Clock, Credentials, Token
from .._core.policy import RefreshPolicy, RetryPolicy
from .stores.protocol import AsyncTokenStore


class AsyncClientArguments(TypedDict, total=False):
    """The keyword arguments of `AsyncSessionClient`, where their meaning is documented."""

    base_url: str
    token: Token | str | None
    credentials: Credentials | None
    store: AsyncTokenStore | None
    refresh_policy: RefreshPolicy | None
    retry_policy: RetryPolicy | None
    timeout: float
    allowed_origins: Iterable[str]
    http_client: httpx.AsyncClient | None
    transport: httpx.AsyncBaseTransport | None
    clock: Clock | None
