"""docs/demo.svg: what a run of the scripts shows now, whole, also where nothing may move."""

import itertools
import re
import sys
import unicodedata
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from conftest import REPOSITORY, Running
from picture import HOLD, LEFT, RIGHT, TWEETS, VISITS, Shown, characters, draw, width, wrap
from processes import kept_environment
from x_api import TEXTS, tweet

PICTURE = (REPOSITORY / "docs" / "demo.svg").read_text("utf-8")
MOTION = "@media (prefers-reduced-motion: no-preference) {\n"
# What producer.py adds if it notices Ctrl-C before the end of its input, as tail ends, too
STOPPED = ", stopped before line 4 of standard input"


def shown_in(picture: str) -> list[Shown]:
    """The lines in a picture, in the order in which they appear, each joined from its rows."""
    lines: dict[int, Shown] = {}
    groups = ElementTree.fromstring(picture).findall("{*}g")  # noqa: S314
    for terminal, group in enumerate(groups):
        for row in group.findall("{*}text"):
            kind, name = row.attrib["class"].split()
            number = int(name.removeprefix("n"))
            begun = lines.get(number, Shown(terminal, kind, ""))
            lines[number] = begun._replace(line=begun.line + (row.text or ""))
    return [lines[number] for number in range(len(lines))]


def without_chance(shown: list[Shown]) -> list[Shown]:
    """The lines without what is not in every run."""
    return [each._replace(line=each.line.replace(STOPPED, "")) for each in shown]


@pytest.mark.long
def test_a_run_shows_what_the_picture_shows(tmp_path: Path) -> None:
    """And leaves neither files nor processes behind."""
    env = {**kept_environment(), "TMPDIR": str(tmp_path)}
    # So that none of the scripts says that it waits
    env |= {"STREAM_TEST_PATIENCE": "100", "STREAM_TEST_SECOND": "100"}
    command = [sys.executable, str(REPOSITORY / "demo" / "picture.py")]
    done = Running(command, {"env": env}).end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert without_chance(shown_in(done.stdout.decode())) == without_chance(shown_in(PICTURE))
    assert list(tmp_path.iterdir()) == []
    assert processes_with(f"TMPDIR={tmp_path}") == []


def processes_with(setting: str) -> list[Path]:
    """The processes that were started with that in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has just ended, or is someone else's
            if setting.encode() in file.read_bytes().split(b"\0"):
                found.append(file)
    return found


def test_every_event_can_be_read_whole() -> None:
    """On the right, in the order in which they were published on the left."""
    shown = shown_in(PICTURE)
    assert without_chance([each for each in shown if each.terminal == LEFT]) == [
        Shown(LEFT, "command", "$ tail -F access.log | python producer.py"),
        Shown(LEFT, "command", "^C"),
        Shown(LEFT, "message", f"producer.py: published {len(VISITS)} events to sample"),
        Shown(LEFT, "command", "$ python twitter-stream.py"),
    ]
    events = [*VISITS, *(tweet(number).decode() for number in range(TWEETS))]
    assert [each for each in shown if each.terminal == RIGHT] == [
        Shown(RIGHT, "command", "$ python consumer.py"),
        *(Shown(RIGHT, "event", event) for event in events),
    ]


def test_the_picture_is_what_is_drawn_now() -> None:
    assert draw(shown_in(PICTURE)) == PICTURE
    assert len(PICTURE.encode()) < 60_000
    assert PICTURE.count("<text") <= 2 * 14


def test_everything_is_visible_where_nothing_may_move() -> None:
    """Otherwise the lines appear one by one, and remain."""
    before, animation, after = re.split(
        f"{re.escape(MOTION)}|^}}\n(?=</style>)", PICTURE, flags=re.M
    )
    assert not re.search("opacity|visibility|display|animation|keyframes", before + after)
    moments = re.findall(r"n(\d+) \{ 0% \{ opacity: 0 \} ([\d.]+)%", animation)
    assert [int(number) for number, _ in moments] == list(range(len(shown_in(PICTURE))))
    percents = [float(percent) for _, percent in moments]
    assert all(one < next_one for one, next_one in pairwise(percents))
    [seconds] = set(re.findall(r"([\d.]+)s step-end infinite", animation))
    assert float(seconds) * (1 - percents[-1] / 100) > HOLD


@pytest.mark.parametrize(
    ("line", "columns", "rows"),
    [
        ("", 3, [""]),
        ("abcdef", 3, ["abc", "def"]),
        ("a日本b", 3, ["a日", "本b"]),
        ("日本", 3, ["日", "本"]),
        ("e\u0301a\u0323\u0302o", 2, ["e\u0301a\u0323\u0302", "o"]),
        ("ab☀\ufe0fc", 3, ["ab", "☀\ufe0fc"]),
        ("a🏃\u200d♀\ufe0fb", 3, ["a🏃\u200d♀\ufe0f", "b"]),
        ("🙏🏽🙏🏽", 2, ["🙏🏽", "🙏🏽"]),
    ],
)
def test_a_row_ends_where_a_terminal_would_end_it(line: str, columns: int, rows: list[str]) -> None:
    assert wrap(line, columns) == rows


def test_no_row_is_too_wide_or_begins_within_a_character() -> None:
    """Of a tweet in any of the scripts, in any terminal."""
    for number, columns in itertools.product(range(len(TEXTS)), range(2, 100)):
        line = tweet(number).decode()
        rows = wrap(line, columns)
        assert "".join(rows) == line
        for row, next_row in pairwise(rows):
            assert columns - 1 <= sum(map(width, characters(row))) <= columns
            assert unicodedata.category(next_row[0])[0] not in "MC", next_row
            assert not "\U0001f3fb" <= next_row[0] <= "\U0001f3ff"
            assert not row.endswith("\u200d")
