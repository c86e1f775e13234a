r"""Where events come from: a source yields them in chunks. Here: lines of files, and samples."""

import abc
import errno
import io
import itertools
import json
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from streaming.console import say
from streaming.stop import Stop

BLOCK_BYTES = 1 << 16  # per read; with half as much, 5,000-byte events take a sixth longer
SAMPLES_AT_ONCE = 500  # in a chunk of sample events without a pause


class OversizedLine:
    """Placeholder for a line too long to keep in memory; only its size in bytes is known."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


Line = bytes | OversizedLine


class Chunk(NamedTuple):
    """Some events: their keys and their values, as bytes, side by side. None is Kafka's null."""

    keys: list[bytes | None] | None  # None: no event has a key
    values: list[Line | None]

    def first(self, count: int) -> "Chunk":
        """Return the first `count` events."""
        return Chunk(self.keys and self.keys[:count], self.values[:count])


class Stopped(Exception):
    """Raised by a source that was asked to stop before it reached its end."""


class Source(abc.ABC):
    """Where events come from, and how messages speak of it."""

    unit = "event"  # what messages call an event
    is_endless = False  # whether it normally runs until a signal stops it
    has_failed = False  # whether part of it could not be read

    @abc.abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield all events; raise Stopped if asked to stop before the end."""

    def place(self, number: int) -> str:
        """Say where in the source the event with that number (from 1) is; "": nowhere special."""
        return ""

    def percent(self) -> int | None:
        """Return how much of the source has been read, if its size is known."""
        return None

    def details(self) -> str:
        """Return what to add to messages about the events, with a space before it."""
        return ""

    def report_skipped(self, what: str) -> None:
        """Report an event that is too large."""
        say(f"skipped {what}")

    def ended_early(self) -> None:  # noqa: B027  # most sources have nothing to do
        """Note that the run is over before the source has reached its end."""


class LineSplitter:
    r"""Splits a byte stream at each \n; a line over `limit` bytes is not kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []  # of the last line, which is still incomplete
        self._size = 0  # of that line, including what was not kept

    def feed(self, block: bytes) -> list[Line]:
        r"""Return the lines that end in this block, without their \n."""
        *ends, beginning = block.split(b"\n")
        lines: list[Line] = list(ends)
        if lines:
            lines[0] = self._complete(ends[0])
        self._keep(beginning)
        return [line if len(line) <= self._limit else OversizedLine(len(line)) for line in lines]

    def flush(self) -> list[Line]:
        r"""Return the last line if it has no \n."""
        return [self._complete(b"")] if self._size else []

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def _complete(self, end: bytes) -> Line:
        size = self._size + len(end)
        line = b"".join([*self._pieces, end])
        self._pieces.clear()
        self._size = 0
        return line if size <= self._limit else OversizedLine(size)


class SampleSource(Source):
    """Numbered events, each a JSON object with its number (from 1) and the time."""

    is_endless = True

    def __init__(self, interval: float, stop: Stop) -> None:
        self._interval, self._stop = interval, stop  # seconds between events

    def chunks(self) -> Iterator[Chunk]:
        numbers = itertools.count(1)
        size = 1 if self._interval else SAMPLES_AT_ONCE
        while not self._stop.requested:
            yield Chunk(None, [sample_value(number) for number in itertools.islice(numbers, size)])
            self._stop.wait(self._interval)
        raise Stopped


def sample_value(number: int) -> Line:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return json.dumps({"number": number, "time": now}).encode()


class LineFormat(NamedTuple):
    """How a line becomes an event."""

    separator: bytes | None = None  # the text before the first one is the key; None: no keys
    has_tombstones: bool = False  # whether an empty value after a key becomes null
    strips_cr: bool = False  # whether a carriage return at the end of a line is removed

    def to_events(self, lines: list[Line]) -> Chunk:
        """Turn lines into events."""
        if self.strips_cr:
            lines = [x.removesuffix(b"\r") if isinstance(x, bytes) else x for x in lines]
        if self.separator is None:
            return Chunk(None, list(lines))
        pairs = [self._split(line, self.separator) for line in lines]
        return Chunk([key for key, _ in pairs], [value for _, value in pairs])

    def _split(self, line: Line, separator: bytes) -> tuple[bytes | None, Line | None]:
        """Return a line's key and value."""
        if not isinstance(line, bytes) or separator not in line:
            return None, line
        key, _, value = line.partition(separator)
        return key, None if self.has_tombstones and not value else value


class FileStart(NamedTuple):
    """Where a file begins: the number of the event that its first line becomes."""

    number: int
    path: str


class FileSource(Source):
    """The lines of files, one after the other; - is standard input.

    A line over `max_bytes` is not kept. A file that cannot be read is reported and sets
    `has_failed`; reading continues with the next.
    """

    def __init__(
        self, paths: list[str], line_format: LineFormat, max_bytes: int, stop: Stop
    ) -> None:
        self._paths, self._format = paths, line_format
        self._max_bytes, self._stop = max_bytes, stop
        self._starts = [FileStart(1, path) for path in paths[:1]]  # of the files read so far
        self._bytes_read = 0
        self._total_bytes = total_size(paths)
        self._has_lines = self._has_keys = False

    def chunks(self) -> Iterator[Chunk]:
        count = 0
        for path in self._paths:
            self._starts.append(FileStart(count + 1, path))
            if self._stop.requested:
                raise Stopped
            try:
                with open_input(path) as file:
                    for lines in self._read_lines(file):
                        count += len(lines)
                        yield self._to_events(lines)
            except OSError as error:
                self.has_failed = True
                report_unreadable(path, error, lines=count + 1 - self._starts[-1].number)

    def _read_lines(self, file: io.FileIO) -> Iterator[list[Line]]:
        """Yield a file's lines block by block; an unterminated last line only at its end."""
        splitter = LineSplitter(self._max_bytes)
        for block in read_blocks(file, self._stop):
            self._bytes_read += len(block)
            yield splitter.feed(block)
        yield splitter.flush()

    def _to_events(self, lines: list[Line]) -> Chunk:
        chunk = self._format.to_events(lines)
        self._has_lines = self._has_lines or bool(lines)
        if chunk.keys and not self._has_keys:
            self._has_keys = any(key is not None for key in chunk.keys)
        return chunk

    def place(self, number: int) -> str:
        """Say which line of which file becomes the event with that number."""
        start = [start for start in self._starts if start.number <= number][-1]
        return f"line {number - start.number + 1} of {display_name(start.path)}"

    def percent(self) -> int | None:
        if not self._total_bytes:
            return None
        return min(100 * self._bytes_read // self._total_bytes, 100)  # a file may have grown

    def details(self) -> str:
        """Say so if no line has contained the separator."""
        if self._format.separator is None or self._has_keys or not self._has_lines:
            return ""
        return " (separator not found in any line, so no event has a key)"


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


def report_unreadable(path: str, error: OSError, lines: int = 0) -> None:
    """Report a file that cannot be read, or not beyond that many lines."""
    reason = "not open for reading" if error.errno == errno.EBADF else error.strerror
    after = f" after line {lines}" if lines else ""
    say(f"cannot read {display_name(path)}{after}: {reason}")


def display_name(path: str) -> str:
    return "standard input" if path == "-" else path


def total_size(paths: list[str]) -> int:
    """Return how many bytes the files hold, or 0 if that is unknown, as for a pipe."""
    if not all(path != "-" and os.path.isfile(path) for path in paths):
        return 0
    with suppress(OSError):  # a file has just been removed
        return sum(map(os.path.getsize, paths))
    return 0


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
    if sys.platform == "win32":
        return True
    poller = select.poll()  # unlike select(), it takes descriptors above 1,023
    poller.register(file, select.POLLIN)
    return bool(poller.poll(100))
