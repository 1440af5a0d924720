# Generated from koyeb_session/_async/arguments.py by .ci/generate_sync.py: edit that, not this.

"""The arguments of the client by name, for functions that hand them on."""

from __future__ import annotations

# Imported at run time, so that `typing.get_type_hints` can resolve what the class below names.
from collections.abc import Iterable
from typing import TypedDict

import httpx

from .._models import Clock, Credentials, Token
from .._policy import RefreshPolicy, RetryPolicy
from .stores import TokenStore


class ClientArguments(TypedDict, total=False):
    """What :class:`SessionClient` takes; each argument means there what it means here."""

    base_url: str
    token: Token | str | None
    credentials: Credentials | None
    store: TokenStore | None
    refresh_policy: RefreshPolicy | None
    retry_policy: RetryPolicy | None
    timeout: float
    allowed_origins: Iterable[str]
    http_client: httpx.Client | None
    transport: httpx.BaseTransport | None
    clock: Clock | None
