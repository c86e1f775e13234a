"""Bytes into and out of the scripts, and each of their flags, on Windows."""

import json
from typing import Any

from broker import Broker
from remote import Console
from x_api import Step, XApi

import pytest
from conftest import Read, values
from kafka import KafkaAdminClient, KafkaProducer

# Both systems' line endings, a lone \r, Ctrl-Z (once the end of a text file), NUL, invalid UTF-8
LINES = [b"plain", b"with a return\r", b"", b"a\rb", b"\x1a", b"\0", b"\xff\xfe", "größe".encode()]
DATA = b"\n".join(LINES)


@pytest.mark.parametrize("way", ["file", "pipe", "-"])
def test_bytes_in(console: Console, topic: str, read: Read, way: str) -> None:
    arguments = {"file": [console.file("data.bin", DATA)], "pipe": [], "-": ["-"]}[way]
    program = console.start("producer", "-t", topic, *arguments, stdin="pipe")
    if way != "file":
        program.send(DATA)
        program.close_input()
    assert program.end()[:3] == (0, b"", f"producer.py: published 8 events to {topic}\n")
    assert values(read(topic)) == LINES


def test_bytes_out(console: Console, topic: str, producer: KafkaProducer) -> None:
    for line in LINES:
        producer.send(topic, line)
    producer.flush()
    assert console.run("consumer", "-t", topic, "-e")[:3] == (0, DATA + b"\n", "")


def test_tweets(console: Console, topic: str, read: Read) -> None:
    with XApi([Step(tweets=3, end="cut"), Step(tweets=10)]) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        flags = ("-t", topic, "-n", 5, "--param", "tweet.fields=lang", "--backfill")
        ended = console.run("twitter-stream", *flags, env=env)
    assert (ended.status, ended.out) == (0, b"")
    assert ended.err.endswith(
        f"published 5 tweets to {topic} (1 reconnect, 0 skipped, 3 duplicates)\n"
    )
    sent = list(dict.fromkeys(api.sent))[:5]  # three of them twice, because of --backfill
    found = read(topic)
    assert values(found) == sent
    assert [record.key.decode() for record in found] == [
        json.loads(line)["data"]["id"] for line in sent
    ]
    assert [request.query for request in api.requests] == [
        {"tweet.fields": "lang"},
        {"tweet.fields": "lang", "backfill_minutes": "1"},
    ]


@pytest.mark.parametrize(
    ("data", "flags", "expected"),
    [
        (b"a:1\r\nb:\r\n", [], [(b"a", b"1\r"), (b"b", b"\r")]),
        (b"a:1\r\nb:\r\n", ["--strip-cr"], [(b"a", b"1"), (b"b", None)]),
    ],
)
def test_lines_of_windows(
    console: Console,
    topic: str,
    read: Read,
    data: bytes,
    flags: list[str],
    expected: list[tuple[bytes, bytes | None]],
) -> None:
    path = console.file("data.txt", data)
    ended = console.run("producer", "-t", topic, "-K", ":", "-Z", *flags, path)
    assert (ended.status, ended.err) == (0, f"producer.py: published 2 events to {topic}\n")
    assert [(record.key, record.value) for record in read(topic)] == expected


def test_flags_of_producer(
    console: Console, kafka: Broker, admin: KafkaAdminClient, topic: str, read: Read
) -> None:
    flags = ["-b", kafka.address, "-t", topic, "-v", "-K", r"\t", "-Z", "-n", 3, "-H", "from=größe"]
    configs = ["--partitions", 2, "--topic-config", "cleanup.policy=compact"]
    env = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    path = console.file("größe.txt", b"a\t1\nb\t\nc\t3\nd\t4\n")
    ended = console.run("producer", *flags, *configs, path, env=env)
    assert ended.status == 0
    assert "producer.py: kafka.net" in ended.err
    assert f"producer.py: published 3 events to {topic}\n" in ended.err
    found = {record.key: (record.value, record.headers) for record in read(topic)}
    headers = [("from", "größe".encode())]
    assert found == {b"a": (b"1", headers), b"b": (None, headers), b"c": (b"3", headers)}
    [described] = admin.describe_topics([topic])
    assert len(described["partitions"]) == 2


def test_sample_events(console: Console, topic: str, read: Read) -> None:
    assert console.run("producer", "-t", topic, "-n", 2, "--interval", 0.1).status == 0
    assert [json.loads(record.value)["number"] for record in read(topic)] == [1, 2]


@pytest.fixture
def filled(topic: str, producer: KafkaProducer) -> str:
    """A topic with four events, of which the first two are from 2025."""
    for number, key in enumerate([b"a", b"b", b"c", b"d"]):
        time = 1_750_000_000_000 if number < 2 else None
        producer.send(topic, b"%d" % number, key, timestamp_ms=time)
    producer.flush()
    return topic


@pytest.mark.parametrize(
    ("flags", "out"),
    [
        (["-e"], b"0\n1\n2\n3\n"),
        (["-n", 2], b"0\n1\n"),
        (["--last", 1, "-e"], b"3\n"),
        (["--since", "1h", "-e"], b"2\n3\n"),
        (["--since", "1970-01-01", "-n", 1], b"0\n"),
        (["--latest", "-e"], b""),
        (["-K", r"\x3a\t", "-n", 1], b"a:\t0\n"),
        (["-g", "group", "-n", 1], b"0\n"),
    ],
)
def test_flags_of_consumer(console: Console, filled: str, flags: list[Any], out: bytes) -> None:
    assert console.run("consumer", "-t", filled, *flags)[:3] == (0, out, "")


def test_json_and_list(console: Console, kafka: Broker, filled: str) -> None:
    [line] = console.run("consumer", "-t", filled, "--json", "-n", 1).out.splitlines()
    event = json.loads(line)
    assert (event["key"], event["value"], event["timestamp"]) == ("a", "0", 1_750_000_000_000)
    ended = console.run("consumer", "-b", kafka.address, "--list", "-t", filled)
    assert ended.out.decode().split() == ["partition", "0", "first", "0", "end", "4", "leader", "1"]


def test_a_reader_that_goes_away_between_two_writes(
    console: Console, topic: str, producer: KafkaProducer
) -> None:
    for _ in range(200):
        producer.send(topic, bytes(10_000))
    producer.flush()
    ended = console.run("consumer", "-t", topic, output=50_000)
    assert (ended.status, ended.err) == (0, "")


def test_a_reader_that_goes_away_when_no_more_events_come(console: Console, filled: str) -> None:
    ended = console.run("consumer", "-t", filled, output=8)
    assert (ended.status, ended.out, ended.err) == (0, b"0\n1\n2\n3\n", "")
