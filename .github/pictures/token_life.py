"""
Draw a token's life and its windows, with the defaults of `RefreshPolicy`.

``python .github/pictures/token_life.py`` writes ``token_life.svg`` beside this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from koyeb_session import RefreshPolicy

PICTURE: Final = Path(__file__).with_suffix(".svg")
WIDTH: Final = 860
LEFT: Final = 30
RIGHT: Final = WIDTH - LEFT
BAR: Final = 92  # from the top
THICK: Final = 44
LINE: Final = 16  # between two lines of text

# The card has its own background: the page around it need not follow the reader's system.
PICTURE_FORM: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" width="860" height="330" viewBox="0 0 860 330" role="img">
  <title>Four phases of a token: fresh, soft window, hard window, expired</title>
  <style>
    .card {{ fill: #ffffff; stroke: #d0d7de }}
    .ink {{ fill: #1f2328 }} .quiet {{ fill: #59636e }} .on {{ fill: #ffffff }}
    .line {{ stroke: #59636e; stroke-width: 1.2; fill: none }}
    .fresh {{ fill: #1a7f37 }} .soft {{ fill: #0969da }}
    .hard {{ fill: #9a6700 }} .expired {{ fill: #cf222e }}
    @media (prefers-color-scheme: dark) {{
      .card {{ fill: #0d1117; stroke: #3d444d }}
      .ink {{ fill: #f0f6fc }} .quiet {{ fill: #9198a1 }} .line {{ stroke: #9198a1 }}
      .fresh {{ fill: #238636 }} .soft {{ fill: #1f6feb }}
      .hard {{ fill: #9e6a03 }} .expired {{ fill: #da3633 }}
    }}
    text {{ font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }}
    .title {{ font-size: 15px; font-weight: 600 }} .on {{ font-weight: 600 }}
  </style>
  <rect class="card" x="0.5" y="0.5" width="859" height="329" rx="8"/>
{}
</svg>
"""


class Phase(NamedTuple):
    """A part of a token's life: its place, its beginning, and the effect on a request."""

    kind: str
    name: str
    begin: int
    moment: str
    text: tuple[str, ...]


def draw(policy: RefreshPolicy) -> str:
    """Write the picture for one policy."""
    phases = _phases(policy)
    ends = [phase.begin for phase in phases[1:]] + [RIGHT]
    shapes = [
        _text(LEFT, 36, "The life of a token of 24 hours", "ink title"),
        _text(
            *(LEFT, 56),
            "By the defaults of RefreshPolicy, not to scale. "
            "A shorter life has shorter windows: half of it, a tenth of it.",
        ),
        *(shape for phase, end in zip(phases, ends, strict=True) for shape in _bar(phase, end)),
        *_next_token(phases[1].begin + 70),
        _text(
            *(LEFT, 290),
            f"A renewal that fails is tried again after {policy.backoff:g} s, then later and "
            f"later, up to {policy.backoff_max:g} s; requests go on with the old token.",
        ),
        _text(
            *(LEFT, 308),
            "A request that is refused with 401 renews the token at once, and is sent once more.",
        ),
    ]
    return PICTURE_FORM.format("\n".join(f"  {shape}" for shape in shapes))


def _phases(policy: RefreshPolicy) -> list[Phase]:
    soft, hard = _length(policy.soft_window), _length(policy.hard_window)
    renews = (
        "At the first request one renewal",
        "starts in the background. Requests go",
        "on with the old token: nobody waits.",
    )
    ends = ("Never sent. Requests wait for", "a sign-in with credentials=, or")
    return [
        Phase("fresh", "fresh", LEFT, "issued", ("A request carries the token;", "that is all.")),
        Phase("soft", "soft window", 240, f"{soft} before it expires", renews),
        Phase("hard", "hard window", 496, f"{hard} before", ("Requests wait for", "the renewal.")),
        Phase("expired", "expired", 632, "expires", (*ends, "raise SessionExpiredError.")),
    ]


def _bar(phase: Phase, end: int) -> Iterator[str]:
    yield _box(phase.kind, phase.begin, end, BAR, THICK)
    yield _text((phase.begin + end) // 2, BAR + 27, phase.name, "on", anchor="middle")
    yield _text(phase.begin, BAR - 9, phase.moment)
    for number, line in enumerate(phase.text):
        yield _text(phase.begin, BAR + THICK + 22 + LINE * number, line, "ink")


def _next_token(turn: int) -> Iterator[str]:
    """Draw the token that a renewal in the soft window brings."""
    begin, top = turn + 20, 222
    yield f'<path class="line" d="M {turn} 202 V {top + 17} H {begin - 3} m -6 -5 l 6 5 l -6 5"/>'
    yield _box("fresh", begin, RIGHT, top, 34)
    text = "the new token takes over, for all who share the session"
    yield _text(begin + 14, top + 22, text, "on")


def _box(kind: str, begin: int, end: int, top: int, height: int) -> str:
    size = f'width="{end - begin - 2}" height="{height}"'
    return f'<rect class="{kind}" x="{begin}" y="{top}" {size} rx="3"/>'


def _text(x: int, y: int, text: str, kind: str = "quiet", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _length(seconds: float | None) -> str:
    """Name a window's length."""
    length = timedelta(seconds=seconds or 0)
    hours = length // timedelta(hours=1)
    return f"{hours} h" if hours else f"{length.seconds} s"


if __name__ == "__main__":
    PICTURE.write_text(draw(RefreshPolicy()), "utf-8")
