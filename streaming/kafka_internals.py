"""All uses of what kafka-python does not document; no other file relies on its internals.

Each entry says what it does and why. All were checked with the version in kafka_version.py, which
requirements.txt pins: to upgrade, read this file again and run all tests.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from itertools import islice
from typing import Any, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.consumer.fetcher import Fetcher
from kafka.net.compat import KafkaNetClient
from kafka.producer.producer_batch import ProducerBatch
from kafka.protocol.consumer import IsolationLevel
from kafka.protocol.schemas.fields.codecs.tagged_fields import TaggedFields, UnsignedVarInt32
from kafka.record.memory_records import MemoryRecordsBuilder

from streaming.in_flight import Events, TrackedBatch
from streaming.records import Column, Malformed, Record, decode, decode_pairs, encode

# ---------------------------------------------------------------- all clients


def work_without_asserts() -> None:
    """Let the client work with python -O, which removes assert statements.

    In 3.0.12 one of them reads a byte of most responses. No upstream issue was found.
    """

    def decode_empty(_: type, data: Any) -> None:
        UnsignedVarInt32.decode(data)

    TaggedFields.decode_empty = classmethod(decode_empty)


# ---------------------------------------------------------------- admin client
# Its methods return Kafka's responses as dictionaries; only these functions know their keys


class TopicDescription(NamedTuple):
    """What Kafka says about a topic."""

    name: str
    error: type[errors.KafkaError]  # NoError if there is nothing wrong with it
    leaders: dict[int, int | None]  # by partition: the broker's number; None: there is no leader
    may_read: bool


def describe_topics(admin: Any, topic: str | None = None) -> list[TopicDescription]:
    """Describe the topic, or all topics."""
    return [
        TopicDescription(
            name=found["name"],
            error=errors.for_code(found["error_code"]),
            leaders={
                each["partition_index"]: each["leader_id"] if each["leader_id"] >= 0 else None
                for each in found["partitions"]
            },
            may_read="READ" in (found.get("authorized_operations") or ["READ"]),
        )
        for found in admin.describe_topics([topic] if topic else None)
    ]


def describe_topic(admin: Any, topic: str) -> TopicDescription:
    """Describe a topic, which need not exist."""
    [description] = describe_topics(admin, topic)
    return description


class CreatedTopic(NamedTuple):
    """Kafka's response to a request to create a topic."""

    error: type[errors.KafkaError]  # NoError, TopicAlreadyExistsError, ...
    message: str  # Kafka's own words on the error
    settings: dict[str, str | None]  # of the new topic; empty if Kafka does not say


def create_topic(
    admin: Any, topic: str, partitions: int | None, settings: Mapping[str, str]
) -> CreatedTopic:
    """Ask Kafka to create a topic; without `partitions`, it gets the broker's default number."""
    wanted = {"num_partitions": partitions or -1, "configs": dict(settings)}
    [created] = admin.create_topics({topic: wanted}, raise_errors=False)["topics"]
    return CreatedTopic(
        error=errors.for_code(created["error_code"]),
        message=created["error_message"] or "",
        settings=_values(created.get("configs") or {}),
    )


def topic_setting(admin: Any, resource: Any, name: str) -> str | None:
    """Return a setting of a topic (a ConfigResource); None if Kafka does not say."""
    found = admin.describe_configs([resource], config_filter="all")["topic"]
    return _values(found[resource.name]).get(name)


def _values(configs: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {name: config["value"] for name, config in configs.items()}


# ---------------------------------------------------------------- producer

NAP_MS = 100  # the shortest sleep


class Connections(KafkaNetClient):  # type: ignore[misc]  # kafka-python has no types
    """A producer's connections, which let its thread sleep while a broker cannot take its batches.

    The thread takes the seconds of connection_delay() for milliseconds, and 0, while a connection
    is being made or has too many requests in flight, for no reason to wait: it would hardly pause
    (as in kafka-python issues 1413 and 1907, which are closed). It may sleep longer, as any event
    on a connection wakes it.
    """

    def connection_delay(self, node_id: int) -> float:
        """Return how many milliseconds to sleep."""
        seconds: float = super().connection_delay(node_id)
        return max(1000 * seconds, NAP_MS)


class Producer(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaProducer that takes many events at a time.

    send() makes a future, takes a lock and formats a debug line for every event, which takes far
    longer than encoding it. Like send(), append() adds to the batches that wait for the client's
    thread, but many events at once. That thread still does the rest: header, sequence number,
    checksum, compression, retries.
    """

    def __init__(self, **options: Any) -> None:
        """Connect; raise UnsupportedVersionError if Kafka is too old for our record batches."""
        super().__init__(kafka_client=Connections, **options)
        if self._accumulator.config["message_version"] < 2:
            self.close(timeout=0)
            raise errors.UnsupportedVersionError("publishing needs Kafka 0.11 or later")

    def __del__(self) -> None:
        """Do nothing: close() is called explicitly.

        KafkaProducer's own would close it again when Python exits, and show a traceback if Kafka is
        away (kafka-python issues 741 and 1872 report similar ones).
        """

    def append(self, topic: str, partition: int, events: Events, headers: bytes) -> "Appended":
        """Add as many of these events as fit to the partition's newest batch, or to a new one.

        None fit if that batch is full; the next call then begins a new one. `headers` are already
        encoded.
        """
        accumulator = self._accumulator
        topic_partition = TopicPartition(topic, partition)
        with accumulator._tp_lock(topic_partition):  # the client's thread takes it, too
            queue = accumulator._batches[topic_partition]
            is_new = not has_open_batch(queue)
            batch = self._new_batch(topic_partition) if is_new else queue[-1]
            count = fill(batch, events, headers, accumulator.config["batch_size"])
            sent: TrackedBatch = batch._record_futures
            sent.is_full = count < len(events.values)
            if is_new:
                queue.append(batch)
                accumulator._incomplete.add(batch)
        if is_new:
            self._sender.wakeup()
        return Appended(sent, is_new, count)

    def _new_batch(self, partition: TopicPartition) -> Any:
        config = self._accumulator.config
        records = MemoryRecordsBuilder(
            config["message_version"], config["compression_attrs"], config["batch_size"]
        )
        batch = ProducerBatch(partition, records)
        batch._record_futures = TrackedBatch(batch.produce_future)
        return batch

    def is_filling(self, topic: str, partition: int) -> bool:
        """Return whether append() would add to a batch that waits in the partition's queue."""
        topic_partition = TopicPartition(topic, partition)
        with self._accumulator._tp_lock(topic_partition):
            return has_open_batch(self._accumulator._batches[topic_partition])

    def stop_lingering(self) -> None:
        """Send what waits for linger_ms at once, and all later batches, too.

        So does flush(), but it also waits until they are delivered.
        """
        self._accumulator.config["linger_ms"] = 0
        self._sender.wakeup()

    def limit_batches(self, size: int) -> None:
        """Limit all later batches to this many bytes, also those that the client makes."""
        config = self._accumulator.config
        config["batch_size"] = min(config["batch_size"], size)

    def with_leader(self, topic: str) -> set[int]:
        """Return those of the topic's partitions that have a leader."""
        return self._metadata.available_partitions_for_topic(topic) or set()


class Appended(NamedTuple):
    """The batch that append() has added to, and how many events it has added."""

    batch: TrackedBatch
    is_new: bool
    event_count: int


def has_open_batch(queue: Sequence[Any]) -> bool:
    """Return whether the last batch of a partition's queue can take more events.

    It must be ours, not one that the client made by splitting, and still open: the client closes a
    batch when it is sent, expires or is aborted.
    """
    if not queue:
        return False
    sent = queue[-1]._record_futures
    return isinstance(sent, TrackedBatch) and not (sent.is_full or queue[-1].records._closed)


def fill(batch: Any, events: Events, headers: bytes, batch_size: int) -> int:
    """Add as many events as fit, as the batch's own append() does; return how many."""
    records, builder = batch.records, batch.records._builder
    now = int(time.time() * 1000)
    first = now if builder._first_timestamp is None else builder._first_timestamp
    encoded = encode(
        events.keys,
        events.values,
        headers,
        timestamp_delta=now - first,
        first_offset=records._next_offset,
        room=batch_size - len(builder._buffer),
    )
    if not encoded.event_count:
        return 0
    builder._buffer += encoded.records
    builder._first_timestamp = first
    builder._max_timestamp = max(builder._max_timestamp or 0, now)
    builder._num_records += encoded.event_count
    records._next_offset += encoded.event_count
    builder._last_offset = records._next_offset - 1
    added = events.part(0, encoded.event_count)
    batch._record_futures.add(added.numbers, added.sizes, len(encoded.records))
    return encoded.event_count


# ---------------------------------------------------------------- consumer


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaConsumer whose poll() returns FetchedBatches; its max_records limits these.

    It also says which partition has no leader.
    """

    def __init__(self, *topics: str, **options: Any) -> None:
        super().__init__(*topics, **options)
        self._fetcher.PartitionRecords = FetchedPartition

    def keep_place(self, timeout_ms: int) -> None:
        """Do what poll() does for the member of a group, but take in no events.

        A poll() with all partitions paused would do, too; but 3.0.12 never again reads a partition
        that was paused while data fetched for it was waiting.
        """
        self._coordinator.poll(timeout_ms)

    def forget_positions(self) -> None:
        """Let go of all partitions, as Java's client does when a group shares them out again.

        3.0.12 keeps its positions in those that the member had before, also where it has returned
        events that were then not printed, or other members have read on meanwhile.
        """
        self._subscription.assign_from_subscribed([])

    def beginning_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().beginning_offsets(*arguments, **options)

    def end_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().end_offsets(*arguments, **options)


@contextmanager
def missing_leader_named() -> Iterator[None]:
    """Raise LeaderNotAvailableError where the client raises KeyError.

    It looks up each partition in the leaders' responses; one without a leader is in none of them.
    No upstream issue was found.
    """
    try:
        yield
    except KeyError as error:
        [partition] = error.args
        message = f"partition {partition.partition} has no leader"
        raise errors.LeaderNotAvailableError(message) from error


def positions(consumer: Consumer) -> dict[TopicPartition, int]:
    """Return the next offset to read in each assigned partition where the client knows it.

    position() returns the same, but looks at all partitions each time: calling it for 3,000
    partitions takes half a minute.
    """
    known = consumer._subscription.all_consumed_offsets()
    return {partition: position.offset for partition, position in known.items()}


class FetchedPartition(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python has no types
    """The data fetched from a partition. Yields batches, where its parent class yields events.

    The fetcher needs only `offset` of each item that it takes, and `next_fetch_offset`.
    """

    next_fetch_offset: int

    def _unpack_records(
        self, partition: TopicPartition, records: Any, *_: Any
    ) -> "Iterator[FetchedBatch]":
        while (batch := records.next_batch()) is not None:
            if self.check_crcs and not batch.validate_crc():
                raise corrupt(partition, batch.base_offset, "its checksum is wrong")
            start = self.next_fetch_offset
            if batch.magic < 2:
                end = batch.base_offset + 1  # here, it is the offset of the last event
                found: FetchedBatch = OldBatch(partition, batch, start, end)
                is_hidden = False
            else:
                self.leader_epoch = batch.leader_epoch
                end = batch.next_offset
                found = FetchedBatch(partition, batch, max(start, batch.base_offset), end)
                is_hidden = self._is_hidden(batch)
            self.next_fetch_offset = max(start, end)  # before the yield, and for hidden ones, too
            if found.offset < end and not is_hidden:
                self.bytes_read += batch.size_in_bytes
                self.records_read += found.most_events
                yield found
        self.drain()

    def _is_hidden(self, batch: Any) -> bool:
        """Return whether a batch has no events, or those of a transaction that was aborted.

        Compaction leaves batches without any record. The parent class raises RuntimeError if such
        a batch was an abort marker.
        """
        if not batch.records_count:
            return True
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return batch.is_control_batch  # type: ignore[no-any-return]


class FetchedBatch:
    """The events that Kafka keeps together in one batch (a DefaultRecordBatch), or some of them.

    Their offsets are at least `offset`, and less than `next_offset`, where reading continues. They
    are decompressed and decoded each time they are read; nothing of that is kept.
    """

    def __init__(
        self, partition: TopicPartition, batch: Any, offset: int, next_offset: int
    ) -> None:
        self.partition, self._batch = partition, batch
        self.offset, self.next_offset = offset, next_offset

    @property
    def most_events(self) -> int:
        """How many events it has, at most."""
        return self._batch.records_count  # type: ignore[no-any-return]

    def before(self, offset: int) -> "FetchedBatch":
        """Return the events before this offset."""
        end = min(offset, self.next_offset)
        return type(self)(self.partition, self._batch, self.offset, end)

    def first(self, count: int) -> "tuple[FetchedBatch, int]":
        """Return the first `count` events, and how many these are: fewer if it has fewer."""
        if self._is_whole and self.most_events <= count:
            return self, self.most_events
        offsets: list[int] = []
        with suppress(errors.KafkaError):  # raised again when the events are read
            offsets.extend(record.offset for record in islice(self.records(), count))
        part = self.before(offsets[-1] + 1) if len(offsets) == count else self
        return part, len(offsets)

    def pairs(self) -> Iterator[tuple[Column, Column]]:
        """Yield keys and values, all at once if possible; raise what records() raises."""
        if self._is_whole:
            with suppress(Malformed):  # then records() yields the events before the malformed one
                yield decode_pairs(self._data(), self.most_events)
                return
        for record in self.records():
            yield [record.key], [record.value]

    def records(self) -> Iterator[Record]:
        """Yield the events; raise CorruptRecordError on reaching one that is malformed.

        Raise UnsupportedCodecError if the package that decompresses them is missing.
        """
        reached: int = self._batch.base_offset
        try:
            for record in self._decode():
                reached = record.offset + 1
                if self.offset <= record.offset < self.next_offset:
                    yield record
                if reached >= self.next_offset and not self._is_whole:
                    return  # the rest was cut off, and may be malformed
        except Malformed as error:
            raise corrupt(self.partition, reached, str(error)) from None

    @property
    def _is_whole(self) -> bool:
        starts_there = self.offset == self._batch.base_offset
        return starts_there and self.next_offset == self._batch.next_offset  # type: ignore[no-any-return]

    def _decode(self) -> Iterator[Record]:
        batch = self._batch
        start = (batch.base_offset, batch.first_timestamp)
        records = decode(self._data(), batch.records_count, *start)
        if batch.timestamp_type == batch.LOG_APPEND_TIME:
            return (record._replace(timestamp=batch.max_timestamp) for record in records)
        return records

    def _data(self) -> bytes:
        """Return the records, decompressed; raise Malformed or UnsupportedCodecError."""
        batch = self._batch
        if batch.compression_type:
            batch = copy(batch)  # the original would keep the decompressed data
            try:
                batch._maybe_uncompress()
            except errors.UnsupportedCodecError:
                raise
            except Exception as error:  # each codec's package raises its own
                raise Malformed(f"it cannot be decompressed ({error})") from None
        return bytes(memoryview(batch._buffer)[batch._pos :])


class OldBatch(FetchedBatch):
    """An event, or several that are compressed together, from before Kafka 0.11 (format 0 or 1).

    The offset of the batch itself (a LegacyRecordBatch) is that of its last event. kafka-python
    decodes it.
    """

    _is_whole = False

    @property
    def most_events(self) -> int:
        return self.next_offset - self.offset

    def _decode(self) -> Iterator[Record]:
        for record in copy(self._batch):
            yield Record(record.offset, record.timestamp, record.key, record.value, [])


def corrupt(partition: TopicPartition, offset: int, reason: str) -> errors.CorruptRecordError:
    where = f"partition {partition.partition}, offset {offset}"
    return errors.CorruptRecordError(f"the event at {where} is corrupt: {reason}")
