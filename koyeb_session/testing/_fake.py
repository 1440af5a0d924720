"""The base of all fake services: a transport, an application, a server, a log and faults."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager

from .._core.models import Clock
from ._asgi import FakeApp
from ._faults import Fault
from ._requests import Request
from ._routes import Routes
from ._service import CarryOut, Service
from ._transport import FakeTransport


class FakeService:
    """
    The base of `FakeKoyeb` and `FakeIdentityProvider`: a service in memory, and its requests.

    >>> import httpx
    >>> fake: FakeService = FakeKoyeb()
    >>> fake.fail("apps", Fault(status=503))
    >>> with fake.serve() as url:
    ...     httpx.get(f"{url}/v1/apps")
    <Response [503 Service Unavailable]>
    >>> fake.requests
    [Request(operation='apps', method='GET', path='/v1/apps', status=503)]

    Attributes:
        base_url: where clients on ``transport`` find the service.
        transport: an ``httpx`` transport for both halves.
        app: the service as an ASGI application.
        clock: tells the service's time.
    """

    def __init__(
        self,
        base_url: str,
        carry_out: CarryOut,
        routes: Routes,
        clock: Clock,
        withdrawn: Collection[str] = (),
    ) -> None:
        self._service = Service(carry_out, routes, clock, withdrawn)
        self.base_url = base_url
        self.clock: Clock = clock
        self.transport: FakeTransport = FakeTransport(self._service)
        self.app: FakeApp = FakeApp(self._service)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, {len(self.requests)} requests>"

    @property
    def requests(self) -> list[Request]:
        """The requests that were received, in order. Clear the list to begin anew."""
        return self._service.requests

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> AbstractContextManager[str]:
        """
        Serve on a real socket, as long as the context lasts.

        Args:
            host: the address to listen at, the loopback interface's unless given.
            port: the port; 0 for one that is free.

        Returns:
            A context manager that yields the base URL, such as ``http://127.0.0.1:8000``.
        """
        # Imported here, as most tests need no socket.
        from ._server import serving  # noqa: PLC0415

        return serving(self._service, host, port)

    def fail(self, operation: str, fault: Fault, *, times: int = 1) -> None:
        """
        Let the next requests of an operation go wrong. Faults are played in the order of the calls.

        Args:
            operation: its name, e.g. ``"refresh"`` or ``"apps"``.
            fault: the fault to play.
            times: with how many requests.

        Raises:
            ValueError: there is no such operation, or ``times`` is below 1.
            TypeError: it is no fault.
        """
        if not isinstance(fault, Fault):
            message = f"give a Fault, such as Fault(status=503), not {type(fault).__name__}"
            raise TypeError(message)
        self._service.fail(operation, fault, times)

    def recover(self, operation: str | None = None) -> None:
        """
        Forget the faults that have not been played yet.

        Args:
            operation: of which operation; ``None`` for all.

        Raises:
            ValueError: there is no such operation.
        """
        self._service.recover(operation)
