"""Decide where a token may go: to the service's origin and to those that the user names."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import httpx

if TYPE_CHECKING:
    from typing import Any, Protocol

    class _Url(Protocol):
        @property
        def scheme(self) -> str: ...
        @property
        def userinfo(self) -> bytes: ...
        @property
        def raw_host(self) -> bytes: ...
        @property
        def port(self) -> int | None: ...

    class _Headers(Protocol):
        @property
        def raw(self) -> list[tuple[bytes, bytes]]: ...

    class _Request(Protocol):
        """The common attributes of a request of httpx and of httpx2."""

        @property
        def url(self) -> _Url: ...
        @property
        def headers(self) -> _Headers: ...
        @property
        def extensions(self) -> Mapping[str, Any]: ...


Origin: TypeAlias = tuple[str, bytes, int | None]
"""Scheme, host and port; the port is `None` if it is the scheme's default."""


@functools.lru_cache(maxsize=32)
def address(url: str) -> tuple[httpx.URL, bytes]:
    """Parse a URL and its ``Host``, once; without a query, which may name the user."""
    parsed = httpx.URL(url)
    return parsed, parsed.netloc


class Origins(NamedTuple):
    """The service's base URL, and the origins that may see the token, each with its ``Host``."""

    base_url: str
    trusted: Mapping[Origin, bytes]

    @property
    def service(self) -> str:
        """The origin of the service itself."""
        (scheme, _, _), host = next(iter(self.trusted.items()))
        return f"{scheme}://{host.decode('ascii')}"

    def trusts(self, request: _Request) -> bool:
        """
        Return whether a request may carry the token.

        A `Host` header that differs from the URL would let a shared front end route the request to
        another service. So would a target that is no path. User information in a URL can disguise
        the host. No such request gets the token.
        """
        url = request.url
        host = self.trusted.get((url.scheme, url.raw_host, url.port))
        if host is None or url.userinfo:
            return False
        target = request.extensions.get("target")  # httpcore sends it in place of the URL's path
        if target is not None and not (isinstance(target, bytes) and target.startswith(b"/")):
            return False
        hosts = 0
        for name, value in request.headers.raw:  # hot path: see tests/benchmarks
            if len(name) == 4 and name.lower() == b"host":
                if value.lower() != host:
                    return False
                hosts += 1
        return hosts == 1


def origins(base_url: str, allowed: Iterable[str]) -> Origins | ValueError | TypeError:
    """Check ``base_url`` and ``allowed_origins``."""
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):
        return TypeError("allowed_origins must be a collection of URLs")
    trusted: dict[Origin, bytes] = {}
    for name, text in [("base_url", base_url), *(("allowed_origins", url) for url in allowed)]:
        url = _checked(name, text)
        if isinstance(url, Exception):
            return url
        if name == "allowed_origins" and url.path != "/":
            return ValueError("allowed_origins takes origins (scheme, host and port), no paths")
        if name == "base_url" and url.path.rstrip("/").endswith("/v1"):
            return ValueError("base_url must not end with /v1: each operation adds it")
        # A WebSocket begins as a request with the same protection; httpx2 takes these schemes.
        for scheme in (url.scheme, url.scheme.replace("http", "ws")):
            trusted[scheme, url.raw_host, url.port] = url.netloc
    return Origins(base_url.rstrip("/"), trusted)


def _checked(name: str, text: object) -> httpx.URL | ValueError | TypeError:
    """Parse a URL that tokens may be sent to; no error message quotes it."""
    if not isinstance(text, str):
        return TypeError(f"{name} must be a str, not {type(text).__name__}")
    if re.search(r"[\s?#]", text):  # a path appended to these would be no path
        return ValueError(f"{name} must have no query, no fragment and no spaces")
    try:
        url = httpx.URL(text)
        problem = _problem(url)
    except (httpx.InvalidURL, ValueError):  # `host` decodes an internationalized name
        return ValueError(f"{name} is not a URL")
    return url if problem is None else ValueError(f"{name} must {problem}")


def _problem(url: httpx.URL) -> str | None:
    if url.scheme not in {"https", "http"} or not url.host or "%" in url.host:
        return "begin with https:// and a host name"
    if url.userinfo:
        return "hold no user name or password"
    if url.port is not None and url.port > 65_535:
        return "have a port up to 65535"
    if url.scheme == "http" and not is_loopback(url.host):
        return (
            "be https: tokens go over http to loopback only. Use https, or a port of this machine, "
            "http://127.0.0.1:PORT (in a compose file: publish the port, or share the service's "
            "network by network_mode)"
        )
    return None


def is_loopback(host: str) -> bool:
    """Return whether requests to this host stay on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
