"""
Read the environment's proxies in the same way as an `httpx.Client`.

httpx has no public function for the proxy of a URL. This module follows the private
`get_environment_proxies` and `URLPattern`; a test compares the two.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies

import httpx

from .._core.origins import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .._core.errors import TransportError

_SET: Final = "set HTTPS_PROXY, HTTP_PROXY or ALL_PROXY to http://host:port"


class Proxies:
    """
    The rules that assign a proxy to a URL.

    The proxies are `httpx.URL` objects, whose `repr` shows no password.
    """

    def __init__(self, rules: Iterable[tuple[_Pattern, httpx.URL | None]] = ()) -> None:
        self._rules = sorted(rules, key=lambda rule: rule[0].order)

    def route(self, url: httpx.URL) -> httpx.URL | None:
        """
        Return the proxy for a URL; `None` for a direct connection.

        Clear text for this machine never goes to a proxy on another one.
        """
        for pattern, proxy in self._rules:
            if pattern.matches(url):
                clear = url.scheme in {"http", "ws"} and is_loopback(url.host)
                return None if proxy and clear and not is_loopback(proxy.host) else proxy
        return None


class _Pattern:
    """A pattern of URLs, such as ``all://*example.com``."""

    def __init__(self, text: str) -> None:
        url = httpx.URL(text)
        self._scheme = "" if url.scheme == "all" else url.scheme
        self._port = url.port
        host = "" if url.host == "*" else url.host
        if host.startswith("*."):  # only subdomains
            hosts = rf".+\.{re.escape(host[2:])}"
        elif host.startswith("*"):
            hosts = rf"(.+\.)?{re.escape(host[1:])}"
        else:
            hosts = re.escape(host)
        self._hosts = re.compile(f"^{hosts}$") if host else None
        # The most specific pattern comes first: with a port, then by the length of the host.
        self.order = (self._port is None, -len(host), -len(self._scheme))

    def matches(self, url: httpx.URL) -> bool:
        """Return whether a URL matches."""
        return (
            self._scheme in {"", url.scheme}
            and (self._hosts is None or self._hosts.match(url.host) is not None)
            and self._port in {None, url.port}
        )


def environment_proxies() -> Proxies | TransportError:
    """Read the proxies of the environment, and of the system settings on Windows and macOS."""
    found = getproxies()
    try:
        rules = dict(_rules(found))
        return Proxies((_Pattern(text), proxy) for text, proxy in rules.items())
    except (httpx.InvalidURL, ValueError):
        message = "NO_PROXY, or a proxy of the environment, holds what is no host or URL"
    except _UnusableProxyError as exc:
        message = str(exc)
    from .failures import final  # noqa: PLC0415 - rarely needed

    return final(message)


class _UnusableProxyError(Exception):
    """A proxy setting that cannot be used; the text says what to set instead."""


def _rules(found: Mapping[str, str]) -> Iterator[tuple[str, httpx.URL | None]]:
    excepted = [host.strip() for host in found.get("no", "").split(",")]
    if "*" in excepted:
        return
    for scheme in ("http", "https", "all"):
        if proxy := found.get(scheme):
            yield f"{scheme}://", _checked(scheme, proxy if "://" in proxy else f"http://{proxy}")
    for host in filter(None, excepted):
        yield _exception(host), None


def _checked(scheme: str, text: str) -> httpx.URL:
    name = f"{scheme.upper()}_PROXY"
    url = httpx.URL(text)
    if url.scheme not in {"http", "https", "socks5", "socks5h"}:
        message = (
            f"{name} is a {url.scheme}:// proxy, which httpx does not know: {_SET}, "
            "or socks5://host:port"
        )
        raise _UnusableProxyError(message)
    if url.scheme.startswith("socks") and not _has_socksio():
        message = f'{name} is a SOCKS proxy, and socksio is missing: pip install "httpx[socks]"'
        raise _UnusableProxyError(message)
    return url


def _has_socksio() -> bool:
    """Return whether the package for SOCKS proxies is installed."""
    from importlib.util import find_spec  # noqa: PLC0415 - rarely needed

    return find_spec("socksio") is not None


def _exception(host: str) -> str:
    """Convert an entry of ``NO_PROXY`` into a pattern of URLs."""
    if "://" in host:
        return host
    address = host.partition("/")[0]
    for kind, form in ((ipaddress.IPv4Address, "all://{}"), (ipaddress.IPv6Address, "all://[{}]")):
        try:
            kind(address)
        except ValueError:
            continue
        return form.format(host)
    return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"
