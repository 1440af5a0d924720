"""
The parts of a client, imported by the first client of a process.

To import all of this takes about as long as to read the certificates. So a thread reads them while
the client imports. `AsyncSessionClient` names everything here as ``engine.X``, also in its
signatures: their hints then resolve at any time, and import it if need be.
"""

from __future__ import annotations

from .._api import operations as operations
from .._api.operations import Operation as Operation
from .._concurrency.event_loop.deadlines import async_shield as async_shield
from .._concurrency.event_loop.shared_task import AsyncSharedTask as AsyncSharedTask
from .._concurrency.nesting import is_inside as is_inside
from .._concurrency.runtime import state_lock as state_lock
from .._core.deadline import Deadline as Deadline
from .._core.models import Clock as Clock
from .._core.models import Credentials as Credentials
from .._core.models import LoginMethod as LoginMethod
from .._core.models import PasswordCredentials as PasswordCredentials
from .._core.models import Token as Token
from .._core.origins import origins as origins
from .._core.policy import RefreshPolicy as RefreshPolicy
from .._core.policy import RetryPolicy as RetryPolicy
from .._core.provenance import account_of as account_of
from .._core.results import unwrap as unwrap
from .._core.snapshot import Issuer as Issuer
from .._core.snapshot import NewToken as NewToken
from .._core.state import SessionState as SessionState
from .._core.tokens import adds_nothing as adds_nothing
from .._core.validation import access_token_error as access_token_error
from .._core.validation import async_credentials_error as async_credentials_error
from .._core.validation import async_listener_error as async_listener_error
from .._core.validation import async_store_error as async_store_error
from .._core.validation import clock_error as clock_error
from .._core.validation import header_error as header_error
from .._core.validation import kind_error as kind_error
from .._core.validation import not_copied as not_copied
from .._core.validation import parse_token as parse_token
from .._core.validation import switch_error as switch_error
from .._core.validation import timeout_error as timeout_error
from .arguments import AsyncClientArguments as AsyncClientArguments
from .auth import AsyncSessionAuth as AsyncSessionAuth
from .http.connections import AsyncBorrowedClient as AsyncBorrowedClient
from .keeper import AsyncTokenKeeper as AsyncTokenKeeper
from .resources import AsyncResources as AsyncResources
from .session_change import AsyncSessionChange as AsyncSessionChange
from .stores.protocol import AsyncTokenStore as AsyncTokenStore
from .token_source import AsyncTokenSource as AsyncTokenSource
