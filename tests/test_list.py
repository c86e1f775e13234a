"""consumer.py --list: its rows and its retries in process, and the rest as users run it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition

from broker import Broker, Cluster
from config import read_settings
from conftest import GUARD, Running, Scripts
from streaming import kafka_client, listing
from streaming.kafka_client import Kafka
from streaming.listing import Partition


def publish(producer: KafkaProducer, topic: str, count: int, partition: int = 0) -> None:
    for _ in range(count):
        producer.send(topic, b"an event", partition=partition)
    producer.flush()


def commit(scripts: Scripts, group: str, topic: str, offsets: dict[int, int]) -> None:
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=group, enable_auto_commit=False)
    consumer.commit(
        {TopicPartition(topic, number): OffsetAndMetadata(at) for number, at in offsets.items()}
    )
    consumer.close()


def configured_kafka() -> Kafka:
    return Kafka(read_settings().kafka, None, verbose=False)


def read_json(output: bytes) -> list[Any]:
    return [json.loads(line) for line in output.splitlines()]


def check(consumer: Running, *expected: str) -> None:
    """Check that it printed exactly these lines and nothing else."""
    done = consumer.end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == list(expected)


# ------------------------------------------------------------------ rows

PARTITIONS = [
    Partition("few", 0, leader=1, first=0, end=1, committed=1),
    Partition("many", 0, leader=1, first=9, end=12, committed=7),
    Partition("many", 1, leader=12, first=0, end=1100, committed=None),
    Partition("many", 2, leader=1, first=5, end=5, committed=5),
    Partition("none", 0, leader=1, first=5, end=5, committed=None),
    Partition("torn", 0, leader=None, first=None, end=None, committed=3),
    Partition("torn", 1, leader=3, first=0, end=8, committed=None),
]
# By topic, group, and whether as JSON
LISTED: dict[tuple[str | None, str | None, bool], str] = {
    (None, "readers", False): (
        "few   1 partition      1 event   lag 0\n"
        "many  3 partitions  1103 events  lag 5\n"
        "none  1 partition      0 events  lag -\n"
        "torn  2 partitions     - events  lag -\n"
    ),
    ("many", None, False): (
        "partition 0  first 9  end   12  leader  1\n"
        "partition 1  first 0  end 1100  leader 12\n"
        "partition 2  first 5  end    5  leader  1\n"
    ),
    ("torn", "readers", False): (
        "partition 0  first -  end -  leader -  committed 3  lag -\n"
        "partition 1  first 0  end 8  leader 3  committed -  lag -\n"
    ),
    ("torn", "readers", True): (
        '{"topic": "torn", "partition": 0, "first_offset": null, "end_offset": null, '
        '"leader": null, "committed": 3, "lag": null}\n'
        '{"topic": "torn", "partition": 1, "first_offset": 0, "end_offset": 8, '
        '"leader": 3, "committed": null, "lag": null}\n'
    ),
    ("few", None, True): (
        '{"topic": "few", "partition": 0, "first_offset": 0, "end_offset": 1, "leader": 1}\n'
    ),
    ("absent", None, False): "",
}


def test_rows() -> None:
    """Without a leader, what depends on it is unknown; no lag where nothing is committed."""
    for (topic, group, as_json), text in LISTED.items():
        found = [partition for partition in PARTITIONS if topic in (None, partition.topic)]
        found_lines = listing.format_lines(found, topic, group, as_json)
        assert b"".join(line + b"\n" for line in found_lines).decode() == text


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
        group = scripts.start("consumer", "--list", "-t", topic, "-g", topic, "--json")
        topics = scripts.start("consumer", "--list", "-g", topic, "--json")
        offsets = [(9, 12), (0, 0), (0, 3), *[(0, 0)] * 7, (0, 100)]
        check(
            plain,
            *(
                f"partition {number:>2}  first {first}  end {end:>3}  leader 1"
                for number, (first, end) in enumerate(offsets)
            ),
        )
        none = (None, None)
        places = [(each["committed"], each["lag"]) for each in read_json(group.end().stdout)]
        assert places == [(7, 5), none, (3, 0), *[none] * 8]
        listed = {each["topic"]: each for each in read_json(topics.end().stdout)}
        assert list(listed) == sorted(listed)
        assert listed[topic] == {"topic": topic, "partitions": 11, "events": 106, "lag": 5}
        assert "__consumer_offsets" in listed
        client.abort_transaction()


def test_a_missing_topic_is_not_created(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """It fails at once, unlike an error that may pass: this run has four hours for retries."""
    env = {"STREAM_TEST_PATIENCE": "1000"}
    done = scripts.run("consumer", "--list", "-t", topic, env=env)
    message = f"consumer.py: cannot list topic {topic}: no such topic. Check -t.\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (1, b"", message)
    assert topic not in admin.list_topics()


# ------------------------------------------------------------------ Kafka goes away


def lose_kafka(monkeypatch: pytest.MonkeyPatch, lose: Callable[[], None]) -> None:
    """Lose Kafka once --list knows the leaders; from then on, that client waits for a moment."""
    fetch_leaders = listing.fetch_leaders

    def fetch(admin: Any, topic: str) -> dict[TopicPartition, int | None]:
        monkeypatch.setattr(listing, "fetch_leaders", fetch_leaders)
        found = fetch_leaders(admin, topic)
        lose()
        for connection in admin._manager._conns.values():
            connection._timeout_secs = 0.5
        return found

    monkeypatch.setattr(listing, "fetch_leaders", fetch)
    monkeypatch.setattr(kafka_client, "CONNECT_SECONDS", GUARD)


@pytest.mark.long
def test_kafka_is_away_for_a_moment(
    configure: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    mortal: Broker,
    topic: str,
    producer: KafkaProducer,
) -> None:
    """It is back only after the first attempt has failed."""
    publish(producer, topic, 3)
    configure(f"KAFKA_BOOTSTRAP_SERVERS={mortal.address}")
    lose_kafka(monkeypatch, mortal.kill)

    def pause(_: float) -> None:
        if mortal.server not in mortal.programs:
            mortal.start()

    monkeypatch.setattr(kafka_client, "ASK_SECONDS", GUARD)
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pause)
    monkeypatch.setattr(kafka_client, "time", clock)
    found = listing.list_lines(configured_kafka(), topic, None, False)
    assert found == [b"partition 0  first 0  end 3  leader 1"]
    assert mortal.server in mortal.programs


def test_kafka_stops_answering(
    configure: Callable[..., Path],
    refusal: Callable[..., tuple[Any, str]],
    monkeypatch: pytest.MonkeyPatch,
    kafka: Broker,
    stalled: Callable[[], None],
    topic: str,
    producer: KafkaProducer,
) -> None:
    publish(producer, topic, 3)
    configure(f"KAFKA_BOOTSTRAP_SERVERS={kafka.address}")
    lose_kafka(monkeypatch, stalled)
    monkeypatch.setattr(kafka_client, "ASK_SECONDS", 0)
    sentence = f"cannot list topic {topic}: Kafka did not respond in time"
    assert refusal(listing.list_lines, configured_kafka(), topic, None, False) == (1, sentence)


@pytest.mark.stress
def test_a_broker_of_a_cluster_is_away(lone_scripts: Scripts) -> None:
    """At first the others still name it as its partition's leader; then the partition has none."""
    with Cluster() as cluster:
        scripts = lone_scripts
        scripts.env["KAFKA_BOOTSTRAP_SERVERS"] = cluster.address
        with KafkaAdminClient(bootstrap_servers=cluster.address) as admin:
            admin.create_topics({"few": {"assignments": {0: [1], 1: [2], 2: [3]}}})
        with KafkaProducer(bootstrap_servers=cluster.address, acks=1) as producer:
            for number in range(3):
                publish(producer, "few", 5, number)
        commit(scripts, "readers", "few", {0: 1, 1: 2})
        cluster.brokers[1].kill()
        partitions = scripts.start("consumer", "--list", "-g", "readers", "-t", "few")
        topics = scripts.start("consumer", "--list", "-g", "readers", "--json")
        check(
            partitions,
            "partition 0  first 0  end 5  leader 1  committed 1  lag 4",
            "partition 1  first -  end -  leader -  committed 2  lag -",
            "partition 2  first 0  end 5  leader 3  committed -  lag -",
        )
        line = {"topic": "few", "partitions": 3, "events": None, "lag": None}
        assert line in read_json(topics.end().stdout)
