"""Every use of what kafka-python does not document; nothing else relies on its internals.

Each entry says what it does and why. All were checked with kafka-python 3.0.12, which
requirements.txt pins: to upgrade, read this file again and run all tests.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from kafka import KafkaConsumer, KafkaProducer, TopicPartition, errors
from kafka.partitioner import StickyPartitioner
from kafka.record.default_records import DefaultRecordBatch

VERSION = "3.0.12"


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
    """A KafkaProducer that only close() closes.

    Its __del__ closes it once more when Python exits, and shows a traceback there if a delivery has
    failed (kafka-python issues 741 and 1872 are about others like it).
    """

    def __del__(self) -> None:
        pass


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
