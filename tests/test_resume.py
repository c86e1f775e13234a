"""Where a stopped run of producer.py says the next run must continue."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from broker import Broker

import pytest
from conftest import Read, Scripts, read_summary, resume, values

TOO_LATE = "not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with files of two lines each, one that cannot be read, and a FIFO."""
    (tmp_path / "a").write_bytes(b"a:1\n\n")
    (tmp_path / "b").write_bytes(b"b:3\nb:4")
    (tmp_path / "large").write_bytes(b"x:" + b"x" * 2_000_000 + b"\nl:2")
    os.mkfifo(tmp_path / "fifo")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "published", "place"),
    [
        ("-", 2, "line 3 of standard input"),
        ("a b -", 6, "line 3 of standard input"),
        ("a a fifo", 4, "line 1 of fifo"),
        ("a none /proc/self/mem - b -n 7", 4, "line 3 of standard input"),
    ],
)
def test_a_signal_that_comes_while_a_source_is_silent(
    scripts: Scripts, topic: str, files: Path, arguments: str, published: int, place: str
) -> None:
    """Standard input brings two and a half lines."""
    producer = scripts.start(
        *("producer", "-t", topic, "-K", ":", *arguments.split()),
        stdin=subprocess.PIPE,
        cwd=files,
    )
    producer.send(b"k:1\n\nk:3")
    watcher = scripts.start("consumer", "-t", topic, "-n", published)
    assert watcher.end().returncode == 0
    done = producer.end(signal.SIGINT)
    *_, summary = done.stderr.decode().splitlines()
    assert summary == (
        f"producer.py: published {published} events to {topic}, stopped before {place}"
    )
    assert done.returncode == 130


def test_events_that_are_too_large_are_not_where_to_go_on(
    scripts: Scripts, topic: str, files: Path
) -> None:
    """But the first one that Kafka refuses is; here each event is a batch of its own."""
    (files / "c").write_bytes(b"k:1\nno key\nk:3\n")
    done = scripts.run(
        *("producer", "-t", topic, "-K", ":", "--topic-config", "cleanup.policy=compact"),
        *("large", "b", "c"),
        cwd=files,
        env={"KAFKA_BATCH_SIZE": "1"},
    )
    skipped, summary = done.stderr.decode().splitlines()
    reason = "larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
    assert skipped == f"producer.py: skipped event 1 (2000002 bytes): {reason}"
    assert summary.startswith(f"producer.py: published 4 events to {topic}, stopped before line 2")
    found = read_summary(done.stderr)
    assert (found.next_line, found.path, done.returncode) == (2, "c", 1)
    assert found.failed in (2, 3)  # the last event may be in Kafka by then
    assert found.reason == f"event 1 (2000002 bytes): {reason}"


def test_after_a_failure_nothing_is_missing_and_little_comes_twice(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, read: Read
) -> None:
    """Events that come twice were on their way when Kafka stalled, and still arrived."""
    lines = [b"%09d\n" % number for number in range(10_000)]
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "2000"}
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=env)
    producer.send(b"".join(lines[:1000]))
    assert scripts.run("consumer", "-t", topic, "-n", 1000).returncode == 0
    producer.send(b"".join(lines[1000:]))
    stalled()
    done = producer.end()
    summary = read_summary(done.stderr)
    event = summary.published + 1
    assert (done.returncode, summary.failed) == (1, len(lines) - summary.published)
    assert (summary.next_line, summary.path) == (event, "standard input")
    assert summary.reason == f"event {event} (9 bytes): {TOO_LATE}"
    resume(kafka, read, topic)
    done = scripts.run("producer", "-t", topic, input=b"".join(lines[summary.next_line - 1 :]))
    assert done.returncode == 0
    found = [value + b"\n" for value in values(read(topic)) if value is not None]
    twice = len(found) - len(lines)
    assert 0 <= twice <= summary.failed
    assert found == lines[: summary.published + twice] + lines[summary.published :]
