"""Publish events to a Kafka topic: lines of files or of standard input, or numbered sample events.

examples:
  producer.py                         a sample event a second, until Ctrl-C
  producer.py -n 5 --interval 0       five sample events at once
  producer.py access.log              each line of the file is an event
  tail -f access.log | producer.py    each line as it comes
  producer.py -t users -K : users.txt --topic-config cleanup.policy=compact
                                      lines of key:value, to a compacted topic

The topic is created first where it is missing. Kafka is looked for at localhost:9092, or where
KAFKA_BOOTSTRAP_SERVERS says, in .env or in the environment. Exit status: 0 all is delivered,
1 something is not, 2 usage or settings, 130 or 143 stopped by a signal before the end.
"""

import itertools
import json
import os
import signal
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from config import COUNT, PAIR, SECONDS, Parser, Reasons, client_settings, connect, explain, fail, reasons, stop, tell

from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.future import Future
from kafka.partitioner import StickyPartitioner

# (key, value) as bytes, None being Kafka's null; an int stands for a value of so many bytes, too long to be held
Event = tuple[bytes | None, bytes | int | None]

IN_FLIGHT, IN_FLIGHT_BYTES = 16_000, 16 << 20  # kafka-python itself knows no bound
# Kept below what the topic takes: the first refusal by a broker is fatal to an idempotent producer of kafka-python 3.0
BATCH_BYTES, EVENT_BYTES = 900_000, 1 << 20
SECOND = float(os.environ.get("STREAM_TEST_SECOND", "1"))  # between messages and connects; less in tests
ENDING, BLOCK = 6.0, 1 << 16  # seconds for what is in flight at an early end; bytes to read at once


class Sticky(StickyPartitioner):  # type: ignore[misc]  # kafka-python has no types
    """An event without a key goes to the same partition until a batch is full.

    Its parent looks for the partition with each event, and hashes a key where there is but one partition: that
    takes 5 and 10 % longer.
    """

    chosen: int | None = None

    def partition(self, topic: str, key: bytes | None, *others: Any) -> int | None:
        if self.chosen is None or (key is not None and len(others[-1].partitions_for_topic(topic) or ()) > 1):
            self.chosen = super().partition(topic, key, *others)
        return self.chosen

    def on_new_batch(self, *place: Any) -> None:
        super().on_new_batch(*place)
        self.chosen = None


class Flight(deque[tuple[int, int, Any]]):
    """Events on their way to Kafka, oldest first: number in the source, bytes, future; and the counts."""

    bytes = read = read_bytes = failed = 0
    reason, broke = "", float("inf")  # of the first failure; time.monotonic() of the one that ends the run

    def fail(self, event: str, error: Exception) -> str:
        reason = f"{event}: {explain(error)}"
        self.failed, self.reason = self.failed + 1, self.reason or reason
        return reason

    def settle(self, unit: str, seconds: float) -> None:
        """Wait until the oldest event is acknowledged or has failed, and count it."""
        number, size, future = self.popleft()
        self.bytes -= size
        end = time.monotonic() + seconds
        while not future.is_done and time.monotonic() < min(end, stop.at + ENDING, self.broke + ENDING):
            with suppress(errors.KafkaError):
                future.get(0.25)
        if not future.succeeded():
            self.fail(f"{unit} {number} of {size} bytes", future.exception or errors.KafkaTimeoutError(reasons.last))
            self.broke = min(self.broke, time.monotonic())


def report(flight: Flight, done: threading.Event, unit: str, note: Any, total: int) -> None:
    """Tell how far it is: on a terminal each second, in a log each minute and as soon as Kafka keeps it waiting."""
    terminal, told, published, oldest, stalled = os.isatty(2), time.monotonic(), 0, None, ""
    while not done.wait(1.0 if terminal else 5 * SECOND):
        now, before, waiting = time.monotonic(), stalled, [each for each in list(flight) if not each[2].succeeded()]
        if os.name == "posix" and not stop.number and any(each[2].failed() for each in waiting):
            os.kill(os.getpid(), signal.SIGTERM)  # an event has failed: end, even if the source brings nothing for long
        stalled = f", waiting for Kafka: {reasons.last}" if waiting and waiting[0] is oldest else ""
        oldest = waiting[0] if waiting else None
        if terminal or now >= told + 60 * SECOND or (stalled and not before):
            count = flight.read - flight.failed - len(waiting)
            rate, told, published = (count - published) / (now - told), now, count
            percent = f", {min(100 * flight.read_bytes // total, 100)} %" if total else ""
            tell(f"{published} {unit}s, {rate:.0f}/s{percent}{note()}{stalled}", live=terminal)
        if not stalled:
            reasons.last = Reasons.last


def send(producer: KafkaProducer, topic: str, key: bytes | None, value: bytes | None, seconds: float) -> Any:
    """Send an event; ask so many seconds for the topic's partitions, should Kafka know of none."""
    end = time.monotonic() + seconds
    while True:
        try:
            return producer.send(topic, value, key)
        except errors.KafkaTimeoutError:
            if stop.number or time.monotonic() > end:
                raise


def publish(
    events: Iterable[Event], topic: str, limit: int, unit: str, note: Any = str, total: int = 0, patience: int = 120
) -> None:
    """Deliver all events and tell how many; end with status 1 where some were not delivered.

    `limit` is what the topic takes, in bytes, `unit` what an event is called, `note()` what the source has to
    add, `total` the source's bytes if known, `patience` how many seconds Kafka may take. An event counts as
    published once Kafka has acknowledged it.
    """
    ours = {"linger_ms": 5, "batch_size": min(BATCH_BYTES, limit), "delivery_timeout_ms": 1000 * patience}
    options = client_settings(KafkaProducer, partitioner=Sticky(), max_block_ms=2000, **ours)
    options["max_request_size"] = min(options.get("max_request_size", EVENT_BYTES), limit)
    options.setdefault("request_timeout_ms", min(30_000, options["delivery_timeout_ms"] - options["linger_ms"]))
    producer = connect(KafkaProducer, options)
    flight, seconds = Flight(), options["delivery_timeout_ms"] / 1000 + ENDING
    done = threading.Event()
    reporter = threading.Thread(target=report, args=(flight, done, unit, note, total), daemon=True)
    reporter.start()
    try:
        with suppress(errors.KafkaError):  # now and not with the first event, as Kafka may be away by then
            producer.partitions_for(topic)
        for key, value in events:
            size = value if isinstance(value, int) else len(key or b"") + len(value or b"")
            flight.read, flight.read_bytes = flight.read + 1, flight.read_bytes + size + 1
            try:
                if isinstance(value, int):
                    raise errors.MessageSizeTooLargeError
                future = send(producer, topic, key, value, seconds)
            except errors.MessageSizeTooLargeError as error:
                tell(f"skipped {flight.fail(f'{unit} {flight.read} of {size} bytes', error)}")
                continue
            except Exception as error:
                future = Future().failure(error)
            flight.append((flight.read, size, future))
            flight.bytes += size
            while flight and (flight[0][2].is_done or len(flight) > IN_FLIGHT or flight.bytes > IN_FLIGHT_BYTES):
                flight.settle(unit, seconds)
            # After a signal the source ends by itself, with what it has read
            if flight.reason and flight.broke <= time.monotonic():
                break
    finally:
        while flight:
            flight.settle(unit, seconds)
        done.set()
        reporter.join()
        with suppress(Exception):
            producer.close(timeout=1)
        summary = f"published {flight.read - flight.failed} {unit}s to {topic}{note()}"
        if flight.failed:
            fail(f"{summary}, {flight.failed} failed: {flight.reason}")
        tell(summary)


def create_topic(topic: str, n: int, configs: dict[str, str]) -> int:
    """Create the topic, with `n` partitions, unless it is there; return how many bytes a batch may have."""
    with connect(KafkaAdminClient, client_settings(KafkaAdminClient)) as admin:
        made = admin.create_topics({topic: {"num_partitions": n, "configs": configs}}, raise_errors=False)["topics"][0]
        if made["error_code"] in (29, 31) and admin.describe_topics([topic])[0]["error_code"] == 3:
            fail(f"cannot create topic {topic}: {explain(errors.for_code(made['error_code'])())}")
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic, ["max.message.bytes"])]
        found = made.get("configs") or admin.describe_configs(asked, config_filter="all")["topic"][topic]
    if made["error_code"] not in (0, 29, 31, 36):  # created, no right to create topics at all, exists
        fail(f"cannot create topic {topic}: {made['error_message']}")
    elif made["error_code"] and (n > 0 or configs):
        tell(f"topic {topic} was not created now, so --partitions and --topic-config do not apply")
    return int(found.get("max.message.bytes", {"value": EVENT_BYTES})["value"])


def split(blocks: Iterable[bytes], limit: int) -> Iterator[bytes | int]:
    r"""The lines of a stream of bytes, each with its \n but maybe the last; of one over the limit only its size."""
    tail, dropped = b"", 0
    for block in blocks:
        *lines, tail = (tail + block).split(b"\n")
        for line in lines:
            size, dropped = dropped + len(line), 0
            yield line + b"\n" if size <= limit else size
        if dropped + len(tail) > limit:
            tail, dropped = b"", dropped + len(tail)
    if tail or dropped:
        yield dropped + len(tail) if dropped else tail


def read_blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What `read` brings, up to its end; a signal breaks it off."""
    while block := stop.interruptible(read, BLOCK):
        yield block


def read_lines(paths: list[str], limit: int, unread: list[str]) -> Iterator[bytes | int]:
    """The lines of the files; the files that cannot be read are told and go to `unread`."""
    for path in paths:
        try:
            # Interruptible, as a FIFO may have no writer yet
            with stop.interruptible(lambda p: open(0 if p == "-" else p, "rb", 0, closefd=p != "-"), path) as file:
                if os.name == "posix":  # whoever started us may have left the pipe in the non-blocking mode
                    os.set_blocking(file.fileno(), True)
                yield from split(read_blocks(file.read), limit)
        except OSError as error:
            unread.append(path)
            tell(f"cannot read {path}: {error.strerror}")


def keyed(lines: Iterable[bytes | int], sep: bytes | None, tombstones: bool) -> Iterator[Event]:
    """Lines as events: `sep` ends the key; an empty value with a key is a tombstone where those are wanted."""
    for line in lines:
        text = line.removesuffix(b"\n") if isinstance(line, bytes) else line
        key, found, value = text.partition(sep) if sep and isinstance(text, bytes) else (b"", b"", b"")
        yield (key, None if tombstones and not value else value) if found else (None, text)


def samples(interval: float) -> Iterator[Event]:
    """One JSON object an event: its number, from 1, and the time."""
    for number in itertools.count(1):
        yield None, json.dumps({"number": number, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}).encode()
        stop.interruptible(time.sleep, interval)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--interval", metavar="SECONDS", type=SECONDS, default=1.0, help="between samples (default: 1)")
    parser.add_argument("-K", metavar="SEP", type=os.fsencode, help="split lines at the first SEP into key and value")
    parser.add_argument("-Z", action="store_true", help="send an empty value as null (a tombstone)")
    parser.add_argument("--partitions", metavar="N", type=COUNT, default=-1, help="for a topic that is created")
    parser.add_argument("--topic-config", metavar="NAME=VALUE", type=PAIR, action="append", default=[], help="likewise")
    parser.add_argument("files", metavar="FILE", nargs="*", help="lines to publish; - is standard input")
    options = parser.parse_args(argv)
    paths = options.files or ([] if sys.stdin is None or stat.S_ISCHR(os.fstat(0).st_mode) else ["-"])
    total = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    unread: list[str] = []
    stop.endless = not paths and not options.n
    limit = create_topic(options.topic, options.partitions, dict(options.topic_config))
    events = keyed(read_lines(paths, limit, unread), options.K, options.Z) if paths else samples(options.interval)
    publish(itertools.islice(events, options.n), options.topic, limit, "event", total=total)
    return 2 if unread else 0


if __name__ == "__main__":
    raise SystemExit(main())
