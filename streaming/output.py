"""Events on standard output: as lines or as JSON, unbuffered."""

import base64
import errno
import functools
import json
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from streaming.console import fail
from streaming.kafka_internals import FetchedBatch
from streaming.records import Header

WRITE_BYTES = 1 << 20  # how much to collect before writing; a single batch or event may be larger
# One encoder, and what all events share as ready-made text, are faster than json.dumps
ENCODER = json.JSONEncoder(ensure_ascii=False)


class Output:
    """Standard output, for events or other lines. Exits if it is closed or cannot be written to.

    Each event is a line: its value; with a separator, key, separator and value; or a JSON object.
    """

    def __init__(self, separator: bytes | None, as_json: bool) -> None:
        try:
            os.fstat(1)
        except OSError as error:
            fail_to_write(error)
        self._format: Callable[[FetchedBatch], Iterator[bytes]] = (
            json_lines if as_json else functools.partial(plain_lines, separator=separator)
        )
        self._is_broken = False  # writing has failed because the reader is gone

    def write(self, batches: list[FetchedBatch]) -> None:
        """Write events; nothing if the reader is gone.

        Raise KafkaError on reaching one that cannot be read; those before it are written first.
        """
        blocks: list[bytes] = []
        size = 0
        try:
            for batch in batches:
                for block in self._format(batch):
                    blocks.append(block)
                    size += len(block)
                    if size >= WRITE_BYTES:
                        self.write_lines(blocks)
                        blocks, size = [], 0
                    if self._is_broken:
                        return
        finally:
            self.write_lines(blocks)

    def write_lines(self, lines: list[bytes]) -> None:
        r"""Write lines, adding the \n to each; nothing if the reader is gone."""
        if not lines:
            return
        try:
            write_all(b"\n".join(lines) + b"\n")
        except OSError as error:
            if not (is_broken_pipe(error) or self.is_reader_gone()):
                fail_to_write(error)
            self._is_broken = True

    def is_reader_gone(self) -> bool:
        """Return whether standard output is a pipe whose reader is gone.

        On Windows, only the next write reveals it.
        """
        if self._is_broken or sys.platform == "win32":
            return self._is_broken
        poller = select.poll()
        poller.register(1, 0)  # errors and hang-ups are always reported
        return bool(poller.poll(0))


def write_all(data: bytes) -> None:
    remaining = memoryview(data)
    with open(1, "wb", buffering=0, closefd=False) as output:
        while remaining:
            written = output.write(remaining)
            if written is None:  # a full pipe that somebody has made non-blocking
                select.select([], [output], [])
            else:
                remaining = remaining[written:]


def is_broken_pipe(error: OSError) -> bool:
    """Return whether the error says that a pipe's reader is gone; Windows has two errors for it."""
    return error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL)


def fail_to_write(error: OSError) -> NoReturn:
    fail(f"cannot write to standard output: {error.strerror}")


def plain_lines(batch: FetchedBatch, separator: bytes | None) -> Iterator[bytes]:
    r"""Yield values joined by \n; with a separator, each comes after its key, if any, and that.

    producer.py -K reads such lines.
    """
    for keys, values in batch.pairs():
        lines = [value or b"" for value in values]
        if separator is not None:
            lines = [
                line if key is None else key + separator + line
                for key, line in zip(keys, lines, strict=True)
            ]
        yield b"\n".join(lines)


def json_lines(batch: FetchedBatch) -> Iterator[bytes]:
    """Yield JSON objects: topic, partition, offset, timestamp, key, value, headers."""
    topic, partition = batch.partition
    start = f'{{"topic": {ENCODER.encode(topic)}, "partition": {partition}, "offset": '
    for record in batch.records():
        fields = f"{json_field('key', record.key)}, {json_field('value', record.value)}"
        headers = ", ".join(map(json_header, record.headers))
        time = "null" if record.timestamp is None else record.timestamp
        yield (
            f'{start}{record.offset}, "timestamp": {time}, {fields}, "headers": [{headers}]}}'
        ).encode()


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
