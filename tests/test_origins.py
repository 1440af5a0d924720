"""Where a token goes, and all the ways in which a URL looks like that place and is another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from koyeb_session._core.origins import Origins, origins

BASE = "https://app.koyeb.com"


def made(base_url: str = BASE, *allowed: str) -> Origins:
    """Make origins of URLs that are right."""
    found = origins(base_url, allowed)
    assert isinstance(found, Origins)
    return found


def trusts(
    url: str, *allowed: str, base_url: str = BASE, headers: Mapping[str, str] | None = None
) -> bool:
    """Return whether a request to a URL may carry the token."""
    return made(base_url, *allowed).trusts(httpx.Request("GET", url, headers=headers))


# pitfall 10


@pytest.mark.parametrize(
    "url",
    [
        *("https://app.koyeb.com", "https://app.koyeb.com/v1/apps?limit=1#top"),
        *("https://app.koyeb.com:443/v1/apps", "HTTPS://APP.Koyeb.COM/v1/apps"),
        *("https://app.koyeb.com/@evil.example/", "https://app.koyeb.com/https://evil.example"),
        *("https://app。koyeb。com/", "wss://app.koyeb.com/", "wss://app.koyeb.com:443/"),
    ],
)
def test_token_goes_along_when_the_origin_is_the_services(url: str) -> None:
    """The same scheme, host and port, however they are written."""
    assert trusts(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://app.koyeb.com/", "http://app.koyeb.com:443/"),  # a downgrade
        *("https://app.koyeb.com:80/", "https://app.koyeb.com:8443/"),
        *("https://koyeb.com/", "https://www.app.koyeb.com/", "https://evilapp.koyeb.com/"),
        *("https://app.koyeb.com.evil.example/", "https://app-koyeb.com/", "https://appkoyeb.com/"),
        "https://app.koyeb.com./",  # another name to a cookie jar, a certificate and a virtual host
        "https://xn--pp-koyeb-1za.example/",
        "https://аpp.koyeb.com/",  # noqa: RUF001 - a Cyrillic letter
        *("https://me@app.koyeb.com/", "https://me:pw@app.koyeb.com/"),
        *("https://app.koyeb.com@evil.example/", "https://app.koyeb.com:443@evil.example/"),
        *("https://evil.example/https://app.koyeb.com", "https://evil.example\\@app.koyeb.com/"),
        "https://evil.example/?https://app.koyeb.com",
        "https://evil.example#https://app.koyeb.com",
        *("https://127.0.0.1/", "http://localhost/", "https://[::1]/"),
        *("ws://app.koyeb.com/", "wss://app.koyeb.com:80/", "wss://evil.example/"),
        *("ftp://app.koyeb.com/", "//app.koyeb.com/", "/v1/apps"),
    ],
)
def test_token_stays_when_the_origin_is_another(url: str) -> None:
    """A URL with another scheme, host or port, or with user information, gets no token."""
    assert not trusts(url)


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("app.koyeb.com", True),
        ("APP.koyeb.com", True),
        ("evil.example", False),
        ("app.koyeb.com:443", False),
        ("app.koyeb.com.", False),
        ("", False),
        ("app.koyeb.com, evil.example", False),
    ],
)
def test_token_stays_when_the_host_header_is_another(host: str, trusted: bool) -> None:  # noqa: FBT001 - a table
    """A front end routes by that header, and may take the request to somebody else."""
    assert trusts(BASE, headers={"Host": host}) is trusted


def test_token_stays_when_the_host_header_is_missing_or_twice() -> None:
    """A request without its own host, or with two, is not one that httpx makes."""
    request = httpx.Request("GET", BASE)
    del request.headers["host"]
    twice = httpx.Request("GET", BASE, headers=[("Host", "app.koyeb.com")] * 2)
    assert not made().trusts(request)
    assert not made().trusts(twice)


def test_port_is_a_part_of_the_origin_when_the_base_url_has_one() -> None:
    """The other ports of a loopback host are other services."""
    base = "http://127.0.0.1:8000"
    assert trusts("http://127.0.0.1:8000/v1/apps", base_url=base)
    assert trusts("ws://127.0.0.1:8000/v1/apps", base_url=base)
    assert not trusts("http://127.0.0.1:8001/v1/apps", base_url=base)
    assert not trusts("wss://127.0.0.1:8000/v1/apps", base_url=base)
    assert not trusts("http://127.0.0.1/v1/apps", base_url=base)
    assert not trusts("http://localhost:8000/v1/apps", base_url=base)
    assert not trusts("https://127.0.0.1:8000/v1/apps", base_url=base)
    assert trusts("http://[::1]:8000/x", base_url="http://[::1]:8000")
    assert not trusts("http://[::1]:8000/x", base_url=base)


def test_default_port_may_be_written_when_it_is_the_schemes() -> None:
    """443 is https, and 80 is http."""
    assert trusts(BASE, base_url="https://app.koyeb.com:443")
    assert trusts("http://localhost:80/", base_url="http://localhost")
    assert not trusts("http://localhost:443/", base_url="http://localhost")


def test_international_name_is_one_when_written_in_either_form() -> None:
    """A name in Unicode and its form in ASCII are one host."""
    for base in ("https://bücher.example", "https://xn--bcher-kva.example"):
        assert trusts("https://bücher.example/", base_url=base)
        assert trusts("https://xn--bcher-kva.example/", base_url=base)
        assert trusts("https://BÜCHER.example/", base_url=base)
        assert not trusts("https://bucher.example/", base_url=base)


def test_token_goes_along_when_the_origin_is_allowed() -> None:
    """Origins that the user names are trusted beside the service's own."""
    allowed = ("https://api.example", "https://x.example:8443/", "http://localhost:3000")
    for url in ("https://api.example/a", "https://x.example:8443", "http://localhost:3000/b", BASE):
        assert trusts(url, *allowed)
    for url in ("https://x.example", "http://api.example", "https://api.example:1"):
        assert not trusts(url, *allowed)


def test_path_of_the_base_url_is_no_part_of_the_origin() -> None:
    """The whole of an origin is one service."""
    assert trusts("https://gate.example/other", base_url="https://gate.example/koyeb")


# The URLs that a client is made with


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (BASE, BASE),
        (f"{BASE}/", BASE),
        (f"{BASE}///", BASE),
        ("https://gate.example/koyeb/", "https://gate.example/koyeb"),
        *((url, url) for url in ("HTTPS://App.Koyeb.Com", "https://a.example:65535")),
        *((url, url) for url in ("http://localhost:8000", "http://LOCALHOST", "http://127.0.0.1")),
        *((url, url) for url in ("http://127.8.9.1:1", "http://[::1]:8000")),
    ],
)
def test_base_url_is_kept_when_it_is_right(given: str, kept: str) -> None:
    """A base URL loses its last slashes: paths are put behind it."""
    assert made(given).base_url == kept


RULE_BEGIN = "must begin with https:// and a host name"
RULE_HTTPS = (
    "must be https: tokens go over http to loopback only. Use https, or a port of this machine, "
    "http://127.0.0.1:PORT (in a compose file: publish the port, or share the service's network "
    "by network_mode)"
)
RULE_PLAIN = "must have no query, no fragment and no spaces"
RULE_USER = "must hold no user name or password"
RULE_PORT = "must have a port up to 65535"
NO_URL = "is not a URL"

WRONG_URLS = {
    RULE_BEGIN: (
        *("", "app.koyeb.com", "//app.koyeb.com", "/v1", "https://", "https:///v1"),
        *("https:app.koyeb.com", "https://app%2Ekoyeb.com"),
        "https://[",  # httpx takes the bracket as a name, and writes it as %5B
        *("ftp://app.koyeb.com", "wss://app.koyeb.com", "file:///etc/passwd"),
    ),
    RULE_HTTPS: (
        *("http://app.koyeb.com", "http://localhost.example", "http://localhost."),
        *("http://0.0.0.0", "http://10.0.0.1", "http://126.255.255.255", "http://[::2]"),
    ),
    RULE_USER: (
        *("https://canary@app.koyeb.com", "https://me:canary@app.koyeb.com"),
        *("https://app.koyeb.com\\@canary.example", "http://me:canary@localhost"),
    ),
    RULE_PLAIN: (
        *("https://app.koyeb.com?", "https://app.koyeb.com/?canary=1"),
        *("https://app.koyeb.com#", "https://app.koyeb.com/#canary"),
        *("https://app.koyeb.com ", " https://app.koyeb.com"),
        *("https://app.koyeb.com\n", "https://app.koyeb.com\u00a0"),
    ),
    RULE_PORT: ("https://app.koyeb.com:65536",),
    NO_URL: (
        *("https://app.koyeb.com:x", "https://[::1", "https://xn--"),
        *("https://app.koyeb.com/\x00", "https://app.koyeb.com/\ud800", "https://" + "x" * 70_000),
    ),
}


@pytest.mark.parametrize(
    ("rule", "url"),
    [(rule, url) for rule, urls in WRONG_URLS.items() for url in urls],
    ids=lambda text: ascii(text)[:40],
)
def test_url_is_refused_when_tokens_could_not_safely_go_there(rule: str, url: str) -> None:
    """The message names the argument and the problem, without the URL."""
    for name, error in (
        ("base_url", origins(url, ())),
        ("allowed_origins", origins(BASE, [BASE, url])),
    ):
        assert type(error) is ValueError
        assert str(error) == f"{name} {rule}"


@pytest.mark.parametrize("value", [None, 5, b"https://app.koyeb.com", httpx.URL(BASE)], ids=repr)
def test_url_is_refused_when_it_is_no_str(value: Any) -> None:
    """The class that came instead is named."""
    for name, error in (
        ("base_url", origins(value, ())),
        ("allowed_origins", origins(BASE, [value])),
    ):
        assert type(error) is TypeError
        assert str(error) == f"{name} must be a str, not {type(value).__name__}"


@pytest.mark.parametrize("allowed", [BASE, "", None, 5], ids=repr)
def test_allowed_origins_are_refused_when_they_are_no_collection(allowed: Any) -> None:
    """One URL in place of a list of them would be taken letter by letter."""
    error = origins(BASE, allowed)
    assert type(error) is TypeError
    assert str(error) == "allowed_origins must be a collection of URLs"


@pytest.mark.parametrize("url", ["https://api.example/v1", "https://api.example//"])
def test_allowed_origin_is_refused_when_it_has_a_path(url: str) -> None:
    """A path would promise a limit that origins do not have."""
    error = origins(BASE, iter([url]))
    assert type(error) is ValueError
    assert str(error) == "allowed_origins takes origins (scheme, host and port), no paths"
