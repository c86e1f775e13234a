"""Events on standard output: as lines or as JSON, unbuffered."""

import base64
import errno
import functools
import json
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from kafka import errors

from streaming.console import fail
from streaming.kafka_internals import FetchedBatch
from streaming.records import Header
from streaming.writing import BackgroundWriter, Block, Next

WRITE_BYTES = 1 << 20  # how much to collect before writing; a single batch or event may be larger
KEEP_UP_SECONDS = 1.0  # how often keep_up() is called

KeepUp = Callable[[int, int], Next]
# One encoder, and what all events share as ready-made text, are faster than json.dumps
ENCODER = json.JSONEncoder(ensure_ascii=False)


def go_on(*_: int) -> Next:
    return Next.GO_ON


class Output:
    """Standard output, for events or other lines. Exits if it is closed or cannot be written to.

    Each event is a line: its value; with a separator, key, separator and value; or a JSON object.
    With `in_pieces`, no more is written at a time than a pipe takes at once.
    """

    def __init__(self, separator: bytes | None, as_json: bool, in_pieces: bool = False) -> None:
        try:
            can_be_slow = not stat.S_ISREG(os.fstat(1).st_mode)
        except OSError as error:
            fail_to_write(error)
        self._format: Callable[[FetchedBatch], Iterator[list[bytes]]] = (
            json_lines if as_json else functools.partial(plain_lines, separator=separator)
        )
        self._in_pieces = in_pieces and can_be_slow
        self._writer = BackgroundWriter()
        self._is_broken = False  # writing has failed because the reader is gone

    def write(self, batches: list[FetchedBatch], keep_up: KeepUp = go_on) -> int:
        """Write events; return how many were written.

        While the reader takes its time, call keep_up() every second with how many have been written
        so far, and how many when a piece that has been begun is written, too; it says what to do
        next. Raise KafkaError on reaching an event that cannot be read; those before it are written
        first.
        """
        written = 0
        for lines in self._blocks(batches):
            block = Block(lines, self._in_pieces)
            goes_on = self._write(block, written, keep_up)
            written += block.lines_written
            if not goes_on:
                break
        return written

    def _blocks(self, batches: list[FetchedBatch]) -> Iterator[list[bytes]]:
        """Yield the lines of events, about WRITE_BYTES at a time."""
        lines: list[bytes] = []
        size = 0
        try:
            for batch in batches:
                for more in self._format(batch):
                    lines += more
                    size += sum(map(len, more))
                    if size >= WRITE_BYTES:
                        yield lines
                        lines, size = [], 0
        except errors.KafkaError:
            if lines:
                yield lines
            raise
        if lines:
            yield lines

    def write_lines(self, lines: list[bytes]) -> None:
        r"""Write lines, adding the \n to each; nothing if the reader is gone."""
        if lines:
            self._write(Block(lines, self._in_pieces), 0, go_on)

    def _write(self, block: Block, before: int, keep_up: KeepUp) -> bool:
        """Write a block, after `before` other lines; return whether to go on.

        Nothing is written while keep_up() runs, unless a write is stuck: so what is committed there
        is all that has been printed.
        """
        what_next = Next.GO_ON
        try:
            while not (block.is_done or what_next is Next.LEAVE):
                self._writer.write(block, KEEP_UP_SECONDS)
                if not block.is_done:
                    what_next = keep_up(before + block.lines_written, before + block.lines_begun)
                    if what_next is not Next.GO_ON:
                        block.cut()
        except OSError as error:
            if not (is_broken_pipe(error) or self.is_reader_gone()):
                fail_to_write(error)
            self._is_broken = True
        return what_next is Next.GO_ON and not self._is_broken

    def is_reader_gone(self) -> bool:
        """Return whether standard output is a pipe whose reader is gone.

        On Windows, only the next write reveals it.
        """
        if self._is_broken or sys.platform == "win32":
            return self._is_broken
        poller = select.poll()
        poller.register(1, 0)  # errors and hang-ups are always reported
        return bool(poller.poll(0))


def is_broken_pipe(error: OSError) -> bool:
    """Return whether the error says that a pipe's reader is gone; Windows has two errors for it."""
    return error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL)


def fail_to_write(error: OSError) -> NoReturn:
    fail(f"cannot write to standard output: {error.strerror}")


def plain_lines(batch: FetchedBatch, separator: bytes | None) -> Iterator[list[bytes]]:
    """Yield values; with a separator, each comes after its key, if any, and that.

    producer.py -K reads such lines.
    """
    for keys, values in batch.pairs():
        lines = [value or b"" for value in values]
        if separator is not None:
            lines = [
                line if key is None else key + separator + line
                for key, line in zip(keys, lines, strict=True)
            ]
        yield lines


def json_lines(batch: FetchedBatch) -> Iterator[list[bytes]]:
    """Yield JSON objects: topic, partition, offset, timestamp, key, value, headers."""
    topic, partition = batch.partition
    start = f'{{"topic": {ENCODER.encode(topic)}, "partition": {partition}, "offset": '
    for record in batch.records():
        fields = f"{json_field('key', record.key)}, {json_field('value', record.value)}"
        headers = ", ".join(map(json_header, record.headers))
        time = "null" if record.timestamp is None else record.timestamp
        line = f'{start}{record.offset}, "timestamp": {time}, {fields}, "headers": [{headers}]}}'
        yield [line.encode()]


def json_header(header: Header) -> str:
    name, value = header
    return f"{{{json_field('key', name)}, {json_field('value', value)}}}"


def json_field(name: str, data: bytes | None) -> str:
    """Return `"name": "text"`, or `"name_base64": …` for bytes that are not UTF-8."""
    if data is None:
        return f'"{name}": null'
    try:
        return f'"{name}": {ENCODER.encode(data.decode())}'
    except UnicodeDecodeError:
        return f'"{name}_base64": "{base64.b64encode(data).decode()}"'
