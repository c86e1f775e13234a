"""What the scripts say, taken apart."""

import re
from typing import Any, NamedTuple

# What a consumer may say at any time on a slow machine
HELD_UP = re.compile(
    rb"consumer\.py: (waiting for Kafka: .*|Kafka is back|group .* is rebalancing; .*)\n"
)


class Summary(NamedTuple):
    """The counts in the last line that producer.py and twitter-stream.py print."""

    published: int
    failed: int = 0
    reason: str = ""  # of the first failure
    reconnects: int = 0
    skipped: int = 0
    duplicates: int = 0
    gaps: int = 0
    next_line: int = 0  # the line of `path` before which it stopped; 0: it reached the end
    path: str = ""


SUMMARY = re.compile(
    r"(?P<script>\S+)\.py: published (?P<published>\d+) (?P<unit>event|tweet)s? to \S+"
    r"(?: \((?P<reconnects>\d+) reconnects?, (?P<skipped>\d+) skipped"
    r"(?:, (?P<duplicates>\d+) duplicates?)?(?:, (?P<gaps>\d+) gaps?)?\))?"
    r"(?:, stopped before line (?P<next_line>\d+) of (?P<path>.+?))?"
    r"(?:, (?P<failed>\d+) failed: (?P<reason>.*))?"
)


def read_summary(stderr: bytes) -> Summary:
    """The summary in the last line of standard error."""
    line = stderr.decode().splitlines()[-1]
    found = SUMMARY.fullmatch(line)
    assert found, line
    ending = "" if found["published"] == "1" else "s"
    assert f"published {found['published']} {found['unit']}{ending} to " in line
    names = ("published", "failed", "reconnects", "skipped", "duplicates", "gaps", "next_line")
    counts = {name: int(found[name] or 0) for name in names}
    return Summary(reason=found["reason"] or "", path=found["path"] or "", **counts)


def values(records: list[Any]) -> list[bytes | None]:
    return [record.value for record in records]


def fits(pattern: str, text: str) -> bool:
    """Whether the text is that of the pattern, in which … stands for any text."""
    return bool(re.fullmatch(re.escape(pattern).replace("…", ".*"), text))


def split_log(script: str, stderr: bytes) -> tuple[list[str], list[str]]:
    """The lines of the client's log (-v), and the script's own.

    The client may go on logging after the script's last message.
    """
    lines = stderr.decode().splitlines()
    log = [line for line in lines if re.fullmatch(rf"{script}\.py: kafka\.[\w.]+: .+", line)]
    return log, [line for line in lines if line not in log]
