"""Draw standard input as a terminal and print the SVG. `make picture` draws the demo."""

import itertools
import sys
import unicodedata
from html import escape

COLUMNS = 100  # characters in a row
CHARACTER_WIDTH, ROW_HEIGHT = 8.4, 19  # pixels
TOP = 40  # pixels above the first row
STYLE = """
rect { fill: #fbfbfa; stroke: #c9c9c4 } text { fill: #1f2328; white-space: pre }
.command { font-weight: bold } .message { fill: #0a6c2f } circle { fill: #c9c9c4 }
@media (prefers-color-scheme: dark) {
rect { fill: #16181d; stroke: #3a3d45 } text { fill: #d7dae0 }
.message { fill: #7ee2a0 } circle { fill: #3a3d45 } }
"""
FONT = "14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def width(character: str) -> int:
    """How many columns the character takes up in a terminal."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(line: str) -> str:
    """As much of the line as fits in a row."""
    ends = list(itertools.accumulate(map(width, line)))
    if not ends or ends[-1] <= COLUMNS:
        return line
    return line[: sum(end < COLUMNS for end in ends)] + "…"


def kind(line: str) -> str:
    """The name of the line's style: what kind of line it is."""
    if line.startswith("$"):
        return "command"
    return "message" if ".py: " in line else "event"


def draw(lines: list[str]) -> str:
    wide, high = COLUMNS * CHARACTER_WIDTH, TOP + ROW_HEIGHT * len(lines)
    rows = [
        f'<text class="{kind(line)}" x="20" y="{TOP + 14 + ROW_HEIGHT * number}">'
        f"{escape(cut(line))}</text>"
        for number, line in enumerate(lines)
    ]
    box = f'viewBox="0 0 {wide + 40:.0f} {high + 20}" style="font: {FONT}"'
    buttons = "".join(f'<circle cx="{22 + 20 * number}" cy="20" r="6"/>' for number in range(3))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
            f"<style>{STYLE}</style>",
            f'<rect x="1" y="1" width="{wide + 38:.0f}" height="{high + 18}" rx="9"/>',
            buttons,
            *rows,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode()
    sys.stdout.buffer.write(draw(text.splitlines()).encode())
