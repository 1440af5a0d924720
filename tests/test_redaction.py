"""Redaction of texts of other programs: secrets, and characters that could forge log lines."""

from __future__ import annotations

import base64
import html
import json
from typing import Any, SupportsIndex
from urllib.parse import quote, quote_plus

import pytest

from koyeb_session import (
    BadRequestError,
    LoginReply,
    MemoryTokenStore,
    NotSignedInError,
    SessionClient,
    Token,
)
from koyeb_session._api import operations
from koyeb_session._api.operations import Operation
from koyeb_session._api.wire import BODY_LIMIT, FIELD_LIMIT, Reply, read
from koyeb_session._core import redaction
from koyeb_session._core.redaction import TEXT_LIMIT, Redactor, printable, spellings
from koyeb_session.testing import assert_no_secret

PASSWORD = 'Canary-w0rd/+&é"<\\x ~'
TOKEN = Token("canary.token.0123456789")
IN_JSON = json.dumps(PASSWORD)[1:-1]
EVIL = "bad\nroot: all is well\r\x1b[2J\x1b]0;owned\x07\x9b31m\u2028\u202e\u200b\ud800"


def login(password: str, seon_fp: str | None = None) -> Operation[Token]:
    """Make a login."""
    made = operations.login("me@example.com", password, None, seon_fp)
    assert isinstance(made, Operation)
    return made


def answer(operation: Operation[Token], body: dict[str, object], **headers: str) -> BadRequestError:
    """Return the error for a 400 with this body."""
    error = operation.outcome(Reply(400, headers, json.dumps(body).encode()), 0.0)
    assert isinstance(error, BadRequestError)
    return error


SPELLED = {
    "plain": PASSWORD,
    "JSON": IN_JSON,
    "JSON with capitals": IN_JSON.replace("\\u00e9", "\\u00E9"),
    "JSON that is not ASCII": json.dumps(PASSWORD, ensure_ascii=False)[1:-1],
    "JSON of Go": IN_JSON.replace("&", "\\u0026").replace("<", "\\u003c"),
    "JSON of Go with capitals": IN_JSON.replace("&", "\\u0026")
    .replace("<", "\\u003C")
    .replace("\\u00e9", "\\u00E9"),
    "JSON of PHP": IN_JSON.replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps(PASSWORD))[3:-3],
    "JSON of Go in JSON": json.dumps(IN_JSON.replace("&", "\\u0026").replace("<", "\\u003c"))[1:-1],
    "Go's %q": PASSWORD.replace("\\", "\\\\").replace('"', '\\"'),
    "repr": repr(PASSWORD)[1:-1],
    "repr of bytes": repr(PASSWORD.encode())[2:-1],
    "path": quote(PASSWORD),
    "part of a path": quote(PASSWORD, safe=""),
    "small hex": quote(PASSWORD, safe="").lower().replace("canary", "Canary"),
    "query": quote_plus(PASSWORD),
    "JavaScript": quote(PASSWORD, safe="!'()*"),
    "HTML": html.escape(PASSWORD),
    "HTML of Go": html.escape(PASSWORD).replace("&quot;", "&#34;"),
    "base64": base64.b64encode(PASSWORD.encode()).decode(),
    "base64 of URLs": base64.urlsafe_b64encode(PASSWORD.encode()).decode().rstrip("="),
}


@pytest.mark.parametrize("form", SPELLED.values(), ids=SPELLED)
def test_secret_is_taken_out_in_every_usual_spelling(form: str) -> None:
    """However a program writes the password down, the error does not, and the search finds it."""
    error = answer(login(PASSWORD), {"message": f"bad body: {form}, that is"})
    assert (
        error.message == "login: bad body: [secret], that is (POST /v1/account/login: status 400)"
    )
    with pytest.raises(AssertionError):
        assert_no_secret(PASSWORD, f"bad body: {form}, that is")


@pytest.mark.parametrize("quote", ["&#x27;", "&#39;", "&#039;", "&apos;"])
def test_secret_is_taken_out_however_its_quotes_are_escaped(quote: str) -> None:
    """Python, Go, PHP and XML write an apostrophe each in its own way."""
    secret = "canary's-w0rd&<"
    form = html.escape(secret).replace("&#x27;", quote)
    assert quote in form
    assert answer(login(secret), {"message": form}).message.startswith("login: [secret] (")


@pytest.mark.parametrize("before", ["", "a:", "ab:", "abc:"])
@pytest.mark.parametrize("after", ["", "\n", "\r\n", "!!!"])
def test_secret_is_taken_out_of_an_encoded_text(before: str, after: str) -> None:
    """In base64 a password has three spellings, depending on the text before it."""
    text = base64.b64encode(f"{before}{PASSWORD}{after}".encode()).decode()
    shown = answer(login(PASSWORD), {"message": text}).message
    around = len(shown) - len("login: [secret] (POST /v1/account/login: status 400)")
    assert around <= len(base64.b64encode(f"{before}{after}".encode())) + 4
    with pytest.raises(AssertionError):
        assert_no_secret(PASSWORD, text)


@pytest.mark.parametrize(
    ("text", "secrets", "clean"),
    [
        ("nothing here", ["pw"], "nothing here"),
        ("one-secret two-secret", ["one-secret", "two-secret"], "[secret] [secret]"),
        ("xone-secretx", ["one-secret"], "x[secret]x"),
        ("one-secretone-secret", ["one-secret"], "[secret][secret]"),
        ("as it is", [], "as it is"),
        ("the [secret] secrets", ["secrets"], "[secret]"),
        # Words and short secrets: the whole text is hidden or none of it, as a gap reveals them.
        ("Connection refused", ["e"], "Connection refused"),
        ("Connection refused", ["refuse"], "Connection refused"),
        ("Connection refused", ["refused"], "[secret]"),
        ("invalid_argument", ["invalid"], "invalid_argument"),
        ("Your password is incorrect", ["password"], "[secret]"),
        ("you sent pw", ["pw"], "[secret]"),
        ('{"password": "e"}', ["e"], "[secret]"),
        ("passwords, the password", ["password"], "[secret]"),
        ('{"password": "p\\u00e4ss"}', ["päss"], "[secret]"),
        ('{"password": "ä\\n"}', ["ä\n"], "[secret]"),
        ("\\\\ or \\", ["\\"], "[secret]"),
        ("CorrectHorseBatteryStaples", ["CorrectHorseBatteryStaple"], "[secret]s"),
    ],
)
def test_redaction_replaces_secrets_and_nothing_else(
    text: str, secrets: list[str], clean: str
) -> None:
    """A secret goes and the text stays; where the text would tell what the secret is, it goes."""
    assert Redactor(secrets)(text) == clean


def test_own_words_stay_when_they_are_the_password() -> None:
    """The package's own texts give no password away by a gap."""
    for password in ("login", "status", "message", "400"):
        assert (
            answer(login(password), {}).message
            == "login: no message (POST /v1/account/login: status 400)"
        )


def test_fingerprint_is_taken_out() -> None:
    """A SEON fingerprint of the machine is private, too."""
    made = operations.switch_organization(TOKEN, "org-1", "canary-fingerprint")
    for operation in (login(PASSWORD, "canary-fingerprint"), made):
        error = answer(operation, {"message": "fp canary-fingerprint"})
        assert error.message == (
            f"{operation.name}: fp [secret] ({operation.method} {operation.path}: status 400)"
        )


@pytest.mark.parametrize("gap", ["", " ", "x" * 480, "x" * 500, "x" * 2000])
def test_no_part_of_a_secret_moves_up_when_others_are_taken_out(gap: str) -> None:
    """The cut of a long text goes through no secret, however much shorter the text becomes."""
    secret = f"canary{'0123456789' * 90}"
    text = gap.join([secret] * 20)
    shown = Redactor([secret])(text)
    assert "0123" not in shown
    assert len(shown) <= TEXT_LIMIT


def test_spellings_of_a_token_are_few() -> None:
    """A token of letters and digits looks the same in most of them."""
    assert len(spellings(TOKEN.id)) < 10


def test_text_is_as_it_was_when_it_can_be_printed() -> None:
    """Letters of all languages are no danger."""
    assert printable("Straße, 東京, מפתח, 🎉") == "Straße, 東京, מפתח, 🎉"


def test_service_cannot_forge_lines_of_a_log() -> None:
    """Characters that break lines or control terminals are escaped in each part of the error."""
    fields = [{"field": EVIL, "description": EVIL}]
    body: dict[str, object] = {"message": EVIL, "code": EVIL, "fields": fields}
    error = answer(login(PASSWORD), body, **{"x-request-id": "r\x1b[31m\x9b"})
    shown = (str(error), str(error.code), str(error.request_id), *error.fields.popitem())
    assert all(text.isprintable() for text in shown)
    assert "bad\\nroot: all is well\\r\\x1b[2J" in error.message
    assert error.request_id == "r\\x1b[31m\\x9b"


@pytest.mark.parametrize("name", ["user_id", "organization_id"])
def test_poisoned_token_cannot_forge_lines_of_a_log(name: str) -> None:
    """A store, a caller or the service may bring a token with odd ids: its session shows none."""
    ids: dict[str, Any] = {name: EVIL}
    token = Token("canary", **ids)
    reply = json.dumps({"token": {"id": "canary", name: EVIL}}).encode()
    answered = read(reply, LoginReply)
    assert isinstance(answered, LoginReply)
    with SessionClient(token=token) as session:
        for known in (session.token, answered.token, session.use_token(token)):
            assert known is not None
            assert getattr(known, name) == printable(EVIL)
        assert f"{session} {session!r}".isprintable()
        store = MemoryTokenStore()
        store.save(token)
        with SessionClient(store=store) as other:
            assert other.current_token().id == "canary"
            assert repr(other).isprintable()


def test_poisoned_provenance_cannot_forge_lines_of_a_log(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the service of a record that is another one's."""
    store = MemoryTokenStore()
    origin = f"https://a{EVIL.replace(' ', '')}"
    store.save(Token("canary", provenance=f"koyeb-session/1 {origin} account koyeb"))
    with SessionClient(store=store) as session, pytest.raises(NotSignedInError):
        session.current_token()
    assert "the store holds a session of the service https://a" in caplog.text
    assert all(message.isprintable() for message in caplog.messages)


class Long(str):
    """A text of which only the beginning may be looked at."""

    __slots__ = ()

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        assert isinstance(key, slice)
        assert key.start is None
        assert key.stop <= TEXT_LIMIT + 100
        return str.__getitem__(self, key)

    def isprintable(self) -> bool:
        """Fail."""
        raise AssertionError

    def replace(self, *_: object) -> str:
        """Fail."""
        raise AssertionError


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    """A megabyte of an error's text costs as much as a line of it."""
    assert Redactor([TOKEN.id])(Long("ab" * BODY_LIMIT)) == "ab" * (TEXT_LIMIT // 2)


def test_spellings_are_worked_out_once_for_each_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error with many fields costs as much as one with a few."""
    worked_out: list[str] = []

    def counted(secret: str) -> set[str]:
        worked_out.append(secret)
        return spellings(secret)

    monkeypatch.setattr(redaction, "spellings", counted)
    fields = [{"field": str(number), "description": TOKEN.id} for number in range(10_000)]
    error = answer(operations.refresh(TOKEN), {"message": "m", "fields": fields})
    assert worked_out == [TOKEN.id]
    assert error.fields == dict.fromkeys(map(str, range(FIELD_LIMIT)), "[secret]")
