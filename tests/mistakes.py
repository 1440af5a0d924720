"""Each mistake of TROUBLESHOOTING.md, by the heading of its section."""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import fastapi
import httpx
import pytest
import redis

from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    PasswordCredentials,
    RetryPolicy,
    SessionClient,
    Token,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import (
    AsyncFileTokenStore,
    FileTokenStore,
    KeyringTokenStore,
    RedisTokenStore,
)
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .concurrency import deadlines
from .faults.certificates import issuer, server_context
from .faults.server import Exchange, Server
from .keyrings import Ring, machine_keyring
from .printed import Setup, logged, message, printed, warned
from .support import ME as EMAIL
from .support import PASSWORD, PASSWORDS, raising

ONCE: Final = RetryPolicy(attempts=1)
PAGE: Final = Fault(
    status=404, body="<!doctype html>", headers={"content-type": "text/html; charset=utf-8"}
)

Mistake = Callable[[Setup], object]
MISTAKES: Final[dict[str, Mistake]] = {}
"""By the headings of their sections; each raises the printed error, or returns the printed text."""


def mistake(make: Mistake) -> Mistake:
    """Put a mistake into the list; its docstring is the heading."""
    MISTAKES[(make.__doc__ or "").rstrip(".")] = make
    return make


def ask(setup: Setup, credentials: Any) -> None:
    """Get a token by such credentials; the wait after a failure is not shortened by chance."""
    setup.patch.setattr("random.random", lambda: 0.0)
    with setup.client(credentials=credentials) as session:
        session.current_token()


def sign_in_at(base_url: str, **arguments: Any) -> None:
    """Sign in over a real network, once."""
    with SessionClient(base_url=base_url, retry_policy=ONCE, **arguments) as session:
        session.login(EMAIL, PASSWORD)


# Signing in


@mistake
def nobody_has_signed_in(setup: Setup) -> None:
    """Nobody has signed in."""
    with setup.client() as session:
        session.http.get("/v1/apps")


@mistake
def the_environment_says_nothing(setup: Setup) -> None:
    """The environment says nothing."""
    setup.patch.setenv("HOME", str(setup.path.parent))
    setup.patch.setenv("USERPROFILE", str(setup.path.parent))
    SessionClient.from_env()


MISTAKES["The password is wrong"] = lambda it: it.sign_in(
    transport=FakeKoyeb(users={EMAIL: "another"}).transport
)
MISTAKES["Koyeb answers a login with 403"] = lambda it: it.sign_in(Fault(status=403))
MISTAKES["Koyeb has dropped an operation"] = lambda it: it.sign_in(
    transport=FakeKoyeb(withdrawn={"login"}).transport
)
MISTAKES["Too many requests"] = lambda it: it.sign_in(
    Fault(status=429, headers={"retry-after": "90"})
)
MISTAKES["The vault raises"] = lambda it: ask(it, lambda: os.environ["VAULT_TOKEN"])


# Tokens


@mistake
def the_token_has_expired(setup: Setup) -> None:
    """The token has expired."""
    with setup.client(token=setup.fake.issue_token()) as session:
        setup.clock.advance(timedelta(hours=25))
        session.http.get("/v1/apps")


@mistake
def the_saved_session_has_expired(setup: Setup) -> None:
    """The saved session has expired."""
    store = FileTokenStore(setup.path)
    setup.sign_in(store=store)
    setup.clock.advance(timedelta(hours=26))
    with setup.client(store=store) as session:
        session.http.get("/v1/apps")


@mistake
def the_token_was_revoked(setup: Setup) -> None:
    """The token was revoked."""
    with setup.client(token=setup.fake.issue_token()) as session:
        setup.fake.revoke_all()
        session.http.get("/v1/apps")


@mistake
def a_new_token_has_expired_already(setup: Setup) -> None:
    """A new token has expired already."""
    wrong = FakeClock(datetime.now(UTC) + timedelta(days=2))
    with SessionClient(transport=setup.fake.transport, clock=wrong) as session:
        session.use_token(setup.fake.issue_token())


MISTAKES["The token has a word too many"] = lambda _: SessionClient(
    token="Bearer eyJhbGciOiJIUzI1NiJ9.e30.sig"
)
MISTAKES["A time has no time zone"] = lambda _: SessionClient(
    token=Token("a-token", expires_at=datetime(2030, 1, 1))  # noqa: DTZ001 - the mistake
)


@mistake
def an_api_access_token_is_refreshed(setup: Setup) -> None:
    """An API access token is refreshed."""
    with setup.client(token=setup.fake.issue_api_token()) as session:
        session.refresh()


MISTAKES["The API access token was revoked"] = lambda it: ask(
    it, AccessTokenCredentials("x" * 64, "an-organization")
)


@mistake
def an_api_token_is_refused(setup: Setup) -> None:
    """A request with an API access token is refused."""
    with setup.client(token="mistyped") as session:
        session.http.get("/v1/apps").raise_for_status()


@mistake
def a_body_cannot_be_sent_twice(setup: Setup) -> None:
    """A body cannot be sent twice."""
    with setup.client(credentials=PASSWORDS) as session:
        session.current_token()
        setup.fake.revoke_all()
        session.http.post("/v1/apps", content=iter([b"{}"])).raise_for_status()


# Two halves, loops, threads and processes


@mistake
def await_is_missing(setup: Setup) -> str:
    """`await` is missing."""

    async def main() -> None:
        async with setup.async_client(credentials=PASSWORDS) as session:
            session.login(EMAIL, PASSWORD)  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine] - the mistake

    return warned(lambda: asyncio.run(main()))


@mistake
def await_is_missing_before_a_reply_is_used(setup: Setup) -> None:
    """`await` is missing before a reply is used."""

    async def main() -> None:
        async with setup.async_client(credentials=PASSWORDS) as session:
            reply: Any = session.http.get("/v1/apps")
            try:
                reply.json()
            finally:
                reply.close()

    asyncio.run(main())


@mistake
def the_auth_is_of_the_other_half(setup: Setup) -> None:
    """The auth is of the other half."""
    session = setup.async_client(credentials=PASSWORDS)
    with httpx.Client(auth=session.auth, transport=setup.fake.transport) as client:
        client.get("https://app.koyeb.com/v1/apps")


@mistake
def the_session_is_given_as_the_auth(setup: Setup) -> None:
    """The session is given as the auth."""
    with setup.client(token=setup.fake.issue_api_token()) as session:
        httpx.get("https://app.koyeb.com/v1/apps", auth=session)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


MISTAKES["The store is of the other half"] = lambda it: SessionClient(
    store=AsyncFileTokenStore(it.path)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake
)


@mistake
def your_own_client_belongs_to_another_event_loop(setup: Setup) -> str:
    """Your own client belongs to another event loop."""
    with setup.fake.serve() as url:
        client = httpx.AsyncClient()
        session = AsyncSessionClient(base_url=url, http_client=client, retry_policy=ONCE)

        async def use() -> None:
            await session.login(EMAIL, PASSWORD)

        asyncio.run(use())
        return message(lambda: asyncio.run(use()))


@mistake
def the_client_is_closed(setup: Setup) -> None:
    """The client is closed."""
    session = setup.client()
    session.close()
    session.login(EMAIL, PASSWORD)


@mistake
def the_client_was_not_closed(setup: Setup) -> str:
    """The client was not closed."""
    with setup.fake.serve() as url:

        def main() -> None:
            session = SessionClient(base_url=url, clock=setup.clock)
            session.login(EMAIL, PASSWORD)

        return warned(main).replace(url, "https://app.koyeb.com")


MISTAKES["A process pool pickles the client"] = lambda _: pickle.dumps(SessionClient())


@mistake
def a_script_uses_async_with_as_with(setup: Setup) -> str:
    """`async` is missing before `with`."""
    with pytest.raises(TypeError) as caught, setup.async_client():  # type: ignore[attr-defined] # pyright: ignore - the mistake
        pass
    # Newer Pythons say more: a hint at the end, and the module of the class.
    return printed(caught.value).partition(" (")[0].replace("koyeb_session.", "")


@mistake
def a_notebook_runs_an_event_loop_already(setup: Setup) -> None:
    """A notebook runs an event loop already."""

    async def cell() -> None:
        main = asyncio.sleep(0)
        try:
            asyncio.run(main)
        finally:
            main.close()

    asyncio.run(cell())


@mistake
def several_processes_renew_one_token(setup: Setup) -> None:
    """Several processes renew one token."""
    token = setup.fake.issue_token()
    with setup.client(token=token) as one, setup.client(token=token) as another:
        one.refresh()
        another.refresh()


# The way to the service


MISTAKES["`base_url` ends with `/v1`"] = lambda _: SessionClient(
    base_url="https://app.koyeb.com/v1"
)
MISTAKES["`base_url` is not https"] = lambda _: SessionClient(base_url="http://koyeb:8080")
MISTAKES["`base_url` is that of a web site"] = lambda it: it.sign_in(
    PAGE, base_url="https://www.koyeb.com"
)


@mistake
def the_name_cannot_be_resolved(setup: Setup) -> None:
    """The service's name cannot be resolved."""
    setup.patch.setattr(
        socket, "getaddrinfo", raising(socket.gaierror(-2, "Name or service not known"))
    )
    sign_in_at("https://app.koyeb.example")


@mistake
def nothing_listens_there(setup: Setup) -> str:
    """Nothing listens there."""
    text = message(lambda: sign_in_at("http://127.0.0.1:1"))
    return re.sub(r"Errno \d+", "Errno 111", text)


@mistake
def the_certificate_is_not_trusted(setup: Setup) -> str:
    """The certificate is not trusted."""
    with Server([], tls=server_context()) as service:
        text = message(lambda: sign_in_at(service.url)).replace(
            service.url, "https://app.koyeb.com"
        )
    return re.sub(r"_ssl\.c:\d+", "_ssl.c:1006", text)


@mistake
def the_certificate_is_out_of_date(setup: Setup) -> str:
    """The certificate is out of date."""
    issuer().cert_pem.write_to_path(setup.path.with_suffix(".pem"))
    setup.patch.setenv("SSL_CERT_FILE", str(setup.path.with_suffix(".pem")))
    with Server([], tls=server_context(year=2020)) as service:
        text = message(lambda: sign_in_at(service.url)).replace(
            service.url, "https://app.koyeb.com"
        )
    return re.sub(r"_ssl\.c:\d+", "_ssl.c:1006", text)


@mistake
def the_proxy_has_a_scheme_that_is_none(setup: Setup) -> None:
    """The proxy's URL has another scheme."""
    setup.patch.setenv("HTTPS_PROXY", "socks://proxy:1080")
    SessionClient()


@mistake
def the_proxy_wants_a_password(setup: Setup) -> None:
    """The proxy wants a password."""
    reply = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with Server([lambda it: it.send(reply)]) as proxy:
        setup.patch.setenv("HTTPS_PROXY", proxy.url)
        setup.patch.delenv("NO_PROXY", raising=False)
        setup.patch.delenv("no_proxy", raising=False)
        sign_in_at("https://app.koyeb.com")


@mistake
def the_service_does_not_answer_in_time(setup: Setup) -> str:
    """The service does not answer in time."""
    texts: list[str] = []
    with Server([Exchange.hang]) as service:
        for seconds in deadlines(lambda: texts[-1].endswith(": timed out")):
            sign_in = partial(sign_in_at, service.url, timeout=seconds)
            texts.append(message(sign_in))
        return texts[-1].replace(service.url, "https://app.koyeb.com")


# Stores


@mistake
def an_extra_is_missing(setup: Setup) -> None:
    """An extra is missing."""
    setup.patch.setitem(sys.modules, "filelock", None)
    FileTokenStore()


MISTAKES["A path is given in place of a store"] = lambda _: SessionClient(
    store="session.json"  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake
)


@mistake
def the_store_is_of_another_account(setup: Setup) -> str:
    """The saved session is of another account."""
    store = FileTokenStore(setup.path)
    setup.sign_in(store=store)
    organization = setup.fake.organizations[EMAIL][1]
    other = AccessTokenCredentials(setup.fake.issue_api_token(), organization)
    with setup.client(store=store, credentials=other) as session:
        session.current_token()
    return logged(setup)


@mistake
def the_stores_file_is_of_another_program(setup: Setup) -> None:
    """The store's file is of another program."""
    setup.path.write_text("KOYEB_TOKEN=...")
    with setup.client(store=FileTokenStore(setup.path)) as session:
        session.current_token()


@mistake
def another_process_holds_the_lock(setup: Setup) -> str:
    """Another process holds the lock."""
    store = FileTokenStore(setup.path, lock_timeout=0.01)
    with setup.client(store=store, token=setup.fake.issue_token()) as session, store.lock():
        return message(session.refresh).replace("0.01 s", "3 s")


@mistake
def redis_does_not_answer(setup: Setup) -> str:
    """Redis does not answer."""
    setup.patch.setitem(RedisTokenStore.__init__.__globals__, "_COMMAND_TIMEOUT", 0.05)
    store = RedisTokenStore(redis.Redis(port=1), key="koyeb-session:ci")
    return message(store.load).replace("within 0.05 s", "within 2 s")


@mistake
def the_keyring_takes_no_token_of_that_length(setup: Setup) -> str:
    """The token is too long for the keyring."""
    refused = OSError(1783, "The stub received bad data")  # as that of Windows says
    setup.patch.setattr(ring := Ring(), "set_password", raising(refused))
    with machine_keyring(ring), setup.client(store=KeyringTokenStore()) as session:
        token = setup.fake.issue_token()
        session.use_token(Token(token, renewal="r" * 1000))
    return re.sub(r"with \d+ ch", "with 1612 ch", logged(setup))


@mistake
def the_session_file_is_a_symlink(setup: Setup) -> str:
    """The session file is a symbolic link."""
    setup.path.symlink_to(setup.path.with_name("elsewhere.json"))
    setup.sign_in(store=FileTokenStore(setup.path))
    return logged(setup)


@mistake
def others_may_write_the_clis_file(setup: Setup) -> None:
    """Others may write the Koyeb CLI's file."""
    file = setup.path.with_name("koyeb.yaml")
    file.write_text("token: a-token\n", "utf-8")
    file.chmod(0o666)
    setup.patch.setenv("KOYEB_CONFIG", str(file))
    SessionClient.from_env()


# FastAPI


@mistake
def the_lifespan_does_not_run(setup: Setup) -> None:
    """The lifespan does not run."""
    sessions = KoyebSessions(transport=setup.fake.transport)
    asyncio.run(sessions.service())


@mistake
def the_services_own_session_has_failed(setup: Setup) -> str:
    """The application answers 502."""
    wrong = PasswordCredentials(EMAIL, "wrong")
    sessions = KoyebSessions(transport=setup.fake.transport, clock=setup.clock, credentials=wrong)
    app = fastapi.FastAPI(lifespan=sessions.lifespan)
    sessions.add_exception_handlers(app)

    async def index(service: Any = fastapi.Depends(sessions.service)) -> None:  # noqa: B008 - FastAPI's way
        await service.current_token()

    app.get("/")(index)

    async def ask() -> str:
        transport = httpx.ASGITransport(app)
        async with sessions.lifespan(), httpx.AsyncClient(transport=transport) as client:
            return (await client.get("http://service/")).text

    return asyncio.run(ask())
