"""Record two terminals and print them as an animated SVG. `make picture` draws docs/demo.svg.

In the left one, a log's lines and tweets are published; in the right one, consumer.py prints them.
"""

import os
import signal
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

import demo
from broker import Broker, BrokerError
from x_api import Step, XApi

LEFT, RIGHT = 0, 1
VISITS = ["10.0.0.7 GET /index.html", "10.0.0.9 GET /prices.html", "10.0.0.7 GET /order.html"]
TWEETS = 4
LIMIT = 300  # seconds; it takes ten

COLUMNS = (43, 68)  # of each terminal
CHARACTER_WIDTH, ROW_HEIGHT = 7.25, 18  # pixels
TOP, MARGIN, GAP = 36, 14, 10  # pixels above the text, around it, between the terminals
START, PACE, HOLD = 0.5, 0.85, 4.0  # seconds before the first line, per line, after the last one
TITLE = "Lines of a log, then tweets, are published in one terminal and printed in another"
STYLE = """
svg { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace }
rect { fill: #fbfbfa; stroke: #c9c9c4 } text { fill: #1f2328 } circle { fill: #c9c9c4 }
.command { font-weight: bold } .message { fill: #0a6c2f }
@media (prefers-color-scheme: dark) {
rect { fill: #16181d; stroke: #3a3d45 } text { fill: #d7dae0 } circle { fill: #3a3d45 }
.message { fill: #7ee2a0 } }
"""


class Shown(NamedTuple):
    """A line that appears in a terminal: a command, an event or a message."""

    terminal: int
    kind: str
    line: str


# ------------------------------------------------------------------ recording


class Recorder:
    """Someone at two terminals; `shown` has the lines in the order in which they appear."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.env = folder, env
        self.shown: list[Shown] = []
        self.running: dict[int, subprocess.Popen[str]] = {}

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(self, terminal: int, command: str) -> None:
        self.shown.append(Shown(terminal, "command", f"$ {command}"))
        self.running[terminal] = subprocess.Popen(
            ["/bin/bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )

    def read(self, terminal: int) -> None:
        """Wait for the next line that is printed there."""
        output = self.running[terminal].stdout
        line = output.readline() if output else ""
        if not line:
            raise SystemExit("picture.py: a command ended before it had printed all its lines")
        self.shown.append(Shown(terminal, "event", line.rstrip("\n")))

    def press_ctrl_c(self, terminal: int) -> None:
        """Interrupt all processes there, as a terminal does, and show what they still print."""
        self.shown.append(Shown(terminal, "command", "^C"))
        process = self.running[terminal]
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate()
        del self.running[terminal]
        self.shown += [Shown(terminal, "message", line) for line in printed.splitlines()]


def record(folder: Path, env: Mapping[str, str]) -> list[Shown]:
    """Publish a growing log, then tweets; each event must have arrived before the next step."""
    for script in demo.HERE.glob("*.py"):
        (folder / script.name).symlink_to(script)
    with open(folder / "access.log", "w", buffering=1) as log, Recorder(folder, env) as recorder:
        print(VISITS[0], file=log)
        recorder.run(LEFT, "tail -F access.log | python producer.py")
        # Wait for the topic behind the scenes, or else consumer.py may say that it waits for it
        first_event = [sys.executable, "consumer.py", "-n", "1"]
        subprocess.run(first_event, cwd=folder, env=env, capture_output=True, check=True)
        recorder.run(RIGHT, "python consumer.py")
        recorder.read(RIGHT)
        for visit in VISITS[1:]:
            print(visit, file=log)
            recorder.read(RIGHT)
        recorder.press_ctrl_c(LEFT)
        recorder.run(LEFT, "python twitter-stream.py")
        for _ in range(TWEETS):
            recorder.read(RIGHT)
        return recorder.shown


# ------------------------------------------------------------------ drawing


def characters(line: str) -> list[str]:
    """The line's characters as people count them: with marks, emoji with all that they consist of.

    A zero-width joiner (U+200D) connects two emoji; skin tones follow one.
    """
    found: list[str] = []
    for each in line:
        is_mark = unicodedata.category(each).startswith("M")
        is_part = is_mark or each == "\u200d" or "\U0001f3fb" <= each <= "\U0001f3ff"
        if found and (is_part or found[-1].endswith("\u200d")):
            found[-1] += each
        else:
            found.append(each)
    return found


def width(character: str) -> int:
    """How many columns it takes up in a terminal; U+FE0F makes it an emoji."""
    is_wide = any(unicodedata.east_asian_width(each) in "WF" for each in character)
    return 2 if is_wide or "\ufe0f" in character else 1


def wrap(line: str, columns: int) -> list[str]:
    """The rows that the line takes up in a terminal."""
    rows, used = [""], 0
    for character in characters(line):
        used += width(character)
        if used > columns:
            rows.append("")
            used = width(character)
        rows[-1] += character
    return rows


def draw_terminal(shown: list[Shown], terminal: int) -> list[str]:
    """Draw a terminal's rows; the class of each, such as n3, has the number of its line."""
    rows = [
        (f"{kind} n{number}", row)
        for number, (place, kind, line) in enumerate(shown)
        if place == terminal
        for row in wrap(line, COLUMNS[terminal])
    ]
    return [
        f'<text class="{names}" x="{MARGIN}" y="{TOP + 12 + ROW_HEIGHT * number}">'
        f"{escape(row, quote=False)}</text>"
        for number, (names, row) in enumerate(rows)
    ]


def animate(count: int) -> str:
    """Let each line appear in its turn, over and over; without animation, all are visible."""
    seconds = START + PACE * count + HOLD
    moments = [100 * (START + PACE * number) / seconds for number in range(count)]
    rules = [
        f"@keyframes n{number} {{ 0% {{ opacity: 0 }} {moment:.2f}% {{ opacity: 1 }} }}\n"
        f".n{number} {{ animation: n{number} {seconds:.1f}s step-end infinite }}\n"
        for number, moment in enumerate(moments)
    ]
    return f"@media (prefers-reduced-motion: no-preference) {{\n{''.join(rules)}}}\n"


def draw(shown: list[Shown]) -> str:
    contents = [draw_terminal(shown, terminal) for terminal in (LEFT, RIGHT)]
    high = TOP + ROW_HEIGHT * max(map(len, contents)) + MARGIN
    wide = [round(columns * CHARACTER_WIDTH) + 2 * MARGIN for columns in COLUMNS]
    box = (sum(wide) + GAP + 2, high + 2)
    buttons = "".join(f'<circle cx="{18 + 16 * number}" cy="17" r="5"/>' for number in range(3))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{box[0]}" height="{box[1]}" '
        f'viewBox="0 0 {box[0]} {box[1]}" xml:space="preserve" role="img">',
        f"<title>{TITLE}</title>",
        f"<style>{STYLE}{animate(len(shown))}</style>",
    ]
    for terminal, left in ((LEFT, 1), (RIGHT, 1 + wide[LEFT] + GAP)):
        lines += [
            f'<g transform="translate({left} 1)">',
            f'<rect width="{wide[terminal]}" height="{high}" rx="9"/>{buttons}',
            *contents[terminal],
            "</g>",
        ]
    return "\n".join([*lines, "</svg>\n"])


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler)
    signal.alarm(LIMIT)
    tweets = Step(tweets=TWEETS, end="silence")
    try:
        with Broker() as broker, XApi([tweets]) as api, tempfile.TemporaryDirectory() as folder:
            env = demo.environment(broker, api)
            env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
            sys.stdout.buffer.write(draw(record(Path(folder), env)).encode())
    except (BrokerError, subprocess.CalledProcessError) as error:
        print(f"picture.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"picture.py: stopped, or not done after {LIMIT} s", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
