"""Brokers and group members that are killed, or do not answer.

Nothing is lost, and nothing comes twice unless the docs say that it may.
"""

import functools
import json
import random
import re
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from broker import Broker, Cluster, Java, free_ports
from producer import BLOCK_BYTES
from x_api import Step, XApi

import pytest
from conftest import (
    Read,
    Result,
    Running,
    Scripts,
    Summary,
    read_summary,
    read_topic,
    values,
    wait_until,
)
from kafka import KafkaAdminClient, KafkaProducer, errors

PROGRESS = re.compile(
    r"producer\.py: \d+ events?, \d+/s(, \d+%)?(, waiting for Kafka: (?P<cause>\S.*))?"
)


def numbers(path: Path, count: int) -> Path:
    path.write_text("".join(f"{number:09d}\n" for number in range(count)))
    return path


def test_a_broker_that_is_killed_and_comes_back(
    scripts: Scripts, topic: str, read: Read, mortal: Broker, tmp_path: Path
) -> None:
    path = numbers(tmp_path / "numbers", 150_000)
    producer = scripts.start("producer", "-t", topic, path)
    watcher = scripts.start("consumer", "-t", topic, "-n", 10_000)
    assert watcher.end().returncode == 0
    mortal.kill()
    time.sleep(5)  # the outage itself
    assert producer.process.poll() is None
    mortal.start()
    done = producer.end(seconds=60)
    assert done.returncode == 0
    *progress, summary = done.stderr.decode().splitlines()
    assert summary == f"producer.py: published 150000 events to {topic}"
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert b"".join(record.value + b"\n" for record in read(topic)) == path.read_bytes()


@pytest.mark.stress
def test_a_broker_that_stays_away_beyond_the_delivery_timeout(
    scripts: Scripts, topic: str, read: Read, mortal: Broker, tmp_path: Path
) -> None:
    path = numbers(tmp_path / "numbers", 300_000)
    producer = scripts.start(
        "producer", "-t", topic, path, env={"KAFKA_DELIVERY_TIMEOUT_MS": "5000"}
    )
    watcher = scripts.start("consumer", "-t", topic, "-n", 30_000)
    assert watcher.end().returncode == 0
    mortal.kill()
    began = time.monotonic()
    done = producer.end(seconds=40)
    assert time.monotonic() - began < 5 + 15
    assert done.returncode == 1
    summary = read_summary(done.stderr)
    event = f"event {summary.published + 1} (9 bytes)"
    assert summary.reason == f"{event}: not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
    assert 0 < summary.failed <= 16_001 + 4 * BLOCK_BYTES // 10  # four blocks have been read ahead
    mortal.start()
    events = [int(value or b"") for value in values(read(topic))]
    assert events[: summary.published] == list(range(summary.published))
    assert len(events) <= summary.published + summary.failed


@pytest.mark.parametrize("in_a_group", [False, True])
@pytest.mark.parametrize("fault", ["killed", "stalled"])
def test_the_consumer_ends_while_the_broker_is_gone(
    scripts: Scripts,
    topic: str,
    mortal: Broker,
    admin: KafkaAdminClient,
    fault: str,
    in_a_group: bool,
) -> None:
    assert scripts.run("producer", "-t", topic, "-n", 10, "--interval", 0).returncode == 0
    consumer = scripts.start("consumer", "-t", topic, *(["-g", topic] if in_a_group else []))
    consumer.wait_for(lambda it: it.out.count(b"\n") == 10)
    if in_a_group:
        wait_until(lambda: admin.list_group_offsets({topic: None})[topic])
    if fault == "killed":
        mortal.kill()
    else:
        mortal.server.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = consumer.end(signal.SIGTERM)
        assert time.monotonic() - began < 5
    finally:
        mortal.server.process.send_signal(signal.SIGCONT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 10


@pytest.mark.parametrize("fault", ["killed", "stalled"])
def test_the_consumer_says_that_kafka_is_away_and_that_it_is_back(
    scripts: Scripts, topic: str, mortal: Broker, fault: str
) -> None:
    """Without a group and in one; if Kafka was killed, also a consumer awaiting its topic."""
    assert scripts.run("producer", "-t", topic, input=b"before\n").returncode == 0
    watchers = [scripts.start("consumer", "-t", topic, *group) for group in ([], ["-g", topic])]
    for watcher in watchers:
        watcher.wait_for(lambda it: it.out == b"before\n")
    waiting = scripts.start("consumer", "-t", f"{topic}-2")
    waiting.wait_for(lambda it: it.err.endswith(b"waiting for it\n"))
    if fault == "killed":
        mortal.kill()
        watchers.append(waiting)
    else:
        mortal.server.process.send_signal(signal.SIGSTOP)
    cause = {"killed": "connection refused", "stalled": "no response"}[fault]
    for watcher in watchers:
        message = f"consumer.py: waiting for Kafka: {cause}\n".encode()
        watcher.wait_for(lambda it, message=message: it.err.endswith(message))  # type: ignore[misc]
    if fault == "killed":
        mortal.start()
    else:
        mortal.server.process.send_signal(signal.SIGCONT)
    for watcher in watchers:
        watcher.wait_for(lambda it: it.err.endswith(b"consumer.py: Kafka is back\n"))
    assert scripts.run("producer", "-t", topic, input=b"after\n").returncode == 0
    for watcher in watchers[:2]:
        watcher.wait_for(lambda it: it.out == b"before\nafter\n")
        done = watcher.end(signal.SIGTERM)
        assert (done.returncode, done.stderr.count(b"\n")) == (0, 2)


def has_listened(running: Running) -> bool:
    """Whether it handles signals, or has done so and ended."""
    return running.takes_signals() or running.process.poll() == 0


def end_without_broker(consumer: Running, broker: Broker) -> Result:
    """Stop a consumer whose broker has just stalled."""
    broker.server.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(0.2)  # so that the consumer notices the silence
        began = time.monotonic()
        done = consumer.end(signal.SIGTERM)
        assert time.monotonic() - began < 5
    finally:
        broker.server.process.send_signal(signal.SIGCONT)
    assert done.stderr == b""
    return done


def check_stopped(done: Result, arguments: list[str], listened: bool) -> None:
    """Check that its status fits how many of the ten events it has printed."""
    events = [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert len(set(events)) == len(events)
    if done.returncode == -signal.SIGTERM and not events:  # it had nothing to lose yet
        assert not listened
    elif done.returncode == -signal.SIGTERM:  # or no longer, as Python itself was ending
        assert "-e" in arguments
        assert len(events) == 10
    elif "-e" in arguments:
        assert done.returncode == 143 or (done.returncode == 0 and len(events) == 10)
    else:
        assert done.returncode == 0


@pytest.mark.parametrize("arguments", [[], ["-e"], ["-g", "starters", "--latest"]])
def test_the_consumer_ends_while_the_broker_goes_at_the_start(
    scripts: Scripts, topic: str, mortal: Broker, arguments: list[str]
) -> None:
    """At moments in its first second: after it starts, and after it begins to handle signals."""
    lines = ["-t", topic, "-n", "10", "--interval", "0", "--partitions", "20"]
    assert scripts.run("producer", *lines).returncode == 0
    for moment in (0.1, 0.3, 0.4, 0.5, 0.6):
        consumer = scripts.start("consumer", "-t", topic, *arguments)
        time.sleep(moment)
        check_stopped(end_without_broker(consumer, mortal), arguments, listened=False)
    for moment in (0, 0.1, 0.2, 0.3, 0.4):
        consumer = scripts.start("consumer", "-t", topic, *arguments)
        wait_until(functools.partial(has_listened, consumer))
        time.sleep(moment)
        check_stopped(end_without_broker(consumer, mortal), arguments, listened=True)


SYNC_GROUP = 14  # a kind of Kafka request; each frame is size (4 bytes), kind (2 bytes), the rest


class Delay(socketserver.BaseRequestHandler):
    """A connection to the broker on `port`; it forwards each SyncGroup request two seconds late."""

    port: int

    def handle(self) -> None:
        with (
            socket.create_connection(("127.0.0.1", self.port)) as broker,
            self.request.makefile("rb") as requests,
        ):
            threading.Thread(target=self.answer, args=(broker,), daemon=True).start()
            while head := requests.read(6):
                size, kind = struct.unpack(">ih", head)
                if kind == SYNC_GROUP:
                    time.sleep(2)
                broker.sendall(head + requests.read(size - 2))

    def answer(self, broker: socket.socket) -> None:
        with suppress(OSError):
            while block := broker.recv(1 << 16):
                self.request.sendall(block)


def test_a_rebalance_that_kafka_python_loses(tmp_path: Path) -> None:
    """Its last response comes between two polls, after topic creation; the consumer rejoins."""
    [port] = free_ports(1)
    handler = type("Handler", (Delay,), {"port": port})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        address = f"127.0.0.1:{proxy.server_address[1]}"
        with Broker(port, settings={"advertised.listeners": f"PLAINTEXT://{address}"}):
            scripts = Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": address})
            consumer = scripts.start("consumer", "-t", "late", "-g", "readers")
            consumer.wait_for(lambda it: it.err.endswith(b"\n"))
            time.sleep(4)  # for it to join the group
            assert scripts.run("producer", "-t", "late", "-n", 10, "--interval", 0).returncode == 0
            consumer.wait_for(lambda it: it.out.count(b"\n") == 10)
            done = consumer.end(signal.SIGTERM)
            assert done.returncode == 0
            assert done.stderr.decode() == (
                "consumer.py: topic late does not exist yet; waiting for it\n"
                "consumer.py: group readers is rebalancing; waiting for its other members\n"
            )
            assert done.stdout.count(b"\n") == 10
        proxy.shutdown()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(three: Cluster) -> Iterator[Cluster]:
    """Three brokers; any that a test has killed are started again afterwards."""
    yield three
    for broker in three.brokers:
        if broker.server not in broker.programs:
            broker.start()


@pytest.fixture
def cluster_scripts(cluster: Cluster, tmp_path: Path) -> Scripts:
    return Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": cluster.address})


def lines_of(members: list[Running]) -> set[bytes]:
    """The lines that the members of a group have printed."""
    return {bytes(line) for member in members for line in member.out.split()}


@pytest.mark.stress
def test_a_leader_is_killed_while_all_three_scripts_run(
    cluster_scripts: Scripts, cluster: Cluster, tmp_path: Path
) -> None:
    """Each broker leads a partition of the topic `events`, so the one that is killed does, too."""
    path = numbers(tmp_path / "numbers", 100_000)
    with XApi([Step(batch=10)], rate=100) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        stream = cluster_scripts.start("twitter-stream", "-t", "tweets", env=env)
        producer = cluster_scripts.start("producer", "-t", "events", "--partitions", 3, path)
        group = [
            cluster_scripts.start("consumer", "-t", "events", "-g", "readers") for _ in range(2)
        ]
        wait_until(lambda: sum(member.out.count(b"\n") for member in group) > 10_000)
        admin = KafkaAdminClient(bootstrap_servers=cluster.address)
        leader = admin.describe_topics(["tweets"])[0]["partitions"][0]["leader_id"]
        admin.close()
        assert producer.process.poll() is None
        sent = len(api.sent)
        cluster.brokers[leader - 1].kill()
        done = producer.end(seconds=60)
        assert (done.returncode, done.stderr.decode()) == (
            0,
            "producer.py: published 100000 events to events\n",
        )
        wait_until(lambda: len(lines_of(group)) == 100_000)
        wait_until(lambda: len(api.sent) > sent + 2000)
        done = stream.end(signal.SIGTERM)
    found = [value or b"" for value in values(read_topic(cluster.address, "events"))]
    assert len(found) == 100_000
    assert b"".join(sorted(line + b"\n" for line in found)) == path.read_bytes()
    tweets = values(read_topic(cluster.address, "tweets"))
    assert done.returncode == 0
    assert read_summary(done.stderr) == Summary(published=len(tweets))
    assert tweets == api.sent[: len(tweets)]
    assert len(tweets) > sent


@pytest.mark.stress
def test_two_of_three_brokers_are_away(cluster_scripts: Scripts, cluster: Cluster) -> None:
    watcher = cluster_scripts.start("consumer", "-t", "few")
    env = {"STREAM_TEST_SECOND": "0.2"}
    producer = cluster_scripts.start("producer", "-t", "few", stdin=subprocess.PIPE, env=env)
    producer.send(b"before\n")
    watcher.wait_for(lambda it: it.out == b"before\n")
    for broker in cluster.brokers[:2]:
        broker.kill()
    producer.send(b"while\n")
    producer.wait_for(lambda it: b"waiting for Kafka: " in it.err)
    cluster.brokers[0].start()
    watcher.wait_for(lambda it: it.out == b"before\nwhile\n", seconds=60)
    assert producer.process.stdin
    producer.process.stdin.close()
    done = producer.end()
    assert done.returncode == 0
    *progress, summary = done.stderr.decode().splitlines()
    assert summary == "producer.py: published 2 events to few"
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert any("producer.py: 1 event, 0/s, waiting for Kafka: " in line for line in progress)


@pytest.mark.stress
def test_a_partition_loses_its_leader_and_the_others_go_on(
    cluster_scripts: Scripts, cluster: Cluster
) -> None:
    """It has one replica. The others are printed meanwhile; with -e, the loss is an error."""
    with KafkaAdminClient(bootstrap_servers=cluster.address) as admin:
        admin.create_topics({"single": {"num_partitions": 3, "replication_factor": 1}})
        wait_until(lambda: len(leaders(admin, "single")) == 3)
        [lost] = [
            partition for partition, leader in leaders(admin, "single").items() if leader == 1
        ]
    lines = [b"%d" % number for number in range(30)]
    watcher = cluster_scripts.start("consumer", "-t", "single")
    assert cluster_scripts.run("producer", "-t", "single", input=b"before\n").returncode == 0
    watcher.wait_for(lambda it: it.out == b"before\n")
    cluster.brokers[0].kill()
    problem = rf"connection refused|partition {lost} has no leader"
    away = re.compile(rf"consumer\.py: waiting for Kafka: ({problem})\n".encode())
    watcher.wait_for(lambda it: away.fullmatch(it.err))
    done = cluster_scripts.run("producer", "-t", "single", input=b"\n".join(lines))
    assert done.stderr == b"producer.py: published 30 events to single\n"
    watcher.wait_for(lambda it: set(bytes(it.out).split()) == {b"before", *lines})
    done = cluster_scripts.run("consumer", "-t", "single", "-e")
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        1,
        b"",
        f"consumer.py: cannot read topic single: partition {lost} has no leader. "
        "Are all brokers running?\n",
    )
    with XApi() as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        stream = cluster_scripts.start("twitter-stream", "-t", "single", "--backfill", env=env)
        sentence = (
            f"twitter-stream.py: cannot read topic single: partition {lost} has no leader. "
            "--backfill cannot fill the gap since the last run.\n"
        )
        stream.wait_for(lambda it: it.err.startswith(sentence.encode()))
        stream.end(signal.SIGTERM)
    assert away.fullmatch(bytes(watcher.err))
    cluster.brokers[0].start()
    watcher.wait_for(lambda it: it.err.endswith(b"consumer.py: Kafka is back\n"), 60)
    done = watcher.end(signal.SIGTERM)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 2)


def leaders(admin: KafkaAdminClient, topic: str) -> dict[int, int]:
    """The leader of each partition that has one."""
    [described] = admin.describe_topics([topic])
    return {
        partition["partition_index"]: partition["leader_id"]
        for partition in described["partitions"]
        if partition["leader_id"] >= 0
    }


@pytest.mark.stress
def test_too_few_replicas_are_in_sync(cluster_scripts: Scripts, cluster: Cluster) -> None:
    """One of two is, and min.insync.replicas is 2. Publishing resumes once there are enough."""
    with KafkaAdminClient(bootstrap_servers=cluster.address) as admin:
        admin.create_topics({"pair": {"num_partitions": 1, "replication_factor": 2}})
        wait_until(lambda: leaders(admin, "pair"))
        [described] = admin.describe_topics(["pair"])
        [partition] = described["partitions"]
        [follower] = set(partition["replica_nodes"]) - {partition["leader_id"]}
    env = {"STREAM_TEST_SECOND": "0.5"}
    producer = cluster_scripts.start("producer", "-t", "pair", stdin=subprocess.PIPE, env=env)
    producer.send(b"before\n")
    watcher = cluster_scripts.start("consumer", "-t", "pair")
    watcher.wait_for(lambda it: it.out == b"before\n")
    cluster.brokers[follower - 1].kill()
    wait_until(lambda: len(in_sync(cluster, "pair")) == 1)
    producer.send(b"while\n")
    reason = b"too few in-sync replicas for the topic's min.insync.replicas\n"
    producer.wait_for(lambda it: it.err.endswith(b"waiting for Kafka: " + reason))
    cluster.brokers[follower - 1].start()
    watcher.wait_for(lambda it: it.out == b"before\nwhile\n", 60)
    assert producer.process.stdin
    producer.process.stdin.close()
    done = producer.end()
    assert done.returncode == 0
    assert read_summary(done.stderr) == Summary(published=2)


def in_sync(cluster: Cluster, topic: str) -> list[int]:
    """The in-sync replicas of the topic's only partition; none if no broker can say now."""
    with (
        suppress(errors.KafkaError),
        KafkaAdminClient(bootstrap_servers=cluster.address) as admin,
    ):
        [described] = admin.describe_topics([topic])
        return described["partitions"][0]["isr_nodes"]  # type: ignore[no-any-return]
    return []


@pytest.mark.stress
def test_a_topic_is_deleted_where_kafka_creates_none_by_itself(
    cluster_scripts: Scripts, cluster: Cluster
) -> None:
    env = {"STREAM_TEST_SECOND": "0.2", "KAFKA_DELIVERY_TIMEOUT_MS": "5000"}
    producer = cluster_scripts.start("producer", "-t", "gone", "--interval", "0.01", env=env)
    assert cluster_scripts.run("consumer", "-t", "gone", "-n", 50).returncode == 0
    admin = KafkaAdminClient(bootstrap_servers=cluster.address)
    admin.delete_topics(["gone"])
    began = time.monotonic()
    done = producer.end()
    assert time.monotonic() - began < 5 + 15
    assert "gone" not in admin.list_topics()
    admin.close()
    assert done.returncode == 1
    *progress, _ = [PROGRESS.fullmatch(line) for line in done.stderr.decode().splitlines()]
    causes = {line["cause"] for line in progress if line and line["cause"]}
    assert causes == {"no such topic: gone"}
    assert None not in progress
    summary = read_summary(done.stderr)
    reason = r"event \d+ \(\d+ bytes\): not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
    assert summary.published >= 50
    assert summary.failed > 0
    assert re.fullmatch(reason, summary.reason)


def printed(output: bytes) -> list[tuple[int, int]]:
    """Partition and offset of each whole line of JSON."""
    events = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    return [(event["partition"], event["offset"]) for event in events]


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.stress)])
def test_a_group_member_is_killed_and_another_takes_over(
    scripts: Scripts, topic: str, read: Read, admin: KafkaAdminClient, tmp_path: Path, count: int
) -> None:
    """At random moments. All that was committed had been printed; the other resumes right there."""
    path = numbers(tmp_path / "numbers", 20_000)
    assert scripts.run("producer", "-t", topic, "--partitions", 2, path).returncode == 0
    every = [(record.partition, record.offset) for record in read(topic)]
    env = {"KAFKA_SESSION_TIMEOUT_MS": "1000", "KAFKA_HEARTBEAT_INTERVAL_MS": "300"}
    chance = random.Random(3)
    moments = [chance.randrange(20_000) for _ in range(count)]

    def one_round(index: int) -> None:
        moment, group = moments[index], f"{topic}-{index}"
        arguments = ("consumer", "-t", topic, "-g", group, "--json")
        member = scripts.start(*arguments, env=env)
        member.wait_for(lambda it: it.out.count(b"\n") > moment)
        first = printed(member.end(signal.SIGKILL).stdout)
        committed = {
            partition.partition: offset.offset
            for partition, offset in admin.list_group_offsets({group: None})[group].items()
        }
        second = printed(scripts.run(*arguments, "-e", env=env).stdout)
        assert len(set(first)) == len(first) > moment
        assert {place for place in every if place[1] < committed.get(place[0], 0)} <= set(first)
        assert sorted(second) == [
            place for place in every if place[1] >= committed.get(place[0], 0)
        ]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_round, range(count)))


def set_quota(kafka: Broker, client: str, rate: int) -> None:
    """Limit how many bytes per second the client of that name may publish and read."""
    quota = ("--add-config", f"producer_byte_rate={rate},consumer_byte_rate={rate}")
    entity = ("--entity-type", "clients", "--entity-name", client)
    server = ("--bootstrap-server", kafka.address)
    command = Java(kafka.version, "kafka.admin.ConfigCommand", *server, "--alter", *quota, *entity)
    assert command.wait_ended() == 0


def test_a_quota(scripts: Scripts, topic: str, kafka: Broker, producer: KafkaProducer) -> None:
    """Kafka lets 11 seconds' worth through, then makes the client wait; nothing is lost."""
    set_quota(kafka, topic, 100_000)
    lines = [b"%0999d" % number for number in range(2000)]
    for line in lines:
        producer.send(topic, line)
    producer.flush()
    done = scripts.run("consumer", "-t", topic, "-e", env={"KAFKA_CLIENT_ID": topic})
    assert done.returncode == 0
    assert done.stdout.splitlines() == lines
    assert done.stderr.decode() == (
        "consumer.py: waiting for Kafka: it is throttling this client because of a quota\n"
    )


def test_a_rebalance_that_takes_long(scripts: Scripts, topic: str) -> None:
    """A member that was killed holds it up until its session expires."""
    assert scripts.run("producer", "-t", topic, input=b"event\n").returncode == 0
    arguments = ("consumer", "-t", topic, "-g", topic)
    env = {"KAFKA_SESSION_TIMEOUT_MS": "8000"}
    killed = scripts.start(*arguments, env=env)
    killed.wait_for(lambda it: it.out == b"event\n")
    killed.end(signal.SIGKILL)
    done = scripts.run(*arguments, "-e")
    assert done.returncode == 0
    assert done.stderr.decode() == (
        f"consumer.py: group {topic} is rebalancing; waiting for its other members\n"
    )


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.stress)])
def test_members_come_and_go_while_a_group_reads(scripts: Scripts, topic: str, rounds: int) -> None:
    """What was printed is committed before another member gets the partition; nothing repeats."""
    producer = scripts.start(
        "producer", "-t", topic, "--partitions", 4, "-n", 100_000_000, "--interval", 0
    )
    env = {"KAFKA_HEARTBEAT_INTERVAL_MS": "100"}  # so they hear of each other soon
    arguments = ("consumer", "-t", topic, "-g", topic, "--json")
    first = scripts.start(*arguments, env=env)
    first.wait_for(lambda it: it.out)
    chance = random.Random(5)
    output = b""
    for _ in range(rounds):
        other = scripts.start(*arguments, env=env)
        other.wait_for(lambda it: it.out)
        time.sleep(chance.uniform(0, 1))  # a random moment
        done = other.end(chance.choice([signal.SIGINT, signal.SIGTERM]))
        assert (done.returncode, done.stderr) == (0, b"")
        output += done.stdout
    stopped = producer.end(signal.SIGINT)
    total = read_summary(stopped.stderr).published
    *progress, summary = stopped.stderr.decode().splitlines()  # a longer run reports its progress
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert summary == f"producer.py: published {total} events to {topic}"
    assert stopped.returncode == 130
    first.wait_for(lambda it: it.out.count(b"\n") + output.count(b"\n") >= total, 60)
    output += first.end(signal.SIGTERM).stdout
    places = printed(output)
    assert len(places) == len(set(places)) == total
