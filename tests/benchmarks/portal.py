"""The generated sync half, beside the async half behind a blocking portal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from anyio.from_thread import start_blocking_portal

from koyeb_session import AsyncSessionClient, SessionClient

from .measure import Bench, Comparison, timed
from .service import EMAIL, PASSWORD

_ROUNDS: Final = 40
_TIMES: Final = 20


def measure(bench: Bench) -> None:
    """Do the same with both."""
    url = bench.service.http
    with SessionClient(base_url=url) as session, start_blocking_portal() as portal:
        behind = AsyncSessionClient(base_url=url)
        call: Any = portal.call
        works: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
            "warm login": (
                partial(call, behind.login, EMAIL, PASSWORD),
                partial(session.login, EMAIL, PASSWORD),
            ),
            "a fresh current_token": (
                partial(call, behind.current_token),
                session.current_token,
            ),
            "a request of session.http": (
                partial(call, behind.http.get, "/v1/apps"),
                partial(session.http.get, "/v1/apps"),
            ),
        }
        for title, (there, here) in works.items():
            contenders = {
                "blocking portal": partial(timed, there, _TIMES),
                "koyeb_session": partial(timed, here, _TIMES),
            }
            samples = bench.interleave(contenders, _ROUNDS, again={"blocking portal"})
            bench.add(
                Comparison(
                    "portal", f"{title}, instead of a portal", "s", "blocking portal", samples
                )
            )
        portal.call(behind.aclose)
