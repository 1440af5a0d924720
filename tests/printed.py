"""Make mistakes, and take down the text that Python prints of them."""

from __future__ import annotations

import gc
import logging
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from koyeb_session import AsyncSessionClient, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .support import ME as EMAIL
from .support import PASSWORD


@attrs.frozen
class Setup:
    """The service, the clock, the file and the log of one mistake."""

    fake: FakeKoyeb
    clock: FakeClock
    path: Path
    """A session file that is not there yet."""
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture

    def client(self, **arguments: Any) -> SessionClient:
        """Make a blocking client of the fake service."""
        arguments = {"transport": self.fake.transport, "clock": self.clock, **arguments}
        return SessionClient(**arguments)

    def sign_in(self, fault: Fault | None = None, **arguments: Any) -> None:
        """Make a client, and sign in by a password; it may meet with a fault."""
        if fault:
            self.fake.fail("login", fault)
        with self.client(**arguments) as session:
            session.login(EMAIL, PASSWORD)

    def async_client(self, **arguments: Any) -> AsyncSessionClient:
        """Make an asynchronous client of the fake service."""
        return AsyncSessionClient(transport=self.fake.transport, clock=self.clock, **arguments)


def printed(error: BaseException) -> str:
    """Write the last line of a traceback."""
    return "".join(traceback.format_exception_only(error)).strip()


def message(work: Callable[[], object]) -> str:
    """Do something, and return the last line of its traceback, or its result."""
    try:
        return str(work())
    except Exception as error:  # noqa: BLE001 - any of them
        return printed(error)


def warned(work: Callable[[], object]) -> str:
    """Run a mistake that Python warns of, and write the warning."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work()
        gc.collect()
    (warning,) = [each for each in found if each.category in {RuntimeWarning, ResourceWarning}]
    return f"{warning.category.__name__}: {warning.message}"


def logged(setup: Setup) -> str:
    """Write the first warning of the log, in the form that `logging.basicConfig()` has."""
    return next(
        f"{each.levelname}:{each.name}:{each.getMessage()}"
        for each in setup.log.records
        if each.levelno >= logging.WARNING
    )
