"""The flags that all scripts have, and the types of flags; a usage error exits with status 2."""

import argparse
import os
import re
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NoReturn

from streaming.console import fail


def pattern_type(
    pattern: str, expected: str, convert: Callable[[str], Any] = str
) -> Callable[[str], Any]:
    """Return an argparse type that accepts only text matching the whole pattern."""

    def parse(text: str) -> Any:
        if re.fullmatch(pattern, text, re.ASCII | re.DOTALL):
            return convert(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return parse


topic_type = pattern_type(
    r"(?!\.{1,2}$)[\w.-]{1,249}",
    "a valid topic name (1 to 249 letters, digits, '.', '_' or '-')",
)
count_type = pattern_type(r"0*[1-9]\d{0,8}", "a whole number from 1 to 999999999", int)
seconds_type = pattern_type(r"\d{1,9}(\.\d*)?", "a number of seconds, such as 1 or 0.5", float)
name_value_type = pattern_type(
    r"[^=]+=.+", "in the form NAME=VALUE", lambda text: tuple(text.split("=", 1))
)
# A name, an IPv4 address or an IPv6 address in brackets, and a port; like Kafka's tools, also
# accept a protocol name in front
BROKER = re.compile(
    r"(?:[A-Z_]+://)?(?:\[[\w:.%]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?", re.ASCII
)


def is_broker_list(text: str) -> bool:
    """Return whether the text is HOST:PORT or HOST, or several of these, separated by commas."""
    brokers = [BROKER.fullmatch(broker.strip()) for broker in text.split(",")]
    return all(broker and 0 < int(broker["port"] or 9092) < 1 << 16 for broker in brokers)


def brokers_type(text: str) -> str:
    if not is_broker_list(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not in the form HOST:PORT,HOST:PORT")
    return text


UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def time_type(text: str) -> int:
    """Return a time as Kafka counts it: milliseconds since 1970, UTC.

    The text says how long ago (90s, 10m, 2h, 3d), or is an ISO 8601 date with or without a time;
    without a UTC offset, it is local time.
    """
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    try:
        if ago:
            seconds = time.time() - int(ago[1]) * UNIT_SECONDS[ago[2]]
        else:
            seconds = _timestamp(datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text)))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time, such as 10m (ago), 2026-11-25 or 2026-11-25T14:00:00Z"
        ) from None
    return max(int(seconds * 1000), 0)


def _timestamp(moment: datetime) -> float:
    """Return the seconds since 1970; Windows itself cannot convert an earlier local time."""
    try:
        return moment.timestamp()
    except OSError:
        return moment.replace(tzinfo=timezone.utc).timestamp()


ESCAPES = {b"t": b"\t", b"n": b"\n", b"0": b"\0", b"\\": b"\\"}


def separator_type(text: str) -> bytes:
    r"""Convert SEP to bytes; the escapes \t, \n, \0, \xHH and \\ have their usual meanings.

    Any other backslash stands for itself.
    """
    if not text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a separator")
    return re.sub(rb"\\([tn0\\]|x[0-9A-Fa-f]{2})", _unescape, os.fsencode(text))


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes.fromhex(code[1:].decode()) if code[:1] == b"x" else ESCAPES[code]


def header_type(text: str) -> tuple[str, bytes]:
    """Split NAME=VALUE at the first =; NAME is text, VALUE is any bytes, or empty."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not in the form NAME=VALUE")
    try:
        return os.fsencode(name).decode("utf-8"), os.fsencode(value)
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"the name in {text!r} is not UTF-8") from None


class Parser(argparse.ArgumentParser):
    """The flags common to all scripts; a usage error prints one line and exits with status 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "-t",
            dest="topic",
            metavar="TOPIC",
            type=topic_type,
            default="sample",
            help="Kafka topic (default: sample)",
        )
        self.add_argument(
            "-n", dest="count", metavar="COUNT", type=count_type, help="stop after COUNT events"
        )
        self.add_argument(
            "-b",
            dest="brokers",
            metavar="HOST:PORT[,...]",
            type=brokers_type,
            help="Kafka brokers (default: KAFKA_BOOTSTRAP_SERVERS, or else localhost:9092)",
        )
        self.add_argument(
            "-v",
            dest="verbose",
            action="store_true",
            help="print the Kafka client's log to standard error",
        )

    def add_pairs(
        self, flag: str, dest: str, description: str, pair_type: Callable[[str], Any]
    ) -> None:
        """Add a flag that takes NAME=VALUE and can be repeated; `dest` becomes a list of pairs."""
        self.add_argument(
            flag,
            dest=dest,
            metavar="NAME=VALUE",
            type=pair_type,
            action="append",
            default=[],
            help=f"{description}; can be repeated",
        )

    def add_topic_flags(self) -> None:
        """Add the flags for a topic that is still to be created."""
        self.add_argument(
            "--partitions",
            metavar="N",
            type=count_type,
            help="number of partitions if the topic is created",
        )
        self.add_pairs(
            "--topic-config",
            "topic_config",
            "topic setting if the topic is created",
            name_value_type,
        )

    def error(self, message: str) -> NoReturn:
        fail(f"{message}. See --help.", status=2)
