"""Find the operation of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import unquote

import attrs

Methods = Mapping[str, str]
"""The methods of a path, with their operations."""

_FIXED: Mapping[str, Methods] = {
    "/v1/account/login": {"POST": "login"},
    "/v1/account/logout": {"DELETE": "logout"},
    "/v1/account/passwordless_login": {"POST": "passwordless_login"},
    "/v1/account/refresh": {"PUT": "refresh"},
    "/v1/account/session": {"POST": "new_session"},
    "/v1/account/login_method": {"GET": "login_method"},
    "/v1/account/profile": {"GET": "profile"},
    "/v1/account/organization": {"GET": "organization"},
    "/v1/account/organizations": {"GET": "organizations"},
    "/v1/unscope_organization_token": {"POST": "unscope_organization_token"},
}
_OF_ORGANIZATION: Mapping[str, Methods] = {
    "switch": {"POST": "switch_organization"},
    "access_token": {"POST": "create_access_token"},
}
_APPS: Methods = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), "apps")
_NONE: Methods = {}


@attrs.frozen
class Route:
    """
    The operation of a request, and the other methods of its path.

    Attributes:
        operation: the operation; ``None`` if this method and path have none.
        argument: the variable part of the path, e.g. the id of an organization.
        methods: the methods of the path, with their operations; empty if there is no such path.
    """

    operation: str | None
    argument: str = ""
    methods: Methods = _NONE


@attrs.frozen
class Routes:
    """
    All paths of one service.

    Attributes:
        operations: the names of its operations.
        find_path: finds the methods of a path, as it was sent, and its variable part.
    """

    operations: frozenset[str]
    find_path: Callable[[str], tuple[Methods, str]]

    def find(self, method: str, path: str) -> Route:
        """Find the operation for a method and a path as it was sent, without the query."""
        methods, argument = self.find_path(path)
        return Route(methods.get(method), argument, methods)


def fixed_routes(paths: Mapping[str, Methods]) -> Routes:
    """Make the routes of a service whose paths have no variable part."""
    return Routes(_operations(*paths.values()), lambda path: (paths.get(path, _NONE), ""))


def _operations(*methods: Methods) -> frozenset[str]:
    return frozenset(name for known in methods for name in known.values())


def _find_koyeb_path(path: str) -> tuple[Methods, str]:
    if path in _FIXED:
        return _FIXED[path], ""
    match path.split("/"):
        case ["", "v1", "apps"]:
            return _APPS, ""
        case ["", "v1", "apps", argument] if argument:
            return _APPS, unquote(argument)
        case ["", "v1", "organizations", argument, what]:
            return _OF_ORGANIZATION.get(what, _NONE), unquote(argument)
        case _:
            return _NONE, ""


KOYEB = Routes(_operations(*_FIXED.values(), *_OF_ORGANIZATION.values(), _APPS), _find_koyeb_path)
