"""The provenance of a saved token, as it is written and read."""

from __future__ import annotations

import pytest

from koyeb_session import Token
from koyeb_session._core.provenance import Provenance, foreign_service, read_provenance
from koyeb_session._core.snapshot import Issuer


@pytest.mark.parametrize("issuer", Issuer)
def test_provenance_is_read_as_it_was_written(issuer: Issuer) -> None:
    """The note of a session is read back unchanged."""
    noted = Provenance("https://app.koyeb.com", "0123456789abcdef", issuer)
    assert read_provenance(Token("t", provenance=noted.write())) == noted


@pytest.mark.parametrize(
    "text", [None, "", "else", "koyeb-session/1 o a nobody", "koyeb-session/2 o a koyeb"]
)
def test_provenance_of_others_counts_as_none(text: str | None) -> None:
    """The user's own store may have saved none, or something else."""
    assert read_provenance(Token("t", provenance=text)) is None


@pytest.mark.parametrize(
    ("provenance", "foreign"),
    [
        (None, None),
        ("koyeb-session/1 https://app.koyeb.com a koyeb", None),
        ("koyeb-session/1 https://elsewhere.example a koyeb", "https://elsewhere.example"),
    ],
)
def test_foreign_service_is_named(provenance: str | None, foreign: str | None) -> None:
    """A record without a provenance may belong to any service."""
    found = Token("t", provenance=provenance)
    assert foreign_service(found, "https://app.koyeb.com") == foreign
