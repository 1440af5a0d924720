"""The log of received requests, for the assertions of tests."""

import json
from typing import Any

import attrs
import httpx

RawHeaders = list[tuple[bytes, bytes]]


@attrs.define(eq=False)
class Request:
    """
    One request as it arrived.

    >>> import httpx
    >>> fake = FakeKoyeb()
    >>> httpx.Client(transport=fake.transport).get(f"{fake.base_url}/v1/apps?limit=5")
    <Response [401 Unauthorized]>
    >>> [(it.operation, it.query, it.bearer, it.status) for it in fake.requests]
    [('apps', 'limit=5', None, 401)]

    Attributes:
        operation: which operation it was for, e.g. ``"refresh"``; ``None`` if the service knows
            none by this method and path.
        method: the HTTP method.
        path: the path, without the query.
        query: the query as it was sent, without the question mark; empty if there was none.
        content: the body.
        status: the status of the reply; ``None`` while it is under way, and if there was none.
    """

    operation: str | None
    method: str
    path: str
    query: str = attrs.field(repr=False)
    raw_headers: RawHeaders = attrs.field(repr=False)
    content: bytes = attrs.field(repr=False)
    status: int | None = None

    @property
    def headers(self) -> httpx.Headers:
        """The headers, by case-insensitive name."""
        return httpx.Headers(self.raw_headers)

    @property
    def json(self) -> Any:
        """The body read as JSON; ``None`` if it is not."""
        try:
            return json.loads(self.content)
        except (ValueError, RecursionError):
            return None

    @property
    def bearer(self) -> str | None:
        """The token that the request was signed with."""
        for name, value in self.raw_headers:
            if name.lower() == b"authorization":
                scheme, _, credentials = value.decode("latin-1").partition(" ")
                return credentials.strip() if scheme.lower() == "bearer" else None
        return None
