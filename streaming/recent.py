"""What a topic holds from the last minutes, so that --backfill knows where an earlier run ended."""

import itertools
import time
from contextlib import closing
from typing import NamedTuple

from kafka import TopicPartition, errors

from streaming.console import say
from streaming.kafka_client import Kafka
from streaming.kafka_internals import Consumer
from streaming.timing import PATIENCE

RECENT = 360  # seconds: a minute more than X resends
MAX_EVENTS = 125_000  # six minutes of tweets at six times the usual rate
MAX_BATCHES = 100  # per poll; most have an event each, none more than a megabyte
READ_STALL = 8 * PATIENCE  # seconds without progress after which reading is given up


class RecentEvents(NamedTuple):
    """The events of the last RECENT seconds and at least one before them, oldest first.

    Their times (time.time()), and the keys of those that have one.
    """

    times: list[float]
    keys: list[str]


def read_recent_events(kafka: Kafka, topic: str) -> RecentEvents:
    """Return what the topic holds; say so if it cannot be read."""
    options = kafka.options(Consumer, enable_auto_commit=False, auto_offset_reset="earliest")
    with closing(kafka.connect(Consumer, options)) as consumer:
        try:
            events = read_since(consumer, topic, time.time() - RECENT)
        except errors.KafkaError as error:
            consequence = "--backfill cannot fill the gap since the last run"
            if isinstance(error, errors.AuthorizationError):
                consequence += "; it needs the READ permission on the topic"
            say(f"cannot read topic {topic}: {kafka.explain(error).cause}. {consequence}.")
            return RecentEvents([], [])
    keys = [event.key.decode(errors="replace") for event in events if event.key]
    return RecentEvents([event.time for event in events], keys)


class RecentEvent(NamedTuple):
    time: float
    key: bytes | None


def read_since(consumer: Consumer, topic: str, since: float) -> list[RecentEvent]:
    """Read what each partition has from `since` (time.time()) on, and the event before that."""
    numbers = consumer.partitions_for_topic(topic) or ()
    partitions = [TopicPartition(topic, number) for number in numbers]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    firsts = consumer.offsets_for_times(dict.fromkeys(partitions, int(since * 1000)))
    for partition in partitions:
        first = firsts[partition].offset if firsts[partition] else ends[partition]
        consumer.seek(partition, max(first - 1, 0))
    return read_to(consumer, ends)


def read_to(consumer: Consumer, ends: dict[TopicPartition, int]) -> list[RecentEvent]:
    """Read up to these offsets; return the newest MAX_EVENTS, in the order of their times."""
    events: list[RecentEvent] = []
    deadline = time.monotonic() + READ_STALL
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        polled = consumer.poll(200, max_records=MAX_BATCHES)
        if polled:
            deadline = time.monotonic() + READ_STALL
        if time.monotonic() > deadline:
            raise errors.KafkaTimeoutError
        for batch in itertools.chain.from_iterable(polled.values()):
            for record in batch.records():
                events.append(RecentEvent(max(record.timestamp or 0, 0) / 1000, record.key))
        if len(events) > 2 * MAX_EVENTS:
            events = newest(events)
    return newest(events)


def newest(events: list[RecentEvent]) -> list[RecentEvent]:
    """Return the MAX_EVENTS newest, in the order of their times."""
    return sorted(events, key=lambda event: event.time)[-MAX_EVENTS:]
