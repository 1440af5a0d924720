"""
Sign in to Koyeb, and stay signed in.

:class:`AsyncSessionClient` is for asyncio and trio, :class:`SessionClient` for everything else;
they have the same methods.
"""

from ._async.auth import AsyncSessionAuth
from ._async.client import AsyncSessionClient
from ._async.stores import AsyncMemoryTokenStore, AsyncTokenStore
from ._errors import (
    AccountLockedError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    NotSignedInError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SessionExpiredError,
    StoreError,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from ._models import (
    Clock,
    Credentials,
    LoginMethod,
    LoginReply,
    LoginRequest,
    PasswordCredentials,
    PasswordlessLoginRequest,
    Token,
)
from ._policy import RefreshPolicy, RetryPolicy
from ._sync.auth import SessionAuth
from ._sync.client import SessionClient
from ._sync.stores import MemoryTokenStore, TokenStore

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - by role
    # clients
    "AsyncSessionClient",
    "SessionClient",
    "AsyncSessionAuth",
    "SessionAuth",
    # values
    "Clock",
    "Credentials",
    "LoginMethod",
    "LoginReply",
    "LoginRequest",
    "PasswordCredentials",
    "PasswordlessLoginRequest",
    "Token",
    # policies
    "RefreshPolicy",
    "RetryPolicy",
    # stores
    "AsyncMemoryTokenStore",
    "AsyncTokenStore",
    "MemoryTokenStore",
    "TokenStore",
    # errors
    "AccountLockedError",
    "ApiError",
    "AuthenticationError",
    "BadRequestError",
    "EndpointGoneError",
    "InvalidCredentialsError",
    "KoyebSessionError",
    "NotFoundError",
    "NotSignedInError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ServerError",
    "SessionExpiredError",
    "StoreError",
    "TransportError",
    "TransportTimeoutError",
    "WireError",
    # about
    "__version__",
]

for _public in map(globals().get, __all__):
    if isinstance(_public, type):
        _public.__module__ = __name__  # where users import it from, and what pickles say
