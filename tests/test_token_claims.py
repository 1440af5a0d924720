"""The text of a token: whether it fits a header, and the claims of a JWT."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from koyeb_session import Token
from koyeb_session._core.tokens import (
    TOKEN_LIMIT,
    Claims,
    fill_from_jwt,
    is_api_token,
    is_header_safe,
    jwt_claims,
)

from .jwts import jwt, part

EXPIRES = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ISSUED = datetime(2030, 1, 1, 3, 4, 5, tzinfo=UTC)


def test_character_is_header_safe_when_it_is_visible_ascii() -> None:
    """Nothing but ``!`` to ``~`` goes into a header, wherever in the token it stands."""
    for code in (*range(0x100), 0x20AC, 0xD800, 0xFF21, 0x1F600):
        safe = 0x21 <= code <= 0x7E
        for text in (chr(code), f"a{chr(code)}", f"{chr(code)}a", f"a{chr(code)}a"):
            assert is_header_safe(text) is safe


def test_token_is_header_safe_when_it_is_no_longer_than_the_limit() -> None:
    """No token is empty, or longer than common servers take."""
    assert TOKEN_LIMIT == 16_384
    assert not is_header_safe("")
    assert is_header_safe("x" * TOKEN_LIMIT)
    assert not is_header_safe("x" * (TOKEN_LIMIT + 1))


def test_claims_are_read_when_the_token_is_a_jwt() -> None:
    """``exp`` and ``iat`` say when it ends and when it began."""
    token = jwt({"exp": EXPIRES.timestamp(), "iat": ISSUED.timestamp(), "sub": "me"})
    assert jwt_claims(token) == Claims(EXPIRES, ISSUED)


@pytest.mark.parametrize("filler", ["", "a", "ab", "abc", "ü?>", "~~~"])
def test_claims_are_read_when_the_base64_is_of_any_length(filler: str) -> None:
    """A JWT leaves the padding of its base64 out and uses the alphabet that is safe in URLs."""
    claims = jwt({"exp": 2, "x": filler}, {"alg": "none", "kid": filler})
    assert jwt_claims(claims) == Claims(datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), None)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({}, Claims(None, None)),
        ({"exp": 1}, Claims(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None)),
        ({"iat": 1}, Claims(None, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))),
        ({"exp": 0}, Claims(datetime(1970, 1, 1, tzinfo=UTC), None)),
        ({"exp": 1.5}, Claims(datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC), None)),
        ({"exp": "1"}, Claims(None, None)),
        ({"exp": True, "iat": False}, Claims(None, None)),
        ({"exp": None, "iat": []}, Claims(None, None)),
        ({"exp": 1e300, "iat": 10**400}, Claims(None, None)),
        ({"exp": float("nan"), "iat": float("inf")}, Claims(None, None)),
    ],
)
def test_claims_are_unknown_when_they_are_no_times(
    claims: dict[str, object], expected: Claims
) -> None:
    """A JWT counts as one with any claims; a claim that is no NumericDate is ignored."""
    assert jwt_claims(jwt(claims)) == expected


@pytest.mark.parametrize(
    "token",
    [
        *("", "opaque", "a.b", "a.b.c", ".."),
        *(f"{part({})}.{part({})}", f"{part({})}.{part({})}.sig.more"),
        *(f"{part([])}.{part({})}.sig", f"{part({})}.{part([])}.sig"),
        *(f"{part({})}.{part('not json')}.sig", f"{part('null')}.{part({})}.sig"),
        *(f"{part({})}.x.sig", f"{part({})}.ü.sig"),  # one character is no base64
        f"{part({})}.{part('[' * 100_000)}.sig",
        f"{part({})}.{base64.urlsafe_b64encode(bytes([255, 254])).decode()}.sig",
    ],
)
def test_claims_are_none_when_the_token_is_no_jwt(token: str) -> None:
    """Two JSON objects and a signature make a JWT; anything else is opaque, and no error."""
    assert jwt_claims(token) is None


@pytest.mark.parametrize(
    ("known", "expires_at", "issued_at"),
    [
        ({}, EXPIRES, ISSUED),
        ({"expires_at": ISSUED}, ISSUED, ISSUED),
        ({"issued_at": EXPIRES}, EXPIRES, EXPIRES),
        ({"expires_at": ISSUED, "issued_at": EXPIRES}, ISSUED, EXPIRES),
    ],
)
def test_token_is_completed_when_its_id_says_more(
    known: dict[str, datetime], expires_at: datetime, issued_at: datetime
) -> None:
    """The fields of a token take precedence over the claims of its JWT."""
    claims = jwt({"exp": EXPIRES.timestamp(), "iat": ISSUED.timestamp()})
    token = fill_from_jwt(
        Token(claims, "u", "o", known.get("expires_at"), issued_at=known.get("issued_at"))
    )
    assert (token.expires_at, token.issued_at) == (expires_at, issued_at)
    assert (token.id, token.user_id, token.organization_id) == (claims, "u", "o")


def test_token_stays_as_it_is_when_there_is_nothing_to_complete() -> None:
    """An opaque token, and one whose life is known, are not copied."""
    for token in (Token("opaque"), Token(jwt({"exp": 1}), expires_at=EXPIRES, issued_at=ISSUED)):
        assert fill_from_jwt(token) is token


def test_api_token_is_told_by_all_three_marks() -> None:
    """An API access token has no expiry, no birth and no claims."""
    assert is_api_token(Token("x" * 64))
    assert not is_api_token(Token("x", expires_at=EXPIRES))
    assert not is_api_token(Token("x", issued_at=ISSUED))
    assert not is_api_token(Token(jwt({})))
