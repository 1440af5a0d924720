"""
Sign in to Koyeb, and stay signed in.

:class:`AsyncSessionClient` is for asyncio and trio, :class:`SessionClient` for everything else;
they have the same methods.

The logger ``koyeb_session`` tells of each sign-in, renewal and sign-out (INFO), of what went wrong
(WARNING: the token is still good; ERROR: none is left), and of each operation (DEBUG). No record
holds a secret. Beside the text a record has these attributes, for filters and structured logs:

- ``koyeb_event``: ``operation``, ``signed_in``, ``renewed``, ``taken_over`` (from the store),
  ``sign_in_failed``, ``renewal_failed`` or ``signed_out``.
- ``koyeb_error``: The class of what went wrong; `None`: nothing.
- ``koyeb_user_id``: Whose token it is; `None`: unknown.
- ``koyeb_expires_in``: Seconds for which the token is good; `None`: unknown.
- ``koyeb_retry_in``: Seconds until the next try.
- ``koyeb_operation``, ``koyeb_method``, ``koyeb_path``: What was sent, without the query.
- ``koyeb_status``, ``koyeb_request_id``: What was answered; `None`: no reply, or it has none.
- ``koyeb_milliseconds``: How long an operation took.
"""

import sys
from typing import TYPE_CHECKING

from ._core.errors import (
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
from ._core.version import __version__

if TYPE_CHECKING:
    from ._api.messages import LoginReply, LoginRequest, PasswordlessLoginRequest
    from ._async.auth import AsyncSessionAuth
    from ._async.client import AsyncSessionClient
    from ._async.stores.protocol import AsyncMemoryTokenStore, AsyncTokenStore
    from ._core.models import (
        AccessTokenCredentials,
        Clock,
        Credentials,
        LoginMethod,
        PasswordCredentials,
        Token,
    )
    from ._core.policy import RefreshPolicy, RetryPolicy
    from ._sync.auth import SessionAuth
    from ._sync.client import SessionClient
    from ._sync.stores.protocol import MemoryTokenStore, TokenStore
else:
    # Imported when first asked for: hardly any program uses both halves, and attrs, which makes the
    # values, takes as long as all else. Import statements rather than names in a table: what packs
    # programs, as PyInstaller does, looks for those.
    def __getattr__(name: str) -> object:
        match name:
            case "AsyncSessionAuth":
                from ._async import auth as home
            case "AsyncSessionClient":
                from ._async import client as home
            case "AsyncMemoryTokenStore" | "AsyncTokenStore":
                from ._async.stores import protocol as home
            case "LoginReply" | "LoginRequest" | "PasswordlessLoginRequest":
                from ._api import messages as home
            case (
                "AccessTokenCredentials"
                | "Clock"
                | "Credentials"
                | "LoginMethod"
                | "PasswordCredentials"
                | "Token"
            ):
                from ._core import models as home
            case "RefreshPolicy" | "RetryPolicy":
                from ._core import policy as home
            case "SessionAuth":
                from ._sync import auth as home
            case "SessionClient":
                from ._sync import client as home
            case "MemoryTokenStore" | "TokenStore":
                from ._sync.stores import protocol as home
            case _:
                message = f"module {__name__!r} has no attribute {name!r}"
                raise AttributeError(message, name=name, obj=sys.modules[__name__])
        value = globals()[name] = getattr(home, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [  # noqa: RUF022 - by role
    # clients
    "AsyncSessionClient",
    "SessionClient",
    "AsyncSessionAuth",
    "SessionAuth",
    # values
    "AccessTokenCredentials",
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

for _public in map(globals().get, __all__):  # those that come later say so themselves
    if isinstance(_public, type):
        _public.__module__ = __name__  # where users import it from, and what pickles say
