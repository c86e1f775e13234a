"""What the tests share: a real Kafka, a topic for each test, and the scripts run as processes."""

import compileall
import fcntl
import functools
import itertools
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from broker import KRAFT, ZOOKEEPER, Broker, class_path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors

pytest_plugins = ["remote"]  # the fixtures of tests/windows

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = ["producer", "consumer", "twitter-stream"]
SOURCES = [
    "cli.py",
    "config.py",
    "delivery.py",
    "http_stream.py",
    "listing.py",
    "windows.py",
    *(f"{name}.py" for name in SCRIPTS),
]
KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "HOME")  # the environment variables that are kept
# Codec, the module that kafka-python needs for it, and the package that has the module
CODEC_PACKAGES = [
    ("snappy", "snappy", "python-snappy"),
    ("lz4", "lz4", "lz4"),
    ("zstd", "zstandard", "zstandard"),
]
Result = subprocess.CompletedProcess[bytes]


Read = Callable[[str], list[Any]]


class Summary(NamedTuple):
    """The counts in the last line that producer.py and twitter-stream.py print."""

    published: int
    failed: int = 0
    reason: str = ""  # of the first failure
    reconnects: int = 0
    skipped: int = 0
    duplicates: int = 0
    gaps: int = 0
    next_line: int = 0  # the line of `path` before which it stopped; 0: it reached the end
    path: str = ""


SUMMARY = re.compile(
    r"(?P<script>\S+)\.py: published (?P<published>\d+) (?P<unit>event|tweet)s? to \S+"
    r"(?: \((?P<reconnects>\d+) reconnects?, (?P<skipped>\d+) skipped"
    r"(?:, (?P<duplicates>\d+) duplicates?)?(?:, (?P<gaps>\d+) gaps?)?\))?"
    r"(?:, stopped before line (?P<next_line>\d+) of (?P<path>.+?))?"
    r"(?:, (?P<failed>\d+) failed: (?P<reason>.*))?"
)


def read_summary(stderr: bytes) -> Summary:
    """The summary in the last line of standard error."""
    line = stderr.decode().splitlines()[-1]
    found = SUMMARY.fullmatch(line)
    assert found, line
    ending = "" if found["published"] == "1" else "s"
    assert f"published {found['published']} {found['unit']}{ending} to " in line
    names = ("published", "failed", "reconnects", "skipped", "duplicates", "gaps", "next_line")
    counts = {name: int(found[name] or 0) for name in names}
    return Summary(reason=found["reason"] or "", path=found["path"] or "", **counts)


def copy_project(folder: Path) -> None:
    """Copy the repository, without anything that make or a developer has put there."""
    ignored = shutil.ignore_patterns(".git", ".venv", ".windows", ".env", "*cache*")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)


def without(module: str, folder: Path) -> dict[str, str]:
    """An environment in which `module` cannot be imported; `folder` gets a stand-in for it."""
    (folder / f"{module}.py").write_text("raise ImportError")
    return {"PYTHONPATH": str(folder)}


def values(records: list[Any]) -> list[bytes | None]:
    return [record.value for record in records]


@contextmanager
def unread_pipe() -> Iterator[tuple[BinaryIO, int]]:
    """A pipe: its reading end, as a file that nobody reads yet, and its writing end."""
    reader, writer = os.pipe()
    with open(reader, "rb") as unread:
        yield unread, writer


class Terminal:
    """A pseudo-terminal, as a context manager; `device` is the end that a script gets."""

    def __init__(self, columns: int = 80) -> None:
        self._master, self.device = pty.openpty()
        fcntl.ioctl(self.device, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)

    def give_away(self) -> None:
        """Close our copy of the device, once a script has it."""
        os.close(self.device)

    def read(self) -> str:
        """What has been shown since the last read; wait until there is something."""
        return os.read(self._master, 10_000).decode()


def most_memory(pid: int) -> int:
    """A process's peak memory so far, in MB; 0 if it has just ended (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


class Running:
    """A running script, with its output so far in `out` and `err`."""

    every: ClassVar[list["Running"]] = []

    def __init__(self, command: list[str], options: dict[str, Any]) -> None:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, **{**pipes, **options})
        self.out, self.err = bytearray(), bytearray()
        self._changed = threading.Condition()
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True) for pair in pairs if pair[0]
        ]
        for reader in self._readers:
            reader.start()
        self.every.append(self)

    def _read(self, stream: Any, into: bytearray) -> None:
        with stream:
            while block := stream.read1(1 << 16):
                with self._changed:
                    into += block
                    self._changed.notify_all()

    def memory(self) -> int:
        size = most_memory(self.process.pid)
        assert size, "the script has ended"
        return size

    def takes_signals(self) -> bool:
        """Whether it has something to lose, so that SIGTERM does not end it at once (Linux)."""
        [caught] = re.findall(
            r"SigCgt:\s+(\w+)", Path(f"/proc/{self.process.pid}/status").read_text()
        )
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    def wait_for(self, condition: Callable[["Running"], Any], seconds: float = 30) -> None:
        """Wait until the condition holds; it is checked whenever output arrives."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), seconds), (
                bytes(self.out),
                bytes(self.err),
            )

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end(self, number: int | None = None, seconds: float = 30) -> Result:
        """Send signal `number`, if any, wait for the script to end, and return all its output."""
        if number is not None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"still running after {seconds} s: {bytes(self.out)[-1000:]!r} {bytes(self.err)!r}"
            )
        finally:
            self.clean_up()
        return Result(self.process.args, status, bytes(self.out), bytes(self.err))

    def clean_up(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
        for reader in self._readers:
            reader.join(10)


def wait_until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Poll for what nobody reports: the state of a stand-in or of Kafka."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


class Scripts:
    """A folder with the scripts but without a developer's .env; they run with few variables set."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        folder.mkdir(exist_ok=True)
        (folder / "__pycache__").mkdir(exist_ok=True)
        for name in SOURCES:
            shutil.copy2(REPOSITORY / name, folder)
            # copy2 keeps the source's modification time, so its compiled file stays valid
            compiled = Path(cache_from_source(str(REPOSITORY / name)))
            shutil.copy2(compiled, folder / "__pycache__")

    def call(
        self, script: str, arguments: tuple[object, ...], options: dict[str, Any]
    ) -> list[str]:
        """The command line; the `env` of the options becomes the whole environment."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        options["env"] = {**kept, "NO_PROXY": "127.0.0.1", **self.env, **options.get("env", {})}
        return [sys.executable, str(self.folder / f"{script}.py"), *map(str, arguments)]

    def start(self, script: str, *arguments: object, **options: Any) -> Running:
        return Running(self.call(script, arguments, options), options)

    def run(self, script: str, *arguments: object, **options: Any) -> Result:
        """Run to the end, with `input` or else the null device as standard input."""
        command = self.call(script, arguments, options)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(command, **{"capture_output": True, "timeout": 60, **options})


def pytest_configure(config: pytest.Config) -> None:
    """Download Kafka before the tests run in parallel, as jgo cannot download it twice at once.

    Also compile the scripts once, not in each test.
    """
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(REPOSITORY, maxlevels=0, quiet=1)
        for needed in ((KRAFT,), (ZOOKEEPER,), (KRAFT, "kafka-tools")):
            class_path(*needed)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest test first, so that the others run alongside it."""
    items.sort(key=lambda item: item.name != "test_the_page_runs_as_it_is_written")


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    while Running.every:
        Running.every.pop().clean_up()


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    with Broker() as broker:
        yield broker


@pytest.fixture
def stalled(kafka: Broker) -> Iterator[Callable[[], None]]:
    """stalled(): the broker answers nobody until the test ends."""
    yield lambda: kafka.server.process.send_signal(signal.SIGSTOP)
    kafka.server.process.send_signal(signal.SIGCONT)


@pytest.fixture
def mortal(kafka: Broker) -> Iterator[Broker]:
    """The broker, for tests that kill it; it is started again afterwards."""
    yield kafka
    if kafka.server not in kafka.programs:
        kafka.start()


@pytest.fixture
def scripts(kafka: Broker, tmp_path: Path) -> Scripts:
    """The scripts, configured for the tests' Kafka."""
    return Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": kafka.address})


@pytest.fixture
def lone_scripts(tmp_path: Path) -> Scripts:
    """The scripts, with no Kafka anywhere."""
    return Scripts(tmp_path, {})


numbers = itertools.count(1)


@pytest.fixture
def topic() -> str:
    """The name of a topic that no other test uses."""
    return f"topic-{next(numbers)}"


@pytest.fixture
def admin(kafka: Broker) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka.address)
    yield client
    client.close()


@pytest.fixture
def producer(kafka: Broker) -> Iterator[KafkaProducer]:
    client = KafkaProducer(bootstrap_servers=kafka.address)
    yield client
    client.close()


def read_topic(address: str, topic: str) -> list[Any]:
    """Its records, partition by partition, read with kafka-python alone."""
    consumer = KafkaConsumer(
        bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False
    )
    found_partitions: set[int] = set()

    def has_partitions() -> bool:
        """A broker that was stalled and has resumed knows of none at first."""
        with suppress(errors.KafkaError):
            found_partitions.update(consumer.partitions_for_topic(topic))
        return bool(found_partitions)

    wait_until(has_partitions)
    partitions = [TopicPartition(topic, number) for number in sorted(found_partitions)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    found: list[Any] = []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for batch in consumer.poll(1000, max_records=5000).values():
            found += batch
    consumer.close()
    return sorted(found, key=lambda record: (record.partition, record.offset))


@pytest.fixture
def read(kafka: Broker) -> Read:
    """read(topic): its records."""
    return functools.partial(read_topic, kafka.address)


def resume(broker: Broker, read: Read, topic: str) -> None:
    """Resume a stalled broker; after a few seconds' stall, it must first rejoin its controller."""

    def is_back() -> bool:
        with suppress(errors.KafkaError):
            return bool(read(topic))
        return False

    broker.server.process.send_signal(signal.SIGCONT)
    wait_until(is_back)
