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

import re
from collections.abc import Mapping
from typing import Any, Final, TypeAlias, cast

_State: TypeAlias = dict[str, Any] | None
"""The attributes of an object: one for its dictionary, and one for its slots, if it has any."""

PASSING: Final = frozenset({408, 425, 429})
"""The 4xx statuses after which another attempt may get a different answer."""


class KoyebSessionError(Exception):
    """
    The root of all errors that this package raises about a session.

    ```python
    try:
        session.login("me@example.com", "correct horse")
    except KoyebSessionError as error:
        print(error, "Try again later." if error.retryable else "Another try will not help.")
    ```

    It is not for wrong arguments, which are `ValueError` or `TypeError`, nor for the use of a
    closed client, which is `RuntimeError`. An error can be pickled and copied.

    Attributes:
        message: The event, the request and the remedy, in a sentence; it never holds a secret.
        retryable: Whether the same may succeed later.
    """

    retryable: bool = False
    _repeatable: bool = False
    """Whether the request may be repeated: nothing was done, or doing it twice is harmless."""
    raised_by: object = None  # a session's mark, which `unwrap` sets for the edges; not for users

    def __init__(self, message: str = "") -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The text of the error, also of a subclass that does not call this constructor."""
        return super().__str__()  # a user's own `__str__` might raise

    @message.setter
    def message(self, text: str) -> None:
        self.args: tuple[object, ...] = (text,)

    def __reduce__(self) -> tuple[object, ...]:
        # Without the constructor: that of a user's subclass may take any arguments.
        return _restored, (type(self), self.args, attributes_of(self))


def attributes_of(error: KoyebSessionError) -> dict[str, Any]:
    """Return the attributes of an error, also those that a user's subclass keeps in slots."""
    state = cast("_State | tuple[_State, _State]", object.__getstate__(error))
    attributes: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):
        attributes |= part or {}
    return attributes


def _restored(
    kind: type[KoyebSessionError], args: tuple[object, ...], attributes: dict[str, Any]
) -> KoyebSessionError:
    error = kind.__new__(kind, *args)
    error.args = args  # the `__new__` of an `OSError` may leave them to the constructor
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


class TransportError(KoyebSessionError):
    """
    There was no reply; ``__cause__`` is the `httpx` error.

    The service may have carried the operation out all the same, unless the connection was refused.
    ``retryable`` is `False` where no other try can help: a proxy or a certificate is at fault.

    ```python
    try:
        token = session.refresh()
    except TransportError as error:
        print("The network fails:", error)
    ```
    """

    retryable = True


class TransportTimeoutError(TransportError):
    """
    There was no reply in time: within ``timeout`` seconds in all.

    ```python
    try:
        token = session.refresh(timeout=2)
    except TransportTimeoutError:
        token = session.refresh(timeout=30)
    ```
    """


class ApiError(KoyebSessionError):
    """
    The service answered with an error.

    ```python
    try:
        token = session.switch_organization("an-id")
    except ApiError as error:
        print(error.status, error.code, error.request_id)
    ```

    Attributes:
        status: The HTTP status.
        code: The service's own code, such as ``"not_found"``, or a ``google.rpc`` number;
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
        if self.status in PASSING:
            self.retryable = True
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(ApiError):
    """
    400: the service found the request wrong.

    ```python
    try:
        session.login("me", "correct horse")
    except BadRequestError as error:
        for field, problem in error.fields.items():
            print(field, problem)
    ```

    Attributes:
        fields: The problem of each field, by its name; empty when the reply names none.
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
    """
    401: the service does not accept the token, or the sign-in.

    ```python
    try:
        token = session.current_token()
    except AuthenticationError as error:
        print("Sign in again:", error)
    ```
    """

    default_status = 401


class InvalidCredentialsError(AuthenticationError):
    """
    The sign-in was refused: the e-mail address or the password is wrong.

    ```python
    try:
        session.login("me@example.com", "a guess")
    except InvalidCredentialsError:
        print("The address or the password is wrong.")
    ```
    """


class SessionExpiredError(AuthenticationError):
    """
    The token is expired or refused, and nothing can renew it: sign in again.

    The message names the cause: the token has expired, the service refused it, the service did not
    answer until it expired, the credentials gave no other one, or it is an API access token, which
    cannot be refreshed. ``__cause__`` is the error of the last renewal, if there was one, and
    ``retryable`` is that error's.

    ```python
    try:
        apps = session.http.get("/v1/apps")
    except SessionExpiredError:
        session.login("me@example.com", "correct horse")
    ```
    """


class PermissionDeniedError(ApiError):
    """
    403: signed in, but not allowed to do this; or Koyeb no longer accepts this kind of sign-in.

    ```python
    try:
        token = session.switch_organization("an-id")
    except PermissionDeniedError:
        print("You are not a member of this organization.")
    ```
    """

    default_status = 403


class AccountLockedError(PermissionDeniedError):
    """
    The account is locked; trying again keeps it so.

    ```python
    try:
        session.login("me@example.com", "correct horse")
    except AccountLockedError:
        print("Wait, or ask Koyeb's support.")
    ```
    """


class NotFoundError(ApiError):
    """
    404 about a resource, such as an organization.

    ```python
    try:
        token = session.switch_organization("an-id")
    except NotFoundError:
        print("There is no such organization.")
    ```
    """

    default_status = 404


class EndpointGoneError(ApiError):
    """
    The service no longer has this operation; the message says what to use instead.

    Where the reply is not in the form of Koyeb's API, ``base_url`` may be wrong.

    Koyeb marks all sign-in operations "DEPRECATED: this has been replaced by WorkOS and will be
    dropped soon", and has withdrawn passwordless login.

    ```python
    try:
        session.login("me@example.com", "correct horse")
    except EndpointGoneError:
        session.use_token(api_token)
    ```
    """

    default_status = 404


class RateLimitedError(ApiError):
    """
    429: too many requests. ``retry_after`` has the seconds to wait, if the service names them.

    ```python
    try:
        session.login("me@example.com", "correct horse")
    except RateLimitedError as error:
        time.sleep(error.retry_after or 60)
    ```
    """

    default_status = 429
    retryable = True


class ServerError(ApiError):
    """
    5xx: the service failed.

    ```python
    try:
        token = session.refresh()
    except ServerError as error:
        print("Koyeb is down:", error.status)
    ```
    """

    default_status = 500
    retryable = True


class WireError(KoyebSessionError):
    """
    The service answered with success, but the reply is not as its description promises.

    ```python
    try:
        session.login("me@example.com", "correct horse")
    except WireError as error:
        print("Is base_url right?", error)
    ```
    """


class NotSignedInError(KoyebSessionError):
    """
    There is no token, and nothing to sign in with, or the first sign-in failed.

    ```python
    try:
        token = session.current_token()
    except NotSignedInError:
        token = session.login("me@example.com", "correct horse")
    ```
    """


class StoreError(KoyebSessionError):
    """
    A token store could not be read, written or locked; the session goes on in memory.

    ```python
    try:
        session.logout()
    except StoreError as error:
        print("The token may still be in the store:", error)
    ```
    """

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
_LOCKED: Final = re.compile(r"(?<![a-z])locked", re.IGNORECASE)
"""Not a part of "blocked", which firewalls say of addresses."""


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
    if status == 403 and _LOCKED.search(message):
        return AccountLockedError
    if status == 404 and not isinstance(code, str):
        return EndpointGoneError
    return _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
