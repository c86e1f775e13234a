"""consumer.py, run as users run it, against a real Kafka."""

import base64
import filecmp
import itertools
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO

from broker import Broker
from consumer import HeaderName

import confluent_kafka
import pytest
from conftest import (
    CODEC_PACKAGES,
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
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

BIG = b"x" * 1000
EXPIRED = (
    b"consumer.py: the next events have expired or been deleted; "
    b"continuing with the oldest available\n"
)
SMALL_FETCHES = {"KAFKA_FETCH_MAX_BYTES": "10000", "KAFKA_MAX_PARTITION_FETCH_BYTES": "10000"}


def waiting_for(topic: str) -> bytes:
    return f"consumer.py: topic {topic} does not exist yet; waiting for it\n".encode()


def missing(topic: str) -> bytes:
    return f"consumer.py: cannot read topic {topic}: no such topic. Check -t.\n".encode()


def publish(producer: KafkaProducer, topic: str, events: range, **options: object) -> None:
    for event in events:
        producer.send(topic, b"%d" % event, **options)
    producer.flush()


def lines(events: range) -> bytes:
    return b"".join(b"%d\n" % event for event in events)


def publish_to_three_of_four_partitions(
    admin: KafkaAdminClient, producer: KafkaProducer, topic: str
) -> None:
    """Ten events to each: 0 to 9, 10 to 19, and 20 to 29; partition 3 stays empty."""
    admin.create_topics({topic: {"num_partitions": 4}})
    for partition in range(3):
        publish(producer, topic, range(partition * 10, partition * 10 + 10), partition=partition)


def publish_2_megabytes(producer: KafkaProducer, topic: str, **options: object) -> None:
    for _ in range(2000):
        producer.send(topic, BIG, **options)
    producer.flush()


def committed(scripts: Scripts, group: str, topic: str) -> dict[int, int | None]:
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    partitions = consumer.partitions_for_topic(topic)
    found = {number: consumer.committed(TopicPartition(topic, number)) for number in partitions}
    consumer.close()
    return found


def watch_memory(script: Running) -> int:
    """Wait for the script to end, at most 5 minutes, and return its peak memory in MB."""
    most, end = 0, time.monotonic() + 300
    while script.process.poll() is None and time.monotonic() < end:
        most = most_memory(script.process.pid) or most
        time.sleep(0.05)
    return most


def processor_seconds(script: Running) -> float:
    """The processor time that it has used so far (Linux)."""
    fields = Path(f"/proc/{script.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def is_full(pipe: int) -> bool:
    return not select.select([], [pipe], [], 0)[1]


@contextmanager
def held_up(
    scripts: Scripts, topic: str, *arguments: str, **settings: str
) -> Iterator[tuple[Running, BinaryIO]]:
    """A consumer that has begun to print 2 MB, and its full pipe, which nobody reads yet."""
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, *arguments, stdout=out, env=settings)
        wait_until(lambda: is_full(out))
        os.close(out)
        yield consumer, reader


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    scripts: Scripts, topic: str, producer: KafkaProducer, number: int
) -> None:
    """It is the normal end of an endless run, but premature for one that has not printed enough."""
    publish(producer, topic, range(10))
    endless = scripts.start("consumer", "-t", topic)
    bounded = scripts.start("consumer", "-t", topic, "-n", 21)
    for consumer in (endless, bounded):
        consumer.wait_for(lambda it: it.out == lines(range(10)))
    publish(producer, topic, range(10, 20))
    for consumer, status in ((endless, 0), (bounded, 128 + number)):
        consumer.wait_for(lambda it: it.out == lines(range(20)))
        done = consumer.end(number, seconds=6)
        assert (done.returncode, done.stdout, done.stderr) == (status, lines(range(20)), b"")


def test_a_signal_while_it_waits_for_the_topic(scripts: Scripts, topic: str) -> None:
    endless = scripts.start("consumer", "-t", topic)
    bounded = scripts.start("consumer", "-t", topic, "-n", 1)
    for consumer, number, status in ((endless, signal.SIGHUP, 0), (bounded, signal.SIGTERM, 143)):
        wait_until(consumer.takes_signals)
        done = consumer.end(number, seconds=6)
        assert (done.returncode, done.stdout, done.stderr) == (status, b"", waiting_for(topic))


def test_a_signal_while_nobody_reads_its_output(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """It is gone within 6 seconds, and has not committed what its reader cannot have seen."""
    publish_2_megabytes(producer, topic)
    group = {"KAFKA_SESSION_TIMEOUT_MS": "3000", "KAFKA_HEARTBEAT_INTERVAL_MS": "500"}
    with (
        held_up(scripts, topic, "-e") as (bounded, _),
        held_up(scripts, topic) as (endless, _),
        held_up(scripts, topic, "-g", topic, **group) as (member, reader),
    ):
        began = time.monotonic()
        bounded.process.send_signal(signal.SIGINT)
        endless.process.send_signal(signal.SIGTERM)
        member.process.send_signal(signal.SIGHUP)
        done = [consumer.end() for consumer in (bounded, endless, member)]
        seconds = time.monotonic() - began
        printed = reader.read()
    assert [(each.returncode, each.stderr) for each in done] == [(130, b""), (143, b""), (129, b"")]
    assert seconds < 7
    assert 0 < len(printed) < 2_000_000
    assert committed(scripts, topic, topic) == {0: None}
    again = scripts.run("consumer", "-t", topic, "-g", topic, "-e")
    assert (again.returncode, again.stdout) == (0, (BIG + b"\n") * 2000)


def test_a_second_signal_ends_it_at_once(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish_2_megabytes(producer, topic)
    with held_up(scripts, topic) as (consumer, _):
        consumer.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            consumer.process.wait(1)
        began = time.monotonic()
        done = consumer.end(signal.SIGTERM)
        assert time.monotonic() - began < 2
    assert (done.returncode, done.stderr) == (143, b"")


def test_a_missing_topic_is_waited_for_and_not_created(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    consumer = scripts.start("consumer", "-t", topic)
    consumer.wait_for(lambda it: it.err)
    watched_until = time.monotonic() + 5  # the consumer looks for it every two seconds
    while time.monotonic() < watched_until:
        assert topic not in admin.list_topics()
        time.sleep(0.2)
    done = scripts.run("producer", "-t", topic, "--partitions", 3, "-n", 30, "--interval", 0)
    assert done.returncode == 0
    published = time.monotonic()
    consumer.wait_for(lambda it: it.out.count(b"\n") == 30)
    assert time.monotonic() - published < 5
    assert len(admin.describe_topics([topic])[0]["partitions"]) == 3
    done = consumer.end(signal.SIGTERM)
    assert (done.returncode, done.stderr) == (0, waiting_for(topic))


def test_e_wants_the_topic_now(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    done = scripts.run("consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", missing(topic))
    assert topic not in admin.list_topics()


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
    done = consumer.end(signal.SIGINT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"3\n4\n", b"")


def test_partitions_that_are_added_later_are_read_from_their_first_event(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    admin.create_topics({topic: {"num_partitions": 1}})
    consumer = scripts.start("consumer", "-t", topic, "--latest")
    wait_until(consumer.takes_signals)
    assert scripts.run("producer", "-t", topic, input=b"first\n").returncode == 0
    consumer.wait_for(lambda it: it.out == b"first\n")
    admin.create_partitions({topic: 3})
    later = KafkaProducer(bootstrap_servers=scripts.env["KAFKA_BOOTSTRAP_SERVERS"])
    publish(later, topic, range(5), partition=2)
    later.close()
    consumer.wait_for(lambda it: it.out == b"first\n" + lines(range(5)), 10)
    done = consumer.end(signal.SIGINT)
    assert (done.returncode, done.stderr) == (0, b"")


def test_latest_prints_only_what_comes(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(100))
    consumer = scripts.start("consumer", "-t", topic, "--latest", "-n", 10)
    wait_until(consumer.takes_signals)
    publish(producer, topic, range(100, 120))
    done = consumer.end()
    assert (done.returncode, done.stdout, done.stderr) == (0, lines(range(100, 110)), b"")


@pytest.mark.parametrize("count", [1, 7, 20])
def test_n_stops_after_exactly_so_many(
    scripts: Scripts, topic: str, producer: KafkaProducer, count: int
) -> None:
    publish(producer, topic, range(20))
    done = scripts.run("consumer", "-t", topic, "-n", count)
    assert (done.returncode, done.stdout) == (0, lines(range(count)))


def test_e_stops_where_the_topic_ended_at_the_start(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    publish_to_three_of_four_partitions(admin, producer, topic)
    done = scripts.run("consumer", "-t", topic, "-e")
    assert (done.returncode, sorted(map(int, done.stdout.split()))) == (0, list(range(30)))


def test_e_leaves_out_what_comes_after_the_start(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    admin.create_topics({topic: {"num_partitions": 2}})
    publish(producer, topic, range(10), partition=0)
    publish_2_megabytes(producer, topic, partition=1)
    with held_up(scripts, topic, "-e") as (consumer, reader):  # so it has started
        publish(producer, topic, range(10, 20), partition=0)
        printed = reader.read().splitlines()
    assert consumer.end().returncode == 0
    assert sorted(printed) == sorted([*lines(range(10)).split(), *[BIG] * 2000])


def test_e_on_an_empty_topic(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    admin.create_topics({topic: {"num_partitions": 2}})
    done = scripts.run("consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.stress
def test_e_on_a_topic_of_many_partitions(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """With the client's own position(), this would exceed the minute that a run may take."""
    admin.create_topics({topic: {"num_partitions": 3000}})
    for number in range(3000):
        producer.send(topic, b"%d" % number, partition=number)
    producer.flush()
    done = scripts.run("consumer", "-t", topic, "-e")
    assert sorted(map(int, done.stdout.split())) == list(range(3000))
    last = scripts.run("consumer", "-t", topic, "--last", 1, "-n", 3000)
    assert sorted(last.stdout.split()) == sorted(done.stdout.split())
    admin.delete_topics([topic])


def test_e_on_a_compacted_topic(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read
) -> None:
    """Most offsets are gaps, once compaction has really run."""
    configs = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.01",
    }
    admin.create_topics({topic: {"num_partitions": 3, "configs": configs}})
    data = b"".join(b"%d:%d\n" % (number % 7, number) for number in range(1000))
    for rounds in range(1, 30):
        assert scripts.run("producer", "-t", topic, "-K", ":", input=data).returncode == 0
        if len(read(topic)) < rounds * 1000 - 1000:
            break
    done = scripts.run("consumer", "-t", topic, "-e", "-K", ":")
    assert done.returncode == 0
    assert done.stdout.count(b"\n") < rounds * 1000 - 1000
    state = dict(line.split(b":") for line in done.stdout.splitlines())
    assert state == {b"%d" % key: b"%d" % max(range(key, 1000, 7)) for key in range(7)}
    for count in (5, 100_000):  # events, not offsets
        last = scripts.run("consumer", "-t", topic, "--last", count, "-e", "--json")
        assert places(last.stdout) == last_places(read(topic), count)


def places(output: bytes) -> list[tuple[int, int]]:
    """The sorted partitions and offsets in lines of JSON."""
    events = [json.loads(line) for line in output.splitlines()]
    return sorted((event["partition"], event["offset"]) for event in events)


def last_places(records: list[Any], count: int) -> list[tuple[int, int]]:
    """The partition and offset of the last `count` records of each partition."""
    groups = itertools.groupby(records, key=lambda record: record.partition)
    return [
        (partition, record.offset) for partition, group in groups for record in [*group][-count:]
    ]


def test_e_on_a_topic_with_transactions(scripts: Scripts, topic: str, kafka: object) -> None:
    """Each transaction ends with a control record, which takes up an offset but is not an event.

    Nothing from an aborted one is printed.
    """
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    client = KafkaProducer(bootstrap_servers=address, transactional_id=topic)
    client.init_transactions()
    for number in range(6):
        client.begin_transaction()
        publish(client, topic, range(number * 10, number * 10 + 10))
        if number % 2:
            client.abort_transaction()
        else:
            client.commit_transaction()
    client.close()
    expected = b"".join(lines(range(number, number + 10)) for number in (0, 20, 40))
    done = scripts.run("consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout) == (0, expected)
    done = scripts.run("consumer", "-t", topic, "-g", topic, "-e")
    assert (done.returncode, done.stdout) == (0, expected)
    assert scripts.run("consumer", "-t", topic, "-g", topic, "-e").stdout == b""
    every = scripts.run(
        "consumer", "-t", topic, "-e", env={"KAFKA_ISOLATION_LEVEL": "read_uncommitted"}
    )
    assert every.stdout == lines(range(60))
    for count in (5, 15, 30, 31):
        last = scripts.run("consumer", "-t", topic, "--last", count, "-e")
        assert last.stdout.splitlines() == expected.splitlines()[-count:]


def test_last_starts_so_many_events_before_the_end_of_each_partition(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    publish_to_three_of_four_partitions(admin, producer, topic)
    last = [8, 9, 18, 19, 28, 29]
    consumer = scripts.start("consumer", "-t", topic, "--last", 2, "-n", 7)
    consumer.wait_for(lambda it: it.out.count(b"\n") == 6)
    publish(producer, topic, range(30, 31), partition=3)
    done = consumer.end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(map(int, done.stdout.split())) == [*last, 30]
    for expected in ([*last, 30], []):  # a group that has a position resumes there
        done = scripts.run("consumer", "-t", topic, "--last", 2, "-e", "-g", topic)
        assert (done.returncode, sorted(map(int, done.stdout.split()))) == (0, expected)


HOUR = 3_600_000  # in milliseconds


@pytest.fixture
def aged(topic: str, admin: KafkaAdminClient, producer: KafkaProducer) -> int:
    """Events from 9 to 0 hours before the returned time, alternately in two of three partitions."""
    now = int(time.time() * 1000)
    admin.create_topics({topic: {"num_partitions": 3}})
    for age in range(9, -1, -1):
        producer.send(topic, b"%d" % age, partition=age % 2, timestamp_ms=now - age * HOUR)
    producer.flush()
    return now


def test_since_starts_at_a_time(scripts: Scripts, topic: str, aged: int) -> None:
    def ages_since(moment: str, *arguments: object) -> list[int]:
        env = {"TZ": "XYZ-3"}  # three hours ahead of UTC
        done = scripts.run("consumer", "-t", topic, "--since", moment, "-e", *arguments, env=env)
        assert (done.returncode, done.stderr) == (0, b"")
        return sorted(map(int, done.stdout.split()))

    then = datetime.fromtimestamp(aged / 1000 - 3 * 3600 - 1800, timezone.utc)
    local = then + timedelta(hours=3)
    assert ages_since("150m") == [0, 1, 2]
    assert ages_since(f"{then:%Y-%m-%dT%H:%M:%S}Z") == [0, 1, 2, 3]
    assert ages_since(f"{local:%Y-%m-%d %H:%M:%S}") == [0, 1, 2, 3]
    assert ages_since(f"{local:%Y-%m-%dT%H:%M:%S}+03:00", "-g", topic) == [0, 1, 2, 3]
    assert ages_since("3d", "-g", topic) == []  # a group that has a position resumes there
    assert ages_since("1960-01-01") == list(range(10))
    assert ages_since("9999-12-31") == []


def test_since_a_time_after_the_last_event(
    scripts: Scripts, topic: str, aged: int, producer: KafkaProducer
) -> None:
    consumer = scripts.start("consumer", "-t", topic, "--since", "2100-01-01", "-n", 1)
    wait_until(consumer.takes_signals)
    producer.send(topic, b"next", partition=2)
    producer.flush()
    done = consumer.end()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"next\n", b"")


@pytest.mark.parametrize(
    ("moment", "flags"),
    [("soon", []), ("10w", []), ("-5m", []), ("2026-13-01", []), ("10m", ["--latest"])],
)
def test_a_wrong_start(lone_scripts: Scripts, moment: str, flags: list[str]) -> None:
    done = lone_scripts.run("consumer", f"--since={moment}", *flags)
    reason = f"--since: {moment!r} is not a time, such as 10m (ago), 2026-11-25 or "
    reason += "2026-11-25T14:00:00Z"
    if flags:
        reason = "--latest: not allowed with argument --since"
    assert done.returncode == 2
    assert done.stderr.decode() == f"consumer.py: argument {reason}. See --help.\n"


CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


@pytest.fixture
def compressed(kafka: Broker, topic: str) -> bytes:
    """The contents of a topic written by librdkafka: plain events, then some in each codec."""
    expected = b""
    for codec in CODECS:
        client = confluent_kafka.Producer(
            {"bootstrap.servers": kafka.address, "compression.type": codec}
        )
        for number in range(3):
            value = f"{codec} {number} {'x' * 3000}".encode()
            client.produce(topic, value)
            expected += value + b"\n"
        assert client.flush(30) == 0
    return expected


def test_a_topic_in_every_codec(scripts: Scripts, topic: str, compressed: bytes) -> None:
    done = scripts.run("consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (0, compressed, b"")


@pytest.mark.parametrize(("codec", "module", "package"), CODEC_PACKAGES)
def test_a_codec_whose_package_is_missing(
    scripts: Scripts,
    topic: str,
    compressed: bytes,
    tmp_path: Path,
    codec: str,
    module: str,
    package: str,
) -> None:
    """The events before it are printed."""
    done = scripts.run("consumer", "-t", topic, "-e", env=without(module, tmp_path))
    readable = 3 * CODECS.index(codec)
    assert (done.returncode, done.stdout.count(b"\n")) == (1, readable)
    assert compressed.startswith(done.stdout)
    assert done.stderr.decode() == (
        f"consumer.py: cannot read topic {topic}: the event at partition 0, offset {readable} is "
        f"compressed with {codec}, but the package {package} is not installed. "
        "Run: pip install -r requirements.txt\n"
    )


def test_events_that_are_deleted_before_they_are_read(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """As by retention: the groups are at 5 and 20, but Kafka has nothing before 35."""
    publish(producer, topic, range(20))
    first = scripts.run("consumer", "-t", topic, "-g", f"{topic}-1", "-n", 5)
    assert first.stdout == lines(range(5))
    assert scripts.run("consumer", "-t", topic, "-g", f"{topic}-2", "--latest", "-e").stdout == b""
    assert committed(scripts, f"{topic}-2", topic) == {0: 20}
    publish(producer, topic, range(20, 40))
    admin.delete_records({TopicPartition(topic, 0): 35})
    for group in (f"{topic}-1", f"{topic}-2"):
        done = scripts.run("consumer", "-t", topic, "-g", group, "-e")
        assert (done.returncode, done.stdout, done.stderr) == (0, lines(range(35, 40)), EXPIRED)


@pytest.mark.parametrize("group", [[], ["-g", "readers-of-the-deleted"]])
def test_a_topic_that_is_deleted_while_it_is_read(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, group: list[str]
) -> None:
    """The consumer waits for it, then reads it from its first event when it is back."""
    assert scripts.run("producer", "-t", topic, input=lines(range(20))).returncode == 0
    consumer = scripts.start("consumer", "-t", topic, *group)
    consumer.wait_for(lambda it: it.out == lines(range(20)))
    admin.delete_topics([topic])
    consumer.wait_for(lambda it: it.err)
    assert scripts.run("producer", "-t", topic, input=lines(range(100, 150))).returncode == 0
    consumer.wait_for(lambda it: it.out == lines(range(20)) + lines(range(100, 150)))
    done = consumer.end(signal.SIGINT)
    assert (done.returncode, done.stderr) == (0, waiting_for(topic))


def test_e_ends_where_the_topic_is_deleted(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    publish_2_megabytes(producer, topic)
    with held_up(scripts, topic, "-e", **SMALL_FETCHES) as (consumer, reader):
        admin.delete_topics([topic])
        printed = reader.read()
    done = consumer.end()
    assert (done.returncode, done.stderr) == (1, missing(topic))
    assert printed == (BIG + b"\n") * printed.count(b"\n")


def test_a_damaged_event(
    scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer
) -> None:
    """Its bytes have changed on the broker's disk, so that its checksum is wrong."""
    publish(producer, topic, range(1))
    path = kafka.data / "log" / f"{topic}-0" / "00000000000000000000.log"
    with path.open("r+b") as log:
        log.seek(-2, os.SEEK_END)
        log.write(b"?")
    done = scripts.run("consumer", "-t", topic)
    reason = "the event at partition 0, offset 0 is corrupt: its checksum is wrong"
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"consumer.py: cannot read topic {topic}: {reason}\n"


def test_a_slow_reader_of_50_partitions(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """What the reader has not read stays in Kafka, not in memory."""
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"%0999d\n" % number for number in range(120_000)))
    done = scripts.run("producer", "-t", topic, "--partitions", 50, path)
    assert done.returncode == 0
    found = bytearray()
    with unread_pipe() as (reader, out):
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=out)
        os.close(out)
        while len(found) < 2_000_000 and consumer.process.poll() is None:
            found += reader.read(50_000)
            time.sleep(0.05)  # this makes the reader slow
        rest = threading.Thread(target=lambda: found.extend(reader.read()))
        rest.start()
        memory = watch_memory(consumer)
        rest.join()
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
    producer = scripts.start("producer", "-t", topic, path)
    most = watch_memory(producer)
    assert read_summary(producer.end(seconds=300).stderr) == Summary(3_000_000)
    assert most < 120
    with out.open("wb") as file:
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=file)
        most = watch_memory(consumer)
        assert consumer.end().returncode == 0
    assert most < 120
    assert filecmp.cmp(path, out, shallow=False)
    admin.delete_topics([topic])
    path.unlink()
    out.unlink()


def test_k_is_the_inverse_of_the_producers(scripts: Scripts, topic: str) -> None:
    data = (
        b"".join(b"key%d:value:%d\n" % (number % 7, number) for number in range(1000))
        + b"no key\n:empty\nlast:\n"
    )
    scripts.run("producer", "-t", topic, "-K", ":", "-Z", input=data)
    assert scripts.run("consumer", "-t", topic, "-K", ":", "-e").stdout == data


def test_header_names_that_are_not_utf8(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """kafka-python rejects such an event. It is in a batch with others, and compressed."""
    name = HeaderName(os.fsdecode(b"\xff\xfe"))
    with KafkaProducer(
        bootstrap_servers=scripts.env["KAFKA_BOOTSTRAP_SERVERS"],
        compression_type="gzip",
        linger_ms=1000,
    ) as compressing:
        for client in (producer, compressing):
            client.send(topic, b"before", headers=[("plain", b"1")])
            client.send(topic, b"odd", headers=[(name, b"2"), ("é", b"3")])
            client.send(topic, b"after")
            client.flush()
    done = scripts.run("consumer", "-t", topic, "-e", "-g", topic)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"before\nodd\nafter\n" * 2
    assert scripts.run("consumer", "-t", topic, "-e", "--last", 2).stdout == b"odd\nafter\n"
    done = scripts.run("consumer", "-t", topic, "-n", 2, "--json")
    assert [json.loads(line)["headers"] for line in done.stdout.splitlines()] == [
        [{"key": "plain", "value": "1"}],
        [
            {"key_base64": base64.b64encode(b"\xff\xfe").decode(), "value": "2"},
            {"key": "é", "value": "3"},
        ],
    ]


def test_json_holds_everything(scripts: Scripts, topic: str, producer: KafkaProducer) -> None:
    headers = [("source", "é".encode()), ("raw", b"\xff")]
    producer.send(
        topic, "🎉\n\x00".encode(), key=b"k", headers=headers, timestamp_ms=1_700_000_000_123
    )
    producer.send(topic, None, key=b"\xfe")
    producer.flush()
    done = scripts.run("consumer", "-t", topic, "--json", "-e")
    first, second = (json.loads(line) for line in done.stdout.decode().splitlines())
    place = {"topic": topic, "partition": 0}
    raw = {"key": "raw", "value_base64": base64.b64encode(b"\xff").decode()}
    assert first == {
        **place,
        "offset": 0,
        "timestamp": 1_700_000_000_123,
        "key": "k",
        "value": "🎉\n\x00",
        "headers": [{"key": "source", "value": "é"}, raw],
    }
    assert "🎉".encode() in done.stdout
    assert {name: second[name] for name in second if name != "timestamp"} == {
        **place,
        "offset": 1,
        "key_base64": base64.b64encode(b"\xfe").decode(),
        "value": None,
        "headers": [],
    }


def test_the_members_of_a_group_share_the_partitions(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    admin.create_topics({topic: {"num_partitions": 4}})
    members = [scripts.start("consumer", "-t", topic, "-g", topic) for _ in range(2)]

    def both_have_partitions() -> bool:
        for partition in range(4):
            producer.send(topic, b"probe", partition=partition)
        producer.flush()
        assert all(member.process.poll() is None for member in members)
        return all(member.out for member in members)

    wait_until(both_have_partitions)
    for partition in range(4):
        publish(
            producer, topic, range(partition * 2500, partition * 2500 + 2500), partition=partition
        )
        producer.send(topic, b"end", partition=partition)
    for member in members:
        member.wait_for(lambda it: it.out.count(b"end") == 2)
    done = [member.end(signal.SIGTERM) for member in members]
    events = [[int(line) for line in each.stdout.split() if line.isdigit()] for each in done]
    assert [each.returncode for each in done] == [0, 0]
    assert [len(each) for each in events] == [5000, 5000]
    assert sorted(events[0] + events[1]) == list(range(10_000))


def test_a_group_whose_members_have_another_assignor(
    scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer
) -> None:
    producer.send(topic, b"event").get(10)
    member = confluent_kafka.Consumer(
        {
            "bootstrap.servers": kafka.address,
            "group.id": topic,
            "partition.assignment.strategy": "cooperative-sticky",
        }
    )
    member.subscribe([topic])
    wait_until(lambda: member.poll(0.1) or member.assignment())
    done = scripts.run("consumer", "-t", topic, "-g", topic)
    member.close()
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1,
        b"",
        f"consumer.py: cannot read topic {topic}: the other members of the group share out its "
        "partitions in another way. Use another -g, or set the range assignor there.\n",
    )


def test_e_ends_for_a_member_without_partitions(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(10))
    members = [scripts.start("consumer", "-t", topic, "-g", topic) for _ in range(2)]
    printed: list[bytes] = []
    for _ in range(2):  # which member gets the only partition is random
        done = scripts.run("consumer", "-t", topic, "-g", topic, "-e")
        assert done.returncode == 0
        printed.append(done.stdout)
    printed += [member.end(signal.SIGINT).stdout for member in members]
    assert sorted(printed) == [b"", b"", b"", lines(range(10))]


def test_a_member_says_how_many_partitions_it_has(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """When others take them away or give them back."""
    env = {"KAFKA_HEARTBEAT_INTERVAL_MS": "100"}  # so they hear of each other soon
    admin.create_topics({topic: {"num_partitions": 2}})
    publish(producer, topic, range(1))

    def message(number: int) -> bytes:
        text = f"this member of group {topic} now reads {number} of 2 partitions"
        return f"consumer.py: {text}\n".encode()

    first = scripts.start("consumer", "-t", topic, "-g", topic, env=env)
    first.wait_for(lambda it: it.out == b"0\n")
    second = scripts.start("consumer", "-t", topic, "-g", topic, env=env)
    first.wait_for(lambda it: it.err == message(1))
    third = scripts.start("consumer", "-t", topic, "-g", topic, env=env)
    none = (
        f"consumer.py: no partition for this member: the other members of group {topic} have all "
        f"partitions of topic {topic} (2); waiting for one\n"
    ).encode()
    wait_until(lambda: none in first.err + second.err + third.err)
    [waiting] = [member for member in (first, second, third) if none in member.err]
    for member in (first, second, third):
        if member is not waiting:
            assert member.end(signal.SIGTERM).returncode == 0
    waiting.wait_for(lambda it: it.err.endswith(message(2)))
    assert waiting.end(signal.SIGTERM).returncode == 0


def test_a_group_goes_on_where_it_stopped(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(10))
    assert scripts.run("consumer", "-t", topic, "-g", topic, "-n", 4).stdout == lines(range(4))
    assert committed(scripts, topic, topic) == {0: 4}
    assert scripts.run("consumer", "-t", topic, "-g", topic, "-e").stdout == lines(range(4, 10))
    assert scripts.run("consumer", "-t", topic, "-g", topic, "-e").stdout == b""
    assert scripts.run("consumer", "-t", topic, "-e").stdout == lines(range(10))
    assert committed(scripts, topic, topic) == {0: 10}


def test_a_group_starts_at_the_latest_event_if_asked(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(10))
    assert scripts.run("consumer", "-t", topic, "-g", topic, "--latest", "-e").stdout == b""
    publish(producer, topic, range(10, 20))  # nobody reads: the group resumes where it stopped
    done = scripts.run("consumer", "-t", topic, "-g", topic, "--latest", "-e")
    assert (done.returncode, done.stdout) == (0, lines(range(10, 20)))
    assert committed(scripts, topic, topic) == {0: 20}


def test_latest_is_refused_where_the_group_cannot_start_there(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """Kafka accepts no offsets for a group from outside while the group has members.

    Here, a member reads another topic.
    """
    publish(producer, topic, range(10))
    publish(producer, f"{topic}-2", range(10))
    member = scripts.start("consumer", "-t", f"{topic}-2", "-g", topic)
    member.wait_for(lambda it: it.out == lines(range(10)))
    done = scripts.run("consumer", "-t", topic, "-g", topic, "--latest", "-e")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"consumer.py: cannot apply --latest to group {topic}: it has active members. "
        "Stop them or omit --latest.\n"
    )


def test_e_ends_where_the_topic_is_there_again_and_shorter(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    publish_2_megabytes(producer, topic)
    with held_up(scripts, topic, "-e", **SMALL_FETCHES) as (consumer, reader):
        admin.delete_topics([topic])
        wait_until(lambda: topic not in admin.list_topics())
        assert scripts.run("producer", "-t", topic, input=lines(range(10))).returncode == 0
        printed = reader.read()
    done = consumer.end()
    old = (BIG + b"\n") * printed.count(BIG)
    if done.stderr:  # its position was beyond the new end
        assert (done.returncode, done.stderr, printed) == (0, EXPIRED, old)
    else:  # it noticed that this is a new topic
        assert (done.returncode, printed) == (0, old + lines(range(10)))


def test_head_ends_it_silently(scripts: Scripts, topic: str, producer: KafkaProducer) -> None:
    publish(producer, topic, range(5))
    with subprocess.Popen(
        ["/usr/bin/env", "head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as head:
        consumer = scripts.start("consumer", "-t", topic, stdout=head.stdin)
        assert head.stdin
        assert head.stdout
        head.stdin.close()
        assert head.stdout.read() == b"0\n"
        done = consumer.end(seconds=10)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_is_reported_and_nothing_is_committed(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, range(5))
    with open("/dev/full", "wb") as full:
        consumer = scripts.start("consumer", "-t", topic, "-g", topic, "-n", 5, stdout=full)
        done = consumer.end()
    assert done.returncode == 1
    assert done.stderr == b"consumer.py: cannot write to standard output: No space left on device\n"
    assert committed(scripts, topic, topic) == {0: None}


def test_a_pipe_that_does_not_block_is_waited_for(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish_2_megabytes(producer, topic)
    with unread_pipe() as (reader, out):
        os.set_blocking(out, False)
        consumer = scripts.start("consumer", "-t", topic, "-e", stdout=out)
        wait_until(lambda: is_full(out))
        os.close(out)
        before = processor_seconds(consumer)
        time.sleep(1)  # while it has nothing to do
        used = processor_seconds(consumer) - before
        printed = reader.read()
    done = consumer.end()
    assert used < 0.3
    assert printed == (BIG + b"\n") * 2000
    assert (done.returncode, done.stderr) == (0, b"")
