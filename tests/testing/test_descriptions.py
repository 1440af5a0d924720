"""A light check against the API's descriptions: any request gets a reply that they know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from koyeb_session.testing import FakeKoyeb

Shape = Mapping[str, type]

# path -> method, and the content of a 200
OPERATIONS: dict[str, tuple[str, Shape]] = {
    "/v1/account/login": ("POST", {"token": dict}),
    "/v1/account/logout": ("DELETE", {}),
    "/v1/account/passwordless_login": ("POST", {}),
    "/v1/account/refresh": ("PUT", {"token": dict}),
    "/v1/account/session": ("POST", {"token": dict}),
    "/v1/account/login_method": ("GET", {"method": str}),
    "/v1/organizations/ORGANIZATION/switch": ("POST", {"token": dict}),
    "/v1/organizations/ORGANIZATION/access_token": ("POST", {"token": str}),
    "/v1/unscope_organization_token": ("POST", {"token": dict}),
    "/v1/account/profile": ("GET", {"user": dict}),
    "/v1/account/organization": ("GET", {"organization": dict}),
    "/v1/account/organizations": (
        "GET",
        {"organizations": list, "limit": int, "offset": int, "has_next": bool},
    ),
    "/v1/apps": ("GET", {"apps": list, "limit": int, "offset": int, "count": int}),
}
TOKEN: Shape = {"id": str, "user_id": str, "organization_id": str, "expires_at": str}
ERROR: Shape = {"status": int, "code": str, "message": str}
STATUS: Shape = {"code": int, "message": str, "details": list}
ERRORS: dict[int, Shape] = {
    400: {**ERROR, "fields": list},
    # An Error in one description, and in the other a google.rpc.Status, whose code is a number.
    401: {"status": int, "message": str},
    403: ERROR,
    404: ERROR,
}

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["email", "password", "organization_id", "statuses", "validity", "search", "limit", "x"]
)
VALUES = st.sampled_from(["me@example.com", "correct horse", "ACTIVE", "5s", ""]) | st.text()


def fits(value: object, shape: Shape) -> bool:
    """Say whether a JSON object holds nothing but the fields of a shape, of their types."""
    return isinstance(value, dict) and all(
        name in shape and isinstance(item, shape[name])
        for name, item in cast("dict[str, object]", value).items()
    )


@settings(max_examples=300, deadline=None)
@given(
    path=st.sampled_from(sorted(OPERATIONS)),
    method=st.none() | st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "ODD"]),
    body=st.binary() | st.dictionaries(FIELDS, VALUES | JSON) | JSON,
    query=st.dictionaries(FIELDS, VALUES),
    header=st.sampled_from(["", "Bearer", "Bearer x", "Basic x", "Bearer TOKEN"]),
)
def test_any_request_gets_a_described_reply(
    path: str, method: str | None, body: object, query: dict[str, str], header: str
) -> None:
    """Each reply has the status, type and shape that the descriptions promise, for any request."""
    fake = FakeKoyeb()
    right, shape = OPERATIONS[path]
    url = path.replace("ORGANIZATION", fake.organizations["me@example.com"][0])
    with httpx.Client(transport=fake.transport, base_url=fake.base_url) as client:
        reply = client.request(
            method or right,
            url,
            params=query,
            headers={"Authorization": header.replace("TOKEN", fake.issue_token())},
            content=body if isinstance(body, bytes) else json.dumps(body),
        )
    assert reply.headers["content-type"] == "application/json"
    status = reply.status_code
    if method == "HEAD":
        assert (status, reply.content) == (405, b"")
    elif status == 200:
        assert fits(reply.json(), {**shape, "app": dict, "received": int})
        token = reply.json().get("token", {})
        assert isinstance(token, str) or fits(token, TOKEN)
    else:
        assert status in {400, 401, 403, 404, 405}
        assert (status == 405) == ("allow" in reply.headers)
        assert fits(reply.json(), ERRORS.get(status, STATUS))
