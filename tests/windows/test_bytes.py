"""Bytes into and out of the scripts, and flags that Windows might treat differently."""

import json

from kafka import KafkaAdminClient, KafkaProducer

from broker import Broker
from conftest import GUARD, Read, values
from remote import Console
from x_api import Step, XApi

# Both systems' line endings, a lone \r, Ctrl-Z (once the end of a text file), NUL, invalid UTF-8
LINES = [b"plain", b"with a return\r", b"", b"a\rb", b"\x1a", b"\0", b"\xff\xfe", "größe".encode()]
DATA = b"\n".join(LINES)


def test_bytes_in(console: Console, topic: str, read: Read) -> None:
    """From a file, then from a pipe."""
    path = console.file("data.bin", DATA)
    program = console.start("producer", "-t", topic, path, "-", stdin="pipe")
    program.send(DATA)
    program.close_input()
    assert program.end() == (0, b"", f"producer.py: published 16 events to {topic}\n")
    assert values(read(topic)) == LINES * 2


def test_bytes_out(console: Console, topic: str, producer: KafkaProducer) -> None:
    for line in LINES:
        producer.send(topic, line)
    producer.flush()
    assert console.run("consumer", "-t", topic, "-e") == (0, DATA + b"\n", "")


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


def test_flags_of_producer(
    console: Console, kafka: Broker, admin: KafkaAdminClient, topic: str, read: Read
) -> None:
    flags = ["-b", kafka.address, "-t", topic, "-v", "-K", r"\t", "-Z", "-n", 3, "-H", "from=größe"]
    others = ["--strip-cr", "--partitions", 2, "--topic-config", "cleanup.policy=compact"]
    env = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    path = console.file("größe.txt", b"a\t1\r\nb\t\r\nc\t3\r\nd\t4\r\n")
    ended = console.run("producer", *flags, *others, path, env=env)
    assert ended.status == 0
    assert "producer.py: kafka.net" in ended.err
    assert f"producer.py: published 3 events to {topic}\n" in ended.err
    found = {record.key: (record.value, record.headers) for record in read(topic)}
    headers = [("from", "größe".encode())]
    assert found == {b"a": (b"1", headers), b"b": (None, headers), b"c": (b"3", headers)}
    [described] = admin.describe_topics([topic])
    assert len(described["partitions"]) == 2


def test_flags_of_consumer(console: Console, topic: str, producer: KafkaProducer) -> None:
    """Windows itself cannot convert a local time before 1970 began in UTC."""
    producer.send(topic, b"value", b"key")
    producer.flush()
    flags = ("--since", "1970-01-01", "-K", r"\x3a\t", "-n", 1)
    assert console.run("consumer", "-t", topic, *flags) == (0, b"key:\tvalue\n", "")


def test_a_reader_that_goes_away(console: Console, topic: str, producer: KafkaProducer) -> None:
    """Between two writes, and before the next event."""
    few = f"{topic}-few"
    for number in range(4):
        producer.send(few, b"%d" % number)
    for _ in range(200):
        producer.send(topic, bytes(10_000))
    producer.flush()
    between = console.start("consumer", "-t", topic, output=50_000)
    after = console.start("consumer", "-t", few, output=8)
    ended = between.end()
    assert (ended.status, ended.err) == (0, "")
    while not after.has_ended():
        producer.send(few, b"more").get(GUARD)
    assert after.end() == (0, b"0\n1\n2\n3\n", "")
