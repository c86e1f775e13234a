"""What consumer.py --list prints: topics or partitions, and how far a group has read them."""

import itertools
import json
from functools import partial
from typing import Any, NamedTuple, NoReturn

from kafka import OffsetSpec, TopicPartition, errors

from streaming.console import fail
from streaming.kafka_client import Kafka, committed_offsets
from streaming.kafka_errors import Explanation
from streaming.kafka_internals import describe_topics

# Their own messages list every partition affected
MOVING_ERRORS = (
    errors.LeaderNotAvailableError,
    errors.NotLeaderForPartitionError,
    errors.CoordinatorNotAvailableError,
    errors.CoordinatorLoadInProgressError,
    errors.NotCoordinatorError,
)
NOT_READY = Explanation("a leader or coordinator is not ready", "Try again in a minute.")

# How a line's fields, by their names in --json, are shown without --json
UNITS = {"partitions": "partition", "events": "event"}
LABELS = {
    "partition": "partition",
    "first_offset": "first",
    "end_offset": "end",
    "leader": "leader",
    "committed": "committed",
    "lag": "lag",
}

Row = dict[str, Any]  # a line's fields, in order; None: nonexistent or unknown


class Partition(NamedTuple):
    """A partition and the group's place in it; None: it does not exist, or is unknown."""

    topic: str
    number: int
    leader: int | None
    first: int | None
    end: int | None
    committed: int | None

    @property
    def events(self) -> int | None:
        """The number of offsets: an upper bound, as compaction and transactions leave gaps."""
        return None if self.first is None or self.end is None else self.end - self.first

    @property
    def lag(self) -> int | None:
        return None if self.committed is None or self.end is None else self.end - self.committed


def list_lines(kafka: Kafka, topic: str | None, group: str | None, as_json: bool) -> list[bytes]:
    """Return the lines: one per topic, or per partition of the given topic.

    With a group, they include its committed offsets and lag. Exit if Kafka does not answer.
    """
    try:
        question = partial(fetch_partitions, topic=topic, group=group)
        partitions = kafka.ask(question)
    except errors.KafkaError as error:
        fail_to_list(kafka, topic, error)
    if topic and not partitions:
        fail_to_list(kafka, topic, errors.UnknownTopicOrPartitionError())
    return format_lines(partitions, topic, group, as_json)


def fail_to_list(kafka: Kafka, topic: str | None, error: errors.KafkaError) -> NoReturn:
    what = f"topic {topic}" if topic else "the topics"
    reason = NOT_READY if isinstance(error, MOVING_ERRORS) else kafka.explain(error)
    fail(f"cannot list {what}: {reason}")


def fetch_partitions(admin: Any, topic: str | None, group: str | None) -> list[Partition]:
    """Return the partitions of the topic, in order, or of all topics; none if it does not exist."""
    leaders = fetch_leaders(admin, topic)
    if not leaders:
        return []
    committed = committed_offsets(admin, group) if group else {}
    return fetch_offsets(admin, leaders, committed)


def fetch_leaders(admin: Any, topic: str | None) -> dict[TopicPartition, int | None]:
    """Return the topic's partitions, or those of all topics, in order, and their leaders."""
    leaders = {}
    for found in describe_topics(admin, topic):
        if topic and found.error is errors.UnknownTopicOrPartitionError:
            return {}
        if found.error is not errors.NoError:
            raise found.error
        for number, leader in found.leaders.items():
            leaders[TopicPartition(found.name, number)] = leader
    return dict(sorted(leaders.items()))


def fetch_offsets(
    admin: Any, leaders: dict[TopicPartition, int | None], committed: dict[TopicPartition, int]
) -> list[Partition]:
    """Return the partitions with their offsets; without a leader, first and end are unknown.

    The end is that of the log, as Kafka's own tools show it: events of transactions that are
    still open come before it.
    """
    led = [partition for partition, leader in leaders.items() if leader is not None]
    firsts, ends = (
        admin.list_partition_offsets(dict.fromkeys(led, spec))
        for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    )
    return [
        Partition(
            topic=partition.topic,
            number=partition.partition,
            leader=leader,
            first=firsts[partition].offset if partition in firsts else None,
            end=ends[partition].offset if partition in ends else None,
            committed=committed.get(partition),
        )
        for partition, leader in leaders.items()
    ]


def format_lines(
    partitions: list[Partition], topic: str | None, group: str | None, as_json: bool
) -> list[bytes]:
    """Return the lines about partitions of the given topic, or of all topics."""
    if topic:
        rows = [partition_row(partition) for partition in partitions]
    else:
        by_topic = itertools.groupby(partitions, lambda partition: partition.topic)
        rows = [topic_row(name, list(members)) for name, members in by_topic]
    hidden = set() if group else {"committed", "lag"}
    if topic and not as_json:
        hidden.add("topic")  # it would be the same on every line
    rows = [without(row, hidden) for row in rows]
    lines = [json.dumps(row) for row in rows] if as_json else format_rows(rows)
    return [line.encode() for line in lines]


def partition_row(partition: Partition) -> Row:
    return {
        "topic": partition.topic,
        "partition": partition.number,
        "first_offset": partition.first,
        "end_offset": partition.end,
        "leader": partition.leader,
        "committed": partition.committed,
        "lag": partition.lag,
    }


def topic_row(name: str, partitions: list[Partition]) -> Row:
    """Return a topic's row; its lag is that of the partitions with a committed offset."""
    lags = [partition.lag for partition in partitions if partition.committed is not None]
    return {
        "topic": name,
        "partitions": len(partitions),
        "events": add([partition.events for partition in partitions]),
        "lag": add(lags) if lags else None,
    }


def add(numbers: list[int | None]) -> int | None:
    """Return the sum; None if one of the numbers is unknown."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def without(row: Row, names: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


def format_rows(rows: list[Row]) -> list[str]:
    """Return the rows as text, with their columns aligned."""
    if not rows:
        return []
    columns = [format_column(name, [row[name] for row in rows]) for name in rows[0]]
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def format_column(name: str, values: list[Any]) -> list[str]:
    """Return cells of equal width: `12 events`, `end 12`, or a topic's name."""
    texts = ["-" if value is None else str(value) for value in values]
    width = max(map(len, texts))
    if name in LABELS:
        return [f"{LABELS[name]} {text:>{width}}" for text in texts]
    if name in UNITS:
        units = [UNITS[name] if value == 1 else f"{UNITS[name]}s" for value in values]
        unit_width = max(map(len, units))
        cells = zip(texts, units, strict=True)
        return [f"{text:>{width}} {unit:<{unit_width}}" for text, unit in cells]
    return [text.ljust(width) for text in texts]
