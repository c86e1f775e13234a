"""Events on standard output: as lines or as JSON, unbuffered."""

import base64
import errno
import functools
import json
import os
import select
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from streaming.console import fail


class Output:
    """Standard output, for events or other lines. Exits if it is closed or cannot be written.

    Each event is a line: its value, or with a separator key, separator and value, or a JSON object.
    """

    def __init__(self, separator: bytes | None, as_json: bool) -> None:
        try:
            os.fstat(1)
        except OSError as error:
            fail_to_write(error)
        self._format: Callable[[Any], bytes] = (
            format_json if as_json else functools.partial(format_line, separator=separator)
        )
        self._is_broken = False  # writing has failed because the reader is gone

    def write(self, records: list[Any]) -> None:
        """Write events; nothing if the reader is gone."""
        self.write_lines([self._format(record) for record in records])

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

        Windows tells only at the next write.
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
            if written is None:  # a full pipe that somebody has set to non-blocking
                select.select([], [output], [])
            else:
                remaining = remaining[written:]


def is_broken_pipe(error: OSError) -> bool:
    """Return whether the error says that a pipe's reader is gone; Windows has two errors for it."""
    return error.errno == errno.EPIPE or (sys.platform == "win32" and error.errno == errno.EINVAL)


def fail_to_write(error: OSError) -> NoReturn:
    fail(f"cannot write to standard output: {error.strerror}")


def format_line(record: Any, separator: bytes | None) -> bytes:
    """Return the value; with a separator, the key and the separator come first.

    producer.py -K reads such lines.
    """
    value: bytes = record.value or b""
    if separator is None or record.key is None:
        return value
    return record.key + separator + value  # type: ignore[no-any-return]


def format_json(record: Any) -> bytes:
    """Return a JSON object: topic, partition, offset, timestamp, key, value, headers."""
    event = {name: getattr(record, name) for name in ("topic", "partition", "offset", "timestamp")}
    event.update(json_field("key", record.key))
    event.update(json_field("value", record.value))
    event["headers"] = [
        {**json_field("key", name.encode()), **json_field("value", value)}
        for name, value in record.headers
    ]
    return json.dumps(event, ensure_ascii=False).encode()


def json_field(name: str, data: bytes | None) -> dict[str, str | None]:
    """Return {name: text}, or {name_base64: …} for bytes that are not UTF-8."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
