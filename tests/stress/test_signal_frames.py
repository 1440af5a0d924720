"""The output of tools for the package's frames when a signal handler has raised in them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from koyeb_session import KoyebSessionError, SessionClient
from koyeb_session._core import results
from koyeb_session.testing import FakeKoyeb, assert_no_secret

from ..concurrency import idle
from ..test_frames import EMAIL, ENTRIES, FINGERPRINT, PASSWORD
from ..walkers import is_ours
from .lines import limit

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    # A handler that raises while a thread is started can end that thread.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

GIVEN: Final = "canary-given-token-90c1f4"
CALLS: Final[Mapping[str, Callable[[SessionClient], object]]] = {
    **ENTRIES,
    "client": lambda session: SessionClient(token=GIVEN, transport=session.http._transport),
    "use_token": lambda session: session.use_token(GIVEN),
    "for_token": lambda session: session.for_token(GIVEN),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_frame_shows_a_secret_when_a_handler_raises_at_any_line(name: str) -> None:
    """The blocking half removes frames that hold a secret, wherever a time limit strikes."""
    for at in itertools.count(1):
        fake = FakeKoyeb(users={EMAIL: PASSWORD})
        session = SessionClient(token=fake.issue_token(EMAIL), transport=fake.transport)
        line, error = limit(partial(call, CALLS[name], session), at)
        assert (error is not None) is line.struck, at
        if error is not None:
            secrets = [PASSWORD, FINGERPRINT, GIVEN, *fake.live_tokens()]
            assert_no_secret(secrets, *shown(error))
        del error  # with its frames
        session.close()
        idle()
        if not line.reached:
            return


def call(work: Callable[[SessionClient], object], session: SessionClient) -> None:
    """Make a call, which may fail."""
    with contextlib.suppress(KoyebSessionError):
        work(session)


def shown(error: BaseException) -> Iterator[str]:
    """
    Yield the variables of the package's frames, and of the methods that attrs has written.

    The first step of a frame comes before any `try` in it, so nothing can cover its arguments.
    """
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = code.co_filename
        is_at_first_step = traceback.tb_lineno == code.co_firstlineno or (
            file == results.__file__ and code.co_name == "call"
        )
        if (is_ours(Path(file)) or file.startswith("<attrs generated")) and not is_at_first_step:
            yield from map(text, traceback.tb_frame.f_locals.values())
        traceback = traceback.tb_next


def text(value: Any) -> str:
    """Return the `repr` of a variable; empty where an object is not complete yet."""
    try:
        return repr(value)
    except (AttributeError, AssertionError):
        return ""
