"""
Read the client's arguments from the environment and the Koyeb CLI's own file.

A token goes only to the service that its own source names. Errors are returned as values: the frame
of a function that raises would show the token among its locals.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import attrs

from ._core.errors import NotSignedInError
from ._core.file_trust import NO_WAIT, Distrust, distrust
from ._core.log import log
from ._core.models import AccessTokenCredentials, PasswordCredentials
from ._core.origins import origins
from ._core.results import frameless
from ._core.tokens import jwt_claims
from ._core.validation import id_error, parse_token, text_error

_TOKENS: Final = ("KOYEB_TOKEN", "KOYEB_API_TOKEN")
SERVICES: Final = ("KOYEB_URL", "KOYEB_API_HOST", "KOYEB_API_URL")
"""The variables of Koyeb's CLI, its SDK for Python, and its Terraform provider."""
_LOOKED_AT: Final = "KOYEB_TOKEN, KOYEB_API_TOKEN, KOYEB_EMAIL with KOYEB_PASSWORD, KOYEB_CONFIG"
_CLI_FILE: Final = ".koyeb.yaml"
_FILE_LIMIT: Final = 64 << 10
"""The largest file in bytes; the CLI writes a few hundred."""
_DISTRUST: Final = {
    Distrust.NO_FILE: "is not a file",
    Distrust.FOREIGN: "belongs to another user, who could read or change what signs in here",
    Distrust.WRITABLE: "can be written by others: use `chmod go-w` on it",
}
"""Phrases that follow the name of the CLI's file."""

Problem: TypeAlias = NotSignedInError | ValueError | TypeError | ImportError
Arguments: TypeAlias = dict[str, Any]


@attrs.frozen
class Service:
    """A service, and the source that names it."""

    url: str
    source: str


def client_arguments(overrides: Arguments) -> Arguments:
    """
    Return a client's arguments, and empty ``overrides``, which may contain secrets.

    Raises:
        NotSignedInError: Neither the environment nor the file has anything to sign in with.
        ImportError: The CLI's file is needed, and PyYAML is missing.
        ValueError: A variable, or the file, has an impossible value.
    """
    found = _taken(overrides)
    if isinstance(found, Exception):
        raise found
    return found


@frameless
def _taken(overrides: Arguments) -> Arguments | Problem:
    """Look up, and empty ``overrides``: a traceback would show the caller's frame."""
    try:
        return look_up(overrides, os.environ)
    finally:
        overrides.clear()


def look_up(overrides: Mapping[str, Any], environ: Mapping[str, str]) -> Arguments | Problem:
    """Return a client's arguments; read nothing that ``overrides`` replace."""
    service = _service(overrides, environ)
    if isinstance(service, ValueError | TypeError):
        return service
    found: Arguments = {} if service is None else {"base_url": service.url}
    if overrides.get("token") is None and overrides.get("credentials") is None:
        wall = (overrides.get("clock") or time).time()
        has_store = overrides.get("store") is not None
        how = _from_variables(environ, wall) or _from_cli(
            environ, wall, service, has_store=has_store
        )
        if isinstance(how, Exception):
            return how
        if not how and not has_store:
            return NotSignedInError(
                f"nothing to sign in with: looked at {_LOOKED_AT}, and ~/{_CLI_FILE}"
            )
        found |= how
    return {**found, **overrides}


# The service


def _service(
    overrides: Mapping[str, Any], environ: Mapping[str, str]
) -> Service | ValueError | TypeError | None:
    """Find the service: the program's, or that of the first variable that is set."""
    if overrides.get("base_url") is not None:
        return Service(overrides["base_url"], "the program")
    named = named_services(environ)
    for service in named:
        if wrong := _url_error(service.url, service.source):
            return wrong
        if _origin(service.url) != _origin(named[0].url):
            log.warning(
                "%s names another service than %s, which is used", service.source, named[0].source
            )
    return named[0] if named else None


def named_services(environ: Mapping[str, str]) -> list[Service]:
    """List the services that variables name; the first one counts."""
    return [Service(_url(environ[name]), name) for name in SERVICES if _value(environ, name)]


def _url(text: str) -> str:
    """Complete a URL: the SDK's variable may hold only a host, as its name says."""
    text = text.strip()
    if "://" in text:
        return text
    scheme = "http" if text.startswith(("localhost", "127.", "[::1]")) else "https"
    return f"{scheme}://{text}"


def _url_error(url: str, source: str) -> ValueError | TypeError | None:
    wrong = origins(url, ())
    if isinstance(wrong, Exception):
        return type(wrong)(source + str(wrong).removeprefix("base_url"))
    return None


def _origin(url: object) -> object:
    """Return the identity of a service; an error stands for itself, and the client rejects it."""
    found = origins(cast("str", url), ())
    return found if isinstance(found, Exception) else set(found.trusted)


# Variables


def _value(environ: Mapping[str, str], name: str) -> str:
    """Read a variable; a blank one counts as unset, as an empty secret of a CI system does."""
    return environ.get(name, "").strip()


def _from_variables(environ: Mapping[str, str], wall: float) -> Arguments | Problem:
    organization = _value(environ, "KOYEB_ORGANIZATION") or None
    for name in _TOKENS:
        if token := _value(environ, name):
            return _with_token(token, name, organization, "KOYEB_ORGANIZATION", wall)
    email, password = _value(environ, "KOYEB_EMAIL"), environ.get("KOYEB_PASSWORD")
    if email and password:
        wrong = (
            text_error("KOYEB_EMAIL", email)
            or text_error("KOYEB_PASSWORD", password)
            or (organization is not None and id_error(organization, "KOYEB_ORGANIZATION"))
        )
        return wrong or {"credentials": PasswordCredentials(email, password, organization)}
    if email or password:
        there, missing = ("EMAIL", "PASSWORD") if email else ("PASSWORD", "EMAIL")
        return NotSignedInError(f"KOYEB_{there} is set, but KOYEB_{missing} is not")
    return {}


def _with_token(
    token: str, source: str, organization: str | None, where: str, wall: float
) -> Arguments | Problem:
    """Use a token unchanged, or an API access token as credentials for an organization."""
    wrong = parse_token(token, wall, source)
    if isinstance(wrong, Exception):
        return wrong
    if organization is None or jwt_claims(token) is not None:
        return {"token": token}
    if problem := id_error(organization, where):
        return problem
    return {"credentials": AccessTokenCredentials(token, organization)}


# The file of the CLI


def _from_cli(
    environ: Mapping[str, str], wall: float, service: Service | None, *, has_store: bool
) -> Arguments | Problem:
    """Read the file that ``koyeb login`` writes: YAML with ``token``, ``url``, ``organization``."""
    named = _value(environ, "KOYEB_CONFIG")
    path = _expanded(named, environ) if named else _home(environ) / _CLI_FILE
    where = f"{path} (from KOYEB_CONFIG)" if named else str(path)
    fields = _read(path, where)
    if isinstance(fields, FileNotFoundError):
        return NotSignedInError(f"{where} is not there") if named else {}
    if isinstance(fields, Exception):
        return fields
    if "token" not in fields:
        return NotSignedInError(f"{where} has no token: run `koyeb login`") if named else {}
    base_url = _service_of_file(fields, where, service)
    if isinstance(base_url, NotSignedInError) and has_store and not named:
        log.info("not used: %s", base_url)  # the store may hold a session of that service
        return {}
    if isinstance(base_url, Exception):
        return base_url
    organization = _value(environ, "KOYEB_ORGANIZATION")
    how = _with_token(
        fields["token"],
        f"the token of {where}",
        organization or fields.get("organization"),
        "KOYEB_ORGANIZATION" if organization else f"the organization of {where}",
        wall,
    )
    return how if isinstance(how, Exception) else {**base_url, **how}


def _service_of_file(
    fields: Mapping[str, str], where: str, service: Service | None
) -> Arguments | NotSignedInError | ValueError | TypeError:
    """Find the service for the file's token, unless the program or a variable names it."""
    if "url" not in fields:
        if service is not None:
            log.info("the token of %s goes to the service of %s", where, service.source)
        return {}
    url = _url(fields["url"])
    if wrong := _url_error(url, f"the url of {where}"):
        return wrong
    if service is None:
        return {"base_url": url}
    if _origin(url) == _origin(service.url):
        return {}
    return NotSignedInError(
        f"the token of {where} is for {url}, not for the service of {service.source}: "
        "set KOYEB_TOKEN for that one"
    )


def _expanded(named: str, environ: Mapping[str, str]) -> Path:
    """Expand ``~``, which no shell does in a unit file or an image."""
    if named == "~" or named.startswith("~/"):
        return _home(environ) / named[2:]
    return Path(os.path.expanduser(named))  # noqa: PTH111 - Path raises for an unknown user


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:  # the system does not know this user, as in some containers
        return Path("/", "~")  # a path that does not exist, so that the file counts as missing


def _read(path: Path, where: str) -> dict[str, str] | Problem | FileNotFoundError:
    """Read the fields whose values are texts, but not blank ones."""
    try:
        with open(path, "rb", opener=_open) as file:
            if problem := distrust(os.fstat(file.fileno())):
                return NotSignedInError(f"{where} {_DISTRUST[problem]}")
            raw = file.read(_FILE_LIMIT + 1)
    except FileNotFoundError as exc:
        return exc
    except OSError as exc:
        return NotSignedInError(f"{where} cannot be read: {os.strerror(exc.errno or 0)}")
    if len(raw) > _FILE_LIMIT:
        return NotSignedInError(f"{where} is larger than {_FILE_LIMIT} bytes")
    return _parsed(raw, where)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | NO_WAIT)


def _parsed(raw: bytes, where: str) -> dict[str, str] | Problem:
    try:
        # A plain import statement, which tools like PyInstaller find.
        import yaml  # type: ignore[import-untyped] # noqa: PLC0415 - from an extra
    except ImportError as exc:
        text = 'the Koyeb CLI\'s file needs PyYAML: pip install "koyeb-session[cli-config]"'
        return ImportError(text, name=exc.name)
    try:
        value: object = yaml.safe_load(raw)
    except Exception:  # noqa: BLE001 - YAMLError, ValueError, RecursionError ...; may quote secrets
        value = "unreadable"
    if not isinstance(value, dict | None):
        return NotSignedInError(f"{where} is not the YAML file of the Koyeb CLI")
    fields = cast("dict[object, object]", value or {})  # `None` if there are only comments
    return {
        name: field.strip()
        for name, field in fields.items()
        if isinstance(name, str) and isinstance(field, str) and field.strip()
    }
