"""Deliver events to a Kafka topic: each is acknowledged, or counted as failed with the reason.

Events are handed to the client many at a time, and settled batch by batch.
"""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from operator import add
from typing import NamedTuple, cast

from kafka import errors

from streaming.console import pluralize
from streaming.in_flight import Events, TrackedBatch
from streaming.kafka_client import Kafka
from streaming.kafka_errors import IN_REJECTED_BATCH, TOO_LARGE, Explanation
from streaming.kafka_internals import Producer
from streaming.partitioning import partitions_of
from streaming.progress import Progress
from streaming.records import MAX_OVERHEAD, Column, encode_headers
from streaming.sources import Chunk, Line, Source
from streaming.stop import Stop
from streaming.timing import PATIENCE
from streaming.topics import Topic

# kafka-python has no limit of its own. This is for encoded events and our notes on them
MAX_IN_FLIGHT_BYTES = 8 << 20
TICK = 0.2  # seconds between checks for changes

TOO_LATE = Explanation("not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS")
NOT_SENT = Explanation("not sent, because the run had ended")

TextHeader = tuple[str, bytes]


class Failure(NamedTuple):
    """An event that was not delivered: its number in the source, and a text that says why."""

    number: int
    text: str


def earlier(known: Failure | None, other: Failure) -> Failure:
    return known if known and known.number < other.number else other


class Failures:
    """The events that were not delivered: how many, which one to name, and where to resume.

    Sizes are in bytes, without the headers, which all events share: they are added here.
    """

    def __init__(self, unit: str, header_bytes: int) -> None:
        self._unit, self._header_bytes = unit, header_bytes
        self.count = 0
        self.resume_at = 0  # number of the first event that another run has to deliver; 0: none
        self._first: Failure | None = None  # that failed for a reason of its own
        self._first_bystander: Failure | None = None  # that failed because of another in its batch

    def add(self, numbers: Sequence[int], size: int, reason: Explanation) -> None:
        """Count events that have failed for one reason; `size` is that of the first one."""
        self._count(numbers, size, reason)
        self.resume_at = min(self.resume_at or numbers[0], numbers[0])

    def add_skipped(self, number: int, size: int) -> str:
        """Count an event that is too large, and not worth another try; return a description."""
        return self._count([number], size, TOO_LARGE).text

    def _count(self, numbers: Sequence[int], size: int, reason: Explanation) -> Failure:
        self.count += len(numbers)
        number = numbers[0]
        bytes_of_event = pluralize(size + self._header_bytes, "byte")
        failure = Failure(number, f"{self._unit} {number} ({bytes_of_event}): {reason}")
        if reason == IN_REJECTED_BATCH:
            self._first_bystander = earlier(self._first_bystander, failure)
        else:
            self._first = earlier(self._first, failure)
        return failure

    def __str__(self) -> str:
        """Format the number and the first failure: `2 failed: event 7 (12 bytes): ...`."""
        named = self._first or self._first_bystander
        return f"{self.count} failed: {named.text}" if named else ""


def column_sizes(column: Sequence[Line | None]) -> list[int]:
    """Return the sizes of keys or values in bytes; null counts as 0."""
    if None in column:
        return [0 if part is None else len(part) for part in column]
    return list(map(len, cast(Sequence[Line], column)))


class Delivery:
    """Events in flight to a topic, and their outcome.

    The first failed delivery ends the run: to keep the order, the events after it are not sent but
    counted as failed. (Those already in flight by then may still reach Kafka.) An event that is too
    large counts as failed, but does not end the run. If no batch is settled for `stall_timeout`
    seconds, or the topic's partitions are unknown for so long, the run ends, too; the client's own
    delivery timeout is shorter, and normally acts first.
    """

    def __init__(
        self,
        producer: Producer,
        kafka: Kafka,
        topic: Topic,
        source: Source,
        headers: Sequence[TextHeader],
        stall_timeout: float,
        stop: Stop,
    ) -> None:
        self._producer, self._kafka, self._topic = producer, kafka, topic
        self._source, self._stall_timeout, self._stop = source, stall_timeout, stop
        encoded_headers = [(name.encode(), value) for name, value in headers]
        self._headers = encode_headers(encoded_headers)
        header_bytes = sum(len(name) + len(value) for name, value in encoded_headers)
        self._progress = Progress(source, kafka)
        self._in_flight: list[TrackedBatch] = []  # oldest first
        self._partition: int | None = None  # where events without a key go at the moment
        self._last_progress_at = 0.0  # when a batch was last settled, or the first one begun
        self._read = 0
        self._acknowledged = 0
        self.failures = Failures(source.unit, header_bytes)
        self._has_ended = False  # because of a failed delivery

    # ------------------------------------------------------------ sending

    def send(self, chunk: Chunk) -> None:
        """Hand events to the client, waiting first if too much is in flight."""
        while self._is_full and not self._stop.is_overdue:
            self._wait()
        events = self._number(chunk)
        if not self._has_ended:
            events = self._skip_too_large(events)
        if events.numbers:
            partitions = self._find_partitions()
            if isinstance(partitions, Explanation):
                self.failures.add(events.numbers, events.sizes[0], partitions)
            else:
                self._append(events, partitions)
        self._read += len(chunk.values)

    @property
    def _is_full(self) -> bool:
        return sum(batch.bytes_in_memory for batch in self._in_flight) >= MAX_IN_FLIGHT_BYTES

    def _number(self, chunk: Chunk) -> Events:
        """Number events in the order of the source, and note their sizes."""
        sizes = column_sizes(chunk.values)
        if chunk.keys:
            sizes = list(map(add, sizes, column_sizes(chunk.keys)))
        numbers = range(self._read + 1, self._read + 1 + len(sizes))
        # An OversizedLine gets no further: it is skipped, or the run has ended
        return Events(numbers, sizes, chunk.keys, cast(Column, chunk.values))

    def _skip_too_large(self, events: Events) -> Events:
        """Count and report the events that are too large; return the others."""
        limit = self._topic.max_bytes - len(self._headers) - MAX_OVERHEAD
        if max(events.sizes, default=0) <= limit:
            return events
        for number, size in zip(events.numbers, events.sizes, strict=True):
            if size > limit:
                text = self.failures.add_skipped(number, size)
                self._source.report_skipped(text)
        return events.at([index for index, size in enumerate(events.sizes) if size <= limit])

    def _find_partitions(self) -> set[int] | Explanation:
        """Return the topic's partitions, or why nothing can be sent to it.

        Retry until Kafka names them.
        """
        deadline = time.monotonic() + self._stall_timeout
        reason = NOT_SENT
        while not (self._has_ended or self._stop.is_overdue):
            try:
                return self._producer.partitions_for(self._topic.name)  # type: ignore[no-any-return]
            except errors.KafkaTimeoutError:
                if time.monotonic() > deadline:
                    self._end()
                    return TOO_LATE
                self.check()
                reason = self._not_in_time()
            except errors.KafkaError as error:
                self._end()
                return self._kafka.explain(error)
        return reason

    def _append(self, events: Events, partitions: set[int]) -> None:
        """Add events to batches; a key determines its event's partition."""
        if events.keys is None or len(partitions) == 1:
            while events.numbers:
                events = self._append_some(events, self._pick_partition(partitions))
            return
        own_partitions = partitions_of(events.keys, len(partitions))
        any_partition = self._pick_partition(partitions)
        indices: dict[int, list[int]] = defaultdict(list)
        for index, partition in enumerate(own_partitions):
            indices[any_partition if partition is None else partition].append(index)
        for partition, own in indices.items():
            rest = events.at(own)
            while rest.numbers:
                rest = self._append_some(rest, partition)

    def _pick_partition(self, partitions: set[int]) -> int:
        """Return the partition for the next events without a key.

        It is the same one until its batch is full or sent; then another, preferably with a leader.
        """
        name = self._topic.name
        if self._partition is None or not self._producer.is_filling(name, self._partition):
            candidates = partitions & self._producer.with_leader(name) or partitions
            others = candidates - {self._partition} or candidates
            self._partition = random.choice(list(others))
        return self._partition

    def _append_some(self, events: Events, partition: int) -> Events:
        """Add as many events as fit to a batch; return the rest."""
        appended = self._producer.append(self._topic.name, partition, events, self._headers)
        if appended.is_new:
            if not self._in_flight:
                self._last_progress_at = time.monotonic()
            self._in_flight.append(appended.batch)
        return events.part(appended.event_count)

    # ------------------------------------------------------------ settling

    def check(self) -> None:
        """Settle the batches whose outcome is known, and report progress if it is due."""
        for batch in [batch for batch in self._in_flight if batch.is_split]:
            self._replace_by_parts(batch)
        for batch in [batch for batch in self._in_flight if batch.is_done]:
            self._in_flight.remove(batch)
            self._settle(batch)
        self._progress.report(self._read, self._acknowledged, self.failures.count)

    def _replace_by_parts(self, batch: TrackedBatch) -> None:
        """Track the parts of a batch that was too large for Kafka; make later batches smaller."""
        place = self._in_flight.index(batch)
        self._in_flight[place : place + 1] = batch.parts
        self._producer.limit_batches(batch.encoded_bytes // 2)

    def _wait(self) -> None:
        """Settle what is done, then wait for the oldest batch in flight, for at most one TICK."""
        self.check()
        if not self._in_flight:
            return
        if self._stop.requested:
            self._producer.stop_lingering()
        self._in_flight[0].wait(TICK)
        if time.monotonic() > self._last_progress_at + self._stall_timeout:
            self._settle(self._in_flight.pop(0))  # the client has lost track of it

    def _settle(self, batch: TrackedBatch) -> None:
        """Count a batch's events as acknowledged, or as failed if not acknowledged by now."""
        self._last_progress_at = time.monotonic()
        # is_done is asked only once: the client's thread may complete the batch at any moment
        failed = batch.failed() if batch.is_done else [batch.all_failed(None)]
        self._acknowledged += len(batch) - sum(len(each.numbers) for each in failed)
        for each in failed:
            self.failures.add(each.numbers, each.size, self._reason(each.error))
        if failed:
            self._end()

    def _reason(self, error: Exception | None) -> Explanation:
        """Return why an event was not delivered; `error` is None if there is no outcome yet."""
        if error is None:
            return self._not_in_time()
        if isinstance(error, (errors.KafkaTimeoutError, errors.RequestTimedOutError)):
            return TOO_LATE
        return self._kafka.explain(error)

    def _not_in_time(self) -> Explanation:
        """Explain why an event has no outcome by the end of the run."""
        return Explanation(f"not acknowledged in time: {self._kafka.trouble()}")

    def _end(self) -> None:
        """End the run because an event was not delivered."""
        self._has_ended = True
        self._stop.request()

    def finish(self) -> None:
        """Wait for events in flight; count those not acknowledged in time as failed."""
        self._producer.stop_lingering()
        while self._in_flight and not self._stop.is_overdue:
            self._wait()
        self.check()
        for batch in self._in_flight:
            self._settle(batch)

    def close(self) -> None:
        """Close the client; by now, each event is acknowledged or counted as failed."""
        with suppress(Exception):
            self._producer.close(timeout=0 if self.failures.count else PATIENCE)

    def summary(self, is_exhausted: bool) -> str:
        """Say what was published and what was not; `is_exhausted`: everything was read."""
        published = pluralize(self._acknowledged, self._source.unit)
        summary = f"published {published} to {self._topic.name}{self._source.details()}"
        next_number = self.failures.resume_at or (0 if is_exhausted else self._read + 1)
        place = self._source.place(next_number) if next_number else ""
        if place:
            summary += f", stopped before {place}"
        if self.failures.count:
            summary += f", {self.failures}"
        return summary
