"""
The parts of a client, imported by the first client of a process.

To import all of this takes about as long as to read the certificates. So a thread reads them while
the client imports. `AsyncSessionClient` names everything here as ``engine.X``, also in its
signatures: their hints then resolve at any time, and import it if need be.
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
from .session_change import AsyncSessionChange
from .stores.protocol import AsyncTokenStore
from .token_source import AsyncTokenSource

__all__ = [
    "AsyncBorrowedClient",
    "AsyncClientArguments",
    "AsyncConnections",
    "AsyncRenewal",
    "AsyncSender",
    "AsyncSessionAuth",
    "AsyncSessionChange",
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
