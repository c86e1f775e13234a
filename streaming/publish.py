"""Deliver events to a Kafka topic; each is either acknowledged or counted as failed.

The source runs in its own thread, so that a signal never has to wait for a blocked read; the main
thread hands the events to Kafka, and settles them: counts each as acknowledged or as failed.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from kafka import errors

from streaming.console import pluralize, say
from streaming.kafka_client import Kafka, collect_rarely
from streaming.kafka_errors import IN_REJECTED_BATCH, TOO_LARGE, Explanation
from streaming.kafka_internals import BatchStickyPartitioner, Producer
from streaming.progress import Progress
from streaming.sources import Batch, Line, OversizedLine, Source, Stopped
from streaming.stop import Stop
from streaming.timing import PATIENCE
from streaming.topics import Topic

# Limits on what is in flight; kafka-python itself has none
MAX_IN_FLIGHT = 16_000
MAX_IN_FLIGHT_BYTES = 16 << 20
# Below Kafka's default for max.message.bytes, 1 MiB: a batch that is rejected as too large must be
# split (kafka-python 3.0.12)
MAX_BATCH_BYTES = 900_000
TICK = 0.2  # seconds between checks for changes
# A source silent for this long after a stop request is blocked in a read
QUIET = 0.5 * PATIENCE

TOO_LATE = Explanation("not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS")
NOT_SENT = Explanation("not sent, because the run had ended")
NO_PARTITION = Explanation("the topic has no partition to publish to", "Check -t.")

Header = tuple[str, bytes]


def publish(
    source: Source,
    kafka: Kafka,
    topic: Topic,
    stop: Stop,
    *,
    headers: Sequence[Header] = (),
    count: int | None = None,
    timeout: int = 120,
) -> int:
    """Deliver the events of the source, report how many, and return the exit status.

    `headers` go with every event; `count` limits the number of events; Kafka may take `timeout`
    seconds to acknowledge an event.
    """
    options = producer_options(kafka, topic.max_bytes, timeout)
    producer = kafka.connect(Producer, options)
    collect_rarely()
    with suppress(errors.KafkaError):  # now, not with the first event: Kafka may be down by then
        producer.partitions_for(topic.name)
    # The client itself gives up after delivery_timeout_ms; this is for what it loses track of
    patience = options["delivery_timeout_ms"] / 1000 + Stop.GRACE
    delivery = Delivery(producer, kafka, topic.name, source, headers, patience, stop)
    stop.handle_signals()
    reader = BackgroundReader(take(source, count), stop)
    try:
        for batch in reader:
            delivery.send(batch)
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
    """Return the options for batches of at most `max_bytes`, and a timeout in seconds."""
    options = kafka.options(
        Producer,
        partitioner=BatchStickyPartitioner(),
        linger_ms=5,
        batch_size=MAX_BATCH_BYTES,
        delivery_timeout_ms=1000 * timeout,
        max_block_ms=500,  # how often to check for signals while Kafka names no partitions
        enable_idempotence=True,  # or other settings could switch it off without a word
    )
    options["max_request_size"] = max_bytes
    options["batch_size"] = min(options["batch_size"], MAX_BATCH_BYTES, max_bytes)
    max_request_timeout = options["delivery_timeout_ms"] - options["linger_ms"]
    options.setdefault("request_timeout_ms", min(30_000, max_request_timeout))
    return options


def take(source: Source, count: int | None) -> Iterator[Batch]:
    """Yield the first `count` events of the source, or all of them if it is None."""
    if count is None:
        yield from source.batches()
        return
    remaining = count
    for batch in source.batches():
        yield batch.first(remaining)
        remaining -= len(batch.values)
        if remaining <= 0:
            return


class BackgroundReader:
    """Reads batches in a thread; iterating yields them, or an empty one every TICK.

    The source checks `stop` itself, so whatever it has already read is still delivered; if it
    cannot check because it is blocked in a read, it is abandoned. Exceptions in the source,
    including the SystemExit from a `fail`, are re-raised here, except for Stopped.
    """

    def __init__(self, batches: Iterator[Batch], stop: Stop) -> None:
        self._stop = stop
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(2)
        self.is_exhausted = False  # whether the source reached its end
        threading.Thread(target=self._read, args=(batches,), daemon=True).start()

    def _read(self, batches: Iterator[Batch]) -> None:
        try:
            for batch in batches:
                self._queue.put(batch)
            self._queue.put(None)
        except BaseException as error:  # handled in the main thread
            self._queue.put(error)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                item = self._queue.get(timeout=TICK)
            except queue.Empty:
                if time.monotonic() > self._stop.requested_at + QUIET:
                    return
                item = Batch(None, [])
            if isinstance(item, Stopped):
                return
            if isinstance(item, BaseException):
                raise item
            if item is None:
                self.is_exhausted = True
                return
            yield item


class Failure(NamedTuple):
    """An event that was not delivered: its number in the source, and which one it is and why."""

    number: int
    text: str


def earlier(known: Failure | None, other: Failure) -> Failure:
    return known if known and known.number < other.number else other


class Failures:
    """The events that were not delivered: how many, which one to name, and where to go on."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self.count = 0
        self.first_undelivered = 0  # number of the first event that another run has to deliver
        self._first: Failure | None = None  # that failed by itself
        self._first_bystander: Failure | None = None  # that failed because of another in its batch

    def add(self, number: int, size: int, reason: Explanation, is_skipped: bool = False) -> str:
        """Count an event that failed; return a description of which one failed and why."""
        failure = Failure(number, f"{self._unit} {number} ({pluralize(size, 'byte')}): {reason}")
        self.count += 1
        if reason == IN_REJECTED_BATCH:
            self._first_bystander = earlier(self._first_bystander, failure)
        else:
            self._first = earlier(self._first, failure)
        if not is_skipped:
            self.first_undelivered = self.first_undelivered or number
        return failure.text

    def __str__(self) -> str:
        """Format the number and the first failure: `2 failed: event 7 (12 bytes): ...`."""
        named = self._first or self._first_bystander
        return f"{self.count} failed: {named.text}" if named else ""


class Sent(NamedTuple):
    """An event in flight: its number in the source (from 1), and its size in bytes.

    Its outcome is the client's future, or why the event was not given to the client.
    """

    number: int
    size: int
    outcome: Any

    @property
    def is_settled(self) -> bool:
        return isinstance(self.outcome, Explanation) or self.outcome.is_done


class Delivery:
    """Events in flight to a topic, and their outcome.

    `timeout` is how many seconds Kafka may take to acknowledge an event. The first failed delivery
    ends the run: to keep the order, the events after it are not sent but counted as failed. (Those
    already in flight by then may be in Kafka all the same.) An event that is too large is just
    skipped.
    """

    def __init__(
        self,
        producer: Producer,
        kafka: Kafka,
        topic: str,
        source: Source,
        headers: Sequence[Header],
        timeout: float,
        stop: Stop,
    ) -> None:
        self._producer, self._kafka, self._topic = producer, kafka, topic
        self._source, self._timeout, self._stop = source, timeout, stop
        self._headers = list(headers)  # kafka-python insists on a list
        self._header_bytes = sum(len(name.encode()) + len(value) for name, value in headers)
        self._progress = Progress(source, kafka)
        self._in_flight: deque[Sent] = deque()  # oldest first
        self._in_flight_bytes = 0
        self._last_progress_at = 0.0  # when an event was last settled, or the first one sent
        self._read = 0
        self._acknowledged = 0
        self.failures = Failures(source.unit)
        self._has_ended = False  # because of a failed delivery

    def send(self, batch: Batch) -> None:
        """Hand events to the client, waiting first if too much is in flight."""
        keys = batch.keys or [None] * len(batch.values)
        for key, value in zip(keys, batch.values, strict=True):
            self._send_event(key, value)

    def _send_event(self, key: bytes | None, value: Line | None) -> None:
        while self._is_full and not self._stop.is_overdue:
            self._wait()
        size = len(key or b"") + len(value or b"") + self._header_bytes
        outcome = TOO_LARGE if isinstance(value, OversizedLine) else self._hand_over(key, value)
        self._read += 1
        if outcome is TOO_LARGE and not self._has_ended:
            self._skip(size)
            return
        if not self._in_flight:
            self._last_progress_at = time.monotonic()
        self._in_flight.append(Sent(self._read, size, outcome))
        self._in_flight_bytes += size

    @property
    def _is_full(self) -> bool:
        return len(self._in_flight) >= MAX_IN_FLIGHT or self._in_flight_bytes >= MAX_IN_FLIGHT_BYTES

    def _skip(self, size: int) -> None:
        """Count and report the event just read as too large."""
        text = self.failures.add(self._read, size, TOO_LARGE, is_skipped=True)
        self._source.report_skipped(text)

    def _hand_over(self, key: bytes | None, value: bytes | None) -> Any:
        """Hand an event to the client; return the client's future, or why it was not accepted.

        Keep trying while Kafka does not name the topic's partitions.
        """
        deadline = time.monotonic() + self._timeout
        reason = NOT_SENT
        while not (self._has_ended or self._stop.is_overdue):
            try:
                return self._producer.send(self._topic, value, key, self._headers)
            except errors.KafkaTimeoutError:
                if time.monotonic() > deadline:
                    return self._end(TOO_LATE)
                self.check()
                reason = self._not_in_time()
            except errors.MessageSizeTooLargeError:
                return TOO_LARGE
            except ValueError:  # a topic of Kafka's own, or one that has just been deleted
                return self._end(NO_PARTITION)
            except errors.KafkaError as error:
                return self._end(self._kafka.explain(error))
        return reason

    def check(self) -> None:
        """Settle the events whose outcome is known, and report progress if it is time."""
        while self._in_flight and self._in_flight[0].is_settled:
            self._settle(self._in_flight.popleft())
        self._progress.report(self._read, self._acknowledged, self.failures.count)

    def _wait(self) -> None:
        """Settle what is done, then wait for the oldest event in flight, for at most one TICK."""
        self.check()
        if not self._in_flight:
            return
        with suppress(errors.KafkaError):
            self._in_flight[0].outcome.get(TICK)
        if time.monotonic() > self._last_progress_at + self._timeout:
            self._settle(self._in_flight.popleft())  # the client has lost track of it

    def _settle(self, sent: Sent) -> None:
        """Count an event as acknowledged, or as failed if not acknowledged by now."""
        self._last_progress_at = time.monotonic()
        self._in_flight_bytes -= sent.size
        reason = self._reason(sent.outcome)
        if reason:
            self.failures.add(sent.number, sent.size, self._end(reason))
        else:
            self._acknowledged += 1

    def _reason(self, outcome: Any) -> Explanation | None:
        """Return why an event was not delivered; None if it was."""
        if isinstance(outcome, Explanation):
            return outcome
        if not outcome.is_done:  # asked first, as the client's thread may settle it right now
            return self._not_in_time()
        if outcome.succeeded():
            return None
        if isinstance(outcome.exception, (errors.KafkaTimeoutError, errors.RequestTimedOutError)):
            return TOO_LATE
        return self._kafka.explain(outcome.exception)

    def _not_in_time(self) -> Explanation:
        """Explain why an event has no outcome by the end of the run."""
        return Explanation(f"not acknowledged in time: {self._kafka.trouble()}")

    def _end(self, reason: Explanation) -> Explanation:
        """End the run because an event was not delivered, for this reason."""
        self._has_ended = True
        self._stop.request()
        return reason

    def finish(self) -> None:
        """Wait for events in flight; count those not acknowledged in time as failed."""
        while self._in_flight and not self._stop.is_overdue:
            self._wait()
        while self._in_flight:
            self._settle(self._in_flight.popleft())

    def close(self) -> None:
        """Close the client; everything promised is done, or was reported as failed."""
        with suppress(Exception):
            self._producer.close(timeout=0 if self.failures.count else PATIENCE)

    def summary(self, is_exhausted: bool) -> str:
        """Say what was published and what was not; `is_exhausted`: the source reached its end."""
        published = pluralize(self._acknowledged, self._source.unit)
        summary = f"published {published} to {self._topic}{self._source.details()}"
        next_number = self.failures.first_undelivered or (0 if is_exhausted else self._read + 1)
        place = self._source.place(next_number) if next_number else ""
        if place:
            summary += f", stopped before {place}"
        if self.failures.count:
            summary += f", {self.failures}"
        return summary
