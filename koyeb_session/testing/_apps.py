"""The only resource of the fake service, for requests that need authorization."""

from __future__ import annotations

import itertools
import uuid
from http import HTTPStatus
from typing import Any, cast

from . import _replies
from ._pages import page
from ._replies import Refusal, Reply
from ._requests import Request


class Apps:
    """The apps of all users."""

    def __init__(self) -> None:
        self._by_id: dict[str, dict[str, Any]] = {}
        self._serials = itertools.count(1)

    def use(self, request: Request, app_id: str) -> Reply:
        """List, read, create, change or delete apps. Any body is accepted."""
        if not app_id:
            return self._list(request) if request.method == "GET" else self._create(request)
        if app_id not in self._by_id:
            raise Refusal(_replies.error(HTTPStatus.NOT_FOUND, "App not found"))
        if request.method == "DELETE":
            del self._by_id[app_id]
            return _replies.success({})
        if request.method != "GET":
            self._by_id[app_id].update(_fields(request), id=app_id)
        return _replies.success({"app": self._by_id[app_id]})

    def _list(self, request: Request) -> Reply:
        apps, limit, offset, _ = page([*self._by_id.values()], request)
        payload = {"apps": apps, "limit": limit, "offset": offset, "count": len(self._by_id)}
        return _replies.success(payload)

    def _create(self, request: Request) -> Reply:
        serial = next(self._serials)
        app = {"name": f"app-{serial}", **_fields(request), "id": str(uuid.UUID(int=serial))}
        self._by_id[app["id"]] = app
        return _replies.success({"app": app, "received": len(request.content)})


def _fields(request: Request) -> dict[str, Any]:
    value = request.json
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
