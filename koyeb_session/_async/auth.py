"""Sign requests with the session's current token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx

from .._core.origins import Origins
from .._core.results import RAISED_BY, unwrap
from .._core.validation import not_copied
from .._http.event_loop import AsyncAuthBase, AsyncAuthFlow, async_read_reply
from .keeper import AsyncTokenKeeper

if TYPE_CHECKING:
    from .._core.snapshot import Snapshot

HEADER: Final = "Authorization"


class AsyncSessionAuth(AsyncAuthBase):
    """
    An `httpx.Auth` that keeps requests signed with a current token, for any `httpx.AsyncClient`.

    ```python
    async with httpx.AsyncClient(auth=session.auth) as client:
        apps = await client.get("https://app.koyeb.com/v1/apps")
    ```

    The token goes to the session's origins only; a request to another origin goes out without it,
    and a 401 from there is the answer. A request that is refused with 401 is sent once more, with a
    newer token, if the session is still the same user's and organization's, and if httpx has the
    body as bytes: not that of an iterator, nor that of ``files=``.

    A request raises the errors that `async_auth_flow` names when no token can be had, and
    `httpx.HTTPError` when the request itself fails.

    No lock, cancel scope or task group is open across a ``yield``.
    """

    __module__ = "koyeb_session"  # its public name, also in pickles

    _library = httpx  # httpx2 in the auth for it

    def __init__(self, keeper: AsyncTokenKeeper, origins: Origins) -> None:
        self._keeper = keeper
        self._state = keeper.state
        self._origins = origins

    @property
    def shared(self) -> tuple[AsyncTokenKeeper, Origins]:
        """The arguments for another auth of the same session; not for users."""
        return self._keeper, self._origins

    async def async_auth_flow(self, request: httpx.Request) -> AsyncAuthFlow:
        """
        Sign a request; renew the token and sign it once more if it is refused.

        Raises:
            NotSignedInError: There is no token, and no credentials.
            SessionExpiredError: The token is expired or refused, and cannot be renewed.
            KoyebSessionError: The renewal or the sign-in failed, and the token has expired.
            RuntimeError: The session is closed.
        """
        if not self._origins.trusts(request):
            yield request
            return
        state = self._state
        signed = state.snapshot
        if signed is None or signed.is_due(state.clock) or state.lifetime.ended:
            # Hot path, kept inline: thousands of requests may wait for one renewal.
            state.check_open()
            signed = unwrap(
                await self._keeper.usable_snapshot(wait_for_renewal=not self._can_replay(request)),
                state.mark,
            )
        self._sign(request, signed)
        response = yield request

        if response.status_code != 401:
            if state.rejected is not None:
                self._note_accepted(signed, response)
            return
        if not self._has_carried_token(response):
            return
        moved_on = state.snapshot is not signed
        if state.must_accept_401(signed):
            return
        # Read first: a rejected request must not keep the connection that the renewal needs.
        unreadable = await async_read_reply(response, self._library)
        newer = unwrap(await self._keeper.replace_rejected(signed), state.mark)
        if newer is not None and self._can_replay(request):
            self._sign(request, newer)
            response = yield request
            if response.status_code != 401:
                self._note_accepted(newer, response)
                return
            unreadable = None
        # Had it moved on, the newer token may be some time old. This one is brand-new. One that was
        # not tried counts as rejected until it is accepted: each upload would start a renewal.
        if newer is not None and not moved_on:
            state.mark_rejected(newer)
        _raise(unreadable)  # this reply is the answer, so its error is, too

    def _note_accepted(self, signed: Snapshot, response: httpx.Response) -> None:
        if self._has_carried_token(response):
            self._state.note_accepted(signed, response.status_code)

    def _has_carried_token(self, response: httpx.Response) -> bool:
        """Return whether this answers a signed request; one sent elsewhere and back does not."""
        request = response.request
        return self._origins.trusts(request) and request.headers.get(HEADER) is not None

    def _sign(self, request: httpx.Request, signed: Snapshot) -> None:
        request.headers[HEADER] = f"Bearer {signed.token.id}"
        request.extensions[RAISED_BY] = self._state.mark

    def __reduce__(self) -> str:
        raise TypeError(not_copied(type(self).__name__))

    def _can_replay(self, request: httpx.Request) -> bool:
        return isinstance(request.stream, self._library.ByteStream)


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error
