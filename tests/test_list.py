"""consumer.py --list, run as users do, against a real Kafka."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from broker import Broker, Cluster
from listing import RETRY_SECONDS

import pytest
from conftest import Running, Scripts, unread_pipe, wait_until
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

CHECK_SERVERS = "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."


def publish(producer: KafkaProducer, topic: str, count: int, partition: int = 0) -> None:
    for _ in range(count):
        producer.send(topic, b"an event", partition=partition)
    producer.flush(10)


def commit(scripts: Scripts, group: str, topic: str, offsets: dict[int, int]) -> None:
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    consumer.commit(
        {TopicPartition(topic, number): OffsetAndMetadata(at) for number, at in offsets.items()}
    )
    consumer.close()


def read_json(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def check(consumer: Running, *expected: str) -> None:
    """Check that it printed exactly these lines and nothing else."""
    done = consumer.end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == list(expected)


def test_the_topics_of_an_older_kafka(scripts: Scripts) -> None:
    """This broker has no other topics, so the output is known to the byte."""
    with Broker(zookeeper=True) as broker:
        scripts.env["KAFKA_BOOTSTRAP_SERVERS"] = broker.address
        assert scripts.run("consumer", "--list").stdout == b""
        with (
            KafkaAdminClient(bootstrap_servers=broker.address) as admin,
            KafkaProducer(bootstrap_servers=broker.address) as producer,
        ):
            counts = {"cities": 1, "numbers": 4, "empty": 12}
            admin.create_topics({name: {"num_partitions": n} for name, n in counts.items()})
            publish(producer, "cities", 1)
            for number in range(4):
                publish(producer, "numbers", 3, number)
            commit(scripts, "readers", "numbers", {0: 3, 1: 1, 3: 2})
        topics = scripts.start("consumer", "--list")
        group = scripts.start("consumer", "--list", "-g", "readers")
        partitions = scripts.start("consumer", "--list", "-t", "numbers", "-g", "readers")
        check(
            topics,
            "__consumer_offsets   1 partition    3 events",
            "cities               1 partition    1 event",
            "empty               12 partitions   0 events",
            "numbers              4 partitions  12 events",
        )
        check(
            group,
            "__consumer_offsets   1 partition    3 events  lag -",
            "cities               1 partition    1 event   lag -",
            "empty               12 partitions   0 events  lag -",
            "numbers              4 partitions  12 events  lag 3",
        )
        check(
            partitions,
            "partition 0  first 0  end 3  leader 1  committed 3  lag 0",
            "partition 1  first 0  end 3  leader 1  committed 1  lag 2",
            "partition 2  first 0  end 3  leader 1  committed -  lag -",
            "partition 3  first 0  end 3  leader 1  committed 2  lag 1",
        )


def test_the_partitions_of_a_topic(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """Some of its events are deleted, and some belong to a transaction that is still open."""
    admin.create_topics({topic: {"num_partitions": 11}})
    publish(producer, topic, 12)
    publish(producer, topic, 3, 2)
    admin.delete_records({TopicPartition(topic, 0): 9})
    commit(scripts, topic, topic, {0: 7, 2: 3})
    with KafkaProducer(
        bootstrap_servers=scripts.env["KAFKA_BOOTSTRAP_SERVERS"], transactional_id=topic
    ) as client:
        client.init_transactions()
        client.begin_transaction()
        publish(client, topic, 100, 10)
        plain = scripts.start("consumer", "--list", "-t", topic)
        as_json = scripts.start("consumer", "--list", "-t", topic, "--json")
        group = scripts.start("consumer", "--list", "-t", topic, "-g", topic, "--json")
        stranger = scripts.start("consumer", "--list", "-t", topic, "-g", f"{topic}-2")
        topics = scripts.start("consumer", "--list", "-g", topic, "--json")
        offsets = [(9, 12), (0, 0), (0, 3), *[(0, 0)] * 7, (0, 100)]
        lines = [
            f"partition {number:>2}  first {first}  end {end:>3}  leader 1"
            for number, (first, end) in enumerate(offsets)
        ]
        check(plain, *lines)
        check(stranger, *(f"{line}  committed -  lag -" for line in lines))
        names = ("topic", "partition", "first_offset", "end_offset", "leader")
        objects = [
            dict(zip(names, (topic, number, first, end, 1), strict=True))
            for number, (first, end) in enumerate(offsets)
        ]
        check(as_json, *map(json.dumps, objects))
        for number, each in enumerate(objects):
            committed, lag = {0: (7, 5), 2: (3, 0)}.get(number, (None, None))
            each |= {"committed": committed, "lag": lag}
        check(group, *map(json.dumps, objects))
        listed = {each["topic"]: each for each in read_json(topics.end().stdout)}
        assert list(listed) == sorted(listed)
        assert listed[topic] == {"topic": topic, "partitions": 11, "events": 106, "lag": 5}
        client.abort_transaction()


def test_a_missing_topic_is_not_created(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """It fails at once, unlike an error that may pass."""
    began = time.monotonic()
    done = scripts.run("consumer", "--list", "-t", topic)
    assert time.monotonic() - began < RETRY_SECONDS
    message = f"consumer.py: cannot list topic {topic}: no such topic. Check -t.\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", message)
    assert topic not in admin.list_topics()


@pytest.mark.parametrize("flag", [["-n", "1"], ["-e"], ["--latest"], ["-K", ":"]])
def test_flags_about_events_are_refused(lone_scripts: Scripts, flag: list[str]) -> None:
    done = lone_scripts.run("consumer", "--list", *flag)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        f"consumer.py: argument {flag[0]}: not allowed with argument --list. See --help.\n"
    )


def test_the_reader_of_the_list_has_gone(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    publish(producer, topic, 1)
    with unread_pipe() as (unread, writer):
        unread.close()
        consumer = scripts.start("consumer", "--list", stdout=writer)
        os.close(writer)
        done = consumer.end()
    assert (done.returncode, done.stderr) == (0, b"")


# ------------------------------------------------------------------ Kafka goes away

# The script asks for the offsets only after its standard input ends, and gives up soon
GATE = """
import sys

RETRY_SECONDS = {seconds}
_fetch_leaders = fetch_leaders


def fetch_leaders(admin, topic):
    leaders = _fetch_leaders(admin, topic)
    print("leaders", file=sys.stderr, flush=True)
    sys.stdin.read()
    return leaders
"""


@pytest.fixture
def start_gated(
    scripts: Scripts, topic: str, producer: KafkaProducer
) -> Callable[[float], Running]:
    """start_gated(seconds): a run that knows the leaders; it may retry for that long."""
    publish(producer, topic, 3)
    listing = scripts.folder / "listing.py"
    text = listing.read_text()

    def start(seconds: float) -> Running:
        listing.write_text(text + GATE.format(seconds=seconds))
        env = {"KAFKA_REQUEST_TIMEOUT_MS": "2000"}
        flags = ("--list", "-t", topic)
        consumer = scripts.start("consumer", *flags, stdin=subprocess.PIPE, env=env)
        consumer.wait_for(lambda it: it.err)
        return consumer

    return start


def open_gate(consumer: Running) -> None:
    assert consumer.process.stdin
    consumer.process.stdin.close()


def test_kafka_is_away_for_a_moment(
    start_gated: Callable[[float], Running], mortal: Broker
) -> None:
    consumer = start_gated(60)
    mortal.kill()
    mortal.start()
    open_gate(consumer)
    done = consumer.end(seconds=60)
    assert (done.returncode, set(done.stderr.splitlines())) == (0, {b"leaders"})
    assert done.stdout == b"partition 0  first 0  end 3  leader 1\n"


def test_kafka_is_away_for_good(start_gated: Callable[[float], Running], mortal: Broker) -> None:
    consumer = start_gated(60)
    mortal.kill()
    open_gate(consumer)
    done = consumer.end(seconds=20)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"leaders\nconsumer.py: cannot connect to Kafka at {mortal.address}: "
        f"connection refused. {CHECK_SERVERS}\n"
    )


def test_kafka_stops_answering(
    start_gated: Callable[[float], Running], stalled: Callable[[], None], topic: str
) -> None:
    consumer = start_gated(1)
    stalled()
    open_gate(consumer)
    done = consumer.end(seconds=15)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"leaders\nconsumer.py: cannot list topic {topic}: Kafka did not respond in time\n"
    )


@pytest.mark.stress
def test_a_broker_of_a_cluster_is_away(tmp_path: Path) -> None:
    """At first the others still name it as its partition's leader; then the partition has none."""
    with Cluster() as cluster:
        scripts = Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": cluster.address})
        with KafkaAdminClient(bootstrap_servers=cluster.address) as admin:
            admin.create_topics({"few": {"assignments": {0: [1], 1: [2], 2: [3]}}})
        with KafkaProducer(bootstrap_servers=cluster.address, acks=1) as producer:
            for number in range(3):
                publish(producer, "few", 5, number)
        commit(scripts, "readers", "few", {0: 1, 1: 2})
        cluster.brokers[1].kill()
        runs = [
            scripts.start("consumer", "--list", "-g", "readers", *flags)
            for flags in (["-t", "few"], ["-t", "few", "--json"], [], ["--json"])
        ]
        partitions, partitions_json, topics, topics_json = runs
        check(
            partitions,
            "partition 0  first 0  end 5  leader 1  committed 1  lag 4",
            "partition 1  first -  end -  leader -  committed 2  lag -",
            "partition 2  first 0  end 5  leader 3  committed -  lag -",
        )
        assert read_json(partitions_json.end().stdout)[1] == {
            "topic": "few",
            "partition": 1,
            "first_offset": None,
            "end_offset": None,
            "leader": None,
            "committed": 2,
            "lag": None,
        }
        assert "few 3 partitions - events lag -" in [
            " ".join(line.split()) for line in topics.end().stdout.decode().splitlines()
        ]
        line = {"topic": "few", "partitions": 3, "events": None, "lag": None}
        assert line in read_json(topics_json.end().stdout)


# ------------------------------------------------------------------ many partitions


@pytest.fixture
def many_files() -> Iterator[None]:
    """A broker keeps a file open for each partition."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def create_topics(admin: KafkaAdminClient, topics: dict[str, int]) -> None:
    """Kafka refuses to create 10,000 partitions in one request."""
    for name, partitions in topics.items():
        admin.create_topics({name: {"num_partitions": partitions // 2}})
        admin.create_partitions({name: partitions})


def lists_all(scripts: Scripts, topics: dict[str, int], *flags: str) -> bool:
    done = scripts.run("consumer", "--list", "--json", *flags)
    listed = {each["topic"]: each["partitions"] for each in read_json(done.stdout)}
    return topics.items() <= listed.items()


def best_time(action: Callable[[], object]) -> float:
    """In seconds, the best of three, as the machine may be busy with something else."""
    times = []
    for _ in range(3):
        began = time.monotonic()
        action()
        times.append(time.monotonic() - began)
    return min(times)


@pytest.mark.stress
@pytest.mark.parametrize(
    "topics",
    [{"big": 10_000}, {f"topic-{number:03}": 100 for number in range(100)}],
    ids=["1 topic", "100 topics"],
)
def test_10000_partitions_take_less_than_5_seconds(
    many_files: None, tmp_path: Path, topics: dict[str, int]
) -> None:
    with Broker() as broker:
        scripts = Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": broker.address})
        # First, as it needs one of Kafka's own topics, and the broker creates logs one by one
        assert scripts.run("consumer", "--list", "-g", "readers").returncode == 0
        with KafkaAdminClient(bootstrap_servers=broker.address) as admin:
            create_topics(admin, topics)
        wait_until(lambda: lists_all(scripts, topics), seconds=600)
        assert best_time(lambda: lists_all(scripts, topics)) < 5
        assert best_time(lambda: lists_all(scripts, topics, "-g", "readers")) < 5
        name, partitions = next(iter(topics.items()))
        listed = scripts.run("consumer", "--list", "-t", name).stdout.splitlines()
        assert len(listed) == partitions
        assert best_time(lambda: scripts.run("consumer", "--list", "-t", name)) < 5
