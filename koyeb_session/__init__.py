"""
Sign in to Koyeb, and stay signed in.

`AsyncSessionClient` is for asyncio and trio, `SessionClient` is its blocking counterpart; they have
the same methods.

```python
with SessionClient.from_env() as session:  # KOYEB_TOKEN, for example
    print(session.http.get("/v1/apps").json())
```

`koyeb_session.stores` keeps a session between processes, `koyeb_session.fastapi` has dependencies
for an application, `koyeb_session.testing` has a fake Koyeb for your tests,
`koyeb_session.koyeb_sdk` and `koyeb_session.httpx2` sign the requests of other clients.

## Defaults

A token is renewed in the background in the last half of its life, at most 12 hours before it
expires (``RefreshPolicy(soft_window=43_200)``). In the last minute, or the last tenth of a shorter
life, requests wait for the renewal (``hard_window=60``). An operation has 10 seconds in all
(``timeout=10``) and is sent at most three times (``RetryPolicy(attempts=3)``).

## Errors

Operations raise a `KoyebSessionError`. Requests of ``session.http`` and with ``session.auth`` raise
it when no token can be had, and `httpx.HTTPError` when the request itself fails. Wrong arguments
are `ValueError` or `TypeError`; a closed client is `RuntimeError`.

- `KoyebSessionError`: the root
    - `TransportError`: no reply
        - `TransportTimeoutError`: no reply in time
    - `ApiError`: an error reply
        - `BadRequestError`: 400, the request is wrong
        - `AuthenticationError`: 401
            - `InvalidCredentialsError`: the address or the password is wrong
            - `SessionExpiredError`: the session has ended; sign in again
        - `PermissionDeniedError`: 403
            - `AccountLockedError`: the account is locked
        - `NotFoundError`: 404 about a resource
        - `EndpointGoneError`: the service no longer has the operation
        - `RateLimitedError`: 429, too many requests
        - `ServerError`: 5xx, the service failed
    - `WireError`: a success whose body breaks the API's promise
    - `NotSignedInError`: no token, and nothing to sign in with
    - `StoreError`: a token store failed

## Logs

The logger ``koyeb_session`` reports each sign-in, renewal and sign-out (INFO), each failure
(WARNING: the token is still good; ERROR: none is left), and each operation (DEBUG). No record holds
a secret. Beside the text a record has these attributes, for filters and structured logs:

- ``koyeb_event``: ``operation``, ``signed_in``, ``renewed``, ``taken_over`` (from the store),
  ``sign_in_failed``, ``renewal_failed`` or ``signed_out``.
- ``koyeb_error``: The class of the error; `None`: there was none.
- ``koyeb_user_id``: The user of the token; `None`: unknown.
- ``koyeb_expires_in``: Seconds for which the token is good; `None`: unknown.
- ``koyeb_retry_in``: Seconds until the next try.
- ``koyeb_operation``, ``koyeb_method``, ``koyeb_path``: The request, without its query.
- ``koyeb_status``, ``koyeb_request_id``: The reply; `None`: there was none, or it has none.
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
    # Imported on first use: hardly any program uses both halves, and attrs, which makes the values,
    # takes as long as the rest. These are import statements, not names in a table, as tools like
    # PyInstaller look for import statements.
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

for _public in map(globals().get, __all__):  # classes that are imported later set it themselves
    if isinstance(_public, type):
        _public.__module__ = __name__  # its public name, also in pickles
