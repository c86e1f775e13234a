"""producer.py, run as users do, against a real Kafka."""

import contextlib
import ctypes
import fcntl
import itertools
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from broker import Broker

import pytest
from conftest import Read, Running, Scripts, wait_until
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

ODD = [
    b"",
    b"\x00",
    b"a\x00b",
    b"\r",
    b"line\r",
    b"\xff\xfe",
    b"\xc3",
    "é🎉".encode(),
    b" spaces ",
    b"\t",
    b"",
    b"x" * 5000,
]


def values(records: list[Any]) -> list[bytes | None]:
    return [record.value for record in records]


def partitions(admin: KafkaAdminClient, topic: str) -> int:
    return len(admin.describe_topics([topic])[0]["partitions"])


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("source", ["file", "dash", "pipe", "redirect"])
def test_each_line_is_an_event(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read, source: str, ending: bytes
) -> None:
    data = b"\n".join(ODD) + ending
    path = tmp_path / "events"
    path.write_bytes(data)
    if source == "file":
        done = scripts.run("producer", "-t", topic, path)
    elif source == "dash":
        done = scripts.run("producer", "-t", topic, "-", input=data)
    elif source == "pipe":
        done = scripts.run("producer", "-t", topic, input=data)
    else:
        with path.open("rb") as file:
            done = scripts.run("producer", "-t", topic, stdin=file)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"producer.py: published {len(ODD)} events to {topic}\n"
    assert values(read(topic)) == ODD


def test_files_are_read_one_after_the_other(scripts: Scripts, topic: str, tmp_path: Path, read: Read) -> None:
    (tmp_path / "a").write_bytes(b"1\n2")
    (tmp_path / "b").write_bytes(b"5\n")
    done = scripts.run("producer", "-t", topic, tmp_path / "a", "-", tmp_path / "b", input=b"3\n4")
    assert done.returncode == 0
    assert values(read(topic)) == [b"1", b"2", b"3", b"4", b"5"]


def test_empty_input_is_no_event(scripts: Scripts, topic: str, read: Read) -> None:
    done = scripts.run("producer", "-t", topic, input=b"")
    assert (done.returncode, done.stderr.decode()) == (0, f"producer.py: published 0 events to {topic}\n")
    assert read(topic) == []


def test_lines_arrive_while_the_pipe_stays_open(scripts: Scripts, topic: str) -> None:
    consumer = scripts.start("consumer", "-t", topic)
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE)
    for number in range(3):
        producer.send(b"line %d\nhal" % number)
        consumer.wait_for(lambda it, number=number: it.out.endswith(b"line %d\n" % number))  # type: ignore[misc]
        if number < 2:  # the signal is to find it reading, and not just about to
            producer.send(b"f ")
    done = producer.end(signal.SIGINT)
    assert done.returncode == 130
    assert done.stderr.decode() == f"producer.py: published 3 events to {topic}\n"
    assert consumer.end(signal.SIGTERM).stdout == b"line 0\nhalf line 1\nhalf line 2\n"


def test_a_pipe_that_does_not_block_is_waited_for(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_bytes(b"first\n")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    producer = scripts.start("producer", "-t", topic, first, "-", stdin=reader)
    os.close(reader)
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"  # now the pipe is read
    os.write(writer, b"late\n")
    os.close(writer)
    assert producer.end().returncode == 0
    assert scripts.run("consumer", "-t", topic, "-e").stdout == b"first\nlate\n"


def test_what_a_signal_finds_read_is_delivered(scripts: Scripts, topic: str, read: Read) -> None:
    reader, writer = os.pipe()
    with open(writer, "wb", buffering=0) as pipe:
        producer = scripts.start("producer", "-t", topic, stdin=reader)
        feeder = threading.Thread(target=feed, args=(pipe,))
        feeder.start()
        consumer = scripts.start("consumer", "-t", topic)
        consumer.wait_for(lambda it: it.out.count(b"\n") > 20_000)
        done = producer.end(signal.SIGTERM)
        left = os.read(reader, 1 << 20)
        os.close(reader)
        feeder.join()
    assert done.returncode == 143
    first_left = int(left.split(b"\n")[1])
    assert first_left - len(read(topic)) in (0, 1)  # the line at the cut is half read, and dropped


def feed(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        for number in range(10_000_000):
            pipe.write(b"%09d\n" % number)


def test_sample_events_go_to_the_new_topic_sample(scripts: Scripts, admin: KafkaAdminClient, read: Read) -> None:
    done = scripts.run("producer", "-n", 5, "--interval", 0)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"producer.py: published 5 events to sample\n"
    events = [json.loads(record.value) for record in read("sample")]
    assert [event["number"] for event in events] == [1, 2, 3, 4, 5]
    assert all(datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S%z").tzinfo for event in events)


def test_sample_events_where_standard_input_is_closed(scripts: Scripts, topic: str, read: Read) -> None:
    done = scripts.run("producer", "-t", topic, "-n", 2, "--interval", 0, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stderr.decode()) == (0, f"producer.py: published 2 events to {topic}\n")
    assert [json.loads(record.value)["number"] for record in read(topic)] == [1, 2]


def test_interval_paces_sample_events(scripts: Scripts, topic: str, read: Read) -> None:
    scripts.run("producer", "-t", topic, "-n", 4, "--interval", "0.3")
    times = [record.timestamp for record in read(topic)]
    assert times[-1] - times[0] >= 900


MOMENTS = [17, pytest.param(170, marks=pytest.mark.stress)]  # for each of three sources


@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("source", ["file", "pipe", "samples"])
def test_a_signal_at_any_moment(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, tmp_path: Path, source: str, count: int
) -> None:
    """What is counted is in the topic, each event once, and it is what was first in the source."""
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(b"%09d\n" % number for number in range(300_000)))
    chance = random.Random(source)
    moments = [(chance.choice([signal.SIGINT, signal.SIGTERM]), chance.uniform(0, 3)) for _ in range(count)]
    arguments = {"file": [str(path)], "pipe": [], "samples": ["-n", "10000000", "--interval", "0"]}[source]

    def one(index: int) -> int:
        """Returns how many events were published."""
        number, moment = moments[index]
        name = f"{topic}-{index}"
        reader, writer = os.pipe()
        with open(writer, "wb", buffering=0) as pipe:
            standard_input = reader if source == "pipe" else subprocess.DEVNULL
            producer = scripts.start("producer", "-t", name, "--partitions", 3, *arguments, stdin=standard_input)
            os.close(reader)
            if source == "pipe":  # some are held up by Kafka, some wait for more to come
                with contextlib.suppress(BrokenPipeError):
                    pipe.write(path.read_bytes()[: chance.choice([10, 10_000, 1 << 16])])
            wait_until(producer.takes_signals)
            time.sleep(moment)  # the random moment itself
            began = time.monotonic()
            done = producer.end(number)
            assert time.monotonic() - began < 5
        told = re.fullmatch(rf"(producer.py: published (\d+) events to {name}\n)?", done.stderr.decode())
        assert told, done.stderr
        published = int(told[2] or 0)
        at_the_end = source == "file" and published == 300_000  # on a fast machine
        assert done.returncode == (0 if at_the_end else 128 + number)
        found = read(name)
        events = [
            json.loads(record.value)["number"] - 1 if source == "samples" else int(record.value) for record in found
        ]
        assert all(source == "samples" or len(record.value) == 9 for record in found)
        assert sorted(events) == list(range(published))
        places = [(record.partition, event) for record, event in zip(found, events, strict=True)]
        assert places == sorted(places)
        if told[2]:
            admin.delete_topics([name])
        return published

    with ThreadPoolExecutor(2) as pool:
        published = list(pool.map(one, range(count)))
    assert any(0 < each < 300_000 for each in published)


@pytest.mark.parametrize("source", ["pipe", "FIFO without a writer"])
def test_a_signal_that_interrupts_no_call(scripts: Scripts, topic: str, tmp_path: Path, source: str) -> None:
    """As it comes a moment before a read, or, as here, to another thread than the one that reads."""
    os.mkfifo(tmp_path / "fifo")
    arguments = [] if source == "pipe" else [tmp_path / "fifo"]
    producer = scripts.start("producer", "-t", topic, *arguments, stdin=subprocess.PIPE)
    process = Path(f"/proc/{producer.process.pid}")
    wait_until(lambda: re.match("pipe_read|wait_for_partner|anon_pipe_read", (process / "wchan").read_text()))
    thread = next(int(each.name) for each in (process / "task").iterdir() if int(each.name) != producer.process.pid)
    assert ctypes.CDLL(None).tgkill(producer.process.pid, thread, signal.SIGINT) == 0
    done = producer.end(seconds=5)
    assert (done.returncode, done.stderr.decode()) == (130, f"producer.py: published 0 events to {topic}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("bound", "status"), [([], 0), (["-n", "1000000"], 128)])
def test_a_signal_ends_sample_events(
    scripts: Scripts, topic: str, read: Read, number: int, bound: list[str], status: int
) -> None:
    consumer = scripts.start("consumer", "-t", topic)
    producer = scripts.start("producer", "-t", topic, "--interval", "0.01", *bound)
    consumer.wait_for(lambda it: it.out.count(b"\n") > 5)
    done = producer.end(number)
    consumer.end(signal.SIGINT)
    published = read(topic)
    assert done.returncode == (status and status + number)
    assert done.stderr.decode() == f"producer.py: published {len(published)} events to {topic}\n"
    assert [json.loads(record.value)["number"] for record in published] == list(range(1, len(published) + 1))


def test_count_bounds_lines_too(scripts: Scripts, topic: str, read: Read) -> None:
    producer = scripts.start("producer", "-t", topic, "-n", 2, stdin=subprocess.PIPE)
    producer.send(b"1\n2\n3\n")  # and the pipe stays open
    assert producer.end().returncode == 0
    assert values(read(topic)) == [b"1", b"2"]


def test_keys_and_tombstones(scripts: Scripts, topic: str, read: Read) -> None:
    lines = b"a::1\nb::2::3\nno key\n::empty key\na::\n\n"
    done = scripts.run("producer", "-t", topic, "-K", "::", "-Z", input=lines)
    assert done.returncode == 0
    assert [(record.key, record.value) for record in read(topic)] == [
        (b"a", b"1"),
        (b"b", b"2::3"),
        (None, b"no key"),
        (b"", b"empty key"),
        (b"a", None),
        (None, b""),
    ]


def test_without_z_an_empty_value_stays_empty(scripts: Scripts, topic: str, read: Read) -> None:
    scripts.run("producer", "-t", topic, "-K", ":", input=b"a:\n")
    assert [(record.key, record.value) for record in read(topic)] == [(b"a", b"")]


def test_keys_keep_their_order_and_their_partition(scripts: Scripts, topic: str, read: Read) -> None:
    lines = [b"%d:%d" % (number % 37, number) for number in range(5000)]
    scripts.run("producer", "-t", topic, "-K", ":", "--partitions", 5, input=b"\n".join(lines))
    found: dict[bytes, list[int]] = {}
    homes: dict[bytes, set[int]] = {}
    for record in read(topic):
        found.setdefault(record.key, []).append(int(record.value))
        homes.setdefault(record.key, set()).add(record.partition)
    assert found == {b"%d" % key: list(range(key, 5000, 37)) for key in range(37)}
    assert all(len(home) == 1 for home in homes.values())
    assert len(set().union(*homes.values())) == 5


def test_the_topic_is_created_as_asked(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    options = ["--partitions", "3", "--topic-config", "cleanup.policy=compact", "--topic-config", "retention.ms=1000"]
    done = scripts.run("producer", "-t", topic, "-K", "=", *options, input=b"key=value")
    assert done.returncode == 0
    assert partitions(admin, topic) == 3
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, ["cleanup.policy", "retention.ms"])]
    found = admin.describe_configs(asked)["topic"][topic]
    assert found["cleanup.policy"]["value"] == "compact"
    assert found["retention.ms"]["value"] == "1000"


def test_an_existing_topic_is_left_as_it_is(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    admin.create_topics({topic: {"num_partitions": 2}})
    done = scripts.run("producer", "-t", topic, "-n", 1, "--partitions", 3)
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == [
        f"producer.py: topic {topic} was not created now, so --partitions and --topic-config do not apply",
        f"producer.py: published 1 events to {topic}",
    ]
    assert partitions(admin, topic) == 2


def test_without_keys_events_spread_over_the_partitions(scripts: Scripts, topic: str, read: Read) -> None:
    scripts.run("producer", "-t", topic, "--partitions", 4, input=b"x\n" * 100_000)
    found = [record.partition for record in read(topic)]
    assert len(found) == 100_000
    assert set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize(("limit", "size"), [("client", 2_000_000), ("broker", 5000), ("broker", 3990)])
def test_a_too_large_event_is_named_and_the_rest_published(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, limit: str, size: int
) -> None:
    if limit == "broker":
        admin.create_topics({topic: {"configs": {"max.message.bytes": "4000"}}})
    lines = [b"before", b"x" * size, b"after", b"y" * (size + 1), b"end"]
    done = scripts.run("producer", "-t", topic, input=b"\n".join(lines))
    assert done.returncode == 1
    told = done.stderr.decode().splitlines()
    assert len(told) == 3
    assert re.search(rf"skipped event 2 of {size} bytes: .*max\.message\.bytes", told[0])
    assert re.search(rf"skipped event 4 of {size + 1} bytes: ", told[1])
    assert re.match(rf"producer.py: published 3 events to {topic}, 2 failed: event 2 of {size} bytes", told[2])
    assert values(read(topic)) == [b"before", b"after", b"end"]


def test_too_large_events_do_not_harm_their_neighbours(scripts: Scripts, topic: str, read: Read) -> None:
    lines = [b"%d:" % number + b"x" * (3000 if number % 500 == 499 else 10) for number in range(20_000)]
    config = "max.message.bytes=2000"
    done = scripts.run(
        "producer", "-t", topic, "-K", ":", "--partitions", 4, "--topic-config", config, input=b"\n".join(lines)
    )
    assert done.returncode == 1
    assert f"published 19960 events to {topic}, 40 failed" in done.stderr.decode()
    assert sorted(int(record.key) for record in read(topic)) == [n for n in range(20_000) if n % 500 != 499]


@pytest.mark.parametrize("size", [300_000_000, pytest.param(5_000_000_000, marks=pytest.mark.stress)])
def test_an_endless_line_does_not_fill_memory(scripts: Scripts, topic: str, size: int) -> None:
    feed = f"head -c {size} /dev/zero; echo; cat"
    with subprocess.Popen(["/bin/sh", "-c", feed], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as endless:
        running = scripts.start("producer", "-t", topic, stdin=endless.stdout)
        running.wait_for(lambda it: b"skipped" in it.err)
        memory = running.memory()
        endless.communicate()
        done = running.end()
    assert done.returncode == 1
    assert f"skipped event 1 of {size} bytes: " in done.stderr.decode()
    assert f"published 0 events to {topic}, 1 failed" in done.stderr.decode()
    assert memory < 120


BAD_FILES = {  # what cannot be read: why
    "none": "No such file or directory",
    "folder": "Is a directory",
    "forbidden": "Permission denied",
    "removed": "No such file or directory",
    "/proc/self/mem": "Input/output error",  # opens, and fails at the first read
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_told_and_the_rest_published(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    for each in ("forbidden", "removed", "good"):
        (tmp_path / each).write_bytes(b"after\n")
    (tmp_path / "forbidden").chmod(0)
    path = tmp_path / name
    # Root, too, is to be refused: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    drop = {"preexec_fn": lambda: [ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) for capability in (1, 2)]}
    producer = scripts.start("producer", "-t", topic, "-", path, tmp_path / "good", stdin=subprocess.PIPE, **drop)
    producer.send(b"before\n")
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"before\n"
    (tmp_path / "removed").unlink()
    assert producer.process.stdin
    producer.process.stdin.close()
    done = producer.end()
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        f"producer.py: cannot read {path}: {BAD_FILES[name]}",
        f"producer.py: published 2 events to {topic}",
    ]
    assert values(read(topic)) == [b"before", b"after"]


def test_a_file_that_grows_while_it_is_read(scripts: Scripts, topic: str, tmp_path: Path, read: Read) -> None:
    """It is read up to where it ends by then."""
    lines = (b"%09d\n" % number for number in itertools.count())
    path = tmp_path / "log"
    path.write_bytes(b"".join(itertools.islice(lines, 50_000)))
    producer = scripts.start("producer", "-t", topic, path)
    end = time.monotonic() + 60
    with path.open("ab", buffering=0) as log:
        while producer.process.poll() is None and time.monotonic() < end:
            log.write(b"".join(itertools.islice(lines, 10)))
            time.sleep(0.005)  # slower than it reads
    done = producer.end()
    assert done.returncode == 0
    found = values(read(topic))
    assert done.stderr.decode() == f"producer.py: published {len(found)} events to {topic}\n"
    assert len(found) > 50_000
    assert found == [b"%09d" % number for number in range(len(found))]


def test_a_topic_that_is_deleted_while_it_is_written(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read
) -> None:
    """Kafka creates it again, as it does by default; what was not acknowledged before is in the new one."""
    producer = scripts.start("producer", "-t", topic, "--interval", "0.001", "-n", 1_000_000)
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    admin.delete_topics([topic])
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    done = producer.end(signal.SIGINT)
    published, failed = counts(done.stderr)
    assert (done.returncode, failed) == (130, 0)
    numbers = [json.loads(record.value)["number"] for record in read(topic)]
    assert numbers == list(range(numbers[0], published + 1))


def test_a_compacted_topic_wants_keys(scripts: Scripts, topic: str) -> None:
    config = "cleanup.policy=compact"
    done = scripts.run("producer", "-t", topic, "-K", ":", "--topic-config", config, input=b"a:1\nno key\nb:2\n")
    assert done.returncode == 1
    told = done.stderr.decode()
    assert re.fullmatch(r"producer.py: published \d events to \S+, \d failed: event \d of \d bytes: [^\n]*\n", told)
    assert "a compacted topic takes only events with a key, see -K" in told


@pytest.mark.parametrize("name", ["foo=1", "retention.ms=soon"])
def test_an_unknown_topic_config_is_refused_in_kafkas_words(scripts: Scripts, topic: str, name: str) -> None:
    done = scripts.run("producer", "-t", topic, "-n", 1, "--topic-config", name)
    assert done.returncode == 1
    assert re.fullmatch(rf"producer.py: cannot create topic {topic}: .*(foo|soon).*\n", done.stderr.decode())


@pytest.mark.parametrize("partition_count", [1, 6])
def test_a_large_file_of_random_bytes_comes_back_byte_for_byte(
    scripts: Scripts, topic: str, tmp_path: Path, partition_count: int
) -> None:
    chance = random.Random(partition_count)
    lines = [chance.randbytes(chance.randrange(301)).replace(b"\n", b"\r") for _ in range(99_999)] + [b"the end"]
    path, out = tmp_path / "events", tmp_path / "out"
    path.write_bytes(b"\n".join(lines))
    done = scripts.run("producer", "-t", topic, "--partitions", partition_count, path)
    assert done.stderr.decode() == f"producer.py: published 100000 events to {topic}\n"
    with out.open("wb") as file:
        done = scripts.run("consumer", "-t", topic, "-e", stdout=file, stderr=subprocess.PIPE, capture_output=False)
    assert (done.returncode, done.stderr) == (0, b"")
    if partition_count == 1:
        assert out.read_bytes() == path.read_bytes() + b"\n"
    else:
        assert sorted(out.read_bytes().removesuffix(b"\n").split(b"\n")) == sorted(lines)


def start_busy(scripts: Scripts, topic: str, **env: str) -> Running:
    """A producer that has published for a while."""
    watcher = scripts.start("consumer", "-t", topic)
    producer = scripts.start("producer", "-t", topic, "-n", 10_000_000, "--interval", "0.001", env=env)
    watcher.wait_for(lambda it: it.out.count(b"\n") > 100)
    watcher.end(signal.SIGINT)
    return producer


def counts(told: bytes) -> tuple[int, int]:
    """How many were published, how many failed, by the summary."""
    found = re.fullmatch(rb"producer.py: published (\d+) events to \S+(?:, (\d+) failed: .*)?\n", told)
    assert found, told
    return int(found[1]), int(found[2] or 0)


def test_a_second_signal_ends_it_at_once(scripts: Scripts, topic: str, stalled: Callable[[], None]) -> None:
    producer = start_busy(scripts, topic, STREAM_TEST_SECOND="0.1")
    stalled()
    producer.wait_for(lambda it: b"waiting for Kafka" in it.err)
    producer.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        producer.process.wait(1)
    done = producer.end(signal.SIGTERM, seconds=2)
    assert done.returncode == 143
    assert re.fullmatch(rb"(producer.py: \d+ events, \d+/s(, waiting for Kafka: .*)?\n)+", done.stderr), "no summary"


def test_a_signal_while_kafka_is_away(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, read: Read
) -> None:
    producer = start_busy(scripts, topic, STREAM_TEST_SECOND="0.1")
    stalled()
    producer.wait_for(lambda it: b"waiting for Kafka" in it.err)
    began = time.monotonic()
    done = producer.end(signal.SIGINT)
    assert time.monotonic() - began < 10
    assert done.returncode == 1
    *waits, summary = done.stderr.splitlines(keepends=True)
    assert all(b", waiting for Kafka: " in line for line in waits)
    published, failed = counts(summary)
    assert failed > 0
    kafka.server.process.send_signal(signal.SIGCONT)
    numbers = [json.loads(record.value)["number"] for record in read(topic)]
    assert numbers[:published] == list(range(1, published + 1))
    assert len(numbers) <= published + failed


@pytest.mark.parametrize(("size", "bound"), [(10, 16_000), (100_000, 16 * 1024 * 1024 // 100_000)])
def test_an_outage_beyond_the_delivery_timeout_with_a_bound_of_events_in_flight(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, tmp_path: Path, size: int, bound: int
) -> None:
    path = tmp_path / "lines"
    path.write_bytes((b"x" * (size - 1) + b"\n") * bound * 4)
    producer = scripts.start(
        "producer", "-t", topic, "-", path, stdin=subprocess.PIPE, env={"KAFKA_DELIVERY_TIMEOUT_MS": "2000"}
    )
    producer.send(b"first\n")
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"
    stalled()
    assert producer.process.stdin
    producer.process.stdin.close()
    began = time.monotonic()
    done = producer.end()
    assert time.monotonic() - began < 17
    assert done.returncode == 1
    assert b"Kafka took longer than KAFKA_DELIVERY_TIMEOUT_MS" in done.stderr
    published, failed = counts(done.stderr)
    assert published == 1
    assert bound // 2 < failed <= bound + 2
    kafka.server.process.send_signal(signal.SIGCONT)
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"


@pytest.mark.parametrize("columns", [0, 24, 120], ids=["unknown", "narrow", "wide"])
def test_on_a_terminal_it_makes_sample_events_and_shows_its_progress(
    scripts: Scripts, topic: str, columns: int
) -> None:
    """In a line that fills the terminal but for its last column, so that it neither wraps nor leaves debris."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    options = {"stdin": terminal, "stderr": terminal}
    done = scripts.start("producer", "-t", topic, "-n", 4, "--interval", "0.6", **options).end()
    assert done.returncode == 0
    os.close(terminal)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    width = (columns or 80) - 1
    nothing, *live, last, end = shown.split("\r")
    assert (nothing, end) == ("", "\n")
    assert live
    for line in live:
        assert re.fullmatch("producer.py: [123] events, " + ("" if columns == 24 else "[12]/s +"), line)
        assert len(line) == width
    assert last == f"producer.py: published 4 events to {topic}".ljust(width)


def test_on_a_terminal_it_shows_how_much_of_the_file_is_read(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"line\n" * 300_000)
    master, terminal = pty.openpty()
    done = scripts.start("producer", "-t", topic, path, stderr=terminal).end()
    assert done.returncode == 0
    os.close(terminal)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    percents = [int(each) for each in re.findall(r"/s, (\d+) % ", shown)]
    assert percents
    assert percents == sorted(percents)
    assert 0 < percents[-1] <= 100
