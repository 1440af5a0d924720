"""With any bytes from the service, only the documented errors are raised, without secrets."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from datetime import UTC
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from koyeb_session import (
    ApiError,
    KoyebSessionError,
    LoginMethod,
    LoginReply,
    NotSignedInError,
    Token,
    WireError,
)
from koyeb_session._api import operations
from koyeb_session._api.messages import ErrorReply, LoginMethodReply
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import (
    BODY_LIMIT,
    Reply,
    decoded,
    json_object,
    read,
    read_error,
    read_nothing,
)
from koyeb_session._core.origins import Origins, origins
from koyeb_session._core.provenance import read_provenance
from koyeb_session._core.redaction import MARK, TEXT_LIMIT, Redactor, printable, spellings
from koyeb_session._core.timestamps import (
    from_epoch,
    http_date,
    retry_after,
    service_time,
    timestamp,
)
from koyeb_session._core.tokens import fill_from_jwt, is_header_safe, jwt_claims
from koyeb_session._core.validation import parse_token
from koyeb_session._environment import look_up
from koyeb_session._storage.records import read_record, write_record
from koyeb_session.testing import assert_no_secret

from .error_texts import every_operation
from .soak import SOAK
from .strategies import (
    JSON,
    bodies,
    encodings,
    fuzzed,
    header_texts,
    headers,
    is_clean_wire_error,
    objects,
    texts,
    tokens,
    values,
)

WALL = 1_800_000_000.0

# Password and token are unlike anything that the strategies make up by themselves.
PASSWORD = 'canary "pässword" \\ /'
TOKEN = Token("canary.token.0123456789")


OPERATIONS = every_operation(PASSWORD, TOKEN)
pytestmark = pytest.mark.timeout(600 if SOAK else 60)


# The wire


@fuzzed
@given(raw=bodies, encoding=encodings, pack=st.sampled_from(["as it is", "gzip", "zlib", "cut"]))
def test_decoding_gives_bytes_or_a_wire_error(raw: bytes, encoding: str | None, pack: str) -> None:
    """Any bytes under any encoding come out as bytes within the limit, or as an error."""
    sent = {
        "as it is": raw,
        "gzip": gzip.compress(raw),
        "zlib": zlib.compress(raw),
        "cut": gzip.compress(raw)[: len(raw) // 2],
    }[pack]
    found = decoded(sent, encoding)
    assert is_clean_wire_error(found) or (isinstance(found, bytes) and len(found) <= BODY_LIMIT)
    if encoding in {"gzip", "deflate"} and pack in {"gzip", "zlib"}:
        assert found == raw
    if encoding in {None, "identity"}:
        assert found == sent


@fuzzed
@given(body=bodies)
def test_reading_gives_a_value_or_a_wire_error(body: bytes) -> None:
    """No body makes a reader raise, and the result is of the promised type."""
    assert isinstance(json_object(body), dict) or is_clean_wire_error(json_object(body))
    method = read(body, LoginMethodReply)
    assert isinstance(method, LoginMethodReply) or is_clean_wire_error(method)
    assert read_nothing(body) is None or is_clean_wire_error(read_nothing(body))
    error = read_error(body)
    assert type(error) is ErrorReply
    assert error.code is None or type(error.code) in {str, int}
    assert error.message is None or error.message
    reply = read(body, LoginReply)
    if isinstance(reply, LoginReply):
        token = reply.token
        assert is_header_safe(token.id)
        assert token.expires_at is None or token.expires_at.tzinfo is UTC
        for text in (token.user_id, token.organization_id):
            assert text is None or (isinstance(text, str) and text)
    else:
        assert is_clean_wire_error(reply)


@fuzzed
@given(token=tokens)
@example(token={"id": "t", "expires_at": "9999-12-31T23:59:59-23:59"})
@example(token={"id": "t", "expires_at": "0000-00-00T99:99:99+99:99"})
@example(token={"id": "a.b.c"})
def test_reading_never_quotes_the_reply_when_it_refuses(token: dict[str, JSON]) -> None:
    """An error about a token's field is one of a few sentences."""
    reply = read(json.dumps({"token": token}).encode(), LoginReply)
    fields = ("id", "user_id", "organization_id", "expires_at", "expires")
    if isinstance(reply, WireError):
        assert reply.message in {
            "the reply is not JSON",
            "token.id: empty, or not fit for a header",
            "token.expires_at: not an RFC 3339 timestamp",
            *(f"token.{field}: not a string" for field in fields),
        }


@fuzzed
@given(text=texts | header_texts, value=values)
def test_times_are_read_or_not_whatever_they_are(text: str, value: JSON) -> None:
    """No text and no number makes a time raise anything that is not documented."""
    try:
        at = timestamp(text)
    except ValueError:
        at = None
    assert at is None or at.tzinfo is UTC
    epoch = from_epoch(value)
    assert epoch is None or epoch.tzinfo is UTC
    assert http_date(text) is None or isinstance(http_date(text), float)
    wait = retry_after({"retry-after": text, "date": text}, WALL)
    assert wait is None or 0 <= wait < 1e12
    assert from_epoch(service_time(text, WALL)) is not None


@fuzzed
@given(parts=st.lists(texts | values.map(json.dumps), max_size=4), claims=objects("exp", "iat"))
def test_claims_are_read_or_not_whatever_the_token_is(
    parts: list[str], claims: dict[str, JSON]
) -> None:
    """Any text is a JWT or none; adopting it is right or a clear mistake."""
    encoded = [
        "e30",
        base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("="),
        *parts,
    ]
    for text in (".".join(parts), ".".join(encoded)):
        assert jwt_claims(text) is None or len(text.split(".")) == 3
        assert fill_from_jwt(Token(text)).id == text
        found = parse_token(text, WALL)
        assert isinstance(found, Token) or type(found) is ValueError


# The operations


@fuzzed
@pytest.mark.parametrize("name", OPERATIONS)
@given(status=st.integers(100, 999), body=bodies, headers=headers, encoding=encodings)
def test_outcome_is_a_result_or_a_documented_error(
    name: str, status: int, body: bytes, headers: dict[str, str], encoding: str | None
) -> None:
    """Nothing that a service sends makes an operation raise."""
    operation = OPERATIONS[name]
    sent = [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    reply = Reply(status, httpx.Headers(sent), decoded(body, encoding))
    outcome = operation.outcome(reply, WALL)
    if 200 <= status < 300:
        assert outcome is None or isinstance(outcome, Token | LoginMethod | WireError)
        assert not isinstance(outcome, Token) or outcome.issued_at is not None
    else:
        assert isinstance(outcome, ApiError)
        assert outcome.status == status
        assert outcome.retry_after is None or outcome.retry_after >= 0
    if isinstance(outcome, KoyebSessionError):
        assert type(outcome).__module__ == "koyeb_session"
        assert outcome.message.startswith(f"{name}: ")
        assert len(outcome.message) < 900
        assert outcome.__cause__ is None
        str(outcome).encode()  # it can be printed


SECRETS = [name for name, operation in OPERATIONS.items() if operation.secrets]


@fuzzed
@pytest.mark.parametrize("name", SECRETS)
@given(
    status=st.sampled_from(
        [*range(200, 206), *range(300, 310), *range(400, 431), *range(500, 512)]
    ),
    around=st.tuples(texts, texts),
    long=st.integers(0, 520),
    how=st.sampled_from(["message", "code", "fields", "request id", "body", "json", "method"]),
)
def test_secret_does_not_come_back_when_the_service_echoes_it(
    name: str, status: int, around: tuple[str, str], long: int, how: str
) -> None:
    """A secret that the service repeats, anywhere in its reply, shows in no error."""
    operation = OPERATIONS[name]
    (secret,) = operation.secrets
    before, after = around
    echo = f"{before}{'.' * long}{secret}{after}"
    reply: dict[str, object] = {"message": "m", "code": "c", "fields": []}
    headers = httpx.Headers()
    match how:
        case "message" | "code" | "method":
            reply[how] = echo
        case "fields":
            reply["fields"] = [{"field": echo, "description": echo}]
        case "request id":
            headers = httpx.Headers({b"x-request-id": secret.encode()})
        case "json":
            reply["message"] = f"cannot read: {json.dumps({'password': secret})}{after}"
        case _:
            reply = {"token": {"id": f"{secret} {secret}", "user_id": 5, "expires_at": echo}}
    outcome = operation.outcome(Reply(status, headers, json.dumps(reply).encode()), WALL)
    assert isinstance(outcome, KoyebSessionError) or outcome is None
    if outcome is not None:
        assert_no_secret(secret, outcome)


@fuzzed
@given(password=st.text(min_size=1), before=texts, after=texts, spelled=st.integers(0))
def test_spelled_secret_does_not_come_back(
    password: str, before: str, after: str, spelled: int
) -> None:
    """A password in any spelling is removed from any text around it."""
    forms = sorted(spellings(password))
    form = forms[spelled % len(forms)]
    shown = Redactor([password])(f"{before} {form} {after}")
    assert shown.isprintable()
    assert all(printable(form) not in part for part in shown.split(MARK))


@fuzzed
@given(secrets=st.lists(st.text(min_size=1), max_size=3), text=st.text())
def test_text_stays_when_it_holds_no_secret(secrets: list[str], text: str) -> None:
    """Nothing is taken out of a text that spells none of the secrets."""
    held = any(
        printable(form) in printable(text) for secret in secrets for form in spellings(secret)
    )
    if not held:
        assert Redactor(secrets)(text) == printable(text)[:TEXT_LIMIT]


# Arguments of users


@fuzzed
@given(
    url=texts | texts.map(lambda text: f"https://{text}") | texts.map(lambda t: f"https://a.b:{t}")
)
def test_base_url_is_right_or_a_clear_mistake(url: str) -> None:
    """Any text is a base URL that a request can be made with, or a `ValueError` that hides it."""
    found = origins(url, ())
    if isinstance(found, Origins):
        request = operations.refresh(TOKEN).request(found.base_url, 1)
        assert request.url.path.endswith("/v1/account/refresh")
        assert request.url.query == b""
        assert found.trusts(request)
    else:
        assert type(found) is ValueError
        assert str(found).startswith("base_url ")


@fuzzed
@given(email=texts, password=texts, organization_id=st.none() | texts, seon_fp=st.none() | texts)
def test_login_is_an_operation_or_a_clear_mistake(
    email: str, password: str, organization_id: str | None, seon_fp: str | None
) -> None:
    """Any texts of a user give a request that can be sent, or a `ValueError` that names one."""
    made = operations.login(email, password, organization_id, seon_fp)
    if isinstance(made, Operation):
        sent = json.loads(made.request("https://app.koyeb.com", 1).content)
        assert sent["email"] == email
        assert sent["password"] == password
        assert sent.get("organization_id") == organization_id
    else:
        assert type(made) is ValueError
        assert str(made).split()[0] in {"email", "password", "organization_id", "seon_fp"}
    method = operations.login_method(email)
    if isinstance(method, Operation):
        url = method.request("https://app.koyeb.com", 1).url
        assert dict(url.params) == {"email": email}
        assert url.path == "/v1/account/login_method"


# Records and files of others

records: st.SearchStrategy[Any] = objects("format", "version", "token") | st.fixed_dictionaries(
    {
        "format": st.just("koyeb-session"),
        "version": st.sampled_from([1, 2]),
        "token": st.fixed_dictionaries(
            {"id": st.from_regex(r"\A[!-~]+\Z") | values},
            optional=dict.fromkeys(
                (*("user_id", "organization_id", "renewal"), *("provenance", "expires_at")), values
            ),
        ),
    }
)
record_bodies: st.SearchStrategy[bytes] = records.map(json.dumps).map(str.encode)


@fuzzed
@given(record=bodies | record_bodies)
@example(record=b'{"format": "koyeb-session", "version": 1, "token": {"id": "t"}}')
@example(record="\udcff")  # as a keyring may give it
def test_record_is_a_token_or_refused_in_words(record: bytes | str) -> None:
    """It may hold anything; a token that is read can be written again."""
    found = read_record(record)
    if isinstance(found, Token):
        assert is_header_safe(found.id)
        assert read_record(write_record(found)) == found
        assert read_provenance(found) is None or found.provenance
    else:
        assert found is None or (isinstance(found, ValueError) and f"{found}".isascii())


cli_files = (
    bodies
    | objects("token", "url", "organization", "debug").map(lambda it: json.dumps(it).encode())
    | st.text("tokenurl:organization -?!&*[]{}#|>'\"%@\n\t0.e~", max_size=60).map(str.encode)
)


@fuzzed
@given(content=cli_files)
@example(content=b"token: 2001-99-99")
@example(content=b"token: &a [*a]")
@example(content=b"!!python/object/apply:os.abort []")
def test_file_of_the_cli_signs_in_or_is_refused_in_words(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It may hold anything, and anyone may have written it."""
    path = tmp_path_factory.getbasetemp() / "koyeb.yaml"
    path.write_bytes(content)
    path.chmod(0o600)
    found = look_up({}, {"KOYEB_CONFIG": str(path)})
    assert isinstance(found, dict) or type(found) in {NotSignedInError, ValueError}


@fuzzed
@given(
    url=st.builds(
        "".join,
        st.lists(
            st.sampled_from(
                [*"/\\@:?#.%[]\t\n ", "https:", "HTTP:", "//", "app.koyeb.com", "evil.example"]
            )
            | texts,
            max_size=8,
        ),
    ),
    host=st.none() | st.sampled_from(["app.koyeb.com", "evil.example"]) | texts,
)
def test_token_goes_to_the_services_origin_alone(url: str, host: str | None) -> None:
    """However a URL, or the header that names the host, is disguised."""
    trusted = origins("https://app.koyeb.com", ())
    assert isinstance(trusted, Origins)
    try:
        headers = {} if host is None else {"Host": host}
        request = httpx.Request("GET", url, headers=headers)
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError):
        return
    if trusted.trusts(request):
        assert request.url.raw_host == b"app.koyeb.com"
        assert (request.url.scheme, request.url.port) == ("https", None)
        assert not request.url.userinfo
        assert request.headers["Host"].lower() in {"app.koyeb.com", "app.koyeb.com:443"}
