"""Which operation a request is for."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

import attrs

_FIXED: Mapping[str, Mapping[str, str]] = {
    "/v1/account/login": {"POST": "login"},
    "/v1/account/logout": {"DELETE": "logout"},
    "/v1/account/passwordless_login": {"POST": "passwordless_login"},
    "/v1/account/refresh": {"PUT": "refresh"},
    "/v1/account/session": {"POST": "new_session"},
    "/v1/account/login_method": {"GET": "login_method"},
    "/v1/account/profile": {"GET": "profile"},
    "/v1/account/organization": {"GET": "organization"},
    "/v1/account/organizations": {"GET": "organizations"},
}
_SWITCH: Mapping[str, str] = {"POST": "switch_organization"}
_APPS: Mapping[str, str] = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), "apps")
_NONE: Mapping[str, str] = {}

OPERATIONS = frozenset(
    name for methods in (*_FIXED.values(), _SWITCH, _APPS) for name in methods.values()
)


@attrs.frozen
class Route:
    """
    Where a request leads.

    Attributes:
        operation: the operation; ``None`` if there is none by this method and path.
        argument: what the path names, e.g. the id of an organisation.
        methods: the methods that the path knows, with their operations; empty if there is no such
            path.
    """

    operation: str | None
    argument: str = ""
    methods: Mapping[str, str] = _NONE


def find_route(method: str, path: str) -> Route:
    """Find the operation for a method and a path as it was sent, without the query."""
    methods, argument = _find_path(path)
    return Route(methods.get(method), argument, methods)


def _find_path(path: str) -> tuple[Mapping[str, str], str]:
    if path in _FIXED:
        return _FIXED[path], ""
    match path.split("/"):
        case ["", "v1", "apps"]:
            return _APPS, ""
        case ["", "v1", "apps", argument] if argument:
            return _APPS, unquote(argument)
        case ["", "v1", "organizations", argument, "switch"]:
            return _SWITCH, unquote(argument)
        case _:
            return _NONE, ""
