"""
The errors of the package, and the choice of one for an error reply.

.. code-block:: text

    KoyebSessionError
    ├── TransportError                 no reply
    │   └── TransportTimeoutError
    ├── ApiError                       an error reply
    │   ├── BadRequestError            400
    │   ├── AuthenticationError        401
    │   │   ├── InvalidCredentialsError
    │   │   └── SessionExpiredError
    │   ├── PermissionDeniedError      403
    │   │   └── AccountLockedError
    │   ├── NotFoundError              404 about a resource
    │   ├── EndpointGoneError          404, 405, 410, 501 about the operation itself
    │   ├── RateLimitedError           429
    │   └── ServerError                5xx
    ├── WireError                      a 2xx that breaks the API's description
    ├── NotSignedInError               no token and no credentials
    └── StoreError                     a token store failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final


class KoyebSessionError(Exception):
    """
    The root of all errors that this package raises about a session.

    Bad arguments are `ValueError` or `TypeError`, use after close is `RuntimeError`.

    Attributes:
        message: What happened and what to do about it; never holds a secret.
        retryable: Whether doing the same again later may help.
    """

    retryable: bool = False
    _repeatable: bool = False
    """Whether the request may be repeated: nothing was done, or doing it twice is harmless."""
    raised_by: object = None  # a session's mark, which `unwrap` sets for the edges; not for users

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


class TransportError(KoyebSessionError):
    """
    No reply came; `__cause__` is the `httpx` error.

    The service may have carried the operation out all the same, unless the connection was refused.
    """

    retryable = True


class TransportTimeoutError(TransportError):
    """No reply came in time."""


class ApiError(KoyebSessionError):
    """
    The service answered with an error.

    Attributes:
        status: The HTTP status.
        code: The service's own word for it, such as ``"not_found"``, or a ``google.rpc`` number;
            `None` when the reply has none.
        request_id: The reply's ``X-Request-Id``, for a support ticket; `None` when absent.
        retry_after: Seconds that the service asks to wait; `None` when it does not say.
    """

    default_status: int = 0

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        code: str | int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status: int = self.default_status if status is None else status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(ApiError):
    """
    400: the service found the request wrong.

    Attributes:
        fields: What is wrong with which field, by name; empty when the reply does not say.
    """

    default_status = 400

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        code: str | int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message, status=status, code=code, request_id=request_id, retry_after=retry_after
        )
        self.fields: dict[str, str] = dict(fields or {})


class AuthenticationError(ApiError):
    """401: the service does not accept who is asking."""

    default_status = 401


class InvalidCredentialsError(AuthenticationError):
    """Sign-in was refused: the e-mail address or the password is wrong."""


class SessionExpiredError(AuthenticationError):
    """
    The token is expired or refused, and nothing can renew it: sign in again.

    The message says which it is: it has expired, the service refused it, the service did not answer
    until it expired, the credentials gave no other one, or it is an API access token, which cannot
    be refreshed. `__cause__` is the error of the last attempt to renew it, when there was one, and
    `retryable` is that error's.
    """


class PermissionDeniedError(ApiError):
    """403: signed in, but not allowed to do this."""

    default_status = 403


class AccountLockedError(PermissionDeniedError):
    """The account is locked; trying again keeps it so."""


class NotFoundError(ApiError):
    """404 about a resource, such as an organization."""

    default_status = 404


class EndpointGoneError(ApiError):
    """
    The service no longer has this operation; the message says what to use instead.

    Where the reply is not in the form of Koyeb's API, ``base_url`` may be wrong.

    Koyeb marks all sign-in operations "DEPRECATED: this has been replaced by WorkOS and will be
    dropped soon", and has withdrawn passwordless login.
    """

    default_status = 404


class RateLimitedError(ApiError):
    """429: too many requests."""

    default_status = 429
    retryable = True


class ServerError(ApiError):
    """5xx: the service failed."""

    default_status = 500
    retryable = True


class WireError(KoyebSessionError):
    """The service answered with success, but not with what its description promises."""


class NotSignedInError(KoyebSessionError):
    """There is no token, and nothing to sign in with."""


class StoreError(KoyebSessionError):
    """A token store could not be read, written or locked; the session goes on in memory."""

    retryable = True


_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: EndpointGoneError,
    410: EndpointGoneError,
    429: RateLimitedError,
    501: EndpointGoneError,
}
_REFUSAL: Final = "password is incorrect"


def error_class(
    status: int, code: str | int | None, message: str, *, signs_in: bool
) -> type[ApiError]:
    """
    Choose the class for an error reply.

    A 404 in the API's own format, with a string ``code``, is about a resource. Any other 404 comes
    from a router that does not know the path.
    """
    if signs_in and (status == 401 or (status in {400, 404} and _REFUSAL in message)):
        return InvalidCredentialsError
    if status == 403 and "locked" in message.lower():
        return AccountLockedError
    if status == 404 and not isinstance(code, str):
        return EndpointGoneError
    return _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
