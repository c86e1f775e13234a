"""producer.py, run as users do, against a real Kafka."""

import ctypes
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from broker import Broker
from cli import Stop, pluralize, separator_type
from delivery import MAX_IN_FLIGHT, Batch, Event, LineSplitter, OversizedLine, take
from producer import BLOCK_BYTES

import pytest
from conftest import (
    Read,
    Result,
    Running,
    Scripts,
    Summary,
    Terminal,
    read_summary,
    resume,
    unread_pipe,
    values,
    wait_until,
)
from kafka import KafkaAdminClient, KafkaProducer, errors
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


TOO_LARGE = "larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
TOO_LATE = "not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS"
NO_ANSWER = (
    "not acknowledged in time: no response. Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
)
NO_SEPARATOR = " (separator not found in any line, so no event has a key)"
NO_KEY = "a compacted topic accepts only events with a key. Use -K."


def published(topic: str, count: int, stopped: str = "", note: str = "") -> str:
    """The summary of a run without failed events, possibly stopped before a line of a file."""
    end = f", stopped before {stopped}" if stopped else ""
    return f"producer.py: published {pluralize(count, 'event')} to {topic}{note}{end}\n"


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
    assert done.stderr.decode() == published(topic, len(ODD))
    assert values(read(topic)) == ODD


def test_files_are_read_one_after_the_other(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read
) -> None:
    (tmp_path / "a").write_bytes(b"1\n2")
    (tmp_path / "b").write_bytes(b"5\n")
    done = scripts.run("producer", "-t", topic, tmp_path / "a", "-", tmp_path / "b", input=b"3\n4")
    assert done.returncode == 0
    assert values(read(topic)) == [b"1", b"2", b"3", b"4", b"5"]


def test_empty_input_is_no_event(scripts: Scripts, topic: str, read: Read) -> None:
    done = scripts.run("producer", "-t", topic, input=b"")
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 0))
    assert read(topic) == []


def test_lines_arrive_while_the_pipe_stays_open(scripts: Scripts, topic: str) -> None:
    consumer = scripts.start("consumer", "-t", topic)
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE)
    for number in range(3):
        producer.send(b"line %d\nhal" % number)
        consumer.wait_for(lambda it, number=number: it.out.endswith(b"line %d\n" % number))  # type: ignore[misc]
        if number < 2:  # the signal must come while it reads, not just before
            producer.send(b"f ")
    done = producer.end(signal.SIGINT)
    assert done.returncode == 130
    assert done.stderr.decode() == published(topic, 3, "line 4 of standard input")
    assert consumer.end(signal.SIGTERM).stdout == b"line 0\nhalf line 1\nhalf line 2\n"


def test_a_pipe_that_does_not_block_is_waited_for(
    scripts: Scripts, topic: str, tmp_path: Path
) -> None:
    path = tmp_path / "first"
    path.write_bytes(b"first\n")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    producer = scripts.start("producer", "-t", topic, path, "-", stdin=reader)
    os.close(reader)
    assert (
        scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"
    )  # now the pipe is being read
    os.write(writer, b"late\n")
    os.close(writer)
    assert producer.end().returncode == 0
    assert scripts.run("consumer", "-t", topic, "-e").stdout == b"first\nlate\n"


class Feeder(threading.Thread):
    """Writes lines to a pipe, one every `pause` seconds; `data` is what it has written."""

    def __init__(self, writer: int, lines: Iterable[bytes], pause: float = 0) -> None:
        super().__init__(daemon=True)
        self._writer, self._lines, self._pause = writer, lines, pause
        self._done = threading.Event()
        self.data = bytearray()
        self.start()

    def run(self) -> None:
        with open(self._writer, "wb", buffering=0) as pipe, suppress(BrokenPipeError):
            for line in self._lines:
                if self._done.wait(self._pause):
                    return
                pipe.write(line)
                self.data += line

    def taken(self, reader: Any) -> bytes:
        """Write no more; return what was written, without what is still in the pipe."""
        self._done.set()
        left = len(reader.read())
        self.join()
        return bytes(self.data[: len(self.data) - left])


@contextmanager
def busy_processors(count: int) -> Iterator[None]:
    """`count` processes that do nothing but compute, for half an hour at most."""
    code = "import time\nend = time.monotonic() + 1800\nwhile time.monotonic() < end: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def stop_reading(scripts: Scripts, topic: str, index: int) -> tuple[Result, bytes]:
    """Stop a producer that reads a pipe; return its result, and what it took from the pipe.

    In every other run the pipe is always full; in the rest the producer waits for each line.
    """
    pause, lead = ((0, 5000), (0.001, 500))[index % 2]
    lines = (b"%050d\n" % number for number in itertools.count())
    with unread_pipe() as (reader, writer):
        feeder = Feeder(writer, lines, pause)
        producer = scripts.start("producer", "-t", topic, stdin=reader)
        wait_until(producer.takes_signals)
        enough = len(feeder.data) + random.Random(index).randrange(lead)
        wait_until(lambda: len(feeder.data) > enough)
        done = producer.end(signal.SIGTERM)
        return done, feeder.taken(reader)


@pytest.mark.parametrize(
    ("rounds", "load"), [(6, 0), pytest.param(200, 3, marks=pytest.mark.stress)]
)
def test_what_a_signal_finds_read_is_delivered(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, rounds: int, load: int
) -> None:
    """Each whole line taken from the pipe is; a line still partly in the pipe is not."""

    with busy_processors(load):
        for index in range(rounds):
            name = f"{topic}-{index}"
            done, taken = stop_reading(scripts, name, index)
            *lines, _cut_off = taken.split(b"\n")
            assert len(lines) > 0
            stopped = f"line {len(lines) + 1} of standard input"
            assert done.stderr.decode() == published(name, len(lines), stopped)
            assert done.returncode == 143
            assert values(read(name)) == lines
            admin.delete_topics([name])


def test_sample_events_go_to_the_new_topic_sample(
    scripts: Scripts, admin: KafkaAdminClient, read: Read
) -> None:
    done = scripts.run("producer", "-n", 5, "--interval", 0)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"producer.py: published 5 events to sample\n"
    events = [json.loads(record.value) for record in read("sample")]
    assert [event["number"] for event in events] == [1, 2, 3, 4, 5]
    assert all(datetime.strptime(event["time"], "%Y-%m-%dT%H:%M:%S%z").tzinfo for event in events)


def test_sample_events_where_standard_input_is_closed(
    scripts: Scripts, topic: str, read: Read
) -> None:
    done = scripts.run(
        "producer", "-t", topic, "-n", 2, "--interval", 0, preexec_fn=lambda: os.close(0)
    )
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
    assert [json.loads(record.value)["number"] for record in read(topic)] == [1, 2]


def test_interval_paces_sample_events(scripts: Scripts, topic: str, read: Read) -> None:
    """Judged by the events' own times, as delivery may be delayed, above all that of the first."""
    assert scripts.run("producer", "-t", topic, "-n", 3, "--interval", 1).returncode == 0
    times = [json.loads(record.value)["time"] for record in read(topic)]
    assert len(set(times)) == 3


ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
LINES = 300_000  # in the file `numbers`


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A file that takes seconds to publish."""
    path = tmp_path / "numbers"
    path.write_bytes(b"".join(b"%09d\n" % number for number in range(LINES)))
    return path


MOMENTS = [6, pytest.param(170, marks=pytest.mark.stress)]  # for each of three sources


class Interruption(NamedTuple):
    """A signal, and its delay in seconds after the producer begins to handle signals."""

    number: signal.Signals
    moment: float


def interrupt(
    scripts: Scripts,
    interruption: Interruption,
    arguments: list[str],
    piped: bytes | None,
) -> Result:
    """Start a producer, possibly with a pipe that stays open, and send it a signal."""
    with unread_pipe() as (reader, writer), open(writer, "wb", buffering=0) as pipe:
        standard_input = subprocess.DEVNULL if piped is None else reader
        pipe.write(piped or b"")
        producer = scripts.start("producer", *arguments, stdin=standard_input)
        wait_until(producer.takes_signals)
        time.sleep(interruption.moment)  # the random moment itself
        began = time.monotonic()
        done = producer.end(interruption.number)
        assert time.monotonic() - began < Stop.LIMIT + 1  # on a busy machine
    return done


def numbers_in(found: list[Any], source: str) -> list[int]:
    """The numbers of the source's events, from 0; within each partition they must be in order."""
    if source == "samples":
        numbers = [json.loads(record.value)["number"] - 1 for record in found]
    else:
        assert all(len(record.value) == 9 for record in found)
        numbers = [int(record.value) for record in found]
    places = [(record.partition, number) for record, number in zip(found, numbers, strict=True)]
    assert places == sorted(places)
    return sorted(numbers)


@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("source", ["pipe", "samples"])
def test_a_signal_at_any_moment(
    scripts: Scripts,
    topic: str,
    admin: KafkaAdminClient,
    read: Read,
    numbers: Path,
    source: str,
    count: int,
) -> None:
    """The counted events are in the topic, once each, and were the first in the source."""
    chance = random.Random(source)
    interruptions = [
        Interruption(chance.choice(ENDING), chance.uniform(0, 3)) for _ in range(count)
    ]
    sources = {"pipe": [], "samples": ["--interval", "0", "-n", "9" * 8]}
    # Some have to wait for Kafka, some for more input
    piped = [numbers.read_bytes()[: chance.choice([10, 10_000, 1 << 16])] for _ in range(count)]

    def check(index: int) -> int:
        """Return how many events were published."""
        interruption, name = interruptions[index], f"{topic}-{index}"
        arguments = ["-t", name, "--partitions", "3", *sources[source]]
        in_pipe = piped[index] if source == "pipe" else None
        done = interrupt(scripts, interruption, arguments, in_pipe)
        total = read_summary(done.stderr).published
        stopped = f"line {total + 1} of standard input" if source == "pipe" else ""
        assert done.stderr.decode() == published(name, total, stopped)
        assert done.returncode == 128 + interruption.number
        assert numbers_in(read(name), source) == list(range(total))
        admin.delete_topics([name])
        return total

    with ThreadPoolExecutor(2) as pool:
        totals = list(pool.map(check, range(count)))
    assert any(total > 0 for total in totals)


# Two ways to skip lines; the second one is for Windows, where there is no tail
SKIP = [
    "tail -n +{next_line} '{path}'",
    '{python} -c "import sys, itertools; '
    "sys.stdout.buffer.writelines(itertools.islice(open('{path}', 'rb'), {count}, None))\"",
]
PART_LINES = 30_000  # in each of three files


@pytest.fixture
def parts(numbers: Path) -> list[Path]:
    """Three files with lines from `numbers`; no file ends in \\n."""
    lines = numbers.read_bytes().split(b"\n")
    paths = [numbers.with_name(f"part {number}") for number in range(3)]
    for number, path in enumerate(paths):
        beginning = number * PART_LINES
        path.write_bytes(b"\n".join(lines[beginning : beginning + PART_LINES]))
    return paths


def publish_rest(
    scripts: Scripts, topic: str, parts: list[Path], summary: Summary, skip: str
) -> Result:
    """Publish the rest of the files, following the summary of a stopped run."""
    command = skip.format(
        **summary._asdict(), count=summary.next_line - 1, python=shlex.quote(sys.executable)
    )
    later_parts = parts[parts.index(Path(summary.path)) + 1 :]
    with subprocess.Popen(["/bin/sh", "-c", command], stdout=subprocess.PIPE) as rest:
        return scripts.run("producer", "-t", topic, "-", *later_parts, stdin=rest.stdout)


@pytest.mark.parametrize("count", [4, pytest.param(100, marks=pytest.mark.stress)])
def test_a_run_goes_on_where_a_signal_has_stopped_another(
    scripts: Scripts,
    topic: str,
    admin: KafkaAdminClient,
    read: Read,
    parts: list[Path],
    count: int,
) -> None:
    """At any moment; together, the two runs publish each line of the files once, in order."""
    chance = random.Random("files")
    interruptions = [
        Interruption(chance.choice(ENDING), chance.uniform(0, 1.5)) for _ in range(count)
    ]
    total = len(parts) * PART_LINES

    def check(index: int) -> int:
        """Return how many events the first run published."""
        interruption, name = interruptions[index], f"{topic}-{index}"
        arguments = ["-t", name, "--partitions", "3", *map(str, parts)]
        done = interrupt(scripts, interruption, arguments, None)
        summary = read_summary(done.stderr)
        stopped = f"line {summary.next_line} of {summary.path}" if summary.next_line else ""
        assert done.stderr.decode() == published(name, summary.published, stopped)
        assert done.returncode == (128 + interruption.number if stopped else 0)
        if stopped:
            done = publish_rest(scripts, name, parts, summary, SKIP[index % 2])
            rest = total - summary.published
            assert (done.returncode, done.stderr.decode()) == (0, published(name, rest))
        assert numbers_in(read(name), "files") == list(range(total))
        admin.delete_topics([name])
        return summary.published

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(check, range(count)))
    assert any(0 < count < total for count in counts)


def test_a_hangup_in_the_middle_of_a_file(
    scripts: Scripts, topic: str, read: Read, numbers: Path
) -> None:
    producer = scripts.start("producer", "-t", topic, numbers)
    wait_until(producer.takes_signals)
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"000000000\n"
    done = producer.end(signal.SIGHUP)
    total = read_summary(done.stderr).published
    stopped = f"line {total + 1} of {numbers}"
    assert (done.returncode, done.stderr.decode()) == (129, published(topic, total, stopped))
    assert total < LINES
    assert values(read(topic)) == numbers.read_bytes().split()[:total]


def test_after_nohup_a_hangup_is_ignored(scripts: Scripts, topic: str, read: Read) -> None:
    producer = scripts.start(
        *("producer", "-t", topic),
        stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    producer.send(b"before\n")
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"before\n"
    producer.process.send_signal(signal.SIGHUP)
    producer.send(b"after\n")
    assert producer.process.stdin
    producer.process.stdin.close()
    done = producer.end()
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
    assert values(read(topic)) == [b"before", b"after"]


# The kernel function in which the reading thread waits, by its Linux name
WAITS = {"pipe": "poll_schedule_timeout|do_select", "FIFO without a writer": "wait_for_partner"}


def waiting_thread(producer: Running, source: str) -> int:
    """The ID of the reading thread once it is waiting for input; before that, 0."""
    for task in Path(f"/proc/{producer.process.pid}/task").iterdir():
        with suppress(OSError):  # it has just ended
            if re.match(WAITS[source], (task / "wchan").read_text()):
                return int(task.name)
    return 0


@pytest.mark.parametrize("source", WAITS)
def test_a_signal_that_interrupts_no_call(
    scripts: Scripts, topic: str, tmp_path: Path, source: str
) -> None:
    """The signal goes to a thread other than the main one, as it may."""
    os.mkfifo(tmp_path / "fifo")
    arguments = [] if source == "pipe" else [tmp_path / "fifo"]
    producer = scripts.start("producer", "-t", topic, *arguments, stdin=subprocess.PIPE)
    wait_until(lambda: producer.takes_signals() and waiting_thread(producer, source))
    thread = waiting_thread(producer, source)
    assert thread != producer.process.pid
    assert ctypes.CDLL(None).tgkill(producer.process.pid, thread, signal.SIGINT) == 0
    done = producer.end(seconds=5)
    name = "standard input" if source == "pipe" else tmp_path / "fifo"
    assert done.stderr.decode() == published(topic, 0, f"line 1 of {name}")
    assert done.returncode == 130


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("bound", [[], ["-n", "1000000"]])
def test_a_signal_ends_sample_events(
    scripts: Scripts, topic: str, read: Read, number: int, bound: list[str]
) -> None:
    consumer = scripts.start("consumer", "-t", topic)
    producer = scripts.start("producer", "-t", topic, "--interval", "0.01", *bound)
    consumer.wait_for(lambda it: it.out.count(b"\n") > 5)
    done = producer.end(number)
    consumer.end(signal.SIGINT)
    events = [json.loads(record.value)["number"] for record in read(topic)]
    assert done.returncode == (128 + number if bound else 0)
    assert done.stderr.decode() == published(topic, len(events))
    assert events == list(range(1, len(events) + 1))


def test_count_bounds_lines_too(scripts: Scripts, topic: str, read: Read) -> None:
    producer = scripts.start("producer", "-t", topic, "-n", 2, stdin=subprocess.PIPE)
    producer.send(b"1\n2\n3\n")  # and the pipe stays open
    done = producer.end()
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], [(b"a", b"1\r"), (b"b", b"\r"), (None, b"c\r\rd\r"), (None, b"\r")]),
        (["--strip-cr"], [(b"a", b"1"), (b"b", None), (None, b"c\r\rd"), (None, b"")]),
    ],
)
def test_lines_of_windows(
    scripts: Scripts, topic: str, read: Read, flags: list[str], expected: list[Any]
) -> None:
    lines = b"a:1\r\nb:\r\nc\r\rd\r\n\r"
    done = scripts.run("producer", "-t", topic, "-K", ":", "-Z", *flags, input=lines)
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 4))
    assert [(record.key, record.value) for record in read(topic)] == expected


def test_escapes_in_the_separator(scripts: Scripts, topic: str, read: Read) -> None:
    """Also next to bytes that are not UTF-8; both scripts understand escapes."""
    separator = os.fsdecode(b"\\t\xff")
    lines = b"a\t\xff1\nb\t2\nc\\t\xff3\n"
    done = scripts.run("producer", "-t", topic, "-K", separator, input=lines)
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 3))
    assert [(record.key, record.value) for record in read(topic)] == [
        (b"a", b"1"),
        (None, b"b\t2"),
        (None, b"c\\t\xff3"),
    ]
    done = scripts.run("consumer", "-t", topic, "-e", "-n", 1, "-K", r"\0\xfE\n\\x\xg")
    assert done.stdout == b"a\0\xfe\n\\x\\xg1\n"


@pytest.mark.parametrize(("lines", "note"), [(b"a:1\n", True), (b"", False)])
def test_it_is_said_that_no_line_had_the_separator(
    scripts: Scripts, topic: str, lines: bytes, note: bool
) -> None:
    """But only if there was a line."""
    done = scripts.run("producer", "-t", topic, "-K", r"\t", input=lines)
    count = lines.count(b"\n")
    assert done.returncode == 0
    assert done.stderr.decode() == published(topic, count, note=NO_SEPARATOR if note else "")


def test_headers(scripts: Scripts, topic: str) -> None:
    """On lines, tombstones and sample events; header values are bytes."""
    headers = [b"source=", "né=a=".encode() + b"\xff", b"source=2"]
    flags = [each for header in headers for each in ("-H", os.fsdecode(header))]
    done = scripts.run("producer", "-t", topic, "-K", ":", "-Z", *flags, input=b"a:1\nb:\n")
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 2))
    done = scripts.run("producer", "-t", topic, "-n", 1, *flags)
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 1))
    done = scripts.run("consumer", "-t", topic, "-e", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(event["key"], event["value"]) for event in events[:2]] == [("a", "1"), ("b", None)]
    assert [event["headers"] for event in events] == 3 * [
        [
            {"key": "source", "value": ""},
            {"key": "né", "value_base64": "YT3/"},
            {"key": "source", "value": "2"},
        ]
    ]


def test_without_z_an_empty_value_stays_empty(scripts: Scripts, topic: str, read: Read) -> None:
    scripts.run("producer", "-t", topic, "-K", ":", input=b"a:\n")
    assert [(record.key, record.value) for record in read(topic)] == [(b"a", b"")]


def test_keys_keep_their_order_and_their_partition(
    scripts: Scripts, topic: str, read: Read
) -> None:
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


def test_the_topic_is_created_as_asked(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    options = [
        "--partitions",
        "3",
        "--topic-config",
        "cleanup.policy=compact",
        "--topic-config",
        "retention.ms=1000",
    ]
    done = scripts.run("producer", "-t", topic, "-K", "=", *options, input=b"key=value")
    assert done.returncode == 0
    assert partitions(admin, topic) == 3
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, ["cleanup.policy", "retention.ms"])]
    found = admin.describe_configs(asked)["topic"][topic]
    assert found["cleanup.policy"]["value"] == "compact"
    assert found["retention.ms"]["value"] == "1000"


def test_an_existing_topic_is_left_as_it_is(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    admin.create_topics({topic: {"num_partitions": 2}})
    done = scripts.run("producer", "-t", topic, "-n", 1, "--partitions", 3)
    assert done.returncode == 0
    assert done.stderr.decode() == (
        f"producer.py: topic {topic} already exists; ignoring --partitions and --topic-config\n"
        + published(topic, 1)
    )
    assert partitions(admin, topic) == 2


def test_without_keys_events_spread_over_the_partitions(
    scripts: Scripts, topic: str, read: Read
) -> None:
    scripts.run("producer", "-t", topic, "--partitions", 4, input=b"x\n" * 100_000)
    found = [record.partition for record in read(topic)]
    assert len(found) == 100_000
    assert set(found) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("limit", "size"), [("client", 2_000_000), ("broker", 5000), ("broker", 3990)]
)
def test_a_too_large_event_is_named_and_the_rest_published(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read, limit: str, size: int
) -> None:
    if limit == "broker":
        admin.create_topics({topic: {"configs": {"max.message.bytes": "4000"}}})
    lines = [b"before", b"x" * size, b"after", b"y" * (size + 1), b"end"]
    done = scripts.run("producer", "-t", topic, input=b"\n".join(lines))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"producer.py: skipped event 2 ({size} bytes): {TOO_LARGE}",
        f"producer.py: skipped event 4 ({size + 1} bytes): {TOO_LARGE}",
        f"producer.py: published 3 events to {topic}, 2 failed: "
        f"event 2 ({size} bytes): {TOO_LARGE}",
    ]
    assert values(read(topic)) == [b"before", b"after", b"end"]


class Limit(NamedTuple):
    """A case in which the largest value that fits into 4000 bytes has `size` bytes."""

    size: int
    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = {}
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic_bytes: int = 4000


# A batch's header takes 61 bytes; a record takes 2 + 1 for its length and attributes, 1 + 1 for
# time and offset, 1 for the key's length, 2 for the value's, 1 for the number of headers
LIMITS = {
    "value": Limit(3930),
    "key": Limit(3927, ("-K", ":"), key=b"key"),
    "headers": Limit(
        3720,
        ("-H", "a=", "-H", "name=" + 200 * "v"),
        headers=(("a", b""), ("name", 200 * b"v")),
    ),
    "compressed": Limit(3927, ("-K", ":"), {"KAFKA_COMPRESSION_TYPE": "gzip"}, key=b"key"),
    "the client's limit": Limit(3930, (), {"KAFKA_MAX_REQUEST_SIZE": "4000"}, topic_bytes=9000),
}


def is_accepted(address: str, topic: str, limit: Limit, size: int) -> bool:
    """Whether Kafka accepts a value of that size from kafka-python alone."""
    client = KafkaProducer(
        bootstrap_servers=address, max_request_size=1 << 20, enable_idempotence=False
    )
    try:
        client.send(topic, b"x" * size, limit.key, list(limit.headers)).get(10)
    except errors.MessageSizeTooLargeError:
        return False
    finally:
        client.close()
    return True


@pytest.mark.parametrize("case", LIMITS)
def test_the_largest_event_fits_to_the_byte(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, kafka: Broker, read: Read, case: str
) -> None:
    """It comes between small ones, which may share batches with each other but not with it."""
    limit = LIMITS[case]
    for name, size in ((topic, limit.topic_bytes), (f"{topic}-alone", 4000)):
        admin.create_topics({name: {"configs": {"max.message.bytes": str(size)}}})
    accepted = [
        is_accepted(kafka.address, f"{topic}-alone", limit, limit.size + more) for more in (0, 1)
    ]
    assert accepted == [True, False]
    sizes = [1, limit.size, 2, limit.size + 1, 3, limit.size - 1, *range(4, 200), limit.size]
    start = b"" if limit.key is None else limit.key + b":"
    lines = [start + b"x" * size for size in sizes]
    done = scripts.run(
        "producer", "-t", topic, *limit.arguments, input=b"\n".join(lines), env=limit.env
    )
    size = limit.size + 1 + len(limit.key or b"")
    size += sum(len(name) + len(value) for name, value in limit.headers)
    failure = f"event 4 ({size} bytes): {TOO_LARGE}"
    assert done.stderr.decode().splitlines() == [
        f"producer.py: skipped {failure}",
        f"producer.py: published {len(lines) - 1} events to {topic}, 1 failed: {failure}",
    ]
    assert done.returncode == 1
    assert [len(value or b"") for value in values(read(topic))] == sizes[:3] + sizes[4:]


def test_too_large_events_do_not_harm_their_neighbours(
    scripts: Scripts, topic: str, read: Read
) -> None:
    lines = [
        b"%d:" % number + b"x" * (3000 if number % 500 == 499 else 10) for number in range(20_000)
    ]
    config = "max.message.bytes=2000"
    done = scripts.run(
        "producer",
        "-t",
        topic,
        "-K",
        ":",
        "--partitions",
        4,
        "--topic-config",
        config,
        input=b"\n".join(lines),
    )
    assert done.returncode == 1
    *skipped, summary = done.stderr.decode().splitlines()
    assert skipped == [
        f"producer.py: skipped event {number + 1} ({len(lines[number])} bytes): {TOO_LARGE}"
        for number in range(499, 20_000, 500)
    ]
    reason = f"event 500 (3004 bytes): {TOO_LARGE}"
    assert summary == f"producer.py: published 19960 events to {topic}, 40 failed: {reason}"
    assert sorted(int(record.key) for record in read(topic)) == [
        n for n in range(20_000) if n % 500 != 499
    ]


@pytest.mark.parametrize(
    "size", [300_000_000, pytest.param(5_000_000_000, marks=pytest.mark.stress)]
)
def test_an_endless_line_does_not_fill_memory(scripts: Scripts, topic: str, size: int) -> None:
    feed = f"head -c {size} /dev/zero; echo; cat"
    with subprocess.Popen(
        ["/bin/sh", "-c", feed], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as endless:
        running = scripts.start("producer", "-t", topic, stdin=endless.stdout)
        running.wait_for(lambda it: b"skipped" in it.err)
        memory = running.memory()
        endless.communicate()
        done = running.end()
    assert done.returncode == 1
    event = f"event 1 ({size} bytes): {TOO_LARGE}"
    assert done.stderr.decode().splitlines() == [
        f"producer.py: skipped {event}",
        f"producer.py: published 0 events to {topic}, 1 failed: {event}",
    ]
    assert memory < 120


def drop_capabilities() -> None:
    """Deny root access, too: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def test_files_that_cannot_be_read_are_named_without_a_broker(
    lone_scripts: Scripts, tmp_path: Path
) -> None:
    """Each once; if no readable file is left, the run ends."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "forbidden").touch(0)
    os.mkfifo(tmp_path / "fifo", 0)
    reasons = {
        "none": "No such file or directory",
        "folder": "Is a directory",
        "forbidden": "Permission denied",
        "fifo": "Permission denied",
        "forbidden/file": "Not a directory",
    }
    start = {"cwd": tmp_path, "env": {"KAFKA_BOOTSTRAP_SERVERS": "localhost:9"}}
    with (tmp_path / "output").open("wb") as output:
        options = {**start, "stdin": output, "preexec_fn": drop_capabilities}
        done = lone_scripts.run("producer", *reasons, "none", "-", **options)
    no_input = "producer.py: cannot read standard input: not open for reading"
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        *(f"producer.py: cannot read {name}: {reason}" for name, reason in reasons.items()),
        no_input,
    ]
    done = lone_scripts.run("producer", "-", preexec_fn=lambda: os.close(0), **start)
    assert (done.returncode, done.stderr.decode()) == (2, f"{no_input}\n")


def test_a_fifo_is_opened_once(scripts: Scripts, topic: str, tmp_path: Path, read: Read) -> None:
    """So are the pipes a shell makes for <(…): their contents could be lost otherwise."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    command = f"echo 1 > '{path}' & exec \"$@\" <(echo 2) '{path}' /dev/stdin"
    options: dict[str, Any] = {"input": b"3\n"}
    producer = scripts.call("producer", ("-t", topic), options)
    done = subprocess.run(
        ["/bin/bash", "-c", command, "bash", *producer], capture_output=True, timeout=60, **options
    )
    assert (done.returncode, done.stderr.decode()) == (0, published(topic, 3))
    assert values(read(topic)) == [b"2", b"1", b"3"]


BAD_FILES = {  # what cannot be read: why
    "none": "No such file or directory",
    "folder": "Is a directory",
    "forbidden": "Permission denied",
    "removed": "No such file or directory",
    "/proc/self/mem": "Input/output error",  # opens, and fails at the first read
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named_and_the_rest_published(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    for readable in ("forbidden", "removed", "good"):
        (tmp_path / readable).write_bytes(b"after\n")
    (tmp_path / "forbidden").chmod(0)
    path = tmp_path / name
    producer = scripts.start(
        *("producer", "-t", topic, "-", path, tmp_path / "good"),
        stdin=subprocess.PIPE,
        preexec_fn=drop_capabilities,
    )
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


def test_a_file_that_grows_while_it_is_read(
    scripts: Scripts, topic: str, tmp_path: Path, read: Read
) -> None:
    """It is read to its end, including what was added meanwhile."""
    lines = (b"%09d\n" % number for number in itertools.count())
    path = tmp_path / "log"
    path.write_bytes(b"".join(itertools.islice(lines, 50_000)))
    producer = scripts.start("producer", "-t", topic, path)
    end = time.monotonic() + 60
    with path.open("ab", buffering=0) as log:
        while producer.process.poll() is None and time.monotonic() < end:
            log.write(b"".join(itertools.islice(lines, 10)))
            time.sleep(0.005)  # slower than the producer reads
    done = producer.end()
    assert done.returncode == 0
    found = values(read(topic))
    assert done.stderr.decode() == published(topic, len(found))
    assert len(found) > 50_000
    assert found == [b"%09d" % number for number in range(len(found))]


def test_a_topic_that_is_deleted_while_it_is_written(
    scripts: Scripts, topic: str, admin: KafkaAdminClient, read: Read
) -> None:
    """Kafka creates it again, as it does by default.

    Events not acknowledged before that are in the new one.
    """
    producer = scripts.start("producer", "-t", topic, "--interval", "0.001", "-n", 1_000_000)
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    admin.delete_topics([topic])
    assert scripts.run("consumer", "-t", topic, "-n", 100).returncode == 0
    done = producer.end(signal.SIGINT)
    total = read_summary(done.stderr).published
    assert (done.returncode, done.stderr.decode()) == (130, published(topic, total))
    numbers = [json.loads(record.value)["number"] for record in read(topic)]
    assert numbers == list(range(numbers[0], total + 1))


@pytest.mark.parametrize("lines", [b"no key\n", b"a:1\nno key\nb:2\n"], ids=["alone", "in a batch"])
def test_a_compacted_topic_wants_keys(
    scripts: Scripts, topic: str, read: Read, lines: bytes
) -> None:
    """Kafka refuses the whole batch, which holds all events here; the summary names the culprit."""
    done = scripts.run(
        *("producer", "-t", topic, "-K", ":", "--topic-config", "cleanup.policy=compact"),
        input=lines,
        env={"KAFKA_LINGER_MS": "2000"},
    )
    assert done.returncode == 1
    count, number = lines.count(b"\n"), lines.splitlines().index(b"no key") + 1
    note = "" if b":" in lines else NO_SEPARATOR
    assert done.stderr.decode() == (
        f"producer.py: published 0 events to {topic}{note}, stopped before line 1 of standard "
        f"input, {count} failed: event {number} (6 bytes): {NO_KEY}\n"
    )
    assert read(topic) == []


def test_a_batch_that_kafka_rejects_for_another_reason(scripts: Scripts, topic: str) -> None:
    """The words are Kafka's own."""
    arguments = ("-t", topic, "--topic-config", "message.timestamp.before.max.ms=0")
    done = scripts.run("producer", *arguments, input=b"line\n" * 3)
    assert done.returncode == 1
    reason = r"event 1 \(4 bytes\): Timestamp \d+ of message with offset 0 is out of range\. .*"
    assert re.fullmatch(reason, read_summary(done.stderr).reason)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("foo=1", "Unknown topic config name: foo"),
        (
            "retention.ms=soon",
            "Invalid value soon for configuration retention.ms: Not a number of type LONG",
        ),
    ],
)
def test_an_unknown_topic_config_is_refused_in_kafkas_words(
    scripts: Scripts, topic: str, setting: str, reason: str
) -> None:
    done = scripts.run("producer", "-t", topic, "-n", 1, "--topic-config", setting)
    assert done.returncode == 1
    assert done.stderr.decode() == f"producer.py: cannot create topic {topic}: {reason}\n"


@pytest.mark.parametrize("partition_count", [1, 6])
def test_a_large_file_of_random_bytes_comes_back_byte_for_byte(
    scripts: Scripts, topic: str, tmp_path: Path, partition_count: int
) -> None:
    chance = random.Random(partition_count)
    lines = [
        chance.randbytes(chance.randrange(301)).replace(b"\n", b"\r") for _ in range(49_999)
    ] + [b"the end"]
    path, out = tmp_path / "events", tmp_path / "out"
    path.write_bytes(b"\n".join(lines))
    done = scripts.run("producer", "-t", topic, "--partitions", partition_count, path)
    assert done.stderr.decode() == f"producer.py: published 50000 events to {topic}\n"
    with out.open("wb") as file:
        done = scripts.run(
            "consumer", "-t", topic, "-e", stdout=file, stderr=subprocess.PIPE, capture_output=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    if partition_count == 1:
        assert out.read_bytes() == path.read_bytes() + b"\n"
    else:
        assert sorted(out.read_bytes().removesuffix(b"\n").split(b"\n")) == sorted(lines)


def start_busy(scripts: Scripts, topic: str) -> Running:
    """A producer that has been publishing for a while and soon says it is waiting for Kafka."""
    watcher = scripts.start("consumer", "-t", topic)
    producer = scripts.start(
        *("producer", "-t", topic, "-n", 10_000_000, "--interval", "0.001"),
        env={"STREAM_TEST_SECOND": "0.1"},
    )
    watcher.wait_for(lambda it: it.out.count(b"\n") > 100)
    watcher.end(signal.SIGINT)
    return producer


# The progress of a producer with STREAM_TEST_SECOND=0.1, when Kafka stalls
WAITING = rb"(producer\.py: \d+ events, \d+/s(, waiting for Kafka: [^\n]+)?\n)+"


def test_a_second_signal_ends_it_at_once(
    scripts: Scripts, topic: str, stalled: Callable[[], None]
) -> None:
    producer = start_busy(scripts, topic)
    stalled()
    producer.wait_for(lambda it: b"waiting for Kafka" in it.err)
    producer.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        producer.process.wait(1)
    done = producer.end(signal.SIGINT, seconds=1)
    assert done.returncode == 130
    assert re.fullmatch(WAITING, done.stderr), "no summary"


def test_a_signal_while_kafka_is_away(
    scripts: Scripts, topic: str, stalled: Callable[[], None], kafka: Broker, read: Read
) -> None:
    producer = start_busy(scripts, topic)
    stalled()
    producer.wait_for(lambda it: b"waiting for Kafka" in it.err)
    began = time.monotonic()
    done = producer.end(signal.SIGINT)
    assert time.monotonic() - began < 6
    assert done.returncode == 1
    *waits, last = done.stderr.splitlines(keepends=True)
    assert re.fullmatch(WAITING, b"".join(waits))
    summary = read_summary(last)
    assert summary.failed > 0
    number = summary.published + 1
    size = len(json.dumps({"number": number, "time": "2026-01-01T00:00:00Z"}))
    assert summary.reason == f"event {number} ({size} bytes): {NO_ANSWER}"
    resume(kafka, read, topic)
    numbers = [json.loads(record.value)["number"] for record in read(topic)]
    assert numbers[: summary.published] == list(range(1, summary.published + 1))
    assert len(numbers) <= summary.published + summary.failed


def count_threads(producer: Running) -> int:
    return len(os.listdir(f"/proc/{producer.process.pid}/task"))


@pytest.mark.parametrize("number", [None, *ENDING])
def test_an_event_that_fails_while_the_source_is_silent_ends_the_run(
    scripts: Scripts, topic: str, stalled: Callable[[], None], number: int | None
) -> None:
    """A signal that comes then is the first one, so there is a summary."""
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "2000"}
    producer = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE, env=env)
    producer.send(b"first\n")
    assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"
    stalled()
    threads = count_threads(producer)
    producer.send(b"second\n")
    time.sleep(1.5)  # the third fails that much later
    producer.send(b"third\n")
    wait_until(lambda: count_threads(producer) < threads)  # nothing is read any more
    done = producer.end(number, seconds=6)
    assert (done.returncode, done.stderr.decode()) == (
        1,
        f"producer.py: published 1 event to {topic}, stopped before line 2 of standard input, "
        f"2 failed: event 2 (6 bytes): {TOO_LATE}\n",
    )


@pytest.mark.parametrize(("size", "bound"), [(10, 16_000), (100_000, 16 * 1024 * 1024 // 100_000)])
def test_an_outage_beyond_the_delivery_timeout_with_a_bound_of_events_in_flight(
    scripts: Scripts,
    topic: str,
    stalled: Callable[[], None],
    kafka: Broker,
    read: Read,
    size: int,
    bound: int,
) -> None:
    """Each event taken from the pipe is counted: up to the bound, plus four blocks."""
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "2000"}
    with unread_pipe() as (reader, writer):
        producer = scripts.start("producer", "-t", topic, stdin=reader, env=env)
        os.write(writer, b"first\n")
        assert scripts.run("consumer", "-t", topic, "-n", 1).stdout == b"first\n"
        stalled()
        began = time.monotonic()
        feeder = Feeder(writer, itertools.repeat(b"x" * (size - 1) + b"\n"))
        done = producer.end()
        assert time.monotonic() - began < 2 + 6
        taken = feeder.taken(reader)
    failed = taken.count(b"\n")
    assert bound // 2 < failed <= bound + 2 + 4 * BLOCK_BYTES // size
    assert (done.returncode, done.stderr.decode()) == (
        1,
        f"producer.py: published 1 event to {topic}, stopped before line 2 of standard input, "
        f"{failed} failed: event 2 ({size - 1} bytes): {TOO_LATE}\n",
    )
    resume(kafka, read, topic)
    assert values(read(topic))[0] == b"first"


def live_lines(shown: str, width: int, summary: str) -> list[str]:
    """The lines that overwrote one another before the summary; each fills the width."""
    nothing, *live, last, end = shown.split("\r")
    assert (nothing, end) == ("", "\n")
    assert last == summary.removesuffix("\n").ljust(width)
    assert {len(line) for line in live} == {width}
    return live


@pytest.mark.parametrize("columns", [0, 24, 120], ids=["unknown", "narrow", "wide"])
def test_on_a_terminal_it_makes_sample_events_and_shows_its_progress(
    scripts: Scripts, topic: str, columns: int
) -> None:
    """On a line that fills all columns but the last, so it neither wraps nor leaves remnants."""
    with Terminal(columns) as terminal:
        options = {"stdin": terminal.device, "stderr": terminal.device}
        done = scripts.start("producer", "-t", topic, "-n", 4, "--interval", "0.6", **options).end()
        terminal.give_away()
        shown = terminal.read()
    assert done.returncode == 0
    width = (columns or 80) - 1
    possible = [
        f"producer.py: {pluralize(count, 'event')}, {rate}/s".ljust(width)[:width]
        for count in (1, 2, 3)
        for rate in (1, 2)
    ]
    assert set(live_lines(shown, width, published(topic, 4))) <= set(possible)


def test_on_a_terminal_it_shows_how_much_of_the_file_is_read(
    scripts: Scripts, topic: str, numbers: Path
) -> None:
    """The percentage is of the file's bytes, without headers; four blocks are read ahead."""
    with Terminal() as terminal:
        flags = ("-K", "000", "-H", "name=0123456789")
        producer = scripts.start("producer", "-t", topic, *flags, numbers, stderr=terminal.device)
        done = producer.end(seconds=90)
        terminal.give_away()
        shown = terminal.read()
    assert done.returncode == 0
    pattern = re.compile(r"producer.py: (\d+) events, \d+/s, (\d+)% *")
    found = [pattern.fullmatch(line) for line in live_lines(shown, 79, published(topic, LINES))]
    counts = [(int(each[1]), int(each[2])) for each in found if each]
    assert len(counts) == len(found) > 0
    assert counts == sorted(counts)
    ahead = MAX_IN_FLIGHT + 1 + 4 * BLOCK_BYTES // 10
    assert all(
        100 * count // LINES <= percent <= 100 * (count + ahead) // LINES
        for count, percent in counts
    )


# ------------------------------------------------------------------ the pieces


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("\\", b"\\"),
        (r"\\", b"\\"),
        (r"\\t", rb"\t"),
        (r"\t\n\0\xfF\x", b"\t\n\0\xff\\x"),
        (r"\d\x4\xg0\T", rb"\d\x4\xg0\T"),
        (r"\012", b"\x0012"),
        ("é🎉", "é🎉".encode()),
    ],
)
def test_escapes(text: str, separator: bytes) -> None:
    assert separator_type(text) == separator


def random_blocks(chance: random.Random, parts: list[bytes]) -> list[bytes]:
    """Forty of the parts, in blocks that end anywhere."""
    data = b"".join(chance.choice(parts) for _ in range(40))
    cuts = sorted(chance.randrange(len(data)) for _ in range(6))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def split(blocks: Iterable[bytes], limit: int) -> list[bytes | OversizedLine]:
    splitter = LineSplitter(limit)
    return [line for block in blocks for line in splitter.feed(block)] + splitter.flush()


def test_line_splitter_agrees_with_bytes_split_wherever_the_blocks_end() -> None:
    chance = random.Random(1)
    for _ in range(500):
        blocks = random_blocks(chance, [b"a", b"bb\r", b"\n", b"\r\n", "é🎉".encode()])
        assert split(blocks, 1000) == b"".join(blocks).removesuffix(b"\n").split(b"\n")


def test_line_splitter_keeps_no_line_beyond_the_limit_wherever_the_blocks_end() -> None:
    chance = random.Random(2)
    for _ in range(500):
        blocks = random_blocks(chance, [b"a", b"bb", b"cccc", b"\n"])
        expected = b"".join(blocks).removesuffix(b"\n").split(b"\n")
        found = split(blocks, 5)
        assert [len(line) for line in found] == [len(line) for line in expected]
        assert [line for line in found if isinstance(line, bytes)] == [
            line for line in expected if len(line) <= 5
        ]


def test_line_splitter_returns_each_line_as_soon_as_it_ends() -> None:
    splitter = LineSplitter(5)
    assert splitter.flush() == []
    assert splitter.feed(b"one\n\nt") == [b"one", b""]
    assert splitter.feed(b"wo") == []
    assert splitter.flush() == [b"two"]


PAIR = [Event(None, b"value"), Event(b"key", None)]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (2, [2]), (3, [2, 1]), (4, [2, 2]), (6, [2, 2, 2])]
)
def test_take_asks_for_no_more_batches_than_it_needs(count: int, sizes: list[int]) -> None:
    """As the next one may be a long time coming."""

    def source() -> Iterator[Batch]:
        yield from [PAIR, PAIR, PAIR]
        pytest.fail("asked for a fourth batch")

    assert list(take(source(), count)) == [PAIR[:size] for size in sizes]


@pytest.mark.parametrize("count", [5, None])
def test_take_returns_all_of_a_source_that_has_no_more(count: int | None) -> None:
    assert list(take(iter([PAIR, [], PAIR]), count)) == [PAIR, [], PAIR]
