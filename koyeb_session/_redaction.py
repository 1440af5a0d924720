"""
Keep secrets, and characters that could forge a line of a log, out of what others wrote.

Texts of the package's own are never touched: they hold no secret, and to take a password such as
``connection`` out of them would only give it away.
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
"""Characters that are kept of a text."""
_DISTINCT: Final = len(MARK)
"""Characters from which a secret is looked for inside of words, unless it is a word itself."""
_LONGEST_WORD: Final = 16

_GO: Final = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}
"""What Go escapes in JSON, and Python does not."""
_PHP: Final = {ord("/"): "\\/"}
_QUOTES: Final = (
    ('"', "'"),
    ("&quot;", "&#x27;"),
    ("&quot;", "&#39;"),
    ("&quot;", "&#039;"),
    ("&#34;", "&#39;"),
)
_HTML: Final = tuple(
    str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': double, "'": single})
    for double, single in _QUOTES
)
_URL_SAFE: Final = ("/", "", "!'()*", "$&+,/:;=@")
"""What Python, forms, JavaScript and Go leave as it is in a URL, beside letters and digits."""
_URL_BASE64: Final = str.maketrans("+/", "-_")


def printable(text: str) -> str:
    r"""
    Escape what is no printable character, as in ``\n``, ``\x1b`` and ``\u202e``.

    Line breaks forge lines of a log, escape sequences steer a terminal, and marks of direction turn
    a text around. They are escaped, not dropped: what is left could join to a secret.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def spellings(secret: str) -> set[str]:
    """Return the ways in which programs write a text into JSON, URLs, HTML, headers and logs."""
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
    """Spell a text as in JSON; Go's ``%q`` is the same."""
    return {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}


def _upper_hex(escape: re.Match[str]) -> str:
    return "\\u" + escape[0][2:].upper()


def _base64(raw: bytes) -> Iterator[str]:
    """Give the characters that stand for ``raw`` alone, wherever in an encoded text it begins."""
    for before in range(3):
        padded = b64encode(bytes(before) + raw).decode()
        whole = padded.rstrip("=")
        # A character at either end may hold bits of the neighboring bytes, too.
        inner = whole[(0, 2, 3)[before] : -1 if len(whole) % 4 else None]
        for form in (inner,) if before else (padded, whole, inner):
            if len(form) >= _DISTINCT:  # a shorter one may stand anywhere by chance
                yield from (form, form.translate(_URL_BASE64))


class Redactor:
    """
    Take secrets out of texts that somebody else wrote, and make the texts safe to print.

    A secret that no other text holds by chance is replaced wherever it stands. A short one, or one
    that is a word, counts only where it stands alone, and then none of the text is shown: readers
    could fill a gap in a sentence that they know.

    Their spellings are worked out once, so use one object for all the texts of an error.
    """

    __slots__ = ("_distinct", "_window", "_words")

    def __init__(self, secrets: Iterable[str]) -> None:
        distinct: set[str] = set()
        self._words: set[str] = set()
        for secret in secrets:
            forms = distinct if _is_distinct(secret) else self._words
            forms |= {printable(form) for form in spellings(secret)}
        self._distinct = sorted(distinct, key=len, reverse=True)
        # More than is kept, so that a secret that begins in what is kept is seen as a whole.
        self._window = TEXT_LIMIT + 1 + max(map(len, distinct | self._words), default=0)

    def __call__(self, text: str) -> str:
        """Return the beginning of ``text``, at most :data:`TEXT_LIMIT` characters."""
        text = printable(text[: self._window])
        if any(_stands_alone(word, text) for word in self._words):
            return MARK
        for form in self._distinct:
            # As long as before, for nothing from behind the limit to move to before it. No form is
            # shorter than the mark, and no printable text holds a NUL.
            text = text.replace(form, MARK.ljust(len(form), "\0"))
        return text[:TEXT_LIMIT].replace("\0", "")


def _is_distinct(secret: str) -> bool:
    """Tell whether a secret stands in no other text by chance, not even as a part of a word."""
    return len(secret) >= (_LONGEST_WORD if secret.isalpha() else _DISTINCT)


def _stands_alone(word: str, text: str) -> bool:
    """Tell whether ``text`` holds ``word``, and not only as a part of longer words."""
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
    """Tell whether two characters, side by side, belong to one word, or name as in code."""
    return all(character.isalnum() or character == "_" for character in (left, right))


def safe_message(exc: BaseException) -> str:
    """Return what a foreign error says, up to the bytes of a broken reply that it may quote."""
    return re.sub(r"(?:\bbytearray\()?\bb['\"].*", "...", str(exc), flags=re.DOTALL)
