"""
A fake Koyeb sign-in service for tests: in memory, with its own clock, and failing on demand.

``python -m koyeb_session.testing`` serves it for programs in any language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._clock import FakeClock
    from ._conformance import async_check_store, check_store
    from ._fake import FakeService
    from ._faults import Fault
    from ._gate import Gate
    from ._koyeb import FakeKoyeb
    from ._provider import FakeIdentityProvider
    from ._requests import Request
    from ._secrets import assert_no_secret

__all__ = [  # noqa: RUF022 - grouped by role
    # the services
    "FakeIdentityProvider",
    "FakeKoyeb",
    "FakeService",
    "Request",
    # failures
    "Fault",
    "Gate",
    # time
    "FakeClock",
    # checks of stores
    "async_check_store",
    "check_store",
    # secrets
    "assert_no_secret",
]

if not TYPE_CHECKING:
    # Imported on first use: in any environment with this package, each run of pytest loads the
    # plugin, and with it this module. Tools like PyInstaller look for import statements.
    def __getattr__(name: str) -> object:
        match name:
            case "FakeClock":
                from . import _clock as home
            case "FakeIdentityProvider":
                from . import _provider as home
            case "FakeKoyeb":
                from . import _koyeb as home
            case "FakeService":
                from . import _fake as home
            case "Fault":
                from . import _faults as home
            case "Gate":
                from . import _gate as home
            case "Request":
                from . import _requests as home
            case "assert_no_secret":
                from . import _secrets as home
            case "async_check_store" | "check_store":
                from . import _conformance as home
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(home, name)
        value.__module__ = __name__
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
