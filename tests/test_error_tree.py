"""The tree of the errors, and the small tools that make them."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from typing import Any

import attrs
import httpx
import pytest

from koyeb_session import (
    AccountLockedError,
    ApiError,
    AuthenticationError,
    BadRequestError,
    EndpointGoneError,
    InvalidCredentialsError,
    KoyebSessionError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    SessionExpiredError,
    StoreError,
    TransportError,
    TransportTimeoutError,
    WireError,
)
from koyeb_session._core import errors
from koyeb_session._core.results import sanitized_copy, unwrap, with_cause, without_frames

FIELDS = {"email": "is not an address", "password": "is too short"}
ERRORS: list[type[Any]] = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
]


# The tree


def test_tree_is_complete_and_as_drawn() -> None:
    """The module's drawing shows each class below its base, and no class is missing."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (inspect.getdoc(errors) or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error)\b", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in ERRORS}


RETRYABLE = {
    *(TransportError, TransportTimeoutError, RateLimitedError, ServerError, StoreError),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_class_has_its_base_and_says_whether_to_retry(kind: type[KoyebSessionError]) -> None:
    """Each class has one base, a docstring, and a plain answer to "may it help to retry"."""
    assert len(kind.__bases__) == 1
    assert kind.__doc__
    assert kind.retryable is (kind in RETRYABLE)
    assert kind().message == ""
    assert str(kind("said")) == kind("said").message == "said"


def sample(kind: type[KoyebSessionError]) -> KoyebSessionError:
    """Make an error with every attribute that its class has."""
    if issubclass(kind, BadRequestError):
        return kind("m", status=499, code="c", request_id="r", retry_after=1.5, fields=FIELDS)
    if issubclass(kind, ApiError):
        return kind("m", status=499, code=7, request_id="r", retry_after=1.5)
    return kind("m")


@pytest.mark.parametrize("kind", ERRORS)
def test_error_keeps_its_attributes_when_pickled_or_copied(kind: type[KoyebSessionError]) -> None:
    """An error goes through a process pool and back, with all that it says."""
    error = sample(kind)
    error.retryable = not kind.retryable
    error.add_note("a note")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301 - our own
        assert type(twin) is kind
        assert twin is not error
        assert str(twin) == twin.message == "m"
        assert vars(twin) == vars(error)
    if isinstance(error, ApiError):
        assert (error.status, error.request_id, error.retry_after) == (499, "r", 1.5)
        assert error.code == ("c" if isinstance(error, BadRequestError) else 7)


class BucketError(StoreError):
    """An error of a user's store, made of other arguments than ours."""

    def __init__(self, bucket: str, status: int) -> None:
        super().__init__(f"bucket {bucket}: {status}")
        self.bucket = bucket


class BareError(StoreError):
    """An error that leaves its message to Python, and cannot be printed."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket

    def __str__(self) -> str:
        """Raise."""
        raise LookupError


class BusyError(StoreError, TimeoutError):
    """An error of two families, whose constructor is the second one's."""

    def __init__(self, bucket: str, seconds: int) -> None:
        super().__init__(f"{bucket} is locked for {seconds} s")
        self.bucket = bucket


@attrs.define
class SlottedError(StoreError):
    """An error that keeps its attributes in slots."""

    bucket: str


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BucketError("b", 503), "bucket b: 503"),
        (BareError("b"), "b"),
        (BusyError("b", 2), "b is locked for 2 s"),
        (SlottedError("b"), "b"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_users_error_is_copied_without_its_constructor(error: Any, message: str) -> None:
    """A subclass may take any arguments: its copies say what it says, once."""
    error.raised_by = None
    twins = [copy.copy(error), without_frames(error, ["secret"])]
    twins += [pickle.loads(pickle.dumps(error, how)) for how in range(6)]  # noqa: S301 - our own
    for twin in twins:
        assert type(twin) is type(error)
        assert (twin.message, twin.bucket, twin.raised_by) == (message, "b", None)
    error.bucket = "a secret"
    assert without_frames(error, ["secret"]).bucket == "[secret]"


DEFAULT_STATUS: dict[type[ApiError], int] = {
    ApiError: 0,
    BadRequestError: 400,
    **dict.fromkeys((AuthenticationError, InvalidCredentialsError, SessionExpiredError), 401),
    **dict.fromkeys((PermissionDeniedError, AccountLockedError), 403),
    **dict.fromkeys((NotFoundError, EndpointGoneError), 404),
    RateLimitedError: 429,
    ServerError: 500,
}


@pytest.mark.parametrize("kind", DEFAULT_STATUS)
def test_api_error_has_its_usual_status_when_none_is_given(kind: type[ApiError]) -> None:
    """A user who makes an error in a test need not say its status; `0` is a status too."""
    error = kind()
    assert error.status == DEFAULT_STATUS[kind]
    assert (error.code, error.request_id, error.retry_after) == (None, None, None)
    assert kind(status=0).status == 0


def test_fields_are_the_errors_own_when_given() -> None:
    """A later change to the caller's mapping does not change the error."""
    given = {"email": "bad"}
    error = BadRequestError(fields=given)
    given["email"] = "changed"
    assert error.fields == {"email": "bad"}
    assert BadRequestError().fields == {}


# The small tools


def test_caused_gives_the_cause_without_raising() -> None:
    """An error that is only a value so far has its cause, and no traceback."""
    error, cause = KoyebSessionError("e"), ValueError("c")
    assert with_cause(error, cause) is error
    assert error.__cause__ is cause
    assert error.__traceback__ is None
    assert with_cause(error, None).__cause__ is None


def test_bare_copies_class_and_text_when_it_can() -> None:
    """The copy of a foreign error is of its class, without its request and its frames."""
    original = httpx.ConnectError("secret", request=httpx.Request("GET", "https://x"))
    original.__cause__ = ValueError("more")
    copied = sanitized_copy(original, "refused")
    assert type(copied) is httpx.ConnectError
    assert copied.args == ("refused",)
    assert copied.__cause__ is None
    assert copied.__traceback__ is None


class LockBusyError(TimeoutError):
    """An error as people write them: of more than a text."""

    def __init__(self, key: str, seconds: float) -> None:
        super().__init__(f"{key} is locked for {seconds} s")


class SealedError(ConnectionError):
    """An error that makes a sentence of its argument."""

    def __init__(self, path: str) -> None:
        super().__init__(f"vault {path} is sealed")


RESPONSE = httpx.Response(500, request=httpx.Request("GET", "https://x"))


@pytest.mark.parametrize(
    ("original", "base"),
    [
        (httpx.HTTPStatusError("m", request=RESPONSE.request, response=RESPONSE), httpx.HTTPError),
        (LockBusyError("k", 2), TimeoutError),
        (SealedError("kv"), ConnectionError),
        (ExceptionGroup("m", [OSError()]), Exception),
    ],
    ids=lambda given: type(given).__name__,
)
def test_bare_names_the_class_when_it_cannot_be_made_of_a_text(
    original: Exception, base: type[Exception]
) -> None:
    """The copy is of the nearest base that a text is enough for; the text names the class."""
    copied = sanitized_copy(original, "refused")
    assert type(copied) is base
    assert copied.args == (f"{type(original).__name__}: refused",)


def test_unwrap_returns_what_is_no_error() -> None:
    """A result comes through as it is, `None` and foreign exceptions as values included."""
    value = KeyError("a value")
    assert unwrap("result") == "result"
    assert unwrap(None) is None
    assert unwrap(value) is value


@pytest.mark.parametrize(
    "outcome",
    [
        with_cause(ServerError("down", status=503, retry_after=2.0), ValueError("why")),
        ValueError("v"),
        TypeError("t"),
    ],
    ids=repr,
)
def test_unwrap_raises_a_copy_when_it_is_an_error(
    outcome: KoyebSessionError | ValueError | TypeError,
) -> None:
    """Each caller gets an error of its own, with the same cause; the shared one stays clean."""
    raised: list[BaseException] = []
    for _ in range(2):
        with pytest.raises(type(outcome)) as info:
            unwrap(outcome)
        raised.append(info.value)
    first, second = raised
    assert first is not outcome
    assert first is not second
    assert type(first) is type(second) is type(outcome)
    assert first.args == second.args == outcome.args
    assert vars(first) == vars(second) == vars(outcome)
    assert first.__cause__ is outcome.__cause__
    assert outcome.__traceback__ is None


def test_unwrap_raises_without_a_cause_when_there_is_none() -> None:
    """An error that came of nothing else shows no context either."""
    try:
        raise LookupError  # noqa: TRY301 - a context to be hidden
    except LookupError:
        with pytest.raises(WireError) as info:
            unwrap(WireError("odd"))
    assert info.value.__cause__ is None
    assert info.value.__suppress_context__
