"""consumer.py: its flags and formats in process, and all else run as users do, on a real Kafka."""

import argparse
import errno
import filecmp
import functools
import json
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO
from unittest.mock import Mock

import confluent_kafka
import pytest
from kafka import (
    KafkaAdminClient,
    KafkaConsumer,
    KafkaProducer,
    OffsetAndMetadata,
    TopicPartition,
)

import consumer as script
from broker import Broker
from conftest import (
    GUARD,
    HELD_UP,
    Read,
    Running,
    Scripts,
    Summary,
    most_memory,
    read_summary,
    unread_pipe,
    wait_until,
    without,
)
from streaming import flags
from streaming.output import Output, json_lines, plain_lines
from streaming.records import Record
from streaming.watch import Membership
from test_fetched_batches import LAYOUT, with_records

BIG = b"x" * 1000
EXPIRED = (
    b"consumer.py: the next events have expired or been deleted; "
    b"continuing with the oldest available\n"
)
SMALL_FETCHES = {"KAFKA_FETCH_MAX_BYTES": "10000", "KAFKA_MAX_PARTITION_FETCH_BYTES": "10000"}
# The members of a group hear of each other soon
SOON = {"KAFKA_HEARTBEAT_INTERVAL_MS": "100"}


def waiting_for(topic: str) -> bytes:
    return f"consumer.py: topic {topic} does not exist yet; waiting for it\n".encode()


def missing(topic: str) -> bytes:
    return f"consumer.py: cannot read topic {topic}: no such topic. Check -t.\n".encode()


def publish(producer: KafkaProducer, topic: str, events: range, **options: object) -> None:
    for event in events:
        producer.send(topic, b"%d" % event, **options)
    producer.flush()


def publish_a_batch(kafka: Broker, topic: str, events: range, **options: object) -> None:
    """Publish numbers as one batch, all with the same recent time (Kafka deletes old events)."""
    with KafkaProducer(
        bootstrap_servers=kafka.address, linger_ms=60_000, batch_size=1 << 20, **options
    ) as client:
        publish(client, topic, events, timestamp_ms=int(time.time() * 1000))


def publish_2_megabytes(producer: KafkaProducer, topic: str, **options: object) -> None:
    for _ in range(2000):
        producer.send(topic, BIG, **options)
    producer.flush()


def check(
    consumer: Running, out: bytes, err: bytes = b"", status: int = 0, number: int | None = None
) -> None:
    """Check how it ends, after signal `number` if any, and all that it has printed."""
    done = consumer.end(number)
    assert (done.returncode, done.stdout, done.stderr) == (status, out, err)


def lines(events: range) -> bytes:
    return b"".join(b"%d\n" % event for event in events)


def numbers_in(output: bytes) -> list[int]:
    return sorted(map(int, output.split()))


def committed(scripts: Scripts, group: str, topic: str) -> dict[int, int | None]:
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    partitions = consumer.partitions_for_topic(topic)
    found = {number: consumer.committed(TopicPartition(topic, number)) for number in partitions}
    consumer.close()
    return found


def read_rest(reader: Any, enough: float = math.inf) -> bytes:
    """What comes until there is enough of it, or the writer has closed the pipe."""
    found = bytearray()
    while len(found) < enough:
        assert select.select([reader], [], [], GUARD)[0], "the script neither writes nor ends"
        block = reader.read1(1 << 16)
        if not block:
            break
        found += block
    return bytes(found)


def watch_memory(running: Running) -> int:
    """Wait for the script to end, at most 10 minutes, and return its peak memory in MB."""
    most, end = 0, time.monotonic() + 600
    while running.process.poll() is None and time.monotonic() < end:
        most = most_memory(running.process.pid) or most
        time.sleep(0.05)
    return most


def is_full(pipe: int) -> bool:
    return not select.select([], [pipe], [], 0)[1]


@contextmanager
def held_up(
    scripts: Scripts, topic: str, *arguments: str, **settings: str
) -> Iterator[tuple[Running, BinaryIO]]:
    """A consumer that has begun to print 2 MB, and its full pipe, which nobody reads yet."""
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, *arguments, stdout=out, env=settings)
        wait_until(lambda: is_full(out) or consumer.process.poll() is not None)
        assert is_full(out)
        os.close(out)
        yield consumer, reader


# ------------------------------------------------------------------ flags

NOW = 1_795_000_000.25  # 2026-11-18T11:06:40.25Z
MILLISECONDS = {
    "0s": 1_795_000_000_250,
    "90s": 1_794_999_910_250,
    "10m": 1_794_999_400_250,
    "2h": 1_794_992_800_250,
    "3d": 1_794_740_800_250,
    "999999999d": 0,
    "2026-11-18T11:06:40.500z": 1_795_000_000_500,
    "2026-11-18 14:06": 1_794_999_960_000,
    "2026-11-18T09:06:40-02:00": 1_795_000_000_000,
    "2026-11-18": 1_794_949_200_000,
    "1960-01-01": 0,
}


def test_since_takes_how_long_ago_or_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, the local time is three hours ahead of UTC."""
    monkeypatch.setattr(flags, "time", SimpleNamespace(time=lambda: NOW))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XYZ-3")
        time.tzset()
        found = {text: flags.time_type(text) for text in MILLISECONDS}
    time.tzset()
    assert found == MILLISECONDS
    for text in ("soon", "", "10w", "-5m", "1.5h", "10 m", "10M", "1234567890s", "2026-13-01"):
        with pytest.raises(argparse.ArgumentTypeError) as raised:
            flags.time_type(text)
        example = "10m (ago), 2026-11-25 or 2026-11-25T14:00:00Z"
        assert str(raised.value) == f"{text!r} is not a time, such as {example}"


def test_flags_that_exclude_each_other(refusal: Callable[..., tuple[Any, str]]) -> None:
    starts = ("--latest", "--last 5", "--since 999999999d")
    pairs = [("--since 10m", "--latest"), ("--last 5", "--since 10m")]
    for first, flag in [*pairs, *(("--list", flag) for flag in ("-n 1", "-e", "-K :", *starts))]:
        status, message = refusal(script.parse_flags, f"{first} {flag}".split())
        words = f"argument {flag.split()[0]}: not allowed with argument {first.split()[0]}"
        assert (status, message) == (2, f"{words}. See --help.")


# ------------------------------------------------------------------ formats


def test_a_line() -> None:
    for key, value, separator, line in (
        (b"k", b"v", None, b"v"),
        (b"", b"v", b"::", b"::v"),
        (None, b"v", b":", b"v"),
        (b"k", None, b":", b"k:"),
        (None, None, None, b""),
        (b"\xff", b"\0\r\n", b"\t", b"\xff\t\0\r\n"),
    ):
        batch: Any = SimpleNamespace(pairs=lambda pair=([key], [value]): [pair])
        assert list(plain_lines(batch, separator)) == [[line]]


def test_a_json_object_is_as_json_dumps_writes_it() -> None:
    text = "".join(map(chr, [*range(0x100), 0x2028, 0xFFFF, 0x1F389])).encode()
    for data in (None, b"", b'"', text):
        record = Record(5, -1, data, data, [(b"", data), (text, None)])
        batch: Any = SimpleNamespace(
            partition=TopicPartition("a.topic", 7), records=lambda it=record: iter([it])
        )
        field = None if data is None else data.decode()
        event = {"topic": "a.topic", "partition": 7, "offset": 5, "timestamp": -1}
        headers = [{"key": "", "value": field}, {"key": text.decode(), "value": None}]
        whole = {**event, "key": field, "value": field, "headers": headers}
        assert list(json_lines(batch)) == [[json.dumps(whole, ensure_ascii=False).encode()]]


# ------------------------------------------------------------------ where to start and to stop


def test_a_missing_topic_is_waited_for_and_not_created(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """But -e wants it now."""
    plain = scripts.start("consumer", "-t", topic)
    env = {"KAFKA_METADATA_MAX_AGE_MS": "100"}  # so it asks Kafka ten times a second
    asking = scripts.start("consumer", "-v", "-t", topic, env=env)
    asking.wait_for(lambda it: it.err.partition(waiting_for(topic))[2].count(b" metadata: ") > 5)
    plain.wait_for(lambda it: it.err)
    check(scripts.start("consumer", "-t", topic, "-e"), b"", missing(topic), 1)
    assert topic not in admin.list_topics()
    done = scripts.run("producer", "-t", topic, "--partitions", 3, "-n", 30, "--interval", 0)
    assert done.returncode == 0
    for consumer in (plain, asking):
        consumer.wait_for(lambda it: it.out.count(b"\n") == 30)
    assert len(admin.describe_topics([topic])[0]["partitions"]) == 3
    done = plain.end(signal.SIGTERM)
    assert (done.returncode, done.stderr) == (0, waiting_for(topic))


def test_only_the_topic_of_exactly_that_name_is_read(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """The consumer finds the topic by a pattern, in which a dot would match any character."""
    name = f"{topic}.x-y_z"
    for number, other in enumerate([f"{topic}ax-y_z", f"{name}2", f"2{name}", name]):
        publish(producer, other, range(number, number + 1))
    consumer = scripts.start("consumer", "-t", name)
    consumer.wait_for(lambda it: b"3\n" in it.out)
    publish(producer, name, range(4, 5))
    consumer.wait_for(lambda it: b"4\n" in it.out)
    check(consumer, b"3\n4\n", number=signal.SIGINT)


def test_latest_prints_what_comes_and_later_partitions_from_their_first_event(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(100))
    consumer = scripts.start("consumer", "-t", topic, "--latest", "-n", 15)
    wait_until(consumer.takes_signals)
    publish(producer, topic, range(100, 110))
    consumer.wait_for(lambda it: it.out == lines(range(100, 110)))
    admin.create_partitions({topic: 3})
    with KafkaProducer(bootstrap_servers=scripts.env["KAFKA_BOOTSTRAP_SERVERS"]) as later:
        publish(later, topic, range(110, 120), partition=2)
    check(consumer, lines(range(100, 115)))


def test_e_stops_where_the_topic_ended_at_the_start(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """Whether a partition is empty, or gets more events in the meantime."""
    admin.create_topics({topic: {"num_partitions": 4}})
    check(scripts.start("consumer", "-t", topic, "-e"), b"")
    for partition in range(2):
        first = partition * 10
        publish(producer, topic, range(first, first + 10), partition=partition)
    publish_2_megabytes(producer, topic, partition=2)
    settings = {"KAFKA_MAX_PARTITION_FETCH_BYTES": "500000"}  # the last quarter brings more
    with held_up(scripts, topic, "-e", **settings) as (consumer, reader):  # so it has started
        for partition in (0, 2, 3):
            publish(producer, topic, range(20, 30), partition=partition)
        printed = read_rest(reader).splitlines()
    assert consumer.end().returncode == 0
    assert sorted(printed) == sorted([*lines(range(20)).split(), *[BIG] * 2000])


@pytest.mark.stress
def test_e_on_a_topic_of_many_partitions(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """One position() takes 10 ms here, so it is asked only where events do not show the end."""
    admin.create_topics({topic: {"num_partitions": 3000}})
    for number in range(3000):
        producer.send(topic, b"%d" % number, partition=number)
    producer.flush()
    done = scripts.run("consumer", "-t", topic, "-e")
    assert numbers_in(done.stdout) == list(range(3000))
    last = scripts.run("consumer", "-t", topic, "--last", 1, "-n", 3000)
    assert sorted(last.stdout.split()) == sorted(done.stdout.split())
    assert len(scripts.run("consumer", "--list", "-t", topic).stdout.splitlines()) == 3000
    admin.delete_topics([topic])


def publish_until_compacted(producer: KafkaProducer, topic: str, kafka: Broker) -> list[bytes]:
    """Publish numbers with seven keys to two partitions until compaction has run in both.

    Returns all values. Kafka says where it has compacted, and only what has newer events after it.
    """
    values: list[bytes] = []

    def is_compacted() -> bool:
        for number in range(len(values), len(values) + 98):
            key = number % 7
            values.append(b"%d" % number)
            producer.send(topic, values[-1], key=b"%d" % key, partition=key % 2)
        producer.flush()
        said = (kafka.data / "log" / "cleaner-offset-checkpoint").read_text()
        return all(f"{topic} {partition} " in said for partition in range(2))

    wait_until(is_compacted)
    return values


def last_offsets(places: list[tuple[int, int]]) -> int:
    """The number of the last offsets of partition 0 that begin with its last gap."""
    offsets = [offset for partition, offset in places if partition == 0]
    return offsets[-1] + 1 - max(set(range(offsets[-1])) - set(offsets))


def test_e_on_a_compacted_topic(
    scripts: Scripts,
    topic: str,
    admin: KafkaAdminClient,
    producer: KafkaProducer,
    kafka: Broker,
    read: Read,
) -> None:
    """Most offsets are gaps, once compaction has really run. --last counts them, too."""
    policy = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01"}
    configs = {**policy, "segment.ms": "100"}
    admin.create_topics({topic: {"num_partitions": 2, "configs": configs}})
    values = publish_until_compacted(producer, topic, kafka)

    def print_all() -> bool:
        """Whether no compaction has come between."""
        places[:] = [(record.partition, record.offset) for record in read(topic)]
        run = ("consumer", "-t", topic, "-e", "--json")
        runs = [scripts.start(*run), scripts.start(*run, "--last", last_offsets(places))]
        whole[:], last[:] = (map(json.loads, run.end().stdout.splitlines()) for run in runs)
        return len(read(topic)) == len(places)

    places: list[tuple[int, int]] = []
    whole: list[Any] = []
    last: list[Any] = []
    wait_until(print_all)
    assert len(places) < len(values)
    newest = {b"%d" % (number % 7): value for number, value in enumerate(values)}
    assert {event["key"].encode(): event["value"].encode() for event in whole} == newest
    assert sorted((event["partition"], event["offset"]) for event in whole) == places
    count, ends = last_offsets(places), dict(places)  # the newest event of a partition is its last
    expected = [place for place in places if place[1] > ends[place[0]] - count]
    assert sorted((event["partition"], event["offset"]) for event in last) == expected
    assert len([place for place in expected if place[0] == 0]) < count


def test_e_on_a_topic_with_transactions(scripts: Scripts, topic: str, kafka: Broker) -> None:
    """Control records take up offsets, but are no events; nor is what was aborted."""
    with KafkaProducer(bootstrap_servers=kafka.address, transactional_id=topic) as client:
        client.init_transactions()
        for number in range(6):
            client.begin_transaction()
            publish(client, topic, range(number * 10, number * 10 + 10))
            if number % 2:
                client.abort_transaction()
            else:
                client.commit_transaction()
    expected = b"".join(lines(range(number, number + 10)) for number in (0, 20, 40))
    # Each transaction takes up eleven offsets, so there are 66
    last_lines = {5: b"", 15: lines(range(47, 50)), 50: expected[20:], 1000: expected}
    run = ("consumer", "-t", topic, "-e")
    plain = scripts.start(*run)
    group = scripts.start(*run, "-g", topic)
    every = scripts.start(*run, env={"KAFKA_ISOLATION_LEVEL": "read_uncommitted"})
    lasts = [scripts.start(*run, "--last", count) for count in last_lines]
    check(plain, expected)
    check(group, expected)
    check(every, lines(range(60)))
    for last, some in zip(lasts, last_lines.values(), strict=True):
        check(last, some)
    check(scripts.start(*run, "-g", topic), b"")


def test_last_starts_so_many_events_before_the_end_of_each_partition(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """A group that has a position resumes there."""
    admin.create_topics({topic: {"num_partitions": 4}})
    for partition in range(3):
        first = partition * 10
        publish(producer, topic, range(first, first + 10), partition=partition)
    last = [8, 9, 18, 19, 28, 29]
    consumer = scripts.start("consumer", "-t", topic, "--last", 2, "-n", 7)
    group = scripts.start("consumer", "-t", topic, "--last", 2, "-e", "-g", topic)
    assert numbers_in(group.end().stdout) == last
    consumer.wait_for(lambda it: it.out.count(b"\n") == 6)
    publish(producer, topic, range(30, 31), partition=3)
    done = consumer.end()
    assert (done.returncode, numbers_in(done.stdout), done.stderr) == (0, [*last, 30], b"")
    check(scripts.start("consumer", "-t", topic, "--last", 2, "-e", "-g", topic), b"30\n")


def test_since_starts_at_a_time(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """At the first event that is no older; where there is none, at the next one to come."""
    now = int(time.time())
    admin.create_topics({topic: {"num_partitions": 3}})
    for age in range(9, -1, -1):
        at = (now - age * 3600) * 1000
        producer.send(topic, b"%d" % age, partition=age % 2, timestamp_ms=at)
    producer.flush()
    then = datetime.fromtimestamp(now - 3 * 3600, timezone.utc)
    ages = {
        "150m": range(3),
        f"{then:%Y-%m-%dT%H:%M:%S}Z": range(4),
        "1960-01-01": range(10),
        "9999-12-31": range(0),
    }
    since = ("consumer", "-t", topic, "--since")
    next_one = scripts.start(*since, "2100-01-01", "-n", 1)
    bounded = [scripts.start(*since, moment, "-e") for moment in ages]
    for run, expected in zip(bounded, ages.values(), strict=True):
        done = run.end()
        assert (done.returncode, done.stderr) == (0, b"")
        assert numbers_in(done.stdout) == list(expected)
    wait_until(next_one.takes_signals)
    producer.send(topic, b"next", partition=2)
    producer.flush()
    check(next_one, b"next\n")


@pytest.mark.parametrize("is_back", [False, True])
def test_e_ends_where_the_topic_is_deleted(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer, is_back: bool
) -> None:
    """If it is back, with fewer events, the new ones may be printed or not."""
    publish_2_megabytes(producer, topic)
    with held_up(scripts, topic, "-e", **SMALL_FETCHES) as (consumer, reader):
        admin.delete_topics([topic])
        if is_back:
            wait_until(lambda: topic not in admin.list_topics())
            assert scripts.run("producer", "-t", topic, input=lines(range(10))).returncode == 0
        printed = read_rest(reader).replace(BIG + b"\n", b"")
    if is_back:
        done = consumer.end()
        assert (done.returncode, done.stderr) in [(0, b""), (0, EXPIRED)]
        assert printed in (b"", lines(range(10)))
    else:
        check(consumer, b"", missing(topic), 1)
        assert printed == b""


# ------------------------------------------------------------------ what is read


def test_a_topic_in_every_codec(
    scripts: Scripts, topic: str, kafka: Broker, tmp_path: Path
) -> None:
    """Written by librdkafka. Without a codec's package, the events before it are printed."""
    expected = []
    for codec in ("none", "gzip", "snappy", "lz4", "zstd"):
        settings = {"bootstrap.servers": kafka.address, "compression.type": codec}
        client = confluent_kafka.Producer(settings)
        for number in range(3):
            value = f"{codec} {number} {'x' * 3000}".encode()
            client.produce(topic, value)
            expected.append(value + b"\n")
        assert client.flush(GUARD) == 0
    whole = scripts.start("consumer", "-t", topic, "-e")
    poor = scripts.start("consumer", "-t", topic, "-e", env=without("lz4", tmp_path))
    check(whole, b"".join(expected))
    reason = (
        f"consumer.py: cannot read topic {topic}: the package for lz4 compression is not "
        "installed. Run: pip install -r requirements.txt\n"
    )
    check(poor, b"".join(expected[:9]), reason.encode(), 1)


def test_events_that_are_deleted_before_they_are_read(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """As by retention: the groups are at 5 and 20, but Kafka has nothing before 35."""
    publish(producer, topic, range(20))
    early = scripts.start("consumer", "-t", topic, "-g", f"{topic}-1", "-n", 5)
    late = scripts.start("consumer", "-t", topic, "-g", f"{topic}-2", "--latest", "-e")
    check(early, lines(range(5)))
    check(late, b"")
    publish(producer, topic, range(20, 40))
    admin.delete_records({TopicPartition(topic, 0): 35})
    groups = (f"{topic}-1", f"{topic}-2")
    for run in [scripts.start("consumer", "-t", topic, "-g", group, "-e") for group in groups]:
        check(run, lines(range(35, 40)), EXPIRED)


def test_a_topic_that_is_deleted_while_it_is_read(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """The consumer waits for it, then reads it from its first event when it is back."""
    old, new = lines(range(20)), lines(range(100, 150))
    assert scripts.run("producer", "-t", topic, input=old).returncode == 0
    consumers = [scripts.start("consumer", "-t", topic, *flags) for flags in ([], ["-g", topic])]
    for consumer in consumers:
        consumer.wait_for(lambda it: it.out == old)
    admin.delete_topics([topic])
    for consumer in consumers:
        consumer.wait_for(lambda it: it.err)
    assert scripts.run("producer", "-t", topic, input=new).returncode == 0
    for consumer in consumers:
        consumer.wait_for(lambda it: it.out == old + new)
        done = consumer.end(signal.SIGINT)
        said = [line for line in done.stderr.splitlines(True) if b"is rebalancing" not in line]
        assert (done.returncode, said) == (0, [waiting_for(topic)])


def test_a_damaged_event(
    scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer
) -> None:
    """Its bytes have changed on the broker's disk, so that its checksum is wrong."""
    for number in range(2):  # in two batches
        publish(producer, topic, range(number, number + 1))
    path = kafka.data / "log" / f"{topic}-0" / "00000000000000000000.log"
    with path.open("r+b") as log:
        log.seek(-2, os.SEEK_END)
        log.write(b"?")
    reason = "the event at partition 0, offset 1 is corrupt: its checksum is wrong"
    message = f"consumer.py: cannot read topic {topic}: {reason}\n".encode()
    check(scripts.start("consumer", "-t", topic), b"0\n", message, 1)


def test_a_malformed_event(scripts: Scripts, topic: str, kafka: Broker) -> None:
    """Its checksum is right, so a client has written it so. It is in a batch with others."""
    publish_a_batch(kafka, topic, range(3))
    path = kafka.data / "log" / f"{topic}-0" / "00000000000000000000.log"
    batch = path.read_bytes()
    records = bytearray(batch[LAYOUT.size :])
    records[-8] += 2  # the length of the last one, of eight bytes
    path.write_bytes(with_records(batch, bytes(records)))
    reason = "the event at partition 0, offset 2 is corrupt"
    where = "a record does not end where its length says"
    message = f"consumer.py: cannot read topic {topic}: {reason}: {where}\n".encode()
    runs = [scripts.start("consumer", "-t", topic, *flags) for flags in ([], ["-n", 3], ["-e"])]
    fine = scripts.start("consumer", "-t", topic, "-n", 2)
    for run in runs:
        check(run, b"0\n1\n", message, 1)
    check(fine, b"0\n1\n")


def test_where_to_start_and_to_stop_inside_a_batch(
    scripts: Scripts, topic: str, kafka: Broker
) -> None:
    """A group goes on exactly there."""
    publish_a_batch(kafka, topic, range(100), compression_type="gzip")
    run = ("consumer", "-t", topic)
    last = scripts.start(*run, "--last", 30, "-e")
    some = scripts.start(*run, "--last", 30, "-n", 7, "--json")
    for first, end in ((0, 40), (40, 65)):
        check(scripts.start(*run, "-g", topic, "-n", end - first), lines(range(first, end)))
        assert committed(scripts, topic, topic) == {0: end}
    check(scripts.start(*run, "-g", topic, "-e"), lines(range(65, 100)))
    assert committed(scripts, topic, topic) == {0: 100}
    check(last, lines(range(70, 100)))
    events = [json.loads(line) for line in some.end().stdout.splitlines()]
    assert [event["offset"] for event in events] == list(range(70, 77))
    assert [event["value"] for event in events] == [str(number) for number in range(70, 77)]


def test_compressed_events_that_expand_a_lot(scripts: Scripts, topic: str, kafka: Broker) -> None:
    """A fetch has all of them, 100 MB; one batch at a time is in memory."""
    settings = {"bootstrap.servers": kafka.address, "compression.type": "zstd"}
    client = confluent_kafka.Producer({**settings, "message.max.bytes": 2_000_000})
    for number in range(100):
        client.produce(topic, b"%01000000d" % number)
    assert client.flush(GUARD) == 0
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=out, real=True)
        os.close(out)
        found = read_rest(reader, 99_000_000)
        memory = consumer.memory()
        found += read_rest(reader)
    assert consumer.end().returncode == 0
    assert sorted(found.splitlines()) == [b"%01000000d" % number for number in range(100)]
    assert memory < 80


def test_a_slow_reader_of_50_partitions(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """What the reader has not read stays in Kafka, not in memory."""
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"%0999d\n" % number for number in range(50_000)))
    assert scripts.run("producer", "-t", topic, "--partitions", 50, path).returncode == 0
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=out, real=True)
        os.close(out)
        found = read_rest(reader, 49_000_000)  # a pipe cannot hold the rest
        memory = consumer.memory()
        found += read_rest(reader)
    assert consumer.end().returncode == 0
    assert memory < 120
    assert sorted(found.splitlines()) == path.read_bytes().splitlines()


@pytest.mark.stress
def test_three_million_events(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, tmp_path: Path
) -> None:
    path, out = tmp_path / "events", tmp_path / "out"
    with path.open("wb") as file:
        file.writelines(b"%0170d\n" % number for number in range(3_000_000))
    producer = scripts.start("producer", "-t", topic, path, real=True)
    assert watch_memory(producer) < 120
    assert read_summary(producer.end().stderr) == Summary(3_000_000)
    with out.open("wb") as file:
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=file, real=True)
        assert watch_memory(consumer) < 120
        assert consumer.end().returncode == 0
    assert filecmp.cmp(path, out, shallow=False)
    admin.delete_topics([topic])
    path.unlink()
    out.unlink()


def test_k_is_the_inverse_of_the_producers(scripts: Scripts, topic: str) -> None:
    pairs = b"".join(b"key%d:value:%d\n" % (number % 7, number) for number in range(1000))
    data = pairs + b"no key\n:empty\nlast:\n"
    scripts.run("producer", "-t", topic, "-K", ":", "-Z", input=data)
    assert scripts.run("consumer", "-t", topic, "-K", ":", "-e").stdout == data


def test_json_holds_everything(scripts: Scripts, topic: str, producer: KafkaProducer) -> None:
    headers = [("source", "é".encode()), ("raw", b"\xff")]
    value = "🎉\n\0".encode()
    producer.send(topic, value, key=b"k", headers=headers, timestamp_ms=1_700_000_000_123)
    producer.send(topic, None, key=b"\xfe", timestamp_ms=1_700_000_000_456)
    producer.send(topic, b"", timestamp_ms=0)
    producer.flush()
    done = scripts.run("consumer", "-t", topic, "--json", "-e")
    assert done.stdout.decode() == (
        f'{{"topic": "{topic}", "partition": 0, "offset": 0, "timestamp": 1700000000123, '
        '"key": "k", "value": "🎉\\n\\u0000", "headers": [{"key": "source", "value": "é"}, '
        '{"key": "raw", "value_base64": "/w=="}]}\n'
        f'{{"topic": "{topic}", "partition": 0, "offset": 1, "timestamp": 1700000000456, '
        '"key_base64": "/g==", "value": null, "headers": []}\n'
        f'{{"topic": "{topic}", "partition": 0, "offset": 2, "timestamp": 0, '
        '"key": null, "value": "", "headers": []}\n'
    )


def test_header_names_that_are_not_utf8(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """kafka-python rejects such an event. It is in a batch with others, and compressed."""

    class Name(str):
        def encode(self, *_: object) -> bytes:
            return b"\xff\xfe"

    name = Name()
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    options = {"compression_type": "gzip", "linger_ms": 1000}
    with KafkaProducer(bootstrap_servers=address, **options) as compressing:
        for client in (producer, compressing):
            client.send(topic, b"before", headers=[("plain", b"1")])
            client.send(topic, b"odd", headers=[(name, b"2"), ("é", b"3")])
            client.send(topic, b"after")
            client.flush()
    last = scripts.start("consumer", "-t", topic, "-e", "--last", 2)
    done = scripts.run("consumer", "-t", topic, "-e", "--json", "-g", topic)
    assert (done.returncode, done.stderr) == (0, b"")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["value"] for event in events] == ["before", "odd", "after"] * 2
    odd = [{"key_base64": "//4=", "value": "2"}, {"key": "é", "value": "3"}]
    assert [event["headers"] for event in events] == [[{"key": "plain", "value": "1"}], odd, []] * 2
    assert last.end().stdout == b"odd\nafter\n"


# ------------------------------------------------------------------ groups


def test_the_members_of_a_group_share_the_partitions(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """A member says how many it has when others take them away or give them back."""
    admin.create_topics({topic: {"num_partitions": 2}})

    def start() -> Running:
        return scripts.start("consumer", "-t", topic, "-g", topic, env=SOON)

    def message(number: int) -> bytes:
        text = f"this member of group {topic} now reads {number} of 2 partitions"
        return f"consumer.py: {text}\n".encode()

    none = (
        f"consumer.py: no partition for this member: the other members of group {topic} have all "
        f"partitions of topic {topic} (2); waiting for one\n"
    ).encode()
    first = start()
    for number in range(4):  # one after the other, so that it looks repeatedly and knows its two
        publish(producer, topic, range(number, number + 1), partition=0)
        expected = lines(range(number + 1))
        first.wait_for(lambda it, whole=expected: it.out == whole)  # type: ignore[misc]
    second = start()
    first.wait_for(lambda it: message(1) in it.err)
    for partition, events in enumerate((range(4, 2500), range(2500, 5000))):
        publish(producer, topic, events, partition=partition)
    wait_until(lambda: (first.out + second.out).count(b"\n") >= 5000)
    assert numbers_in(bytes(first.out + second.out)) == list(range(5000))
    assert len(second.out.splitlines()) in (2496, 2500)
    members = [first, second, start()]
    wait_until(lambda: any(none in member.err for member in members))
    [waiting] = [member for member in members if none in member.err]
    members.remove(waiting)
    for member in members:
        assert member.end(signal.SIGTERM).returncode == 0
    waiting.wait_for(lambda it: message(2) in it.err)
    assert waiting.end(signal.SIGTERM).returncode == 0


def test_a_group_whose_members_have_another_assignor(
    scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(1))
    address = {"bootstrap.servers": kafka.address, "group.id": topic}
    strategy = {"partition.assignment.strategy": "cooperative-sticky"}
    member = confluent_kafka.Consumer(address | strategy)
    member.subscribe([topic])
    wait_until(lambda: member.poll(0.1) or member.assignment())
    message = (
        f"consumer.py: cannot read topic {topic}: the group's other members use a different "
        "assignor. Use another group (-g), or set theirs to range.\n"
    )
    check(scripts.start("consumer", "-t", topic, "-g", topic), b"", message.encode(), 1)
    member.close()


def test_e_ends_for_a_member_without_partitions(
    scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer
) -> None:
    """Another one has the only partition, and commits nothing.

    The partitions go to the members by their names, which begin with that of the client.
    """
    publish(producer, topic, range(10))
    address = {"bootstrap.servers": kafka.address, "group.id": topic, "client.id": "a"}
    settings = {"enable.auto.commit": False, "partition.assignment.strategy": "range"}
    member = confluent_kafka.Consumer(address | settings)
    member.subscribe([topic])
    wait_until(lambda: member.poll(0.1) or member.assignment())
    run = scripts.start("consumer", "-t", topic, "-g", topic, "-e")
    wait_until(lambda: (member.poll(0.1) and False) or run.process.poll() is not None)
    assert run.out == b""
    none = f"no partition for this member: the other members of group {topic} have all"
    assert not run.err or none in run.err.decode()
    assert run.end().returncode == 0
    assert len(member.assignment()) == 1
    member.close()
    done = scripts.run("consumer", "-t", topic, "-g", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (0, lines(range(10)), b"")


class Member:
    """What the client tells Membership about a topic of two partitions."""

    def __init__(self) -> None:
        self.topics = {"events"}
        self.watch = Membership(self, "events", "readers")

    def subscription(self) -> set[str]:
        return self.topics

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1}

    def forget_positions(self) -> None: ...

    def rebalance(self, *assigned: int) -> None:
        partitions = {TopicPartition("events", number) for number in assigned}
        self.watch.on_partitions_revoked(set())
        self.watch.check(has_events=False)
        self.watch.on_partitions_assigned(partitions)
        self.watch.check(has_events=False)


def test_what_a_member_says(configure: object, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing about its first partitions, the same number, or a topic that does not exist yet."""
    none = (
        "script.py: no partition for this member: the other members of group readers have all "
        "partitions of topic events (2); waiting for one\n"
    )
    reads = "script.py: this member of group readers now reads {} of 2 partitions\n"

    def said() -> str:
        return capfd.readouterr().err

    member = Member()
    for assigned, message in (
        ((0, 1), ""),
        ((1,), reads.format(1)),
        ((0,), ""),
        ((), none),
        ((0, 1), reads.format(2)),
    ):
        member.rebalance(*assigned)
        assert said() == message
        assert member.watch.is_settled
    member.topics = set()  # deleted
    member.rebalance()
    assert (said(), member.watch.is_settled) == ("", False)
    member.topics = {"events"}
    member.rebalance(0, 1)
    assert said() == ""
    other = Member()
    other.topics = set()
    other.rebalance()
    assert said() == ""
    other.topics = {"events"}
    other.rebalance()
    assert said() == none


def test_a_group_goes_on_where_it_stopped(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """Also one that had started at the latest event."""
    publish(producer, topic, range(10))
    late = f"{topic}-late"
    first = scripts.start("consumer", "-t", topic, "-g", topic, "-n", 4)
    latest = scripts.start("consumer", "-t", topic, "-g", late, "--latest", "-e")
    check(first, lines(range(4)))
    check(latest, b"")
    assert committed(scripts, topic, topic) == {0: 4}
    publish(producer, topic, range(10, 20))
    rest = scripts.start("consumer", "-t", topic, "-g", topic, "-e")
    latest = scripts.start("consumer", "-t", topic, "-g", late, "--latest", "-e")
    check(rest, lines(range(4, 20)))
    check(latest, lines(range(10, 20)))
    check(scripts.start("consumer", "-t", topic, "-g", topic, "-e"), b"")
    assert committed(scripts, late, topic) == {0: 20}


def test_a_group_whose_place_is_beyond_the_end(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """As after the topic was deleted and recreated."""
    publish(producer, topic, range(10))
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    with KafkaConsumer(bootstrap_servers=address, group_id=topic) as client:
        client.commit({TopicPartition(topic, 0): OffsetAndMetadata(99)})
    check(scripts.start("consumer", "-t", topic, "-g", topic, "-e"), lines(range(10)), EXPIRED)


def test_latest_is_refused_where_the_group_cannot_start_there(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """A group that has members takes no offsets from outside, though they read another topic."""
    publish(producer, topic, range(10))
    publish(producer, f"{topic}-2", range(10))
    member = scripts.start("consumer", "-t", f"{topic}-2", "-g", topic)
    member.wait_for(lambda it: it.out == lines(range(10)))
    message = (
        f"consumer.py: cannot apply --latest to group {topic}: it has active members. "
        "Stop them or omit --latest.\n"
    )
    run = scripts.start("consumer", "-t", topic, "-g", topic, "--latest", "-e")
    check(run, b"", message.encode(), 1)


# ------------------------------------------------------------------ signals and the output


def test_a_signal_ends_it_in_order(scripts: Scripts, topic: str, producer: KafkaProducer) -> None:
    """Its end is normal, but with -n premature; whether it reads or waits for its topic."""
    publish(producer, topic, range(20))
    absent = f"{topic}-2"
    reading = [scripts.start("consumer", "-t", topic, *flags) for flags in ([], ["-n", 21])]
    waiting = [scripts.start("consumer", "-t", absent, *flags) for flags in ([], ["-n", 1])]
    ends = ((signal.SIGINT, 0), (signal.SIGTERM, 143))
    for consumer, (number, status) in zip(reading, ends, strict=True):
        consumer.wait_for(lambda it: it.out == lines(range(20)))
        check(consumer, lines(range(20)), b"", status, number)
    ends = ((signal.SIGTERM, 0), (signal.SIGHUP, 129))
    for consumer, (number, status) in zip(waiting, ends, strict=True):
        wait_until(consumer.takes_signals)
        check(consumer, b"", waiting_for(absent), status, number)


@pytest.mark.long
def test_a_signal_while_nobody_reads_its_output(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """It ends after its limit of 6 seconds, here 12."""
    publish_2_megabytes(producer, topic)
    limit = {"STREAM_TEST_PATIENCE": "2"}
    with (
        held_up(scripts, topic, "-e", **limit) as (bounded, _),
        held_up(scripts, topic, **limit) as (endless, _),
    ):
        began = time.monotonic()
        bounded.process.send_signal(signal.SIGINT)
        endless.process.send_signal(signal.SIGTERM)
        done = [consumer.end() for consumer in (bounded, endless)]
        seconds = time.monotonic() - began
    assert [each.returncode for each in done] == [130, 143]
    assert [HELD_UP.sub(b"", each.stderr) for each in done] == [b""] * 2
    assert seconds >= 12


def test_a_second_signal_ends_it_at_once(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """The first one alone would end it only in hours, and with another status."""
    publish_2_megabytes(producer, topic)
    with held_up(scripts, topic, STREAM_TEST_PATIENCE="1000") as (consumer, _):
        threads = Path(f"/proc/{consumer.process.pid}/task")
        before = len(list(threads.iterdir()))
        consumer.process.send_signal(signal.SIGINT)
        wait_until(lambda: len(list(threads.iterdir())) > before)  # its timer is running
        check(consumer, b"", b"", 143, signal.SIGTERM)


def test_it_ends_silently_when_its_reader_has_gone(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """As with head."""
    publish(producer, topic, range(5))
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, stdout=out)
        assert select.select([reader], [], [], GUARD)[0]
        assert reader.readline() == b"0\n"
        reader.close()
        runs = [consumer, scripts.start("consumer", "--list", stdout=out)]
        os.close(out)
    for run in runs:
        check(run, b"")


def test_a_full_disk_is_reported_and_nothing_is_committed(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(5))
    with open("/dev/full", "wb") as full:
        run = scripts.start("consumer", "-t", topic, "-g", topic, "-n", 5, stdout=full)
    reason = b"consumer.py: cannot write to standard output: No space left on device\n"
    check(run, b"", reason, 1)
    assert not committed(scripts, topic, topic)[0]


def test_a_reader_that_is_gone_is_no_failure_whatever_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A terminal that is closed gives EIO, a connection that is reset ECONNRESET."""
    for number in (errno.EPIPE, errno.EIO, errno.ECONNRESET):
        with unread_pipe() as (unread, writer):
            saved = os.dup(1)
            os.dup2(writer, 1)
            try:
                unread.close()
                error = OSError(number, os.strerror(number))
                broken = Mock(return_value=Mock(write=Mock(side_effect=error)))
                monkeypatch.setattr("streaming.writing.open", broken, raising=False)
                out = Output(None, False)
                out.write_lines([b"a line"])
                assert out.is_reader_gone()
            finally:
                os.dup2(saved, 1)
                os.close(saved)
                os.close(writer)


def test_a_closed_output(lone_scripts: Scripts) -> None:
    """It is not even tried to connect: the connection would become the output."""
    run = lone_scripts.start("consumer", preexec_fn=functools.partial(os.close, 1))
    reason = b"consumer.py: cannot write to standard output: Bad file descriptor\n"
    check(run, b"", reason, 1)
