"""Give the official ``koyeb-sdk`` a current token, through a hook of its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx

from . import AsyncSessionClient, NotSignedInError, SessionClient, SessionExpiredError
from ._core.results import unwrap as _unwrap
from ._sync.keeper import TokenKeeper as _TokenKeeper

try:
    import koyeb  # type: ignore[import-untyped] # noqa: F401 # pyright: ignore[reportUnusedImport, reportMissingTypeStubs] - untyped, and only looked for
except ImportError as _exc:
    raise ImportError('koyeb-sdk is missing: pip install "koyeb-session[koyeb-sdk]"') from _exc

if TYPE_CHECKING:
    from ._core.errors import KoyebSessionError
    from ._core.origins import Origins
    from ._core.snapshot import Snapshot
    from ._core.state import SessionState

__all__ = ["bind"]

_SCHEME = "Bearer"
"""The name of the security scheme in the SDK."""


def bind(session: SessionClient | AsyncSessionClient, configuration: Any) -> None:
    """
    Have the official SDK send the session's token, whenever it makes a call.

    ```python
    configuration = koyeb.api.Configuration()
    bind(session, configuration)
    apps = koyeb.api.AppsApi(koyeb.api.ApiClient(configuration)).list_apps()
    ```

    A `SessionClient` renews the token first when it is due, also ahead of need; with the SDK's
    async client that blocks the event loop during a renewal. The SDK's hook is a plain function and
    cannot await an `AsyncSessionClient`. That one hands out its token as it is, so keep it current
    with ``keep_current()`` in a background task. Neither sends an expired token.

    A call raises this package's errors when no token can be had, and the SDK's own for the call
    itself. The SDK does not send a refused call again. Where a renewal revokes the old token, calls
    that are under way in other threads or tasks may be refused (``UnauthorizedException``): make
    them again.

    The SDK's async client is built on httpx. With the session's auth, in place of ``bind``, its
    calls wait for renewals, and refused ones are made again:
    ``client.rest_client.pool_manager = httpx.AsyncClient(auth=session.auth)``, which the client
    closes. That attribute is private to the SDK; koyeb-sdk 1.5.5 has it.

    Only calls by ``configuration`` carry the token: ``koyeb.sandbox`` makes configurations of its
    own, from an ``api_token``. With ``debug`` set, the SDK prints the headers of its calls.

    Args:
        session: The session whose token to send.
        configuration: A ``koyeb.api.Configuration`` or a ``koyeb.api_async.Configuration``. Its
            hook and its bearer are replaced. Clients made with it before send the token, too.

    Raises:
        ValueError: The configuration's host is not one that the session trusts with its token. A
            call raises it as well, if the host was changed later.
        TypeError: ``session`` is no session, or ``configuration`` is none of the SDK's.
    """
    if not isinstance(session, SessionClient | AsyncSessionClient):
        message = f"session must be a session client, not {type(session).__name__}"
        raise TypeError(message)
    if not hasattr(configuration, "host"):
        given = type(configuration).__name__
        hint = ": give its .configuration" if hasattr(configuration, "configuration") else ""
        message = f"configuration must be a Configuration of the SDK, not {given}{hint}"
        raise TypeError(message)
    keeper, origins = session.auth.shared

    def sign(configuration: Any) -> None:
        _check(origins, configuration)
        state = keeper.state
        state.check_open()
        if isinstance(keeper, _TokenKeeper):
            # Wait for the renewal: one during the call may revoke the token, and the SDK does not
            # replay.
            outcome = keeper.usable_snapshot(wait_for_renewal=True)
        else:
            outcome = _held(state)
        token = _unwrap(outcome, state.mark).token
        configuration.api_key = {**configuration.api_key, _SCHEME: token.id}

    _check(origins, configuration)
    # The SDK calls the hook only if there is a key; this placeholder is never sent.
    configuration.api_key = {**configuration.api_key, _SCHEME: "from-the-session"}
    configuration.api_key_prefix = {**configuration.api_key_prefix, _SCHEME: "Bearer"}
    configuration.refresh_api_key_hook = sign


def _held(state: SessionState) -> Snapshot | KoyebSessionError:
    """Return the current snapshot without a renewal, or the error if it must not be sent."""
    seen = state.observe()  # one look: another thread may sign out at any point
    if seen.snapshot is None:
        return NotSignedInError("not signed in: await login() or current_token() first")
    if seen.usable is not None:
        return seen.usable
    if seen.snapshot.renewable:
        return SessionExpiredError("the token has expired: run keep_current() beside the SDK")
    return state.no_token_error(seen, None)


def _check(origins: Origins, configuration: Any) -> None:
    try:
        trusted = origins.trusts(httpx.Request("GET", configuration.host))
    except (httpx.InvalidURL, TypeError, ValueError):
        trusted = False
    if not trusted:
        raise ValueError(
            "the configuration's host is not one that the session trusts: it is neither base_url's "
            "nor among allowed_origins"
        )
