"""Every use of what kafka-python does not document; nothing else relies on its internals.

Each entry says what it does and why. All were checked with kafka-python 3.0.12, which
requirements.txt pins: to upgrade, read this file again and run all tests.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import kafka
from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.producer.producer_batch import ProducerBatch
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.memory_records import MemoryRecordsBuilder

from streaming.console import fail
from streaming.in_flight import Events, SentBatch
from streaming.records import encode

VERSION = "3.0.12"


def check_version() -> None:
    """Exit unless this is the version of kafka-python that was checked."""
    if kafka.__version__ != VERSION:
        fail(
            f"kafka-python {kafka.__version__} is installed, but this needs {VERSION}. "
            "Run: pip install -r requirements.txt (see Install in README.md)"
        )


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
    """Return a setting of a topic (a ConfigResource); None if Kafka does not tell."""
    found = admin.describe_configs([resource], config_filter="all")["topic"]
    return _values(found[resource.name]).get(name)


def _values(configs: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    return {name: config["value"] for name, config in configs.items()}


# ---------------------------------------------------------------- producer


class Producer(KafkaProducer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaProducer that takes many events at a time.

    send() makes a future, takes a lock and formats a debug line for every event, which takes ten
    times as long as to encode it. append() does what send() does with the batches that wait for
    the client's thread, but fills them with many records at once. That thread does the rest as
    ever: header, sequence number, checksum, compression, retries.
    """

    def __del__(self) -> None:
        """Leave it to close().

        The client's own would close it once more when Python exits, and show a traceback there if
        Kafka is away (kafka-python issues 741 and 1872 are about others like it).
        """

    def append(self, topic: str, number: int, events: Events, headers: bytes) -> "Appended":
        """Add as many of these events as fit to the partition's newest batch, or to a new one.

        None fit if that batch is full; the next call then begins a new one. `headers` are encoded.
        """
        accumulator = self._accumulator
        partition = TopicPartition(topic, number)
        with accumulator._tp_lock(partition):  # the client's thread takes it to send a batch
            queue = accumulator._batches[partition]
            is_new = not has_open_batch(queue)
            batch = self._new_batch(partition) if is_new else queue[-1]
            count = fill(batch, events, headers, accumulator.config["batch_size"])
            sent: SentBatch = batch._record_futures
            sent.is_full = count < len(events.values)
            if is_new:
                queue.append(batch)
                accumulator._incomplete.add(batch)
        if is_new or sent.is_full:
            self._sender.wakeup()
        return Appended(sent, is_new, count)

    def _new_batch(self, partition: TopicPartition) -> Any:
        config = self._accumulator.config
        records = MemoryRecordsBuilder(
            config["message_version"], config["compression_attrs"], config["batch_size"]
        )
        batch = ProducerBatch(partition, records)
        batch._record_futures = SentBatch(batch.produce_future)
        return batch

    def is_filling(self, topic: str, number: int) -> bool:
        """Return whether append() would add to a batch that waits in the partition's queue."""
        partition = TopicPartition(topic, number)
        with self._accumulator._tp_lock(partition):
            return has_open_batch(self._accumulator._batches[partition])

    def limit_batches(self, size: int) -> None:
        """Make all further batches at most this large, in bytes."""
        config = self._accumulator.config
        config["batch_size"] = min(config["batch_size"], size)

    def with_leader(self, topic: str) -> set[int]:
        """Return those of the topic's partitions that have a leader."""
        return self._metadata.available_partitions_for_topic(topic) or set()


class Appended(NamedTuple):
    """The batch that append() has added to, and how many events."""

    batch: SentBatch
    is_new: bool
    events: int


def has_open_batch(queue: Sequence[Any]) -> bool:
    """Return whether the last batch of a partition's queue can take more events.

    It must be one of ours, not made by the client when it split another, and the client must not
    have closed it because it was sent, has expired or was aborted.
    """
    if not queue:
        return False
    sent = queue[-1]._record_futures
    return isinstance(sent, SentBatch) and not (sent.is_full or queue[-1].records._closed)


def fill(batch: Any, events: Events, headers: bytes, batch_size: int) -> int:
    """Add as many of the events to a batch as fit, as its records' own append() does; how many."""
    records, builder = batch.records, batch.records._builder
    now = int(time.time() * 1000)
    if builder._first_timestamp is None:
        builder._first_timestamp = builder._max_timestamp = now
    encoded = encode(
        events.keys,
        events.values,
        headers,
        timestamp_delta=now - builder._first_timestamp,
        first_offset=records._next_offset,
        room=batch_size - len(builder._buffer),
    )
    builder._buffer += encoded.records
    builder._max_timestamp = max(builder._max_timestamp, now)
    builder._num_records += encoded.events
    records._next_offset += encoded.events
    builder._last_offset = records._next_offset - 1
    added = events.part(0, encoded.events)
    batch._record_futures.add(added.numbers, added.sizes, len(encoded.records))
    return encoded.events


# ---------------------------------------------------------------- consumer


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaConsumer that names a partition without a leader, and reads any header name."""

    def beginning_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().beginning_offsets(*arguments, **options)

    def end_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().end_offsets(*arguments, **options)

    def poll(self, *arguments: Any, **options: Any) -> Any:
        """Return the next events; none once, before the first header name that is not UTF-8."""
        try:
            return super().poll(*arguments, **options)
        except errors.CorruptRecordError as error:
            if "UnicodeDecodeError" not in str(error) or accepts_any_header_name():
                raise
        accept_any_header_name()
        # The events of the failed batch are fetched again
        self._fetcher._next_partition_records.drain()
        return {}


@contextmanager
def missing_leader_named() -> Iterator[None]:
    """Raise LeaderNotAvailableError where the client raises KeyError.

    It looks up a partition in the answers of all leaders, and has none of a partition without a
    leader. No upstream issue was found.
    """
    try:
        yield
    except KeyError as error:
        [partition] = error.args
        message = f"partition {partition.partition} has no leader"
        raise errors.LeaderNotAvailableError(message) from error


def positions(consumer: Consumer) -> dict[TopicPartition, int]:
    """Return the next offset to read in each assigned partition where the client knows it.

    position() returns the same, but looks at all partitions each time: for each of 3,000, it takes
    half a minute.
    """
    known = consumer._subscription.all_consumed_offsets()
    return {partition: position.offset for partition, position in known.items()}


# Kafka and other clients accept any bytes as the name of a header; kafka-python rejects an event
# whose header name is not UTF-8 (no upstream issue was found). So its method that reads an event is
# replaced, but only once needed, because the replacement is slower.
READ_RECORD = DefaultRecordBatch._read_msg


class HeaderName(str):
    """The name of a header, which need not be UTF-8; encode() returns its bytes."""

    def encode(self, *_: Any) -> bytes:
        return super().encode("utf-8", "surrogateescape")


class LenientBuffer(bytes):
    """The bytes of a batch of events; the text in it need not be UTF-8."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return LenientBuffer(part) if isinstance(index, slice) else part

    def decode(self, *_: Any) -> str:
        return HeaderName(super().decode("utf-8", "surrogateescape"))


def read_record_leniently(batch: Any) -> Any:
    """Read the next event of a batch, whatever its header names."""
    if not isinstance(batch._buffer, LenientBuffer):
        batch._buffer = LenientBuffer(batch._buffer)
    return READ_RECORD(batch)


def accepts_any_header_name() -> bool:
    return DefaultRecordBatch._read_msg is read_record_leniently


def accept_any_header_name() -> None:
    DefaultRecordBatch._read_msg = read_record_leniently
