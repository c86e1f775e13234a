"""Publish events to a Kafka topic: lines from files or standard input, or numbered sample events.

examples:
  producer.py                         one sample event per second until Ctrl-C
  producer.py -n 5 --interval 0       five sample events at once
  producer.py access.log              one event per line of the file
  tail -f access.log | producer.py    each line as it arrives
  producer.py -t users -K : users.txt --topic-config cleanup.policy=compact
                                      key:value lines to a compacted topic

The topic is created if it does not exist. The broker is localhost:9092 unless
KAFKA_BOOTSTRAP_SERVERS is set in .env or the environment. If a run is stopped or fails, its last
message names the line to continue from. (After a failure, some events may then be duplicated.)

exit status:
  0    all events were delivered
  1    an event was not delivered, or Kafka could not be reached
  2    invalid usage or settings, or an unreadable file
  130  stopped by Ctrl-C before finishing (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import errno
import io
import itertools
import json
import os
import select
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from cli import (
    Parser,
    Stop,
    count_type,
    header_type,
    name_value_type,
    say,
    seconds_type,
    separator_type,
    start,
)

if __name__ == "__main__":
    start()

from config import apply_common_flags
from delivery import (
    Event,
    Job,
    Line,
    LineSplitter,
    Source,
    Stopped,
    ensure_topic,
    publish,
    take,
)

BLOCK_BYTES = 1 << 16  # per read; with half as much, 5,000-byte events take a sixth longer
SAMPLE_BATCH_SIZE = 500  # events per batch with --interval 0


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    apply_common_flags(options)
    paths = readable_files(options.files)
    if options.files and not paths:
        return 2
    stop = Stop()
    max_bytes = ensure_topic(options.topic, options.partitions, dict(options.topic_config))
    reader = FileReader(paths, max_bytes, stop)
    if paths:
        lines = strip_cr(reader.read()) if options.strip_cr else reader.read()
        source = lines_to_events(lines, options.separator, options.tombstones)
    else:
        source = sample_events(options.interval, stop)
    job = Job(
        take(source, options.count),
        headers=tuple(options.headers),
        place=reader.place if paths else None,
        percent_read=reader.percent_read if reader.total_bytes else None,
        has_separator=options.separator is not None,
        is_endless=not paths and not options.count,
    )
    status = publish(job, options.topic, max_bytes, stop)
    is_any_unreadable = reader.has_failed or len(paths) < len(options.files)
    return status or (2 if is_any_unreadable else 0)


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=seconds_type,
        default=1.0,
        help="seconds between sample events (default: 1)",
    )
    parser.add_argument(
        "-K",
        dest="separator",
        metavar="SEP",
        type=separator_type,
        help="split each line into key and value at the first SEP, "
        r"which can contain the escapes \t, \n, \0, \xHH and \\",
    )
    parser.add_argument(
        "-Z",
        dest="tombstones",
        action="store_true",
        help="with -K, send an empty value as null (a tombstone)",
    )
    parser.add_argument(
        "--strip-cr",
        action="store_true",
        help=r"remove the \r that Windows programs put at the end of a line",
    )
    parser.add_pairs("-H", "headers", "add a header to every event", header_type)
    parser.add_argument(
        "--partitions",
        metavar="N",
        type=count_type,
        help="number of partitions if the topic is created",
    )
    parser.add_pairs(
        "--topic-config",
        "topic_config",
        "topic setting if the topic is created",
        name_value_type,
    )
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="file to publish line by line; - means standard input",
    )
    options = parser.parse_args(argv)
    options.files = options.files or default_files()
    check_flags(parser, options)
    return options


def check_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Exit if a flag has nothing to act on."""
    if options.tombstones and options.separator is None:
        parser.error("-Z needs -K")
    if options.separator is not None and not options.files:
        parser.error("-K needs lines to split: name a FILE, or pipe them in")
    if options.strip_cr and not options.files:
        parser.error("--strip-cr needs lines: name a FILE, or pipe them in")


def default_files() -> list[str]:
    """Return standard input if it is a pipe or file; nothing if it is a terminal or closed.

    The null device counts as closed.
    """
    if sys.stdin is None or stat.S_ISCHR(os.fstat(0).st_mode):
        return []
    return ["-"]


def readable_files(paths: list[str]) -> list[str]:
    """Return the files that can be read, as far as can be told; report the others."""
    unreadable = set()
    for path in dict.fromkeys(paths):
        try:
            check_input(path)
        except OSError as error:
            unreadable.add(path)
            report_unreadable(path, error)
    return [path for path in paths if path not in unreadable]


def check_input(path: str) -> None:
    """Raise OSError if a file, or standard input for -, cannot be read.

    Only a regular file is opened to check it: with a FIFO, opening would wait for a writer, and
    closing would break its pipe.
    """
    if path == "-":
        check_standard_input()
        return
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):  # Windows would say that permission is denied
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISREG(mode):
        io.FileIO(path).close()
    elif not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_standard_input() -> None:
    """Raise OSError if standard input is closed, or open only for writing."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    os.read(0, 0)


def report_unreadable(path: str, error: OSError) -> None:
    reason = "not open for reading" if error.errno == errno.EBADF else error.strerror
    say(f"cannot read {display_name(path)}: {reason}")


def display_name(path: str) -> str:
    return "standard input" if path == "-" else path


def total_size(paths: list[str]) -> int:
    """Return how many bytes the files hold, or 0 if that is unknown, as for a pipe."""
    if not all(path != "-" and os.path.isfile(path) for path in paths):
        return 0
    with suppress(OSError):  # a file has just been removed
        return sum(map(os.path.getsize, paths))
    return 0


def sample_events(interval: float, stop: Stop) -> Source:
    """Yield numbered events, each a JSON object with its number (from 1) and the time."""
    numbers = itertools.count(1)
    batch_size = 1 if interval else SAMPLE_BATCH_SIZE
    while not stop.requested:
        yield [sample_event(number) for number in itertools.islice(numbers, batch_size)]
        stop.wait(interval)
    raise Stopped


def sample_event(number: int) -> Event:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Event(None, json.dumps({"number": number, "time": now}).encode())


def strip_cr(blocks: Iterable[list[Line]]) -> Iterator[list[Line]]:
    r"""Remove the \r at the end of each line, if there is one."""
    for lines in blocks:
        yield [line.removesuffix(b"\r") if isinstance(line, bytes) else line for line in lines]


def lines_to_events(
    blocks: Iterable[list[Line]], separator: bytes | None, tombstones: bool
) -> Source:
    """Turn lines into events; the text before the first separator is the key.

    With `tombstones`, an empty value after a key becomes null.
    """
    for lines in blocks:
        if separator is None:
            yield [Event(None, line) for line in lines]
        else:
            yield [line_to_event(line, separator, tombstones) for line in lines]


def line_to_event(line: Line, separator: bytes, tombstones: bool) -> Event:
    if not isinstance(line, bytes) or separator not in line:
        return Event(None, line)
    key, _, value = line.partition(separator)
    if tombstones and not value:
        return Event(key, None)
    return Event(key, value)


class FileStart(NamedTuple):
    """Where a file begins: the number of the event that its first line becomes."""

    number: int
    path: str


class FileReader:
    """Reads the lines of files one after the other; each line becomes an event.

    A file that cannot be read is reported and sets `has_failed`; reading continues with the next.
    """

    def __init__(self, paths: list[str], max_bytes: int, stop: Stop) -> None:
        self._paths, self._max_bytes, self._stop = paths, max_bytes, stop
        self._starts = [FileStart(1, path) for path in paths[:1]]  # of the files read so far
        self._bytes_read = 0
        self.total_bytes = total_size(paths)
        self.has_failed = False

    def read(self) -> Iterator[list[Line]]:
        """Yield the lines block by block; raise Stopped if `stop` comes before the end."""
        count = 0
        for path in self._paths:
            self._starts.append(FileStart(count + 1, path))
            if self._stop.requested:
                raise Stopped
            try:
                with open_input(path) as file:
                    for lines in self._read_lines(file):
                        count += len(lines)
                        yield lines
            except OSError as error:
                self.has_failed = True
                report_unreadable(path, error)

    def _read_lines(self, file: io.FileIO) -> Iterator[list[Line]]:
        """Yield a file's lines block by block; an unterminated last line only at its end."""
        splitter = LineSplitter(self._max_bytes)
        for block in read_blocks(file, self._stop):
            self._bytes_read += len(block)
            yield splitter.feed(block)
        yield splitter.flush()

    def percent_read(self) -> int:
        """Return how much of `total_bytes` has been read; a file may have grown since."""
        return min(100 * self._bytes_read // self.total_bytes, 100)

    def place(self, number: int) -> str:
        """Say which line of which file becomes the event with that number."""
        start = [start for start in self._starts if start.number <= number][-1]
        return f"line {number - start.number + 1} of {display_name(start.path)}"


def open_input(path: str) -> io.FileIO:
    """Open the file, or standard input for -, unbuffered."""
    return io.FileIO(0, closefd=False) if path == "-" else io.FileIO(path)


def read_blocks(file: io.FileIO, stop: Stop) -> Iterator[bytes]:
    """Yield what can be read, until the end; raise Stopped if `stop` comes before it."""
    while not stop.requested:
        if not wait_for_input(file):
            continue
        block = file.read(BLOCK_BYTES)
        if block is None:  # another reader of the same pipe got there first
            continue
        if not block:
            return
        yield block
    raise Stopped


def wait_for_input(file: io.FileIO) -> bool:
    """Wait briefly for input, so that a signal never arrives in the middle of a read.

    On systems that cannot wait for a pipe (Windows), the read itself blocks.
    """
    if os.name != "posix":
        return True
    readable, _, _ = select.select([file], [], [], 0.1)
    return bool(readable)


if __name__ == "__main__":
    raise SystemExit(main())
