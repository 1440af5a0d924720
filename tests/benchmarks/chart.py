"""The figures as a drawing: each contender's ratio to the yardstick of its comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt

from .measure import OURS, Comparison

# Each is readable on white and on black.
_INK: Final = "#7d8590"
_OURS: Final = "#2f81f7"
_THEIRS: Final = "#d29922"
_LEFT_OUT: Final = ("CPU", "p50", "p99")
_plt: Final[Any] = plt  # its types are only half there
_ROW: Final = 0.27  # inches
_STYLE: Final[dict[str, Any]] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "koyeb-session",  # the same figures, the same file
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw one row for each comparison, but for those that say almost the same as another."""
    rows = [
        each for each in comparisons if len(each.samples) > 1 and not each.title.endswith(_LEFT_OUT)
    ][::-1]
    with _plt.rc_context(_STYLE):
        figure, axes = _plt.subplots(figsize=(9, _ROW * len(rows) + 1))
        axes.axvline(1, color=_INK, linewidth=1)
        for place, comparison in enumerate(rows):
            _draw_row(axes, place, comparison)
        axes.set_xscale("log")
        axes.set_yticks(range(len(rows)), [each.title for each in rows])
        axes.set_xlabel("ratio to the yardstick (bare httpx, a static header, …); left is better")
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.grid(axis="x", color=_INK, alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        _legend(axes)
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        _plt.close(figure)


def _draw_row(axes: Any, place: int, comparison: Comparison) -> None:
    for name in comparison.samples:
        if name == comparison.yardstick:
            continue
        is_ours = name.startswith(OURS)
        theirs = _INK if name.startswith("(") else _THEIRS
        axes.plot(
            comparison.ratio(name, comparison.yardstick),
            place,
            marker="o" if is_ours else "|",
            markersize=6 if is_ours else 9,
            color=_OURS if is_ours else theirs,
            zorder=3 if is_ours else 2,
        )


def _legend(axes: Any) -> None:
    axes.plot([], [], "o", color=_OURS, label="koyeb_session")
    axes.plot([], [], "|", color=_THEIRS, markersize=9, label="peers")
    axes.plot([], [], "|", color=_INK, markersize=9, label="the yardstick, once more")
    axes.legend(loc="lower right", frameon=False)
