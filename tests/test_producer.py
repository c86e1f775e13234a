"""producer.py, run as users do, against a real Kafka."""

import ctypes
import errno
import fcntl
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from unittest.mock import MagicMock, Mock, call

import pytest
from kafka import KafkaAdminClient, TopicPartition, errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.producer.future import FutureProduceResult

from broker import Broker
from conftest import (
    Read,
    Result,
    Running,
    Scripts,
    Terminal,
    read_summary,
    resume,
    unread_pipe,
    values,
    wait_until,
)
from streaming import sources
from streaming.console import pluralize
from streaming.delivery import MAX_IN_FLIGHT_BYTES, Delivery
from streaming.flags import separator_type
from streaming.in_flight import Events, TrackedBatch
from streaming.kafka_internals import Appended, Producer
from streaming.partitioning import partitions_of
from streaming.publish import take
from streaming.sources import (
    BLOCK_BYTES,
    Chunk,
    FileSource,
    LineFormat,
    LineSplitter,
    OversizedLine,
    SampleSource,
    Stopped,
)
from streaming.stop import Stop
from streaming.topics import Topic

ODD = [b"", b"\x00", b"a\x00b", b"\r", b"line\r", b"\xff\xfe", b"\xc3", "é🎉".encode()]
ODD += [b" spaces ", b"\t", b"", b"x" * 5000]
TOO_LARGE = "larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
TOO_LATE = "not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
NO_ANSWER = (
    "not acknowledged in time: no response. Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
)
NO_SEPARATOR = " (separator not found in any line, so no event has a key)"
NO_KEY = "a compacted topic accepts only events with a key. Use -K."
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def scripts(scripts: Scripts) -> Scripts:
    """The scripts; in a log they report no progress within the guard, however slow they are."""
    scripts.env["STREAM_TEST_SECOND"] = "60"
    return scripts


def published(topic: str, count: int, stopped: str = "", note: str = "") -> str:
    """The summary of a run without failed events, possibly stopped before a line of a file."""
    end = f", stopped before {stopped}" if stopped else ""
    return f"producer.py: published {pluralize(count, 'event')} to {topic}{note}{end}\n"


def publish(
    scripts: Scripts, topic: str, count: int, *arguments: object, note: str = "", **options: Any
) -> None:
    """Publish that many events, and nothing else happens."""
    done = scripts.run("producer", "-t", topic, *arguments, **options)
    expected = (0, b"", published(topic, count, note=note))
    assert (done.returncode, done.stdout, done.stderr.decode()) == expected


def start(
    scripts: Scripts, topic: str, lines: bytes, *arguments: object, **options: Any
) -> Running:
    """Start a producer that delivers these lines from a pipe, which stays open."""
    options["stdin"] = subprocess.PIPE
    producer = scripts.start("producer", "-t", topic, *arguments, **options)
    producer.send(lines)
    assert scripts.run("consumer", "-t", topic, "-n", lines.count(b"\n")).stdout == lines
    return producer


def numbered(*bounds: int) -> bytes:
    """Lines of ten bytes, each with a number of range(*bounds)."""
    return b"".join(b"%09d\n" % number for number in range(*bounds))


def sample_numbers(records: list[Any]) -> list[int]:
    return [json.loads(record.value)["number"] for record in records]


class Feeder(threading.Thread):
    """Writes lines to a pipe; `data` is what it has written."""

    def __init__(self, writer: int, lines: Iterable[bytes]) -> None:
        super().__init__(daemon=True)
        self._writer, self._lines = writer, lines
        self._done = False
        self.data = bytearray()
        self.start()

    def run(self) -> None:
        with open(self._writer, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
            for line in self._lines:
                if self._done:
                    return
                pipe.write(line)
                self.data += line

    def taken(self, reader: Any) -> bytes:
        """Write no more; return what was written, without what is still in the pipe."""
        self._done = True
        left = len(reader.read())
        self.join()
        return bytes(self.data[: len(self.data) - left])


# ------------------------------------------------------------------ lines and sample events


def test_each_line_is_an_event(scripts: Scripts, topic: str, tmp_path: Path, read: Read) -> None:
    """Whether the last one ends in a newline or not."""
    path = tmp_path / "events"
    path.write_bytes(b"\n".join(ODD) + b"\n")
    publish(scripts, topic, len(ODD), path)
    with path.open("rb") as redirected:
        publish(scripts, topic, len(ODD), stdin=redirected)
    publish(scripts, topic, len(ODD), input=b"\n".join(ODD))
    assert values(read(topic)) == 3 * ODD


def test_files_are_read_one_after_the_other(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read
) -> None:
    """An unterminated last line ends with its file; an empty file is no event."""
    contents = {"a": b"1\n2", "empty": b"", "b": b"5\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    files = ("a", "-", "empty", "b")
    publish(scripts, topic, 5, *files, input=b"3\n4", cwd=tmp_path)
    assert values(read(topic)) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_large_file_of_random_bytes_comes_back_byte_for_byte(
    scripts: Scripts, topic: str, tmp_path: Path
) -> None:
    chance = random.Random(1)
    lines = [chance.randbytes(chance.randrange(301)).replace(b"\n", b"\r") for _ in range(20_000)]
    path, out = tmp_path / "events", tmp_path / "out"
    path.write_bytes(b"\n".join([*lines, b"the end"]))
    publish(scripts, topic, 20_001, path)
    with out.open("wb") as file:
        assert scripts.run("consumer", "-t", topic, "-e", stdout=file).returncode == 0
    assert out.read_bytes() == path.read_bytes() + b"\n"


def test_lines_arrive_while_the_pipe_stays_open(scripts: Scripts, topic: str) -> None:
    """Even if another program has made the pipe one that does not block."""
    consumer = scripts.start("consumer", "-t", topic)
    with unread_pipe() as (reader, writer):
        os.set_blocking(reader.fileno(), False)
        producer = scripts.start("producer", "-t", topic, stdin=reader)
        for number in range(3):
            os.write(writer, b"line %d\nhal" % number)
            consumer.wait_for(lambda it, number=number: b"line %d\n" % number in it.out)  # type: ignore[misc]
            if number < 2:  # the signal must come while it reads, not just before
                os.write(writer, b"f ")
        done = producer.end(signal.SIGINT)
        os.close(writer)
    assert done.returncode == 130
    assert done.stderr.decode() == published(topic, 3, "line 4 of standard input")
    assert consumer.end(signal.SIGTERM).stdout == b"line 0\nhalf line 1\nhalf line 2\n"


def test_count_bounds_lines_too(scripts: Scripts, topic: str, read: Read) -> None:
    producer = scripts.start("producer", "-t", topic, "-n", 2, stdin=subprocess.PIPE)
    producer.send(b"1\n2\n3\n")  # and the pipe stays open
    done = producer.end()
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
    assert values(read(topic)) == [b"1", b"2"]


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """It is read to its new end; the percentage is of its size before."""
    path = tmp_path / "log"
    path.write_bytes(numbered(20_000))
    source = FileSource([str(path)], LineFormat(), 1 << 20, Stop())
    batches = source.chunks()
    lines = list(next(batches).values)
    assert source.percent() == 100 * BLOCK_BYTES // 200_000
    path.write_bytes(numbered(50_000))
    for batch in batches:
        lines += batch.values
    assert lines == numbered(50_000).split()
    assert source.percent() == 100


def test_sample_events_go_to_the_new_topic_sample(scripts: Scripts, read: Read) -> None:
    """Here standard input is closed; elsewhere it is the null device, or a terminal."""
    done = scripts.run("producer", "-n", 5, "--interval", 0, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"producer.py: published 5 events to sample\n"
    events = [json.loads(record.value) for record in read("sample")]
    assert [event["number"] for event in events] == [1, 2, 3, 4, 5]
    assert all(datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S%z").tzinfo for event in events)


def test_sample_events_are_for_a_terminal_alone(scripts: Scripts, topic: str, read: Read) -> None:
    """Or for no input at all; a socket is read, and so is a device, here of random bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open("/dev/urandom", "rb") as device, Terminal() as terminal:
        ours.sendall(b"line")
        ours.shutdown(socket.SHUT_WR)
        publish(scripts, topic, 1, stdin=theirs)
        assert values(read(topic)) == [b"line"]
        publish(scripts, topic, 3, "-n", 3, stdin=device)
        assert not any(b'{"number"' in record.value for record in read(topic))
        publish(scripts, f"{topic}-sample", 1, "-n", 1, stdin=terminal.device)
    assert sample_numbers(read(f"{topic}-sample")) == [1]


@pytest.mark.parametrize(("interval", "size"), [(0.7, 1), (0, 500)])
def test_interval_paces_sample_events_until_a_stop(interval: float, size: int) -> None:
    stop = Mock(requested=False)
    source = SampleSource(interval, stop).chunks()
    batches = [[json.loads(value) for value in next(source).values] for _ in range(3)]  # type: ignore[arg-type]
    assert stop.wait.mock_calls == 2 * [call(interval)]
    numbers = [[event["number"] for event in batch] for batch in batches]
    assert numbers == [list(range(index * size + 1, (index + 1) * size + 1)) for index in range(3)]
    stop.requested = True
    with pytest.raises(Stopped):
        next(source)


def test_a_signal_ends_sample_events(scripts: Scripts, topic: str, read: Read) -> None:
    producer = scripts.start("producer", "-t", topic, "--interval", "0.01")
    assert scripts.run("consumer", "-t", topic, "-n", 5).returncode == 0
    done = producer.end(signal.SIGTERM)
    events = sample_numbers(read(topic))
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, len(events)))
    assert events == list(range(1, len(events) + 1))


# ------------------------------------------------------------------ keys, headers, flags


def test_keys_tombstones_and_lines_of_windows(scripts: Scripts, topic: str, read: Read) -> None:
    r"""The separator is a tab and a byte that is not UTF-8; without the flags \r stays."""
    lines = b"a\t\xff1\r\nb\t\xff\r\nc\t\r2\r\r\nd\\t\xff3\n\t\xff4\t\xff5\ne\t\xff"
    for flags in ([], ["-Z", "--strip-cr"]):
        separator = os.fsdecode(b"\\t\xff")
        publish(scripts, topic, 6, "-K", separator, *flags, input=lines)
    same = [(None, b"d\\t\xff3"), (b"", b"4\t\xff5")]
    assert [(record.key, record.value) for record in read(topic)] == [
        *[(b"a", b"1\r"), (b"b", b"\r"), (None, b"c\t\r2\r\r"), *same, (b"e", b"")],
        *[(b"a", b"1"), (b"b", None), (None, b"c\t\r2\r"), *same, (b"e", None)],
    ]


def test_escapes_in_the_separator() -> None:
    expected = {
        "\\": b"\\",
        r"\\": b"\\",
        r"\\t": rb"\t",
        r"\t\n\0\xfF\x": b"\t\n\0\xff\\x",
        r"\d\x4\xg0\T": rb"\d\x4\xg0\T",
        r"\012": b"\x0012",
        "é🎉": "é🎉".encode(),
    }
    assert {text: separator_type(text) for text in expected} == expected


def test_it_is_said_that_no_line_had_the_separator(scripts: Scripts, topic: str) -> None:
    """But only if there was a line."""
    publish(scripts, topic, 1, "-K", r"\t", input=b"a:1\n", note=NO_SEPARATOR)
    publish(scripts, topic, 0, "-K", r"\t", input=b"")


def test_headers(scripts: Scripts, topic: str, read: Read) -> None:
    """On lines, tombstones and sample events; header values are bytes."""
    headers = [b"source=", "né=a=".encode() + b"\xff", b"source=2"]
    flags = [each for header in headers for each in ("-H", os.fsdecode(header))]
    publish(scripts, topic, 3, "-K", ":", "-Z", *flags, input=b"a:1\nb:\nc")
    publish(scripts, topic, 1, "-n", 1, *flags)
    found = read(topic)
    assert values(found)[:3] == [b"1", None, b"c"]
    expected = [("source", b""), ("né", b"a=\xff"), ("source", b"2")]
    assert [record.headers for record in found] == 4 * [expected]


def test_keys_keep_their_order_and_their_partition(
    scripts: Scripts, topic: str, read: Read
) -> None:
    lines = [b"%d:%d" % (number % 37, number) for number in range(5000)]
    publish(scripts, topic, 5000, "-K", ":", "--partitions", 5, input=b"\n".join(lines))
    found: dict[tuple[bytes, int], list[int]] = {}
    for record in read(topic):
        found.setdefault((record.key, record.partition), []).append(int(record.value))
    assert {partition for _, partition in found} == set(range(5))
    expected = [(b"%d" % key, list(range(key, 5000, 37))) for key in range(37)]
    assert sorted((key, numbers) for (key, _), numbers in found.items()) == sorted(expected)


def test_without_keys_batches_spread(scripts: Scripts, topic: str, read: Read) -> None:
    """Here each event is a batch of its own."""
    env = {"KAFKA_BATCH_SIZE": "1"}
    publish(scripts, topic, 200, "--partitions", 4, input=b"x\n" * 200, env=env)
    assert {record.partition for record in read(topic)} == {0, 1, 2, 3}


# ------------------------------------------------------------------ the topic and its limits


def test_the_topic_is_created_as_asked_and_then_left_as_it_is(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    configs = {"cleanup.policy": "compact", "retention.ms": "1000"}
    flags = ["-t", topic, "-K", "="]
    flags += [f"--topic-config={name}={value}" for name, value in configs.items()]
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, list(configs))]
    note = f"producer.py: topic {topic} already exists; ignoring --partitions and --topic-config\n"
    for partitions, said in ((3, ""), (4, note)):
        done = scripts.run("producer", *flags, "--partitions", partitions, input=b"key=value")
        assert (done.returncode, done.stderr.decode()) == (0, said + published(topic, 1))
        assert len(admin.describe_topics([topic])[0]["partitions"]) == 3
        found = admin.describe_configs(asked)["topic"][topic]
        assert {name: found[name]["value"] for name in configs} == configs


def test_an_unknown_topic_config_is_refused_in_kafkas_words(scripts: Scripts, topic: str) -> None:
    done = scripts.run("producer", "-t", topic, "-n", 1, "--topic-config", "retention.ms=soon")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"producer.py: cannot create topic {topic}: Invalid value soon for configuration "
        "retention.ms: Not a number of type LONG\n"
    )


def test_a_topic_of_kafkas_own_is_refused(scripts: Scripts) -> None:
    scripts.run("consumer", "--list", "-g", "any")  # so that it exists
    done = scripts.run("producer", "-t", "__consumer_offsets", input=b"1\n2\n")
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "producer.py: published 0 events to __consumer_offsets, stopped before line 1 of standard "
        "input, 2 failed: event 1 (1 byte): clients may not write to Kafka's own topics. "
        "Check -t.\n"
    )


def test_a_topic_that_is_deleted_while_it_is_written(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read
) -> None:
    """Kafka creates it again, as it does by default.

    Events not acknowledged before that are in the new one.
    """
    producer = scripts.start("producer", "-t", topic, "--interval", "0.001", "-n", 1_000_000)
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    deleted = admin.describe_topics([topic])[0]["topic_id"]
    admin.delete_topics([topic])

    def is_new() -> bool:
        found = admin.describe_topics([topic])[0]
        return not found["error_code"] and found["topic_id"] != deleted

    wait_until(is_new)
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    done = producer.end(signal.SIGINT)
    total = read_summary(done.stderr).published
    assert (done.returncode, done.stderr.decode()) == (130, published(topic, total))
    numbers = sample_numbers(read(topic))
    assert numbers == list(range(numbers[0], total + 1))


def test_a_compacted_topic_wants_keys(scripts: Scripts, topic: str, read: Read) -> None:
    """Kafka refuses the whole batch, which holds all events here; the summary names the culprit.

    On a slow machine, the first event may have gone before.
    """
    done = scripts.run(
        *("producer", "-t", topic, "-K", ":", "--topic-config", "cleanup.policy=compact"),
        input=b"a:1\nno key\nb:2\n",
        env={"KAFKA_LINGER_MS": "1500"},
    )
    found = read_summary(done.stderr)
    assert (done.returncode, found.published + found.failed) == (1, 3)
    assert found.reason == f"event 2 (6 bytes): {NO_KEY}"
    assert (found.next_line, found.path) == (found.published + 1, "standard input")
    assert values(read(topic)) == [b"1"][: found.published]


def test_a_batch_that_kafka_rejects_for_another_reason(scripts: Scripts, topic: str) -> None:
    """The words are Kafka's own."""
    arguments = ("-t", topic, "--topic-config", "message.timestamp.before.max.ms=0")
    done = scripts.run("producer", *arguments, input=b"line\n" * 3)
    assert done.returncode == 1
    reason = r"event 1 \(4 bytes\): Timestamp \d+ of message with offset 0 is out of range\. .*"
    assert re.fullmatch(reason, read_summary(done.stderr).reason)


def test_a_too_large_event_is_named_and_the_rest_published(
    scripts: Scripts, topic: str, read: Read
) -> None:
    """Every other one is too large with what Kafka adds to it only."""
    sizes = {499 + 500 * index: (3000, 1990)[index % 2] for index in range(10)}
    lines = [(b"%04d" % number).ljust(sizes.get(number, 20), b"x") for number in range(5000)]
    flags = ("-t", topic, "--partitions", 4, "--topic-config", "max.message.bytes=2000")
    done = scripts.run("producer", *flags, input=b"\n".join(lines))
    assert done.returncode == 1
    failures = [f"event {number + 1} ({size} bytes): {TOO_LARGE}" for number, size in sizes.items()]
    assert done.stderr.decode().splitlines() == [
        *(f"producer.py: skipped {failure}" for failure in failures),
        f"producer.py: published 4990 events to {topic}, 10 failed: {failures[0]}",
    ]
    rest = [line for number, line in enumerate(lines) if number not in sizes]
    assert sorted(record.value for record in read(topic)) == rest


# The kinds of events near a limit of 4000 bytes: flags, a setting, and the bytes of the key and
# the headers
HEADERS = ("-K", ":", "-H", "a=", "-H", "name=" + 200 * "v")
LIMITS: dict[str, tuple[tuple[str, ...], dict[str, str], int]] = {
    "value": ((), {}, 0),
    "key and headers": (HEADERS, {}, 3 + 1 + 204),
    "compressed": (("-K", ":"), {"KAFKA_COMPRESSION_TYPE": "gzip"}, 3),
    "the client's limit": ((), {"KAFKA_MAX_REQUEST_SIZE": "4000"}, 0),
}


@pytest.mark.parametrize("case", LIMITS)
def test_an_event_near_the_limit_is_delivered_or_named(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, case: str
) -> None:
    """What is 100 bytes smaller is delivered, what is larger is not.

    The events come between small ones, which may share batches with each other but not with them.
    """
    flags, env, extra = LIMITS[case]
    topic_limit = "9000" if "KAFKA_MAX_REQUEST_SIZE" in env else "4000"
    admin.create_topics({topic: {"configs": {"max.message.bytes": topic_limit}}})
    near = [*range(3900, 4000, 7), 4001]
    sizes = [*range(1, 200), *(size - extra for size in near), *range(200, 300)]
    start = b"key:" if flags else b""
    data = b"\n".join(start + b"x" * size for size in sizes)
    done = scripts.run("producer", "-t", topic, *flags, input=data, env=env)
    *skipped, summary = done.stderr.decode().splitlines()
    named = re.findall(r"skipped event (\d+) \((\d+) bytes\): (.*)\n", "\n".join([*skipped, ""]))
    too_large = [sizes[int(number) - 1] for number, _, _ in named]
    assert {reason for _, _, reason in named} == {TOO_LARGE}
    for (_, size, _), own in zip(named, too_large, strict=True):
        assert int(size) - extra - own in (0, 1)  # 1: the separator, of a line that is not kept
    assert 3900 - extra not in too_large
    assert 4001 - extra in too_large
    first = skipped[0].removeprefix("producer.py: skipped ")
    count = len(sizes) - len(skipped)
    end = f"published {count} events to {topic}, {len(skipped)} failed: {first}"
    assert (done.returncode, summary) == (1, f"producer.py: {end}")
    delivered = [len(value or b"") for value in values(read(topic))]
    assert delivered == [size for size in sizes if size not in too_large]


@pytest.mark.parametrize("size", [200, pytest.param(5000, marks=pytest.mark.stress)])
def test_an_endless_line_does_not_fill_memory(scripts: Scripts, topic: str, size: int) -> None:
    """A line of that many million bytes."""
    blocks = [*itertools.repeat(bytes(1_000_000), size), b"\n"]
    with unread_pipe() as (reader, writer):
        still_open = os.dup(writer)
        Feeder(writer, blocks)
        arguments = ("producer", "-t", topic, "-K:", "--strip-cr")
        running = scripts.start(*arguments, stdin=reader, real=True)
        running.wait_for(lambda it: b"skipped" in it.err)
        memory = running.memory()
        os.close(still_open)
        done = running.end()
    event = f"event 1 ({size}000000 bytes): {TOO_LARGE}"
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"producer.py: skipped {event}",
        f"producer.py: published 0 events to {topic}{NO_SEPARATOR}, 1 failed: {event}",
    ]
    assert memory < 120


# ------------------------------------------------------------------ files that cannot be read


def drop_capabilities() -> None:
    """Deny root access, too: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_only_files_that_cannot_be_read(lone_scripts: Scripts, tmp_path: Path) -> None:
    """Each is named once, and the run ends before it connects."""
    (tmp_path / "forbidden").touch(0)
    os.mkfifo(tmp_path / "fifo", 0)
    with (tmp_path / "output").open("wb") as output:
        options: Any = {"cwd": tmp_path, "stdin": output, "preexec_fn": drop_capabilities}
        done = lone_scripts.run("producer", "forbidden", "fifo", "fifo", "-", **options)
    no_input = "producer.py: cannot read standard input: not open for reading"
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "producer.py: cannot read forbidden: Permission denied",
        "producer.py: cannot read fifo: Permission denied",
        no_input,
    ]
    done = lone_scripts.run("producer", "-", preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stderr.decode()) == (2, f"{no_input}\n")


def test_a_file_that_cannot_be_read_is_named_and_the_rest_published(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read
) -> None:
    """What is known before the first line is said first; the last one fails while it is read."""
    (tmp_path / "folder").mkdir()
    for readable in ("removed", "good"):
        (tmp_path / readable).write_bytes(b"after\n")
    files = ("-", "removed", "none", "/proc/self/mem", "folder", "good")
    producer = start(scripts, topic, b"before\n", *files, cwd=tmp_path)
    (tmp_path / "removed").unlink()
    producer.close_input()
    done = producer.end()
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "producer.py: cannot read none: No such file or directory",
        "producer.py: cannot read folder: Is a directory",
        "producer.py: cannot read removed: No such file or directory",
        "producer.py: cannot read /proc/self/mem: Input/output error",
        f"producer.py: published 2 events to {topic}",
    ]
    assert values(read(topic)) == [b"before", b"after"]
    assert scripts.run("producer", "-t", topic, "/proc/self/mem").returncode == 2


def test_a_file_that_fails_half_way(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a broken disk: the message says after which line, and what was read is published."""
    disk_error = OSError(errno.EIO, os.strerror(errno.EIO))
    file = MagicMock()
    monkeypatch.setattr(sources, "open_input", lambda path: file)
    monkeypatch.setattr(sources, "wait_for_input", lambda file: True)
    source = FileSource(["first", "broken"], LineFormat(), 1000, Stop())
    file.__enter__.return_value.read.side_effect = [b"0\n", b"", b"1\n2\n3", disk_error]
    found = [line for batch in source.chunks() for line in batch.values]
    assert found == [b"0", b"1", b"2"]
    assert source.has_failed
    message = f"cannot read broken after line 2: {os.strerror(errno.EIO)}\n"
    assert capfd.readouterr().err.endswith(message)


def test_a_fifo_is_opened_once(scripts: Scripts, topic: str, tmp_path: Path, read: Read) -> None:
    """So are the pipes a shell makes for <(…): their contents could be lost otherwise."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(b"1\n",), daemon=True).start()
    options: dict[str, Any] = {"stdin": subprocess.PIPE}
    producer = scripts.call("producer", ("-t", topic), options)
    command = f"exec \"$@\" <(echo 2) '{path}' /dev/stdin"
    running = Running(["bash", "-c", command, "bash", *producer], options)
    running.send(b"3\n")
    running.close_input()
    done = running.end()
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 3))
    assert values(read(topic)) == [b"2", b"1", b"3"]


# ------------------------------------------------------------------ signals


def numbers_in(found: list[Any]) -> list[int]:
    """The numbers in the topic; within each partition they must be in order."""
    places = [(record.partition, int(record.value)) for record in found]
    assert places == sorted(places)
    return sorted(number for _, number in places)


def endless_lines(pause: float) -> Iterator[bytes]:
    for number in itertools.count():
        yield b"%050d\n" % number
        time.sleep(pause)


@pytest.mark.parametrize("count", [4, pytest.param(400, marks=pytest.mark.stress)])
def test_a_signal_at_any_moment(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, count: int
) -> None:
    """Each whole line taken from a pipe is delivered, once; one still partly in the pipe is not.

    In every other round the pipe is always full; in the rest the producer waits for each line.
    """

    def check(index: int) -> None:
        chance, name, number = random.Random(index), f"{topic}-{index}", ENDING[index % 3]
        with unread_pipe() as (reader, writer):
            feeder = Feeder(writer, endless_lines((0, 0.001)[index % 2]))
            producer = scripts.start("producer", "-t", name, "--partitions", 3, stdin=reader)
            wait_until(producer.takes_signals)
            time.sleep(chance.uniform(0, 0.5))  # the random moment itself
            done = producer.end(number)
            total = feeder.taken(reader).count(b"\n")
        stopped = f"line {total + 1} of standard input"
        assert done.stderr.decode() == published(name, total, stopped)
        assert done.returncode == 128 + number
        assert numbers_in(read(name)) == list(range(total))
        admin.delete_topics([name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(count)))


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.stress)])
def test_a_run_goes_on_where_a_signal_has_stopped_another(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, tmp_path: Path, count: int
) -> None:
    """At any moment; together, the two runs publish each line of the files once, in order."""
    parts = [tmp_path / f"part {number}" for number in range(3)]
    for index, path in enumerate(parts):  # none ends in \n
        path.write_bytes(numbered(6000 * index, 6000 * (index + 1))[:-1])

    def check(index: int) -> None:
        chance, name, number = random.Random(index), f"{topic}-{index}", ENDING[index % 3]
        producer = scripts.start("producer", "-t", name, "--partitions", 3, *parts)
        wait_until(producer.takes_signals)
        time.sleep(chance.uniform(0, 0.6))  # the random moment itself
        done = producer.end(number)
        summary = read_summary(done.stderr)
        stopped = f"line {summary.next_line} of {summary.path}" if summary.next_line else ""
        assert done.stderr.decode() == published(name, summary.published, stopped)
        assert done.returncode == (128 + number if stopped else 0)
        if stopped:
            path = Path(summary.path)
            rest = b"\n".join(path.read_bytes().split(b"\n")[summary.next_line - 1 :])
            later_parts = parts[parts.index(path) + 1 :]
            publish(scripts, name, 18_000 - summary.published, "-", *later_parts, input=rest)
        assert numbers_in(read(name)) == list(range(18_000))
        admin.delete_topics([name])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(count)))


def test_a_signal_while_a_source_is_silent(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """The summary names the next line; files that cannot be read, and half a line, don't count."""
    (tmp_path / "a").write_bytes(b"a:1\n\n")
    files = ("a", "a", "none", "/proc/self/mem", "-", "a")
    flags = ("-t", topic, "-K", ":", "-n", 7)
    producer = scripts.start("producer", *flags, *files, stdin=subprocess.PIPE, cwd=tmp_path)
    producer.send(b"k:1\n\nk:3")
    assert scripts.run("consumer", "-t", topic, "-n", 6).returncode == 0
    done = producer.end(signal.SIGINT)
    *_, summary = done.stderr.decode().splitlines(keepends=True)
    assert summary == published(topic, 6, "line 3 of standard input")
    assert done.returncode == 130


def test_after_nohup_a_hangup_is_ignored(scripts: Scripts, topic: str, read: Read) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    producer = start(scripts, topic, b"before\n", preexec_fn=ignore)
    producer.process.send_signal(signal.SIGHUP)
    producer.send(b"after\n")
    wait_until(lambda: len(read(topic)) == 2 or producer.process.poll() is not None)
    producer.close_input()
    done = producer.end()
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
    assert values(read(topic)) == [b"before", b"after"]


LINGER = {"KAFKA_LINGER_MS": "3600000"}  # longer than the usual delivery timeout


def test_nothing_lingers_once_no_more_events_come(scripts: Scripts, topic: str, read: Read) -> None:
    """A signal stops one producer, another one reaches the end of its input, or COUNT."""
    stopped = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=LINGER)
    stopped.send(b"1\n2\n")
    wait_until(stopped.takes_signals)
    wait_until(lambda: fcntl.ioctl(stopped.process.stdin, termios.FIONREAD, bytes(4)) == bytes(4))
    done = stopped.end(signal.SIGTERM)
    assert done.stderr.decode() == published(topic, 2, "line 3 of standard input")
    assert done.returncode == 128 + signal.SIGTERM
    publish(scripts, topic, 1, input=b"3", env=LINGER)
    publish(scripts, topic, 1, "-n", 1, env=LINGER)
    assert len(read(topic)) == 4


def tasks(producer: Running) -> set[str]:
    """The IDs of its threads."""
    return set(os.listdir(f"/proc/{producer.process.pid}/task"))


# The kernel functions in which the reading thread waits for a pipe and for a FIFO's writer
WAITS = "poll_schedule_timeout|do_select|wait_for_partner|fifo_open"


def is_main(thread: Path) -> bool:
    return thread.name == thread.parent.parent.name


def waiting_thread(producer: Running) -> int:
    """The ID of the reading thread once it is waiting for input; before that, 0."""
    for path in Path(f"/proc/{producer.process.pid}/task").glob("*/wchan"):
        with suppress(OSError):  # it has just ended
            place = path.read_text()
            is_asleep = " S " in (path.parent / "stat").read_text()
            # Some kernels hide the place, as 0
            if re.match(WAITS, place) or (place == "0" and is_asleep and not is_main(path.parent)):
                return int(path.parent.name)
    return 0


def test_a_signal_that_interrupts_no_call(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """The signal goes to a thread other than the main one, as it may.

    There it finds a silent pipe, or a FIFO that waits for a writer.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    names = {"-": "standard input", str(fifo): str(fifo)}
    producers = {
        path: scripts.start("producer", "-t", topic, path, stdin=subprocess.PIPE) for path in names
    }
    for producer in producers.values():
        wait_until(lambda it=producer: it.takes_signals() and waiting_thread(it))  # type: ignore[misc]
        thread = waiting_thread(producer)
        assert thread != producer.process.pid
        assert ctypes.CDLL(None).tgkill(producer.process.pid, thread, signal.SIGINT) == 0
    for path, producer in producers.items():
        done = producer.end()
        assert done.stderr.decode() == published(topic, 0, f"line 1 of {names[path]}")
        assert done.returncode == 130


# ------------------------------------------------------------------ Kafka is away


# The progress of a producer with STREAM_TEST_SECOND=0.1
WAITING = rb"(producer\.py: \d+ events?, \d+/s(, waiting for Kafka: [^\n]+)?\n)+"


def start_waiting(scripts: Scripts, topic: str, stalled: Callable[[], None], **env: str) -> Running:
    """A producer that has said it is waiting for Kafka, with one event delivered, two not."""
    env["STREAM_TEST_SECOND"] = "0.1"
    producer = start(scripts, topic, b"first\n", env=env)
    stalled()
    producer.send(b"second\nthird\n")
    producer.wait_for(lambda it: re.search(rb": 1 event, \d+/s, waiting for Kafka", it.err))
    return producer


def check_failed(done: Result, topic: str, failed: int, size: int, reason: str) -> None:
    """Check that the first event was delivered, and those after it failed."""
    *waits, summary = done.stderr.splitlines(keepends=True)
    assert not waits or re.fullmatch(WAITING, b"".join(waits))
    assert (done.returncode, summary.decode()) == (
        1,
        f"producer.py: published 1 event to {topic}, stopped before line 2 of standard input, "
        f"{failed} failed: event 2 ({size} bytes): {reason}\n",
    )


def test_a_second_signal_ends_it_at_once(
    scripts: Scripts, topic: str, stalled: Callable[[], None]
) -> None:
    """The first one has it wait for Kafka, here for up to 4.5 minutes."""
    producer = start_waiting(scripts, topic, stalled, STREAM_TEST_PATIENCE="60")
    before = tasks(producer)
    producer.process.send_signal(signal.SIGTERM)
    wait_until(lambda: tasks(producer) - before)  # the thread that would end it later
    done = producer.end(signal.SIGINT)
    assert done.returncode == 130
    assert re.fullmatch(WAITING, done.stderr), "no summary"


def test_a_signal_while_kafka_is_away(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, read: Read
) -> None:
    """It waits a while longer for what it has sent; then that has failed."""
    producer = start_waiting(scripts, topic, stalled, STREAM_TEST_PATIENCE="1")
    check_failed(producer.end(signal.SIGINT), topic, 2, 6, NO_ANSWER)
    resume(kafka)
    found = values(read(topic))
    assert found == [b"first", b"second", b"third"][: len(found)]


@pytest.mark.long
def test_an_event_that_fails_while_the_source_is_silent_ends_the_run(
    scripts: Scripts, topic: str, stalled: Callable[[], None]
) -> None:
    """A signal that comes while a later event has yet to fail is the first one: no hurry."""
    producer = start_waiting(scripts, topic, stalled, KAFKA_DELIVERY_TIMEOUT_MS="10000")
    threads = tasks(producer)
    producer.send(b"fourth\n")
    wait_until(lambda: len(tasks(producer)) < len(threads))  # nothing is read any more
    done = producer.end(signal.SIGTERM)
    failed = read_summary(done.stderr).failed
    assert failed in (2, 3)  # on a slow machine the fourth may come too late to be read
    check_failed(done, topic, failed, 6, TOO_LATE)


@pytest.mark.long
@pytest.mark.parametrize("size", [100, 100_000])
def test_an_outage_beyond_the_delivery_timeout_with_a_bound_of_bytes_in_flight(
    scripts: Scripts, topic: str, stalled: Callable[[], None], size: int
) -> None:
    """Each event taken from the pipe is counted: up to the bound, plus four blocks."""
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "10000"}
    with unread_pipe() as (reader, writer):
        producer = scripts.start("producer", "-t", topic, stdin=reader, env=env)
        os.write(writer, b"first\n")
        assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"
        stalled()
        feeder = Feeder(writer, itertools.repeat(b"x" * (size - 1) + b"\n"))
        done = producer.end()
        failed = feeder.taken(reader).count(b"\n")
    assert 0 < failed <= 2 + (MAX_IN_FLIGHT_BYTES + 4 * BLOCK_BYTES) // size
    check_failed(done, topic, failed, size - 1, TOO_LATE)


@pytest.mark.long
def test_after_a_failure_nothing_is_missing_and_little_comes_twice(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, read: Read
) -> None:
    """Events that come twice were on their way when Kafka stalled, and still arrived."""
    lines = numbered(5000).splitlines(keepends=True)
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "10000"}
    producer = start(scripts, topic, b"".join(lines[:1000]), env=env)
    stalled()
    producer.send(b"".join(lines[1000:]))
    done = producer.end()
    summary = read_summary(done.stderr)
    count = summary.published
    assert done.returncode == 1
    assert (summary.next_line, summary.path) == (count + 1, "standard input")
    assert summary.reason == f"event {count + 1} (9 bytes): {TOO_LATE}"
    resume(kafka)
    publish(scripts, topic, 5000 - count, input=b"".join(lines[count:]))
    found = [value + b"\n" for value in values(read(topic)) if value is not None]
    twice = len(found) - len(lines)
    assert 0 <= twice <= summary.failed
    assert found == lines[: count + twice] + lines[count:]


def live_lines(terminal: Terminal, width: int, summary: str) -> list[str]:
    """The lines that overwrote one another before the summary; each fills the width."""
    terminal.give_away()
    shown = ""
    with suppress(OSError):  # its end: nobody has the device any more
        while True:
            shown += terminal.read()
    nothing, *live, last, end = shown.split("\r")
    assert (nothing, end) == ("", "\n")
    assert last == summary.removesuffix("\n").ljust(width)
    assert {len(line) for line in live} == {width}
    return live


@pytest.mark.parametrize("columns", [0, 24], ids=["unknown", "narrow"])
def test_progress_on_a_terminal(scripts: Scripts, topic: str, tmp_path: Path, columns: int) -> None:
    """On a line that fills all columns but the last, so it neither wraps nor leaves remnants.

    Of sample events, or of a file that takes two seconds to read.
    """
    with (scripts.folder / "streaming" / "sources.py").open("a") as file:
        file.write("BLOCK_BYTES = 10\ndef wait_for_input(_):\n    return not time.sleep(0.5)\n")
    (tmp_path / "lines").write_bytes(numbered(3))
    arguments = ["-n", 3, "--interval", 0.6] if columns else ["lines"]
    full = r"producer\.py: \d events?, \d/s, \d+%(, waiting.*)? *"
    pattern = r"producer\.py: \d events?,.{1,2}" if columns else full
    with Terminal(columns) as terminal:
        options: Any = {"stdin": terminal.device, "stderr": terminal.device, "cwd": tmp_path}
        done = scripts.run("producer", "-t", topic, *arguments, **options)
        live = live_lines(terminal, (columns or 80) - 1, published(topic, 3))
    assert done.returncode == 0
    assert live
    assert all(re.fullmatch(pattern, line) for line in live), live


# ------------------------------------------------------------------ the pieces


def split(blocks: Iterable[bytes], limit: int) -> list[bytes | OversizedLine]:
    splitter = LineSplitter(limit)
    return [line for block in blocks for line in splitter.feed(block)] + splitter.flush()


def test_line_splitter_agrees_with_bytes_split_wherever_the_blocks_end() -> None:
    """It keeps no line beyond the limit."""
    chance = random.Random(1)
    for _ in range(500):
        data = b"".join(chance.choices([b"a", b"bb\r", b"cccc", b"\n", b"\r\n", b"\xff"], k=40))
        cuts = [0, *sorted(chance.choices(range(len(data)), k=6)), len(data)]
        blocks = [data[start:end] for start, end in itertools.pairwise(cuts)]
        expected = data.removesuffix(b"\n").split(b"\n")
        assert split(blocks, 1000) == expected
        found = split(blocks, 5)
        assert [len(line) for line in found] == [len(line) for line in expected]
        kept = [line for line in found if isinstance(line, bytes)]
        assert kept == [line for line in expected if len(line) <= 5]


def source_of(batches: Iterable[Chunk]) -> Mock:
    """A source in which nothing else matters; events have no places."""
    source = Mock(unit="event", chunks=lambda: batches)
    source.place.return_value = source.details.return_value = ""
    return source


def test_take_asks_for_no_more_chunks_than_it_needs() -> None:
    """As the next one may be a long time coming."""
    pair = Chunk([None, b"key"], [b"value", None])
    for count, sizes in {1: [1], 2: [2], 3: [2, 1], 7: [2, 2, 2], None: [2, 2, 2]}.items():
        batches = iter([pair, pair, pair])
        taken = list(take(source_of(batches), count))
        assert [len(batch.values) for batch in taken] == sizes
        assert all(batch == pair.first(len(batch.values)) for batch in taken)
        assert all(batch.keys == [None, b"key"][: len(batch.values)] for batch in taken)
        assert len(list(batches)) == 3 - len(sizes)


class Client:
    """Stands in for the producer: each block of events gets the next outcome.

    Outcomes: None (acknowledged), an error, or a future that is settled later. For each error in
    `metadata_errors`, it once does not know the topic's partitions.
    """

    def __init__(
        self,
        *outcomes: Any,
        metadata_errors: Iterable[Exception] = (),
        partitions: Iterable[int] = (0,),
        with_leader: Iterable[int] = (0,),
    ) -> None:
        self._partitions, self._with_leader = set(partitions), set(with_leader)
        self.used: list[int] = []  # the partition of each block
        self._outcomes = iter(outcomes)
        self._metadata_errors = iter(metadata_errors)
        self.appended: list[list[bytes | None]] = []
        self.limits: list[int] = []

    def partitions_for(self, _topic: str) -> set[int]:
        for error in self._metadata_errors:
            raise error
        return self._partitions

    def is_filling(self, _topic: str, _number: int) -> bool:
        return False

    def with_leader(self, _topic: str) -> set[int]:
        return self._with_leader

    def stop_lingering(self) -> None:
        """There is nothing that lingers."""

    def limit_batches(self, size: int) -> None:
        self.limits.append(size)

    def append(self, _topic: str, partition: int, events: Events, _headers: bytes) -> Appended:
        self.appended.append(list(events.values))
        self.used.append(partition)
        outcome = next(self._outcomes)
        if isinstance(outcome, TypeError):
            raise outcome
        is_future = isinstance(outcome, FutureProduceResult)
        batch = TrackedBatch(outcome if is_future else settled(outcome))
        batch.add(events.numbers, events.sizes, 100)
        return Appended(batch, True, len(events.numbers))


def pending() -> FutureProduceResult:
    return FutureProduceResult(TopicPartition("topic", 0))


def settled(error: Exception | None, future: FutureProduceResult | None = None) -> Any:
    """A batch's future, settled as the client does it."""
    return (future or pending()).success((0, -1, error and (lambda _index: error)))


def delivery_with(client: Client, timeout: float, stop: Stop) -> Delivery:
    kafka = Mock()
    kafka.trouble.return_value = "no response"
    topic = Topic("topic", 1_000_000)
    return Delivery(cast(Producer, client), kafka, topic, source_of([]), [], timeout, stop)


def test_a_signal_before_kafka_names_the_partitions_leaves_time_to_deliver() -> None:
    stop = Stop()
    stop.request()
    delivery = delivery_with(
        Client(None, metadata_errors=2 * [errors.KafkaTimeoutError()]), 60, stop
    )
    delivery.send(Chunk(None, [b"value"]))
    delivery.finish()
    assert delivery.summary(is_exhausted=True) == "published 1 event to topic"


def test_when_time_is_up_before_kafka_names_the_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal, the reason is not the delivery timeout, which is not over."""
    monkeypatch.setattr(Stop, "GRACE", 0.05)
    for timeout, reason in ((60, "not acknowledged in time: no response"), (0, TOO_LATE)):
        stop = Stop()
        if timeout:
            stop.request()
        client = Client(metadata_errors=itertools.repeat(errors.KafkaTimeoutError()))
        delivery = delivery_with(client, timeout, stop)
        delivery.send(Chunk(None, [b"value"]))
        delivery.finish()
        failure = f"published 0 events to topic, 1 failed: event 1 (5 bytes): {reason}"
        assert delivery.summary(is_exhausted=True) == failure


def test_the_first_failure_is_named_although_a_later_one_was_known_before() -> None:
    """The second event is too large, which is known at once; the first one fails later."""
    future = pending()
    delivery = delivery_with(Client(future), 60, Stop())
    delivery.send(Chunk(None, [b"first", OversizedLine(2_000_000)]))
    settled(errors.RequestTimedOutError(), future)
    delivery.finish()
    assert f"2 failed: event 1 (5 bytes): {TOO_LATE}" in delivery.summary(is_exhausted=True)


def test_after_a_failed_delivery_nothing_more_is_sent() -> None:
    client = Client(errors.RequestTimedOutError())
    delivery = delivery_with(client, 60, Stop())
    delivery.send(Chunk(None, [b"first"]))
    delivery.check()
    delivery.send(Chunk(None, [b"second", OversizedLine(2_000_000)]))
    delivery.finish()
    assert client.appended == [[b"first"]]
    assert f"3 failed: event 1 (5 bytes): {TOO_LATE}" in delivery.summary(is_exhausted=True)


def test_nothing_is_sent_after_a_failure_that_shows_while_kafka_names_no_partitions() -> None:
    future = pending()
    client = Client(future)
    delivery = delivery_with(client, 60, Stop())
    delivery.send(Chunk(None, [b"first"]))
    settled(errors.RequestTimedOutError(), future)
    client._metadata_errors = iter([errors.KafkaTimeoutError()])
    delivery.send(Chunk(None, [b"second"]))
    delivery.finish()
    assert client.appended == [[b"first"]]
    assert f"2 failed: event 1 (5 bytes): {TOO_LATE}" in delivery.summary(is_exhausted=True)


def test_a_split_batch_counts_by_its_parts_and_later_ones_are_smaller() -> None:
    """Its first part is acknowledged, a part of the second one is not."""
    first, second, third, other = (pending() for _ in range(4))
    client = Client(None)
    delivery = delivery_with(client, 60, Stop())
    batch = TrackedBatch(pending())
    batch.add(range(1, 5), [5, 5, 5, 5], 100)
    delivery._in_flight = [batch]
    for index, future in enumerate((first, first, second, second)):
        delivery.check()
        assert delivery._in_flight == [batch]
        batch.move(index, future)
    delivery.check()
    assert delivery._in_flight == batch.parts
    for index, future in enumerate((third, other)):
        batch.parts[1].move(index, future)
    settled(None, first)
    settled(errors.MessageSizeTooLargeError(), other)
    delivery.check()
    assert [part.future for part in delivery._in_flight] == [third]
    settled(None, third)
    delivery.finish()
    assert client.limits == [50, 25]
    assert delivery.failures.resume_at == 4
    assert delivery.summary(True).startswith("published 3 events to topic, 1 failed: event 4 (5 ")


def test_events_without_a_key_go_to_another_partition_with_a_leader_each_time() -> None:
    """Here, no batch takes more than one block."""
    client = Client(*[None] * 20, partitions=range(4), with_leader=[1, 3])
    delivery = delivery_with(client, 60, Stop())
    for _ in range(20):
        delivery.send(Chunk(None, [b"value"]))
    assert set(zip(client.used, client.used[1:], strict=False)) == {(1, 3), (3, 1)}
    leaderless = Client(*[None] * 100, partitions=range(3), with_leader=[])
    delivery = delivery_with(leaderless, 60, Stop())
    for _ in range(100):
        delivery.send(Chunk(None, [b"value"]))
    assert set(leaderless.used) == {0, 1, 2}


def test_a_key_chooses_the_partition_also_beside_events_without_a_key() -> None:
    keys: list[bytes | None] = [None if number % 3 == 2 else b"%d" % number for number in range(60)]
    client = Client(*[None] * 3, partitions=range(3), with_leader=[2])
    delivery = delivery_with(client, 60, Stop())
    delivery.send(Chunk(keys, [b"%d" % number for number in range(60)]))
    own = partitions_of(keys, 3)
    assert sorted(client.used) == [0, 1, 2]
    for partition, found in zip(client.used, client.appended, strict=True):
        mine = [n for n, each in enumerate(own) if (2 if each is None else each) == partition]
        assert found == [b"%d" % number for number in mine]


def test_what_is_in_flight_is_bounded_in_bytes_whatever_the_size_of_a_batch() -> None:
    batch = TrackedBatch(pending())
    batch.add([1], [7], 14)
    assert batch.bytes_in_memory > 1000  # measured: 1.3 kB
    batch.add(range(2, 102), [7] * 100, 1400)
    assert batch.bytes_in_memory > 14 * 101 + 12 * 101


def test_a_bug_in_the_client_hides_no_event() -> None:
    """The summary says to go on with the first event of those that the client has choked on."""
    delivery = delivery_with(Client(None, TypeError("a bug")), 60, Stop())
    delivery._source.place = "line {}".format  # type: ignore[method-assign]
    delivery.send(Chunk(None, [b"first", b"second"]))
    with pytest.raises(TypeError):
        delivery.send(Chunk(None, [b"third", b"fourth"]))
    delivery.finish()
    assert (
        delivery.summary(is_exhausted=False) == "published 2 events to topic, stopped before line 3"
    )


def test_events_that_the_client_has_lost_fail_when_their_time_is_over() -> None:
    stop = Stop()
    delivery = delivery_with(Client(pending()), 0.05, stop)
    began = time.monotonic()
    delivery.send(Chunk(None, [b"value", b"another"]))
    delivery.finish()
    assert time.monotonic() > began + 0.05
    assert stop.requested
    failure = "2 failed: event 1 (5 bytes): not acknowledged in time: no response"
    assert failure in delivery.summary(is_exhausted=True)
