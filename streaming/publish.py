"""Publish a source's events to a Kafka topic.

The source runs in its own thread, so that a signal never has to wait for a blocked read; the main
thread delivers the events.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from kafka import errors

from streaming.console import say
from streaming.delivery import TICK, Delivery, TextHeader
from streaming.kafka_client import Kafka
from streaming.kafka_internals import Producer
from streaming.sources import Chunk, Source, Stopped
from streaming.stop import Stop
from streaming.timing import PATIENCE
from streaming.topics import Topic

# Below Kafka's default for max.message.bytes, 1 MiB: Kafka rejects larger batches, and splitting
# them to try again is slow
MAX_BATCH_BYTES = 900_000
REQUEST_TIMEOUT_MS = 30_000
# If nothing arrives for this long after a stop request, the source is blocked in a read
QUIET = 0.5 * PATIENCE


def publish(
    source: Source,
    kafka: Kafka,
    topic: Topic,
    stop: Stop,
    *,
    headers: Sequence[TextHeader] = (),
    count: int | None = None,
    timeout: int = 120,
) -> int:
    """Deliver the events of the source, report how many, and return the exit status.

    `headers` go with every event; `count` limits the number of events; Kafka may take `timeout`
    seconds to acknowledge an event.
    """
    options = producer_options(kafka, topic.max_bytes, timeout)
    producer = kafka.connect(Producer, options)
    with suppress(errors.KafkaError):  # now, as Kafka may be down by the time of the first event
        producer.partitions_for(topic.name)
    # The client itself gives up after delivery_timeout_ms; this is for batches it loses track of
    stall_timeout = options["delivery_timeout_ms"] / 1000 + Stop.GRACE
    delivery = Delivery(producer, kafka, topic, source, headers, stall_timeout, stop)
    stop.handle_signals()
    reader = BackgroundReader(take(source, count), stop)
    try:
        for chunk in reader:
            delivery.send(chunk)
            delivery.check()
    finally:
        delivery.finish()
        if not reader.is_exhausted:
            source.ended_early()
        say(delivery.summary(reader.is_exhausted))
        delivery.close()
    if delivery.failures.count:
        return 1
    is_complete = reader.is_exhausted or (source.is_endless and not count)
    return 0 if is_complete else stop.exit_status


def producer_options(kafka: Kafka, max_bytes: int, timeout: int) -> dict[str, Any]:
    """Return options for batches of at most `max_bytes`, and a delivery timeout in seconds."""
    linger_ms = kafka.options(Producer, linger_ms=5)["linger_ms"]
    options = kafka.options(
        Producer,
        linger_ms=linger_ms,
        batch_size=MAX_BATCH_BYTES,
        delivery_timeout_ms=max(1000 * timeout, linger_ms + REQUEST_TIMEOUT_MS),
        max_block_ms=500,  # how often to check for signals while Kafka names no partitions
        enable_idempotence=True,  # or other settings could silently turn it off
    )
    options["max_request_size"] = max_bytes
    options["batch_size"] = min(options["batch_size"], MAX_BATCH_BYTES, max_bytes)
    longest = max(options["delivery_timeout_ms"] - linger_ms, 1)  # 1: the client says what is wrong
    options.setdefault("request_timeout_ms", min(REQUEST_TIMEOUT_MS, longest))
    return options


def take(source: Source, count: int | None) -> Iterator[Chunk]:
    """Yield the first `count` events of the source, or all of them if it is None."""
    if count is None:
        yield from source.chunks()
        return
    remaining = count
    for chunk in source.chunks():
        yield chunk.first(remaining)
        remaining -= len(chunk.values)
        if remaining <= 0:
            return


class BackgroundReader:
    """Reads chunks in a thread; iterating yields them, or an empty one after a TICK without any.

    The source checks `stop` itself, so whatever it has already read is still delivered; if it
    cannot check because it is blocked in a read, it is abandoned. Exceptions in the source,
    including the SystemExit from a `fail`, are re-raised here, except for Stopped.
    """

    def __init__(self, chunks: Iterator[Chunk], stop: Stop) -> None:
        self._stop = stop
        self._queue: queue.Queue[Chunk | BaseException | None] = queue.Queue(2)
        self.is_exhausted = False  # whether everything was read: all of the source, or COUNT
        threading.Thread(target=self._read, args=(chunks,), daemon=True).start()

    def _read(self, chunks: Iterator[Chunk]) -> None:
        try:
            for chunk in chunks:
                self._queue.put(chunk)
            self._queue.put(None)
        except BaseException as error:  # handled in the main thread
            self._queue.put(error)

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            try:
                item = self._queue.get(timeout=TICK)
            except queue.Empty:
                if time.monotonic() > self._stop.requested_at + QUIET:
                    return
                item = Chunk(None, [])
            if isinstance(item, Stopped):
                return
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self.is_exhausted = True
                return
            yield item
