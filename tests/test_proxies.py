"""The environment's proxies: which one is for which URL, as httpx has it, and which can be none."""

from __future__ import annotations

import ssl
from typing import Any

import httpx
import pytest

from koyeb_session import AsyncSessionClient, SessionClient, TransportError
from koyeb_session._core.origins import is_loopback
from koyeb_session._http.proxies import Proxies, environment_proxies
from koyeb_session.testing import FakeKoyeb, assert_no_secret

Address = tuple[str, str, int | None]
SETTINGS: list[dict[str, str]] = [
    {"HTTPS_PROXY": "http://secure:1"},
    {"HTTP_PROXY": "http://clear:1", "ALL_PROXY": "proxy:2"},
    {"HTTP_PROXY": "http://[::1]:1", "HTTPS_PROXY": "http://user:pass@secure:3"},
    {"ALL_PROXY": "https://any:4"},
]
EXCEPTIONS = [
    *("", "*", "koyeb.com", ".koyeb.com", "*.koyeb.com", "app.koyeb.com", "koyeb.com:443"),
    *("app.koyeb.com:8443", "https://app.koyeb.com", "http://app.koyeb.com", "https://*"),
    *("all://koyeb.com", "https://app.koyeb.com:8443", "http://127.0.0.1", "http://127.0.0.1:8080"),
    *("127.0.0.1", "127.0.0.1:8080", "127.0.0.0/8", "10.0.0.0/8", "10.1.2.3", "::1", "[::1]"),
    *("localhost", "LOCALHOST", "localhost,127.0.0.1", " koyeb.com , 10.1.2.3 ", ",,"),
    *("example.com,app.koyeb.com:8443,*", "notkoyeb.com", "com"),
]
URLS = [
    *("https://app.koyeb.com", "http://app.koyeb.com", "https://app.koyeb.com:8443"),
    *("https://koyeb.com", "https://notkoyeb.com", "https://APP.KOYEB.COM/v1/apps?x=1"),
    *("https://localhost", "http://localhost:8080", "https://127.0.0.1:8080", "http://127.0.0.1"),
    *("http://127.0.0.1:8080", "http://127.1.2.3", "http://[::1]:8080", "https://[::1]"),
    *("https://10.1.2.3", "http://10.9.9.9:8080"),
    *("ws://127.0.0.1:8080", "wss://app.koyeb.com"),
]


pytestmark = pytest.mark.usefixtures("no_proxies")


def of_httpx(client: httpx.Client, url: httpx.URL) -> Address | None:
    """Ask httpx, which has no public way to be asked."""
    pool: Any = vars(client._transport_for_url(url))["_pool"]
    proxy: Any = getattr(pool, "_proxy_url", None)
    return proxy and (proxy.scheme.decode(), proxy.host.decode(), proxy.port)


TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each client to read the certificates."""


@pytest.mark.parametrize("setting", range(len(SETTINGS)))
@pytest.mark.parametrize("exceptions", EXCEPTIONS)
def test_proxies_are_those_of_httpx(
    monkeypatch: pytest.MonkeyPatch, setting: int, exceptions: str
) -> None:
    """
    The same for each URL, except that clear text for this machine does not leave it.

    A setting that httpx cannot read is refused, as in httpx.
    """
    for variable, value in {**SETTINGS[setting], "NO_PROXY": exceptions}.items():
        monkeypatch.setenv(variable, value)
    proxies = environment_proxies()
    try:
        client = httpx.Client(verify=TRUSTS_NOBODY)
    except httpx.InvalidURL:
        assert isinstance(proxies, TransportError)
        return
    assert isinstance(proxies, Proxies)
    with client:
        for url in map(httpx.URL, URLS):
            wanted = of_httpx(client, url)
            local = url.scheme in {"http", "ws"} and is_loopback(url.host)
            if wanted and local and not is_loopback(wanted[1]):
                wanted = None
            found = proxies.route(url)
            assert (found and (found.scheme, found.host, found.port)) == wanted, url


@pytest.mark.parametrize("client", [SessionClient, AsyncSessionClient])
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HTTPS_PROXY", "socks://proxy:1", r"HTTPS_PROXY is a socks:// proxy.* http://host:port"),
        ("ALL_PROXY", "ftp://me:CANARY@proxy:1", "ALL_PROXY is a ftp:// proxy"),
        ("HTTP_PROXY", "socks5://me:CANARY@proxy:1", r"socksio is missing: .*httpx\[socks\]"),
        ("HTTPS_PROXY", "http://me:CANARY@proxy:port", "no host or URL"),
        ("NO_PROXY", "[::1]", "no host or URL"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_when_the_client_is_made(
    monkeypatch: pytest.MonkeyPatch, client: Any, variable: str, value: str, message: str
) -> None:
    """The error names the variable, shows no password, and is final."""
    monkeypatch.setattr("koyeb_session._http.proxies._has_socksio", lambda: False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(TransportError, match=message) as caught:
        client()
    assert not caught.value.retryable
    assert_no_secret("CANARY", caught.value)
    client(transport=FakeKoyeb().transport)  # decides by itself where it leads


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_used_where_socksio_is_installed(
    monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """It is httpx's extra."""
    monkeypatch.setattr("importlib.util.find_spec", str)
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:secret@proxy:1")
    proxies = environment_proxies()
    assert isinstance(proxies, Proxies)
    route = proxies.route(httpx.URL("https://app.koyeb.com"))
    assert route == f"{scheme}://me:secret@proxy:1"
    assert "secret" not in repr(route)
