"""Each mistake of TROUBLESHOOTING.md is made here; the document has the message that is printed."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import re
import socket
import ssl
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import fastapi
import httpx
import keyring
import pytest
import trustme
from keyring.backend import KeyringBackend

from koyeb_session import (
    AccessTokenCredentials,
    AsyncSessionClient,
    PasswordCredentials,
    RetryPolicy,
    SessionClient,
    Token,
)
from koyeb_session.fastapi import KoyebSessions
from koyeb_session.stores import AsyncFileTokenStore, FileTokenStore, KeyringTokenStore
from koyeb_session.testing import FakeClock, FakeKoyeb, Fault

from .concurrency import deadlines

DOCUMENT: Final = (Path(__file__).parents[1] / ".github" / "TROUBLESHOOTING.md").read_text("utf-8")
EMAIL: Final = "me@example.com"
PASSWORD: Final = "correct horse"
ME: Final = PasswordCredentials(EMAIL, PASSWORD)
ONCE: Final = RetryPolicy(attempts=1)
PAGE: Final = Fault(
    status=404, body="<!doctype html>", headers={"content-type": "text/html; charset=utf-8"}
)


@attrs.frozen
class Stage:
    """The service, the clock, the file and the log of one mistake."""

    fake: FakeKoyeb
    clock: FakeClock
    path: Path
    """A session file that is not there yet."""
    patch: pytest.MonkeyPatch
    log: pytest.LogCaptureFixture

    def client(self, **arguments: Any) -> SessionClient:
        """Make a blocking client of the fake service."""
        return SessionClient(transport=self.fake.transport, clock=self.clock, **arguments)

    def async_client(self, **arguments: Any) -> AsyncSessionClient:
        """Make an asynchronous client of the fake service."""
        return AsyncSessionClient(transport=self.fake.transport, clock=self.clock, **arguments)


Mistake = Callable[[Stage], object]
MISTAKES: Final[dict[str, Mistake]] = {}
"""By the headings of their sections, which are their docstrings."""


def mistake(make: Mistake) -> Mistake:
    """Put a mistake into the list; it raises the printed error, or returns the printed text."""
    MISTAKES[(make.__doc__ or "").rstrip(".")] = make
    return make


# Signing in


@mistake
def nobody_has_signed_in(stage: Stage) -> None:
    """Nobody has signed in."""
    with stage.client() as session:
        session.http.get("/v1/apps")


@mistake
def the_environment_says_nothing(stage: Stage) -> None:
    """The environment says nothing."""
    stage.patch.setenv("HOME", str(stage.path.parent))
    stage.patch.setenv("USERPROFILE", str(stage.path.parent))
    SessionClient.from_env()


@mistake
def the_password_is_wrong(stage: Stage) -> None:
    """The password is wrong."""
    with stage.client() as session:
        session.login(EMAIL, "wrong")


@mistake
def koyeb_answers_a_login_with_403(stage: Stage) -> None:
    """Koyeb answers a login with 403."""
    stage.fake.fail("login", Fault(status=403))
    with stage.client() as session:
        session.login(EMAIL, PASSWORD)


@mistake
def koyeb_has_dropped_an_operation(stage: Stage) -> None:
    """Koyeb has dropped an operation."""
    fake = FakeKoyeb(withdrawn={"login"})
    with SessionClient(transport=fake.transport) as session:
        session.login(EMAIL, PASSWORD)


@mistake
def too_many_requests(stage: Stage) -> None:
    """Too many requests."""
    stage.fake.fail("login", Fault(status=429, headers={"retry-after": "90"}))
    with stage.client() as session:
        session.login(EMAIL, PASSWORD)


@mistake
def the_vault_raises(stage: Stage) -> None:
    """The vault raises."""

    def ask_the_vault() -> str:
        return os.environ["VAULT_TOKEN"]

    with stage.client(credentials=ask_the_vault) as session:
        stage.patch.setattr("random.random", lambda: 0.0)
        session.current_token()


# Tokens


@mistake
def the_token_has_expired(stage: Stage) -> None:
    """The token has expired."""
    with stage.client(token=stage.fake.issue_token()) as session:
        stage.clock.advance(timedelta(hours=25))
        session.http.get("/v1/apps")


@mistake
def the_token_was_revoked(stage: Stage) -> None:
    """The token was revoked."""
    with stage.client(token=stage.fake.issue_token()) as session:
        stage.fake.revoke_all()
        session.http.get("/v1/apps")


@mistake
def a_new_token_has_expired_already(stage: Stage) -> None:
    """A new token has expired already."""
    wrong = FakeClock(datetime.now(UTC) + timedelta(days=2))
    with SessionClient(transport=stage.fake.transport, clock=wrong) as session:
        session.use_token(stage.fake.issue_token())


@mistake
def the_token_has_a_word_too_many(stage: Stage) -> None:
    """The token has a word too many."""
    SessionClient(token="Bearer eyJhbGciOiJIUzI1NiJ9.e30.sig")


@mistake
def a_time_has_no_time_zone(stage: Stage) -> None:
    """A time has no time zone."""
    SessionClient(token=Token("a-token", expires_at=datetime(2030, 1, 1)))  # noqa: DTZ001 - the mistake


@mistake
def an_api_access_token_is_refreshed(stage: Stage) -> None:
    """An API access token is refreshed."""
    with stage.client(token=stage.fake.issue_api_token()) as session:
        session.refresh()


@mistake
def the_api_access_token_was_revoked(stage: Stage) -> None:
    """The API access token was revoked."""
    credentials = AccessTokenCredentials("x" * 64, "an-organization")
    with stage.client(credentials=credentials) as session:
        stage.patch.setattr("random.random", lambda: 0.0)
        session.current_token()


# Two halves, loops, threads and processes


@mistake
def await_is_missing(stage: Stage) -> str:
    """`await` is missing."""

    async def main() -> None:
        async with stage.async_client(credentials=ME) as session:
            session.login(EMAIL, PASSWORD)  # type: ignore[unused-coroutine] # pyright: ignore[reportUnusedCoroutine] - the mistake

    return warned(lambda: asyncio.run(main()))


@mistake
def await_is_missing_before_a_reply_is_used(stage: Stage) -> None:
    """`await` is missing before a reply is used."""

    async def main() -> None:
        async with stage.async_client(credentials=ME) as session:
            reply: Any = session.http.get("/v1/apps")
            try:
                reply.json()
            finally:
                reply.close()

    asyncio.run(main())


@mistake
def the_auth_is_of_the_other_half(stage: Stage) -> None:
    """The auth is of the other half."""
    session = stage.async_client(credentials=ME)
    with httpx.Client(auth=session.auth, transport=stage.fake.transport) as client:
        client.get("https://app.koyeb.com/v1/apps")


@mistake
def the_store_is_of_the_other_half(stage: Stage) -> None:
    """The store is of the other half."""
    SessionClient(store=AsyncFileTokenStore(stage.path))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


@mistake
def your_own_client_belongs_to_another_event_loop(stage: Stage) -> str:
    """Your own client belongs to another event loop."""
    with stage.fake.serve() as url:
        client = httpx.AsyncClient()
        session = AsyncSessionClient(base_url=url, http_client=client, retry_policy=ONCE)

        async def use() -> None:
            await session.login(EMAIL, PASSWORD)

        asyncio.run(use())
        return message(lambda: asyncio.run(use()))


@mistake
def the_client_is_closed(stage: Stage) -> None:
    """The client is closed."""
    session = stage.client()
    session.close()
    session.login(EMAIL, PASSWORD)


@mistake
def the_client_was_not_closed(stage: Stage) -> str:
    """The client was not closed."""
    with stage.fake.serve() as url:

        def main() -> None:
            session = SessionClient(base_url=url, clock=stage.clock)
            session.login(EMAIL, PASSWORD)

        return warned(main).replace(url, "https://app.koyeb.com")


@mistake
def a_process_pool_pickles_the_client(stage: Stage) -> None:
    """A process pool pickles the client."""
    pickle.dumps(SessionClient())


@mistake
def a_script_uses_async_with_as_with(stage: Stage) -> str:
    """`async` is missing before `with`."""
    with pytest.raises(TypeError) as caught, stage.async_client():  # type: ignore[attr-defined] # pyright: ignore - the mistake
        pass
    return printed(caught.value).partition(" (")[0]  # newer Pythons say more


@mistake
def a_notebook_runs_an_event_loop_already(stage: Stage) -> None:
    """A notebook runs an event loop already."""

    async def cell() -> None:
        main = asyncio.sleep(0)
        try:
            asyncio.run(main)
        finally:
            main.close()

    asyncio.run(cell())


@mistake
def several_processes_renew_one_token(stage: Stage) -> None:
    """Several processes renew one token."""
    token = stage.fake.issue_token()
    with stage.client(token=token) as one, stage.client(token=token) as another:
        one.refresh()
        another.refresh()


@mistake
def a_body_cannot_be_sent_twice(stage: Stage) -> None:
    """A body cannot be sent twice."""
    with stage.client(credentials=ME) as session:
        session.current_token()
        stage.fake.revoke_all()
        session.http.post("/v1/apps", content=iter([b"{}"])).raise_for_status()


# The way to the service


@mistake
def base_url_ends_with_v1(stage: Stage) -> None:
    """`base_url` ends with `/v1`."""
    SessionClient(base_url="https://app.koyeb.com/v1")


@mistake
def base_url_is_not_https(stage: Stage) -> None:
    """`base_url` is not https."""
    SessionClient(base_url="http://koyeb:8080")


@mistake
def base_url_is_a_web_site(stage: Stage) -> None:
    """`base_url` is that of a web site."""
    stage.fake.fail("login", PAGE)
    with stage.client(base_url="https://www.koyeb.com") as session:
        session.login(EMAIL, PASSWORD)


@mistake
def the_name_cannot_be_resolved(stage: Stage) -> None:
    """The service's name cannot be resolved."""

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    stage.patch.setattr(socket, "getaddrinfo", fail)
    with SessionClient(base_url="https://app.koyeb.example", retry_policy=ONCE) as session:
        session.login(EMAIL, PASSWORD)


@mistake
def nothing_listens_there(stage: Stage) -> str:
    """Nothing listens there."""
    with SessionClient(base_url="http://127.0.0.1:1", retry_policy=ONCE) as session:
        return re.sub(r"Errno \d+", "Errno 111", message(lambda: session.login(EMAIL, PASSWORD)))


@mistake
def the_certificate_is_not_trusted(stage: Stage) -> str:
    """The certificate is not trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = trustme.CA().issue_cert("127.0.0.1")
    with certificate.private_key_and_cert_chain_pem.tempfile() as path:
        context.load_cert_chain(path)
    with answering(b"", context) as port:
        url = f"https://127.0.0.1:{port}"
        with SessionClient(base_url=url, retry_policy=ONCE) as session:
            text = message(lambda: session.login(EMAIL, PASSWORD))
    return re.sub(r"_ssl\.c:\d+", "_ssl.c:1006", text.replace(url, "https://app.koyeb.com"))


@mistake
def the_proxy_has_a_scheme_that_is_none(stage: Stage) -> None:
    """The proxy's URL has another scheme."""
    stage.patch.setenv("HTTPS_PROXY", "socks://proxy:1080")
    SessionClient()


@mistake
def the_proxy_wants_a_password(stage: Stage) -> None:
    """The proxy wants a password."""
    reply = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    with answering(reply) as port:
        stage.patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        stage.patch.delenv("NO_PROXY", raising=False)
        stage.patch.delenv("no_proxy", raising=False)
        with SessionClient(retry_policy=ONCE) as session:
            session.login(EMAIL, PASSWORD)


@mistake
def the_service_does_not_answer_in_time(stage: Stage) -> str:
    """The service does not answer in time."""
    with answering(None) as port:
        url = f"http://127.0.0.1:{port}"
        texts: list[str] = []
        for seconds in deadlines(lambda: texts[-1].endswith(": timed out")):
            with SessionClient(base_url=url, timeout=seconds, retry_policy=ONCE) as session:
                texts.append(message(partial(session.login, EMAIL, PASSWORD)))
    return texts[-1].replace(url, "https://app.koyeb.com")


# Stores


@mistake
def an_extra_is_missing(stage: Stage) -> None:
    """An extra is missing."""
    stage.patch.setitem(sys.modules, "filelock", None)
    FileTokenStore()


@mistake
def a_path_is_given_as_a_store(stage: Stage) -> None:
    """A path is given in place of a store."""
    SessionClient(store="session.json")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType] - the mistake


@mistake
def the_store_is_of_another_account(stage: Stage) -> str:
    """The saved session is of another account."""
    store = FileTokenStore(stage.path)
    with stage.client(store=store) as session:
        session.login(EMAIL, PASSWORD)
    organization = stage.fake.organizations[EMAIL][1]
    other = AccessTokenCredentials(stage.fake.issue_api_token(), organization)
    with stage.client(store=store, credentials=other) as session:
        session.current_token()
    return logged(stage)


@mistake
def another_process_holds_the_lock(stage: Stage) -> str:
    """Another process holds the lock."""
    store = FileTokenStore(stage.path, lock_timeout=0.01)
    with stage.client(store=store, token=stage.fake.issue_token()) as session, store.lock():
        return message(session.refresh).replace("0.01 s", "3 s")


@mistake
def the_keyring_takes_no_token_of_that_length(stage: Stage) -> str:
    """The token is too long for the keyring."""
    before = keyring.get_keyring()
    keyring.set_keyring(ShortKeyring())
    try:
        with stage.client(store=KeyringTokenStore()) as session:
            token = stage.fake.issue_token()
            session.use_token(Token(token, renewal="r" * 1000))
    finally:
        keyring.set_keyring(before)
    return re.sub(r"with \d+ ch", "with 1612 ch", logged(stage))


class ShortKeyring(KeyringBackend):
    """Takes as little as that of Windows."""

    priority = 1  # pyright: ignore[reportAssignmentType] - keyring's own kind of property

    def __init__(self) -> None:  # not the base's: it reads the machine's settings
        pass

    def get_password(self, service: str, username: str) -> str | None:
        """Return no entry."""

    def set_password(self, service: str, username: str, password: str) -> None:
        """Refuse an entry."""
        raise OSError(1783, "The stub received bad data")


@mistake
def the_session_file_is_a_symlink(stage: Stage) -> str:
    """The session file is a symbolic link."""
    stage.path.symlink_to(stage.path.with_name("elsewhere.json"))
    with stage.client(store=FileTokenStore(stage.path)) as session:
        session.login(EMAIL, PASSWORD)
    return logged(stage)


@mistake
def others_may_write_the_clis_file(stage: Stage) -> None:
    """Others may write the Koyeb CLI's file."""
    file = stage.path.with_name("koyeb.yaml")
    file.write_text("token: a-token\n", "utf-8")
    file.chmod(0o666)
    stage.patch.setenv("KOYEB_CONFIG", str(file))
    SessionClient.from_env()


# FastAPI


@mistake
def the_lifespan_does_not_run(stage: Stage) -> None:
    """The lifespan does not run."""
    sessions = KoyebSessions(transport=stage.fake.transport)
    asyncio.run(sessions.service())


@mistake
def the_services_own_session_has_failed(stage: Stage) -> str:
    """The application answers 502."""
    wrong = PasswordCredentials(EMAIL, "wrong")
    sessions = KoyebSessions(transport=stage.fake.transport, clock=stage.clock, credentials=wrong)
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


# Messages


def printed(error: BaseException) -> str:
    """Write the last line of a traceback."""
    return "".join(traceback.format_exception_only(error)).strip()


def message(work: Callable[[], object]) -> str:
    """Do something, and return the last line of its traceback, or what it returns."""
    try:
        return str(work())
    except Exception as error:  # noqa: BLE001 - any of them
        return printed(error)


def warned(work: Callable[[], object]) -> str:
    """Run a mistake that Python warns of, and write the warning."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work()
        gc.collect()
    (warning,) = [each for each in found if each.category in {RuntimeWarning, ResourceWarning}]
    return f"{warning.category.__name__}: {warning.message}"


def logged(stage: Stage) -> str:
    """Write the first warning of the log, in the form that `logging.basicConfig()` has."""
    return next(
        f"{each.levelname}:{each.name}:{each.getMessage()}"
        for each in stage.log.records
        if each.levelno >= logging.WARNING
    )


@contextmanager
def answering(reply: bytes | None, context: ssl.SSLContext | None = None) -> Generator[int]:
    """Serve one reply at a port; `None`: none at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                if context is not None:
                    with pytest.raises(ssl.SSLError):
                        context.wrap_socket(connection, server_side=True)
                    return
                while connection.recv(4096):
                    if reply is not None:
                        connection.sendall(reply)
                        return

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def documented() -> Iterator[tuple[str, str]]:
    """Give each section of the document and the message that it shows."""
    for section in re.split(r"^### ", DOCUMENT, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        (message,) = re.findall(r"^```text\n(.*?)\n```$", rest, re.DOTALL | re.MULTILINE)
        yield heading, message


MESSAGES: Final = dict(documented())


@pytest.fixture
def stage(
    fake_koyeb: FakeKoyeb,
    koyeb_clock: FakeClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Stage:
    """Make a fake service, and forget the machine's own settings."""
    for variable in [name for name in os.environ if name.startswith("KOYEB_")]:
        monkeypatch.delenv(variable)
    return Stage(fake_koyeb, koyeb_clock, tmp_path / "session.json", monkeypatch, caplog)


@pytest.mark.parametrize("heading", MISTAKES)
def test_message_is_what_is_printed(heading: str, stage: Stage) -> None:
    """A reader searches for the text on the screen: the document has it word for word."""
    assert show(MISTAKES[heading], stage) == MESSAGES.get(heading)


def show(make: Mistake, stage: Stage) -> str:
    """Make a mistake, and return the printed text, with another folder in place of the test's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # some mistakes leave sockets open
        text = message(lambda: make(stage))
        gc.collect()
    return text.replace(str(stage.path.parent), "/home/me")


def test_each_entry_is_provoked() -> None:
    """Nothing is in the document that no mistake of these tests prints."""
    assert list(MESSAGES) == list(MISTAKES)
