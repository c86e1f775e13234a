"""Bar charts as SVG; tests/bench.py draws docs/speed.svg with them."""

from collections.abc import Mapping
from html import escape
from typing import NamedTuple

WIDTH, NAMES, VALUES, MARGIN = 760, 200, 60, 16  # pixels; the bars get what remains
ROW, BAR, TITLE = 28, 18, 40  # pixels
FONT = "14px system-ui, -apple-system, 'Segoe UI', sans-serif"
STYLE = """
.page { fill: #fbfbfa; stroke: #c9c9c4 } text { fill: #1f2328 } .title { font-weight: bold }
.other { fill: #8b949e } .own { fill: #0a6c2f }
@media (prefers-color-scheme: dark) {
.page { fill: #16181d; stroke: #3a3d45 } text { fill: #d7dae0 }
.other { fill: #6b727d } .own { fill: #7ee2a0 } }
"""


class Bar(NamedTuple):
    name: str
    seconds: float
    is_own: bool  # stands out


def draw(groups: Mapping[str, list[Bar]]) -> str:
    """Draw a group of bars under each title, the shortest first; all have the same scale."""
    most = max(bar.seconds for bars in groups.values() for bar in bars)
    rows, top = [], MARGIN
    for title, bars in groups.items():
        rows.append(f'<text class="title" x="{MARGIN}" y="{top + 20}">{escape(title)}</text>')
        top += TITLE
        for bar in sorted(bars, key=lambda each: each.seconds):
            rows += draw_bar(bar, top, most)
            top += ROW
    high = top + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high}"'
            f' style="font: {FONT}">',
            f"<style>{STYLE}</style>",
            f'<rect class="page" x="1" y="1" width="{WIDTH - 2}" height="{high - 2}" rx="9"/>',
            *rows,
            "</svg>\n",
        ]
    )


def draw_bar(bar: Bar, top: int, most: float) -> list[str]:
    """Draw a bar with its name before and its seconds behind it; `most` seconds fill the row."""
    left = MARGIN + NAMES
    width = (WIDTH - left - VALUES - MARGIN) * bar.seconds / most
    kind, line = "own" if bar.is_own else "other", top + 14
    return [
        f'<text x="{left - 10}" y="{line}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="{BAR}"/>',
        f'<text x="{left + width + 8:.1f}" y="{line}">{bar.seconds:.1f} s</text>',
    ]
