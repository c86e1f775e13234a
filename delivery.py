"""Deliver events to a Kafka topic; each is either acknowledged or counted as failed.

A source is a generator of batches (lists of events). It runs in its own thread, so that a signal
never has to wait for a blocked read; the main thread hands the events to Kafka.
"""

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from cli import PATIENCE, SECOND, Stop, fail, pluralize, say
from config import (
    IN_REJECTED_BATCH,
    TOO_LARGE,
    Explanation,
    client_log,
    client_options,
    connect,
    explain,
    explain_message,
)

from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.future import Future
from kafka.partitioner import StickyPartitioner
from kafka.record.default_records import DefaultRecordBatchBuilder

# Limits on what is in flight; kafka-python itself has none
MAX_IN_FLIGHT = 16_000
MAX_IN_FLIGHT_BYTES = 16 << 20
# Keep batches below the topic's limit: once a broker rejects one, kafka-python 3.0's idempotent
# producer delivers nothing more
MAX_BATCH_BYTES = 900_000
DEFAULT_MAX_EVENT_BYTES = 1 << 20  # kafka-python's
MAX_OVERHEAD = 100  # upper bound on a one-event batch's bytes besides its key, value and headers
TICK = 0.2  # seconds between checks for changes
# A source silent for this long after a stop request is blocked in a read
QUIET = 0.5 * PATIENCE

TOO_LATE = Explanation("not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS")
NOT_SENT = Explanation("not sent, because the run had ended")


class OversizedLine:
    """Placeholder for a line too long to keep in memory; only its size in bytes is known."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


Line = bytes | OversizedLine
Header = tuple[str, bytes]


class Event(NamedTuple):
    """A key and a value, as bytes; None is Kafka's null."""

    key: bytes | None
    value: Line | None


Batch = list[Event]
Source = Iterator[Batch]


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


def take(source: Source, count: int | None) -> Source:
    """Yield the first `count` events of the source, or all of them if it is None."""
    if count is None:
        yield from source
        return
    remaining = count
    for batch in source:
        yield batch[:remaining]
        remaining -= len(batch)
        if remaining <= 0:
            return


class Stopped(Exception):
    """Raised by a source that was asked to stop before it reached its end."""


class BackgroundReader:
    """Runs a source in a thread; iterating yields its batches, or an empty one every TICK.

    The source checks `stop` itself, so whatever it has already read is still delivered; if it
    cannot check because it is blocked in a read, it is abandoned. Exceptions in the source,
    including the SystemExit from a `fail`, are re-raised here, except for Stopped.
    """

    def __init__(self, source: Source, stop: Stop) -> None:
        self._source, self._stop = source, stop
        self._batches: queue.Queue[Batch | BaseException | None] = queue.Queue(2)
        self.is_exhausted = False  # whether the source reached its end
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            for batch in self._source:
                self._batches.put(batch)
            self._batches.put(None)
        except BaseException as error:  # handled in the main thread
            self._batches.put(error)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                item = self._batches.get(timeout=TICK)
            except queue.Empty:
                if time.monotonic() > self._stop.requested_at + QUIET:
                    return
                item = []
            if isinstance(item, Stopped):
                return
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self.is_exhausted = True
                return
            yield item


class BatchStickyPartitioner(StickyPartitioner):  # type: ignore[misc]  # kafka-python has no types
    """Sends events without a key to the same partition until a batch is full.

    Its parent class looks up the partition for every event, and hashes the key even if there is
    only one partition; with it, publishing 170-byte events takes 16% longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._current: int | None = None

    def partition(
        self, topic: str, key: bytes | None, key_bytes: bytes | None, *values: Any
    ) -> int | None:
        cluster = values[-1]
        if key is not None and len(cluster.partitions_for_topic(topic) or ()) > 1:
            return super().partition(  # type: ignore[no-any-return]
                topic, key, key_bytes, *values
            )
        if self._current is None:
            self._current = super().partition(topic, None, None, *values)
        return self._current

    def on_new_batch(self, *arguments: Any) -> None:
        super().on_new_batch(*arguments)
        self._current = None


class Producer(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaProducer closed only by close(): its own __del__ raises after a failed delivery."""

    def __del__(self) -> None:
        pass


class Job(NamedTuple):
    """What to publish, and how messages describe it."""

    source: Source
    headers: tuple[Header, ...] = ()  # of every event
    unit: str = "event"  # what messages call an event
    details: Callable[[], str] = str  # what the source adds to messages; str() is empty
    say_skipped: Callable[[str], None] = say  # reports an event that is too large
    at_stop: Callable[[], object] = str  # called if the source does not reach its end
    place: Callable[[int], str] | None = None  # where in the source an event is, by its number
    percent_read: Callable[[], int] | None = None  # of the source, if its size is known
    has_separator: bool = False  # whether the source separates keys from values
    is_endless: bool = False  # whether it normally runs until a signal stops it


class Sent(NamedTuple):
    """An event in flight: its number in the source (from 1), and its size in bytes."""

    number: int
    size: int
    future: Any


class Delivery:
    """Events in flight to a topic, and their outcome.

    `timeout` is how many seconds Kafka may take to acknowledge an event. The first failed delivery
    ends the run: to keep the order, the events after it are not sent but counted as failed. (Those
    already in flight by then may be in Kafka all the same.) An event whose batch would be larger
    than `max_bytes` is just skipped.
    """

    def __init__(
        self, producer: Any, topic: str, job: Job, max_bytes: int, timeout: float, stop: Stop
    ) -> None:
        self._producer, self._topic, self._job = producer, topic, job
        self._max_bytes, self._timeout, self._stop = max_bytes, timeout, stop
        self._headers = list(job.headers)  # kafka-python insists on a list
        self._header_bytes = sum(len(name.encode()) + len(value) for name, value in job.headers)
        # A key and value of up to this many bytes fit, whatever the overhead of their batch
        self._surely_fits = max_bytes - MAX_OVERHEAD - batch_size(Event(None, b""), self._headers)
        self._progress = Progress(job)
        self._in_flight: deque[Sent] = deque()  # oldest first
        self._in_flight_bytes = 0
        self._last_progress_at = 0.0  # when an event was last settled, or the first one sent
        self.events_read = 0
        self._has_keys = False
        self.acknowledged = 0
        self.failed = 0
        # The first event that failed by itself, or else along with its batch: whether it failed
        # along with its batch, its number, and what happened
        self._first_failure = (True, sys.maxsize, "")
        self._first_undelivered = sys.maxsize  # number of the first failed event not skipped
        self._has_ended = False  # because of a failed delivery

    @property
    def _is_full(self) -> bool:
        return len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES

    def send(self, event: Event) -> None:
        """Hand an event to the client, waiting first if too much is in flight."""
        while self._is_full and not self._stop.is_overdue:
            self._wait()
        line_size = len(event.key or b"") + len(event.value or b"")
        size = line_size + self._header_bytes
        self.events_read += 1
        if event.key is not None:
            self._has_keys = True
        if self._has_ended or self._stop.is_overdue:
            self._record_undelivered(self.events_read, size, NOT_SENT)
        elif line_size > self._surely_fits and self._is_too_large(event):
            failure = self._record_failure(self.events_read, size, TOO_LARGE)
            self._job.say_skipped(f"skipped {failure}")
        else:
            self._add(Sent(self.events_read, size, self._hand_over(event)))

    def _is_too_large(self, event: Event) -> bool:
        if isinstance(event.value, OversizedLine):
            return True
        return batch_size(event, self._headers) > self._max_bytes

    def _add(self, sent: Sent) -> None:
        """Add an event to those in flight."""
        if not self._in_flight:
            self._last_progress_at = time.monotonic()
        self._in_flight.append(sent)
        self._in_flight_bytes += sent.size

    def _hand_over(self, event: Event) -> Any:
        """Return the client's future for the event, or a failed one if the client rejects it.

        Keeps trying while Kafka does not name the topic's partitions.
        """
        deadline = 0.0
        while True:
            try:
                return self._producer.send(self._topic, event.value, event.key, self._headers)
            except errors.KafkaTimeoutError as error:
                deadline = deadline or time.monotonic() + self._timeout
                if self._stop.is_overdue:
                    return Future()  # nobody will acknowledge it
                if time.monotonic() > deadline:
                    self._end()
                    return Future().failure(error)
                self.check()
            except errors.KafkaError as error:
                return Future().failure(error)

    def check(self) -> None:
        """Settle the events whose outcome is known, and report progress if it is time."""
        while self._in_flight and self._in_flight[0].future.is_done:
            self._settle(self._in_flight.popleft())
        self._progress.report(self)

    def _wait(self) -> None:
        """Settle what is done, then wait for the oldest event in flight, for at most one TICK."""
        self.check()
        if not self._in_flight:
            return
        with suppress(errors.KafkaError):
            self._in_flight[0].future.get(TICK)
        if time.monotonic() > self._last_progress_at + self._timeout:
            self._settle(self._in_flight.popleft())  # the client has lost track of it

    def _settle(self, sent: Sent) -> None:
        """Count an event as acknowledged, or as failed if not acknowledged by now."""
        self._last_progress_at = time.monotonic()
        self._in_flight_bytes -= sent.size
        if sent.future.succeeded():
            self.acknowledged += 1
            return
        self._record_undelivered(sent.number, sent.size, explain_failure(sent.future.exception))
        self._end()

    def _end(self) -> None:
        """End the run after a failed delivery."""
        self._has_ended = True
        self._stop.request()

    def _record_undelivered(self, number: int, size: int, reason: Explanation) -> None:
        """Count a failed event that another run may deliver."""
        self._first_undelivered = min(self._first_undelivered, number)
        self._record_failure(number, size, reason)

    def _record_failure(self, number: int, size: int, reason: Explanation) -> str:
        """Count a failed event; return a description of which one failed and why."""
        failure = f"{self._job.unit} {number} ({pluralize(size, 'byte')}): {reason}"
        self.failed += 1
        is_innocent = reason == IN_REJECTED_BATCH
        self._first_failure = min(self._first_failure, (is_innocent, number, failure))
        return failure

    def finish(self) -> None:
        """Wait for events in flight; count those not acknowledged in time as failed."""
        while self._in_flight and not self._stop.is_overdue:
            self._wait()
        while self._in_flight:
            self._settle(self._in_flight.popleft())

    def summary(self, is_exhausted: bool) -> str:
        """Say what was published and what was not; `is_exhausted`: the source reached its end."""
        published = pluralize(self.acknowledged, self._job.unit)
        summary = f"published {published} to {self._topic}{self._job.details()}"
        if self._job.has_separator and self.events_read and not self._has_keys:
            summary += " (separator not found in any line, so no event has a key)"
        next_number = self._first_missing(is_exhausted)
        if next_number and self._job.place:
            summary += f", stopped before {self._job.place(next_number)}"
        if self.failed:
            summary += f", {self.failed} failed: {self._first_failure[2]}"
        return summary

    def _first_missing(self, is_exhausted: bool) -> int:
        """Return the number of the first event that another run has to deliver, or 0."""
        if self._first_undelivered <= self.events_read:
            return self._first_undelivered
        return 0 if is_exhausted else self.events_read + 1


def batch_size(event: Event, headers: list[Header]) -> int:
    """Return the size of a batch of this event alone, uncompressed, as Kafka's limits count it.

    In a batch of one, the time and offset deltas from the first event are 0.
    """
    builder = DefaultRecordBatchBuilder
    record_bytes: int = builder.size_in_bytes(0, 0, event.key, event.value, headers)
    return record_bytes + int(builder.header_size_in_bytes())


def explain_failure(error: Exception | None) -> Explanation:
    """Explain why an event was not delivered; None: it was not acknowledged in time."""
    if error is None:
        return Explanation(f"not acknowledged in time: {explain_message(client_log().reason)}")
    if isinstance(error, (errors.KafkaTimeoutError, errors.RequestTimedOutError)):
        return TOO_LATE
    return explain(error)


class Progress:
    """Reports progress: every second as a live line on a terminal, every minute in a log.

    In a log it also reports when Kafka starts to keep it waiting.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_live = os.isatty(2)
        self._interval = 1.0 if self._is_live else 5 * SECOND  # between checks
        self._next_check = time.monotonic() + self._interval
        self._reported_at = time.monotonic()
        self._reported_count = 0
        self._awaited = 0  # at the last check, the number of the event to be settled next, if any
        self._is_stalled = False

    def report(self, delivery: Delivery) -> None:
        """If it is time, check the delivery, and write a line if there is anything to report."""
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + self._interval
        was_stalled = self._is_stalled
        self._check_stall(delivery)
        has_just_stalled = self._is_stalled and not was_stalled
        if self._is_live or has_just_stalled or now >= self._reported_at + 60 * SECOND:
            say(self._line(delivery, now), live=self._is_live)
            self._reported_at = now
            self._reported_count = delivery.acknowledged

    def _check_stall(self, delivery: Delivery) -> None:
        """Note whether it has stalled: the event awaited at the last check is not settled yet."""
        settled = delivery.acknowledged + delivery.failed
        awaited = settled + 1 if settled < delivery.events_read else 0
        self._is_stalled = awaited > 0 and awaited == self._awaited
        self._awaited = awaited
        if not self._is_stalled:
            client_log().clear_reason()

    def _line(self, delivery: Delivery, now: float) -> str:
        count = delivery.acknowledged
        rate = (count - self._reported_count) / (now - self._reported_at)
        line = f"{pluralize(count, self._job.unit)}, {rate:.0f}/s"
        if self._job.percent_read:
            line += f", {self._job.percent_read()}%"
        line += self._job.details()
        if self._is_stalled:
            line += f", waiting for Kafka: {explain_message(client_log().reason).cause}"
        return line


def publish(job: Job, topic: str, max_bytes: int, stop: Stop, timeout: int = 120) -> int:
    """Deliver all of a job's events, report how many, and return the exit status.

    `max_bytes` is the topic's max.message.bytes; `timeout` is how many seconds Kafka may take to
    acknowledge an event.
    """
    options = producer_options(max_bytes, timeout)
    max_batch_bytes = options["max_request_size"]
    # The client's own check uses an upper bound, which would refuse an event that just fits
    options["max_request_size"] += DefaultRecordBatchBuilder.MAX_RECORD_OVERHEAD
    producer = connect(Producer, options)
    with suppress(errors.KafkaError):  # now, not with the first event: Kafka may be down by then
        producer.partitions_for(topic)
    # The client itself gives up after delivery_timeout_ms; this is for what it loses track of
    timeout_seconds = options["delivery_timeout_ms"] / 1000 + Stop.GRACE
    delivery = Delivery(producer, topic, job, max_batch_bytes, timeout_seconds, stop)
    stop.handle_signals()
    reader = BackgroundReader(job.source, stop)
    try:
        for batch in reader:
            for event in batch:
                delivery.send(event)
            delivery.check()
    finally:
        delivery.finish()
        if not reader.is_exhausted:
            job.at_stop()
        say(delivery.summary(reader.is_exhausted))
        with suppress(Exception):  # everything promised is done, or was reported as failed
            producer.close(timeout=0 if delivery.failed else PATIENCE)
    if delivery.failed:
        return 1
    return 0 if reader.is_exhausted or job.is_endless else stop.exit_status


def producer_options(max_bytes: int, timeout: int) -> dict[str, Any]:
    """Return the producer's options for a topic's max.message.bytes and a timeout in seconds."""
    options = client_options(
        KafkaProducer,
        partitioner=BatchStickyPartitioner(),
        linger_ms=5,
        batch_size=MAX_BATCH_BYTES,
        delivery_timeout_ms=1000 * timeout,
        max_block_ms=500,  # how often to check for signals while Kafka names no partitions
    )
    options["max_request_size"] = min(
        options.get("max_request_size", DEFAULT_MAX_EVENT_BYTES), max_bytes
    )
    options["batch_size"] = min(options["batch_size"], MAX_BATCH_BYTES, options["max_request_size"])
    max_request_timeout = options["delivery_timeout_ms"] - options["linger_ms"]
    options.setdefault("request_timeout_ms", min(30_000, max_request_timeout))
    return options


def ensure_topic(topic: str, partitions: int | None, configs: dict[str, str]) -> int:
    """Create the topic unless it exists; return its max.message.bytes.

    Exit if the topic does not exist and cannot be created.
    """
    wanted = {"num_partitions": partitions or -1, "configs": configs}  # -1: the broker's default
    try:
        with connect(KafkaAdminClient, client_options(KafkaAdminClient)) as admin:
            [created] = admin.create_topics({topic: wanted}, raise_errors=False)["topics"]
            check_existence(admin, topic, created)
            if created["error_code"] and (partitions or configs):
                say(f"topic {topic} already exists; ignoring --partitions and --topic-config")
            return max_event_bytes(admin, topic, created)
    except errors.KafkaError as error:
        fail(f"cannot create topic {topic}: {explain(error)}")


def check_existence(admin: Any, topic: str, created: dict[str, Any]) -> None:
    """Raise the broker's error if its response means that the topic does not exist."""
    error = errors.for_code(created["error_code"])
    if error in (errors.NoError, errors.TopicAlreadyExistsError):
        return
    if issubclass(error, errors.AuthorizationError):
        # Not allowed to create topics, but it may already exist
        [found] = admin.describe_topics([topic])
        if found["error_code"] != errors.UnknownTopicOrPartitionError.errno:
            return
    raise error(created["error_message"] or "")


def max_event_bytes(admin: Any, topic: str, created: dict[str, Any]) -> int:
    """Return the topic's max.message.bytes, or the client's own limit if access is denied."""
    name = "max.message.bytes"
    configs = created.get("configs")
    if not configs:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, [name])
        configs = admin.describe_configs([resource], config_filter="all")["topic"][topic]
    return int(configs[name]["value"]) if name in configs else DEFAULT_MAX_EVENT_BYTES
