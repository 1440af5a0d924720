# Generated from koyeb_session/_async/transport.py by .ci/generate_sync.py: edit that, not this.

"""The connections of a client, for whichever event loop it is used from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.request import getproxies, proxy_bypass

import httpx

from .._concurrency.http import tls_ready
from .._concurrency.places import atomic, place
from .._concurrency.tls import prepare_tls
from .._origins import is_loopback
from .slots import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping


class Connections(httpx.BaseTransport):
    """
    httpx's own transports: a set for each place and proxy, made when first needed.

    What was opened in another place is dead there (an event loop that has ended, the parent of a
    fork) and is dropped without being closed. A transport that was given is used everywhere.
    """

    def __init__(self, given: httpx.BaseTransport | None = None) -> None:
        self._given: Final = given
        self._proxies: Final[Mapping[str, str]] = {} if given else getproxies()
        self._place: object = None
        self._opened: dict[str | None, Slots] = {}
        self.shut_down = False
        if given is None:
            prepare_tls()

    @property
    def opened(self) -> bool:
        """Whether there is anything to close."""
        return bool(self._opened)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request on a connection of this place."""
        if self._given is None and not self._opened:
            tls_ready()
        return self._transport(request.url).handle_request(request)

    def close(self) -> None:
        """Do nothing: an httpx client only borrows the connections."""

    def shut(self) -> None:
        """Close what was opened in this place, or the transport that was given, for good."""
        self.shut_down = True
        if self._given is not None:
            self._given.close()
        here = bool(self._opened) and self._place is place()
        for proxy, transport in tuple(self._opened.items()):
            if here:
                transport.close()
            self._opened.pop(proxy, None)  # now: who is cancelled before leaves it to the next one

    def _transport(self, url: httpx.URL) -> httpx.BaseTransport:
        if self.shut_down:
            message = "the session client that owns these connections is closed"
            raise RuntimeError(message)
        if self._given is not None:
            return self._given
        here = place()
        if self._place is not here:
            with atomic:
                if self._place is not here:
                    self._opened, self._place = {}, here
        proxy = self._proxy(url) if self._proxies else None
        transport = self._opened.get(proxy)
        if transport is None:
            # setdefault: of two threads that make one, both use the first.
            transport = self._opened.setdefault(proxy, Slots(proxy))
        return transport

    def _proxy(self, url: httpx.URL) -> str | None:
        """Read the environment's proxies, as httpx does."""
        proxy = self._proxies.get(url.scheme) or self._proxies.get("all")
        if not proxy or proxy_bypass(url.host):
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        clear = url.scheme == "http" and is_loopback(url.host)
        if clear and not is_loopback(httpx.URL(proxy).host):
            return None  # what may be in clear text on this machine must not leave it so
        return proxy
