"""
Remove secrets, and characters that could forge log lines, from texts of other programs.

The package's own texts are left alone, as they contain no secret. Replacing a word in them, because
it is also the password, would give the password away.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MARK: Final = "[secret]"
TEXT_LIMIT: Final = 500
"""The number of characters of a text that are kept."""
_DISTINCT: Final = len(MARK)
"""The shortest secret to look for inside words, unless the secret is itself a word."""
_LONGEST_WORD: Final = 16

_GO: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""The characters that Go escapes in JSON and Python does not."""
_PHP: Final = {ord("/"): "\\/"}
_QUOTES: Final = (
    ('"', "'"),
    ("&quot;", "&#x27;"),
    ("&quot;", "&#39;"),
    ("&quot;", "&#039;"),
    ("&quot;", "&apos;"),
    ("&#34;", "&#39;"),
)
_HTML: Final = tuple(
    str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': double, "'": single})
    for double, single in _QUOTES
)
_URL_SAFE: Final = ("/", "", "!'()*", "$&+,/:;=@")
"""Punctuation that Python, forms, JavaScript and Go leave unescaped in a URL."""
_URL_BASE64: Final = str.maketrans("+/", "-_")


def printable(text: str) -> str:
    r"""
    Escape characters that are not printable, such as ``\n``, ``\x1b`` and ``\u202e``.

    Line breaks forge log lines, escape sequences control a terminal, and direction marks reverse a
    text. They are escaped, not dropped: without them, their neighbors could form a secret.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def spellings(secret: str) -> set[str]:
    """Return the spellings of a text in JSON, URLs, HTML, headers and logs."""
    raw = secret.encode(errors="surrogatepass")
    in_json = _json_strings(secret)
    in_json |= {form.translate(table) for form in in_json for table in (_GO, _PHP)}
    in_json |= {re.sub(r"\\u[0-9a-f]{4}", _upper_hex, form) for form in in_json}
    in_url = {quote(raw, safe=safe) for safe in _URL_SAFE} | {quote_plus(raw)}
    in_url |= {re.sub("%[0-9A-F]{2}", lambda code: code[0].lower(), form) for form in in_url}
    return {
        secret,
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        *in_json,
        *(twice for once in in_json for twice in _json_strings(once)),
        *in_url,
        *(secret.translate(table) for table in _HTML),
        *_base64(raw),
    }


def _json_strings(text: str) -> set[str]:
    """Return the spellings of a text in a JSON string; Go's ``%q`` spells it the same."""
    return {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}


def _upper_hex(escape: re.Match[str]) -> str:
    return "\\u" + escape[0][2:].upper()


def _base64(raw: bytes) -> Iterator[str]:
    """Return the characters that encode only ``raw``, at each offset in a longer text."""
    for before in range(3):
        padded = b64encode(bytes(before) + raw).decode()
        whole = padded.rstrip("=")
        # A character at either end may also hold bits of the neighboring bytes.
        inner = whole[(0, 2, 3)[before] : -1 if len(whole) % 4 else None]
        for form in (inner,) if before else (padded, whole, inner):
            if len(form) >= _DISTINCT:  # a shorter one may occur anywhere by chance
                yield from (form, form.translate(_URL_BASE64))


class Redactor:
    """
    Removes secrets from texts of other programs, and makes the texts safe to print.

    A secret that cannot occur by chance is replaced everywhere. A secret that is short, or a word,
    counts only where it stands alone. Then the whole text is hidden, as a reader who knows the
    sentence could fill the gap.

    The spellings are calculated once, so use one object for all texts of an error.
    """

    __slots__ = ("_distinct", "_window", "_words")

    def __init__(self, secrets: Iterable[str]) -> None:
        distinct: set[str] = set()
        self._words: set[str] = set()
        for secret in secrets:
            forms = distinct if _is_distinct(secret) else self._words
            forms |= {printable(form) for form in spellings(secret)}
        self._distinct = sorted(distinct, key=len, reverse=True)
        # Longer than the limit, so that a secret that begins before the limit is found whole.
        self._window = TEXT_LIMIT + 1 + max(map(len, distinct | self._words), default=0)

    def __call__(self, text: str) -> str:
        """Return the beginning of ``text``, at most :data:`TEXT_LIMIT` characters."""
        text = printable(text[: self._window])
        if any(_stands_alone(word, text) for word in self._words):
            return MARK
        for form in self._distinct:
            # The replacement has the same length, so no text from beyond the limit moves up. No
            # form is shorter than the mark, and no printable text contains a NUL.
            text = text.replace(form, MARK.ljust(len(form), "\0"))
        return text[:TEXT_LIMIT].replace("\0", "")


def _is_distinct(secret: str) -> bool:
    """Return whether a secret cannot occur in a text by chance, not even as a part of a word."""
    return len(secret) >= (_LONGEST_WORD if secret.isalpha() else _DISTINCT)


def _stands_alone(word: str, text: str) -> bool:
    """Return whether ``text`` contains ``word`` other than as a part of longer words."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not _is_one_word(text[:start][-1:], word[0]) and not _is_one_word(
            word[-1], text[end : end + 1]
        ):
            return True
        start = text.find(word, start + 1)
    return False


def _is_one_word(left: str, right: str) -> bool:
    """Return whether two adjacent characters belong to the same word or identifier."""
    return all(character.isalnum() or character == "_" for character in (left, right))


def safe_message(exc: BaseException) -> str:
    """Return the message of a foreign error, cut before the bytes that it may quote."""
    return re.sub(r"(?:\bbytearray\()?\bb['\"].*", "...", str(exc), flags=re.DOTALL)
