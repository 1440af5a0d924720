"""
The parts of a client, which the first client of a process imports.

That import takes about as long as the reading of the certificates, so a thread reads them
meanwhile. `AsyncSessionClient` uses each part as ``engine.X``, in its signatures too: a look at
their hints imports this module, and resolves them, before there is a client.
"""

from __future__ import annotations

from .._api import operations
from .._api.operations import Operation
from .._concurrency.event_loop.shared_task import AsyncSharedTask
from .._concurrency.runtime import state_lock
from .._core.deadline import Deadline
from .._core.models import Clock, Credentials, LoginMethod, PasswordCredentials, Token
from .._core.origins import origins
from .._core.policy import RefreshPolicy, RetryPolicy
from .._core.provenance import account_of
from .._core.results import unwrap
from .._core.snapshot import Issuer, NewToken, Snapshot
from .._core.state import SessionState
from .._core.validation import (
    access_token_error,
    async_listener_error,
    async_store_error,
    clock_error,
    credentials_error,
    header_error,
    kind_error,
    not_copied,
    parse_token,
    switch_error,
    timeout_error,
)
from .arguments import AsyncClientArguments
from .auth import AsyncSessionAuth
from .http.connections import AsyncBorrowedClient, AsyncConnections
from .http.sender import AsyncSender
from .keeper import AsyncTokenKeeper
from .renewal import AsyncRenewal
from .stores.protocol import AsyncTokenStore
from .token_source import AsyncTokenSource

__all__ = [
    "AsyncBorrowedClient",
    "AsyncClientArguments",
    "AsyncConnections",
    "AsyncRenewal",
    "AsyncSender",
    "AsyncSessionAuth",
    "AsyncSharedTask",
    "AsyncTokenKeeper",
    "AsyncTokenSource",
    "AsyncTokenStore",
    "Clock",
    "Credentials",
    "Deadline",
    "Issuer",
    "LoginMethod",
    "NewToken",
    "Operation",
    "PasswordCredentials",
    "RefreshPolicy",
    "RetryPolicy",
    "SessionState",
    "Snapshot",
    "Token",
    "access_token_error",
    "account_of",
    "async_listener_error",
    "async_store_error",
    "clock_error",
    "credentials_error",
    "header_error",
    "kind_error",
    "not_copied",
    "operations",
    "origins",
    "parse_token",
    "state_lock",
    "switch_error",
    "timeout_error",
    "unwrap",
]
