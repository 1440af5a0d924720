"""Make errors for requests without a reply: their advice, and whether another attempt may help."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING, Final

import httpx

from .._core.errors import PASSING, TransportError, TransportTimeoutError
from .._core.redaction import safe_message
from .._core.results import sanitized_copy, text_of, with_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CERTIFICATE: Final = (
    "its certificate is not trusted: set SSL_CERT_FILE to the certificates of the authority that "
    "signed it, in the PEM format"
)
_TIMES: Final = (
    "its certificate is out of date, or the clock of this machine is wrong: compare the clock with "
    "the true time"
)
_OTHER_HOST: Final = "its certificate is for another host: look at base_url"
_NO_TLS: Final = (
    "it answers without TLS: look at base_url, and at HTTPS_PROXY, which is http://host:port for "
    "most proxies"
)
_NAME: Final = (
    "a host name cannot be resolved: look at base_url, at the host of HTTPS_PROXY, if it is set, "
    "and at the network"
)
_CREDENTIALS: Final = (
    "the proxy does not accept the user name and password, if there are any: "
    "set HTTPS_PROXY to http://user:password@host:port, or name the service in NO_PROXY"
)
_FORBIDDEN: Final = (
    "the proxy refuses to connect to the service: have it allowed, or name it in NO_PROXY"
)
_UNREACHED: Final = "the proxy did not reach the service: look at HTTPS_PROXY and NO_PROXY"
_BY_PROXY: Final = ", by the proxy "
_PROXY: Final = "look at HTTPS_PROXY and NO_PROXY"


def final(message: str) -> TransportError:
    """Make an error that no retry can resolve."""
    error = TransportError(message)
    error.retryable = False
    return error


def transport_error(exc: Exception, what: str, redact: Callable[[str], str]) -> TransportError:
    """
    Make the error for a request without a reply; its cause is a copy of ``exc`` without frames.

    Args:
        exc: The exception of the transport or of the user's client.
        what: The beginning of the message, which says what did not happen.
        redact: A function that removes secrets from a text.
    """
    late = isinstance(exc, TimeoutError | httpx.TimeoutException)
    text = redact(safe_message(exc)) or type(exc).__name__
    advice, is_final = ("", False) if late else _diagnosis(exc)
    message = f"{what}: {text}"
    error = (TransportTimeoutError if late else TransportError)(
        f"{message}; {advice}" if advice else message
    )
    error.retryable = not is_final
    return with_cause(error, sanitized_copy(exc, text))


def name_proxy(exc: BaseException, proxy: httpx.URL) -> None:
    """Say in an error of connecting by which proxy it was, without its password."""
    if isinstance(exc, httpx.ConnectError | httpx.ConnectTimeout):
        where = f"{proxy.scheme}://{proxy.netloc.decode('ascii')}"
        exc.args = (f"{exc}{_BY_PROXY}{where}",)


def _diagnosis(exc: Exception) -> tuple[str, bool]:
    """Return advice for the user, and whether the error is final."""
    if isinstance(exc, httpx.ProxyError):
        return _refused_by_proxy(str(exc))
    reasons = [*_reasons(exc)]
    texts = "\n".join(map(text_of, reasons))
    if "CERTIFICATE_VERIFY_FAILED" in texts:
        return _distrusted(texts), True
    if "WRONG_VERSION_NUMBER" in texts:
        return _NO_TLS, False
    if any(isinstance(it, socket.gaierror) for it in reasons):
        return _NAME, False
    return (_PROXY if _BY_PROXY in text_of(exc) else ""), False


def _distrusted(texts: str) -> str:
    """Interpret the message of OpenSSL; other libraries have other words for times and names."""
    if re.search(r"certificate (has expired|is not yet valid)", texts):
        return _TIMES
    return _OTHER_HOST if "certificate is not valid for" in texts else _CERTIFICATE


def _refused_by_proxy(text: str) -> tuple[str, bool]:
    """Interpret the message of httpcore, such as "407 Proxy Authentication Required"."""
    found = re.match(r"(\d{3})\b", text)
    status = int(found[1]) if found else 0
    if status == 407 or "password" in text or "AUTHENTICATION" in text:
        return _CREDENTIALS, True
    if 400 <= status < 500 and status not in PASSING:
        return _FORBIDDEN, True
    return _UNREACHED, False


def _reasons(exc: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: httpcore keeps the system's error as an argument."""
    todo: list[object] = [exc]
    seen: set[int] = set()
    while todo:
        it = todo.pop()
        if isinstance(it, BaseException) and id(it) not in seen:
            seen.add(id(it))
            yield it
            todo += [it.__cause__, it.__context__, *it.args]
