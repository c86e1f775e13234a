"""Draw standard input as a terminal, an SVG on standard output: `make picture` does it with what the demo prints."""

import itertools
import sys
import unicodedata
from html import escape

COLUMNS, WIDE, HIGH, TOP = 100, 8.4, 19, 40  # characters in a row; pixels: a character, a row, what is above the first
STYLE = """
rect { fill: #fbfbfa; stroke: #c9c9c4 } text { fill: #1f2328; white-space: pre }
.command { font-weight: bold } .message { fill: #0a6c2f } circle { fill: #c9c9c4 }
@media (prefers-color-scheme: dark) {
rect { fill: #16181d; stroke: #3a3d45 } text { fill: #d7dae0 } .message { fill: #7ee2a0 } circle { fill: #3a3d45 } }
"""
FONT = "14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def width(character: str) -> int:
    """The columns it takes in a terminal."""
    return 0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")


def cut(line: str) -> str:
    """What of the line fits into a row."""
    ends = list(itertools.accumulate(map(width, line)))
    fits = sum(end < COLUMNS for end in ends)
    return line if not ends or ends[-1] <= COLUMNS else f"{line[:fits]}…"


def draw(lines: list[str]) -> str:
    high = TOP + HIGH * len(lines)
    rows = []
    for number, line in enumerate(lines):
        kind = "command" if line.startswith("$") else "message" if ".py: " in line else "event"
        rows.append(f'<text class="{kind}" x="20" y="{TOP + 14 + HIGH * number}">{escape(cut(line))}</text>')
    frame = f'<rect x="1" y="1" width="{COLUMNS * WIDE + 38:.0f}" height="{high + 18}" rx="9"/>'
    buttons = "".join(f'<circle cx="{22 + 20 * number}" cy="20" r="6"/>' for number in range(3))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDE + 40:.0f} {high + 20}"'
    return "\n".join([f'{head} style="font: {FONT}">', f"<style>{STYLE}</style>", frame, buttons, *rows, "</svg>\n"])


if __name__ == "__main__":
    text = sys.stdin.buffer.read().decode()
    sys.stdout.buffer.write(draw(text.splitlines()).encode())
