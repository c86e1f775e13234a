"""Brokers and group members that are killed, or do not answer.

Nothing is lost, and nothing comes twice unless the docs say that it may.
"""

import itertools
import json
import os
import random
import re
import signal
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.admin import MemberToRemove
from kafka.protocol.admin import AlterClientQuotasRequest

from broker import Broker, Cluster
from conftest import (
    GUARD,
    HELD_UP,
    Read,
    Result,
    Running,
    Scripts,
    Summary,
    read_summary,
    read_topic,
    resume,
    unread_pipe,
    values,
    wait_until,
)
from forkserver import ForkServer
from x_api import Step, XApi

PROGRESS = re.compile(
    r"producer\.py: \d+ events?, \d+/s(, \d+%)?(, waiting for Kafka: (?P<cause>\S.*))?"
)
IMPATIENT = {"STREAM_TEST_PATIENCE": "2"}  # where the test waits for the product to lose patience
HURRIED = {"STREAM_TEST_PATIENCE": "4"}  # where it ends without Kafka, which takes that patience


def numbers(path: Path, count: int) -> Path:
    path.write_text("".join(f"{number:09d}\n" for number in range(count)))
    return path


@contextmanager
def feeding(running: Running) -> Iterator[list[bytes]]:
    """Give a script numbered lines without a pause; yields the list of those it has got."""
    lines: list[bytes] = []
    has_enough = threading.Event()

    def feed() -> None:
        while not has_enough.wait(0.005):
            block = [b"%09d" % number for number in range(len(lines), len(lines) + 50)]
            with suppress(BrokenPipeError):
                running.send(b"".join(line + b"\n" for line in block))
            lines.extend(block)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        yield lines
    finally:
        has_enough.set()
    feeder.join(GUARD)


def test_a_broker_that_is_killed_and_comes_back(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    env = {"STREAM_TEST_SECOND": "0.2"}
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=env)
    watcher = scripts.start("consumer", "-t", topic, "-n", 3000)
    with feeding(producer) as lines:
        assert watcher.end().returncode == 0
        mortal.kill()
        said = len(producer.err)
        away = re.compile(rb"waiting for Kafka: connection refused\n")
        producer.wait_for(lambda it: away.search(it.err, said))
        mortal.start()
        published = len(lines)
        wait_until(lambda: len(lines) > published)
    producer.close_input()
    done = producer.end()
    assert done.returncode == 0
    *progress, summary = done.stderr.decode().splitlines()
    assert summary == f"producer.py: published {len(lines)} events to {topic}"
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert values(read(topic)) == lines


@pytest.mark.stress
def test_a_broker_that_stays_away_beyond_the_delivery_timeout(
    scripts: Scripts, topic: str, read: Read, mortal: Broker
) -> None:
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "5000"}
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=env)
    watcher = scripts.start("consumer", "-t", topic, "-n", 3000)
    with feeding(producer) as lines:
        assert watcher.end().returncode == 0
        mortal.kill()
        published = len(lines)
        wait_until(lambda: len(lines) > published)
        done = producer.end()
    assert done.returncode == 1
    summary = read_summary(done.stderr)
    event = f"event {summary.published + 1} (9 bytes)"
    assert summary.reason == f"{event}: not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
    assert 0 < summary.failed <= len(lines) - summary.published
    mortal.start()
    events = values(read(topic))
    assert summary.published <= len(events) <= summary.published + summary.failed
    assert events == lines[: len(events)]


@contextmanager
def stalling(broker: Broker, read: Read, topic: str) -> Iterator[None]:
    """The broker answers nobody meanwhile."""
    broker.server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        resume(broker)


@contextmanager
def missing(broker: Broker) -> Iterator[None]:
    """The broker has been killed; it is started again at the end."""
    broker.kill()
    yield
    broker.start()


def check_ends(consumers: list[Running]) -> None:
    """Check that SIGTERM ends them as usual; each has printed one event."""
    for consumer in consumers:
        consumer.process.send_signal(signal.SIGTERM)
    for done in [consumer.end() for consumer in consumers]:
        assert (done.returncode, done.stdout) == (0, b"before\n")
        assert HELD_UP.sub(b"", done.stderr) == b""


def said(consumers: list[Running]) -> set[bytes]:
    """What the consumers say of Kafka's absence, once all have said something."""
    away = re.compile(rb"waiting for Kafka: (.*)\n(?!(?s:.*)Kafka is back)")
    for consumer in consumers:
        consumer.wait_for(lambda it: away.search(it.err))
    return {cause for consumer in consumers for cause in away.findall(consumer.err)}


@pytest.mark.parametrize("fault", ["killed", "stalled"])
def test_the_consumer_says_that_kafka_is_away_and_that_it_is_back(
    scripts: Scripts, topic: str, read: Read, mortal: Broker, admin: KafkaAdminClient, fault: str
) -> None:
    """Without a group and in one; if Kafka was killed, also a consumer awaiting its topic.

    Meanwhile, a signal ends others as usual.
    """
    assert scripts.run("producer", "-t", topic, input=b"before\n").returncode == 0
    arguments = ("consumer", "-t", topic)
    watchers, leavers = (
        [scripts.start(*arguments, *flags, env=env) for flags in ([], ["-g", f"{topic}-{number}"])]
        for number, env in ((1, IMPATIENT), (2, HURRIED))
    )
    for consumer in watchers + leavers:
        consumer.wait_for(lambda it: it.out == b"before\n")
    for group in (f"{topic}-1", f"{topic}-2"):
        wait_until(lambda group=group: admin.list_group_offsets({group: None})[group])  # type: ignore[misc]
    if fault == "killed":
        watchers.append(scripts.start("consumer", "-t", f"{topic}-2", env=IMPATIENT))
        watchers[-1].wait_for(lambda it: b"waiting for it\n" in it.err)
    with missing(mortal) if fault == "killed" else stalling(mortal, read, topic):
        check_ends(leavers)
        assert {"killed": b"connection refused", "stalled": b"no response"}[fault] in said(watchers)
    for watcher in watchers:
        watcher.wait_for(lambda it: b"Kafka is back" in it.err.rpartition(b"waiting for Kafka")[2])
    assert scripts.run("producer", "-t", topic, input=b"after\n").returncode == 0
    for watcher in watchers[:2]:
        watcher.wait_for(lambda it: it.out == b"before\nafter\n")
        done = watcher.end(signal.SIGTERM)
        assert (done.returncode, HELD_UP.sub(b"", done.stderr)) == (0, b"")


def check_stopped(done: Result, flags: list[str], listened: bool) -> None:
    """Check that its status fits how many of the ten events it has printed.

    `listened`: it handled signals before it got one.
    """
    assert HELD_UP.sub(b"", done.stderr) == b""
    events = [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert len(set(events)) == len(events)
    if done.returncode == -signal.SIGTERM and not events:  # it had nothing to lose yet
        assert not listened
    elif done.returncode == -signal.SIGTERM:  # or no longer, as Python itself was ending
        assert "-e" in flags
        assert len(events) == 10
    elif "-e" in flags:
        assert done.returncode == 143 or (done.returncode == 0 and len(events) == 10)
    else:
        assert done.returncode == 0


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.stress)])
def test_the_consumer_ends_while_the_broker_goes_at_the_start(
    scripts: Scripts, topic: str, read: Read, mortal: Broker, rounds: int
) -> None:
    """At random moments in its first second, before and after it begins to handle signals."""
    lines = ["-t", topic, "-n", "10", "--interval", "0", "--partitions", "20"]
    assert scripts.run("producer", *lines).returncode == 0
    for number in range(rounds):
        runs = []
        for moment in range(3):
            group = f"{topic}-{number}-{moment}"
            for flags in ([], ["-e"], ["-g", group, "--latest"]):
                runs.append((scripts.start("consumer", "-t", topic, *flags, env=HURRIED), flags))
                time.sleep(random.uniform(0, 0.2))
        with stalling(mortal, read, topic):
            listened = [consumer.takes_signals() for consumer, _ in runs]
            for consumer, _ in runs:
                consumer.process.send_signal(signal.SIGTERM)
            for (consumer, flags), each in zip(runs, listened, strict=True):
                check_stopped(consumer.end(), flags, each)


SYNC_GROUP = 14  # a kind of Kafka request; each frame is size (4 bytes), kind (2 bytes), the rest


class Delay(socketserver.StreamRequestHandler):
    """A connection to the broker on `port`; it forwards each SyncGroup request two seconds late."""

    port: int
    timeout = GUARD

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), GUARD) as broker:
            threading.Thread(target=self.answer, args=(broker,), daemon=True).start()
            while head := self.rfile.read(6):
                size, kind = struct.unpack(">ih", head)
                if kind == SYNC_GROUP:
                    time.sleep(2)
                broker.sendall(head + self.rfile.read(size - 2))

    def answer(self, broker: socket.socket) -> None:
        with suppress(OSError):
            while block := broker.recv(1 << 16):
                self.request.sendall(block)


@pytest.mark.long
def test_a_rebalance_that_kafka_python_loses(tmp_path: Path, server: ForkServer, port: int) -> None:
    """Its last response comes between two polls, after topic creation; the consumer rejoins."""
    handler = type("Handler", (Delay,), {"port": port})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        address = f"127.0.0.1:{proxy.server_address[1]}"
        with Broker(port, settings={"advertised.listeners": f"PLAINTEXT://{address}"}):
            scripts = Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": address}, server)
            arguments = ("consumer", "-t", "late", "-g", "readers", "-v")
            consumer = scripts.start(*arguments, env=IMPATIENT)
            consumer.wait_for(lambda it: b"newly assigned partitions set()" in it.err)
            assert scripts.run("producer", "-t", "late", "-n", 10, "--interval", 0).returncode == 0
            consumer.wait_for(lambda it: it.out.count(b"\n") == 10)
            done = consumer.end(signal.SIGTERM)
        proxy.shutdown()
    assert (done.returncode, done.stdout.count(b"\n")) == (0, 10)


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
def cluster_scripts(cluster: Cluster, tmp_path: Path, server: ForkServer) -> Scripts:
    return Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": cluster.address}, server)


def lines_of(members: list[Running]) -> set[bytes]:
    """The lines that the members of a group have printed."""
    return {bytes(line) for member in members for line in member.out.split()}


@pytest.mark.stress
def test_a_leader_is_killed_while_all_three_scripts_run(
    cluster_scripts: Scripts, cluster: Cluster
) -> None:
    """Each broker leads a partition of the topic `events`, so the one that is killed does, too."""
    with XApi([Step(batch=10)], rate=100) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        stream = cluster_scripts.start("twitter-stream", "-t", "tweets", env=env)
        arguments = ("-t", "events", "--partitions", 3)
        producer = cluster_scripts.start("producer", *arguments, stdin=subprocess.PIPE)
        reader = ("consumer", "-t", "events", "-g", "readers")
        group = [cluster_scripts.start(*reader) for _ in range(2)]
        with feeding(producer) as lines:
            wait_until(lambda: sum(member.out.count(b"\n") for member in group) > 10_000)
            admin = KafkaAdminClient(bootstrap_servers=cluster.address)
            leader = admin.describe_topics(["tweets"])[0]["partitions"][0]["leader_id"]
            admin.close()
            sent, published = len(api.sent), len(lines)
            cluster.brokers[leader - 1].kill()
            wait_until(lambda: len(lines) > published + 20_000)
        producer.close_input()
        done = producer.end()
        assert (done.returncode, read_summary(done.stderr)) == (0, Summary(published=len(lines)))
        wait_until(lambda: len(lines_of(group)) == len(lines))
        wait_until(lambda: len(api.sent) > sent + 2000)
        done = stream.end(signal.SIGTERM)
    found = [value or b"" for value in values(read_topic(cluster.address, "events"))]
    assert sorted(found) == lines
    tweets = values(read_topic(cluster.address, "tweets"))
    assert done.returncode == 0
    assert read_summary(done.stderr) == Summary(published=len(tweets))
    assert tweets == api.sent[: len(tweets)]
    assert len(tweets) > sent


def check_held_up(
    scripts: Scripts, topic: str, go: Callable[[], object], reason: str, back: Callable[[], object]
) -> None:
    """Check that the producer waits for what has gone, and that nothing is lost."""
    env = {"STREAM_TEST_SECOND": "0.2"}
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=env)
    producer.send(b"before\n")
    watcher = scripts.start("consumer", "-t", topic)
    watcher.wait_for(lambda it: it.out == b"before\n")
    go()
    producer.send(b"while\n")
    message = rf"producer\.py: 1 event, \d+/s, waiting for Kafka: {reason}\n".encode()
    producer.wait_for(lambda it: re.search(message, it.err))
    back()
    watcher.wait_for(lambda it: it.out == b"before\nwhile\n")
    producer.close_input()
    done = producer.end()
    *progress, summary = done.stderr.decode().splitlines()
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert (done.returncode, summary) == (0, f"producer.py: published 2 events to {topic}")


@pytest.mark.stress
def test_two_of_three_brokers_are_away(cluster_scripts: Scripts, cluster: Cluster) -> None:
    def go() -> None:
        for broker in cluster.brokers[:2]:
            broker.kill()

    check_held_up(cluster_scripts, "few", go, ".+", cluster.brokers[0].start)


@pytest.mark.stress
def test_a_partition_loses_its_leader_and_the_others_go_on(
    cluster_scripts: Scripts, cluster: Cluster
) -> None:
    """It has one replica. The others are printed meanwhile; with -e, the loss is an error."""
    with KafkaAdminClient(bootstrap_servers=cluster.address) as admin:
        admin.create_topics({"single": {"num_partitions": 3, "replication_factor": 1}})
        wait_until(lambda: len(leaders(admin, "single")) == 3)
        [lost] = [number for number, leader in leaders(admin, "single").items() if leader == 1]
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
    watcher.wait_for(lambda it: it.err.endswith(b"consumer.py: Kafka is back\n"))
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

    def go() -> None:
        cluster.brokers[follower - 1].kill()
        wait_until(lambda: len(in_sync(cluster, "pair")) == 1)

    reason = "too few in-sync replicas for the topic's min.insync.replicas"
    check_held_up(cluster_scripts, "pair", go, reason, cluster.brokers[follower - 1].start)


def in_sync(cluster: Cluster, topic: str) -> list[int]:
    """The in-sync replicas of the topic's only partition; none if no broker can say now."""
    address = cluster.address
    with suppress(errors.KafkaError), KafkaAdminClient(bootstrap_servers=address) as admin:
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
    done = producer.end()
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


@pytest.mark.parametrize("count", [3, pytest.param(200, marks=pytest.mark.stress)])
def test_a_group_member_is_killed_and_another_takes_over(
    scripts: Scripts, topic: str, read: Read, admin: KafkaAdminClient, tmp_path: Path, count: int
) -> None:
    """At random moments. All that was committed had been printed; the other resumes right there."""
    path = numbers(tmp_path / "numbers", 20_000)
    assert scripts.run("producer", "-t", topic, "--partitions", 2, path).returncode == 0
    every = [(record.partition, record.offset) for record in read(topic)]
    env = {"KAFKA_SESSION_TIMEOUT_MS": "3000", "KAFKA_HEARTBEAT_INTERVAL_MS": "300"}

    def one_round(index: int) -> None:
        moment, group = random.randrange(1, 20_000), f"{topic}-{index}"
        arguments = ("consumer", "-t", topic, "-g", group, "--json")
        with unread_pipe() as (output, writer):
            member = scripts.start(*arguments, env=env, stdout=writer)
            os.close(writer)
            guard = threading.Timer(GUARD, member.process.kill)
            guard.start()
            lines = list(itertools.islice(output, moment))
            guard.cancel()
            member.end(signal.SIGKILL)
            first = set(printed(b"".join([*lines, *output])))
        offsets = admin.list_group_offsets({group: None})[group]
        committed = {place.partition: each.offset for place, each in offsets.items()}
        second = set(printed(scripts.run(*arguments, "-e", env=env).stdout))
        rest = {place for place in every if place[1] >= committed.get(place[0], 0)}
        assert set(every) - rest <= first
        assert second == rest

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one_round, range(count)))


def set_quota(admin: KafkaAdminClient, client: str, rate: int) -> None:
    """Limit how many bytes per second the client of that name may read."""
    kind = AlterClientQuotasRequest.EntryData
    entity = kind.EntityData(entity_type="client-id", entity_name=client)
    limit = kind.OpData(key="consumer_byte_rate", value=float(rate), remove=False)
    entries = [kind(entity=[entity], ops=[limit])]
    request = AlterClientQuotasRequest(entries=entries, validate_only=False)
    [entry] = admin._manager.run(admin._manager.send, request).entries
    assert entry.error_code == 0


def test_a_quota(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, producer: KafkaProducer
) -> None:
    """Kafka lets ten seconds' worth through, then makes the client wait as long."""
    set_quota(admin, topic, 20_000)
    lines = [b"%0999d" % number for number in range(1000)]
    for line in lines:
        producer.send(topic, line)
    producer.flush()
    consumer = scripts.start("consumer", "-t", topic, env={"KAFKA_CLIENT_ID": topic, **IMPATIENT})
    message = b"consumer.py: waiting for Kafka: a quota is throttling this client\n"
    consumer.wait_for(lambda it: message in it.err)
    done = consumer.end(signal.SIGTERM)
    found = done.stdout.splitlines()
    assert (done.returncode, done.stderr.count(message)) == (0, 1)
    assert 0 < len(found) < len(lines)
    assert found == lines[: len(found)]


def members(admin: KafkaAdminClient, group: str) -> list[MemberToRemove]:
    described = admin.describe_groups([group])[group]["members"]
    return [MemberToRemove(member_id=member["member_id"]) for member in described]


def test_a_rebalance_that_takes_long(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    """A member that was killed holds it up, until its session expires or Kafka is told to go on."""
    assert scripts.run("producer", "-t", topic, input=b"before\n").returncode == 0
    arguments = ("consumer", "-t", topic, "-g", topic)
    killed = scripts.start(*arguments, env={"KAFKA_SESSION_TIMEOUT_MS": "300000"})
    killed.wait_for(lambda it: it.out == b"before\n")
    gone = members(admin, topic)
    killed.end(signal.SIGKILL)
    assert scripts.run("producer", "-t", topic, input=b"after\n").returncode == 0
    waiting = scripts.start(*arguments, "-e", env=IMPATIENT)
    message = f"consumer.py: group {topic} is rebalancing; waiting for its other members\n".encode()
    waiting.wait_for(lambda it: message in it.err)
    assert waiting.out == b""
    admin.remove_group_members(topic, gone)
    done = waiting.end()
    assert done.stdout in (b"after\n", b"before\nafter\n")  # it was killed before its commit, if so
    assert (done.returncode, HELD_UP.sub(b"", done.stderr)) == (0, b"")


@pytest.mark.parametrize("rounds", [2, pytest.param(30, marks=pytest.mark.stress)])
def test_members_come_and_go_while_a_group_reads(scripts: Scripts, topic: str, rounds: int) -> None:
    """What was printed is committed before another member gets the partition; nothing repeats."""
    producer = scripts.start("producer", "-t", topic, "--partitions", 4, "--interval", 0.001)
    env = {"KAFKA_HEARTBEAT_INTERVAL_MS": "100"}  # so they hear of each other soon
    arguments = ("consumer", "-t", topic, "-g", topic, "--json")
    first = scripts.start(*arguments, env=env)
    first.wait_for(lambda it: it.out)
    output = b""
    for number in (signal.SIGINT, signal.SIGTERM) * (rounds // 2):
        other = scripts.start(*arguments, env=env)
        other.wait_for(lambda it: it.out)
        time.sleep(random.uniform(0, 1))  # a random moment
        done = other.end(number)
        assert (done.returncode, HELD_UP.sub(b"", done.stderr)) == (0, b"")
        output += done.stdout
    stopped = producer.end(signal.SIGINT)
    total = read_summary(stopped.stderr).published
    *progress, summary = stopped.stderr.decode().splitlines()  # a longer run reports its progress
    assert all(PROGRESS.fullmatch(line) for line in progress)
    assert summary == f"producer.py: published {total} events to {topic}"
    assert stopped.returncode == 0
    first.wait_for(lambda it: it.out.count(b"\n") + output.count(b"\n") >= total)
    output += first.end(signal.SIGTERM).stdout
    places = printed(output)
    assert len(places) == len(set(places)) == total
