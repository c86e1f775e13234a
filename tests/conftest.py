"""What the tests share: a real Kafka, a topic for each test, and the scripts run as users do.

No test may depend on how fast the machine is. So a test awaits what is printed, delivered or
connected, with GUARD as the only limit, and asserts what is said, in which order, and lower bounds
of waits. The limits of the scripts' patience are PATIENCE times the users'; a test about such a
limit sets its own STREAM_TEST_PATIENCE.
"""

import compileall
import functools
import itertools
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition, errors

from broker import KRAFT, ZOOKEEPER, Broker, BrokerError, ReservedPort, class_path, formatted_folder
from forkserver import ForkServer
from messages import HELD_UP, Summary, fits, read_summary, split_log, values
from processes import (
    GUARD,
    PATIENCE,
    REPOSITORY,
    SCRIPTS,
    Result,
    Running,
    Scripts,
    Terminal,
    copy_project,
    kept_environment,
    make_environment,
    most_memory,
    unread_pipe,
    wait_until,
    without,
)
from servers import deaf_port, server_with

__all__ = [
    "GUARD",
    "HELD_UP",
    "PATIENCE",
    "REPOSITORY",
    "SCRIPTS",
    "Result",
    "Running",
    "Scripts",
    "Summary",
    "Terminal",
    "copy_project",
    "deaf_port",
    "fits",
    "make_environment",
    "most_memory",
    "read_summary",
    "server_with",
    "split_log",
    "unread_pipe",
    "values",
    "wait_until",
    "without",
]

pytest_plugins = ["remote"]  # the fixtures of tests/windows

Read = Callable[[str], list[Any]]

numbers = itertools.count(1)  # for the names of topics
SETTING = re.compile("KAFKA_|BEARER_TOKEN$|STREAM_URL$")  # of the scripts' variables


def pytest_configure(config: pytest.Config) -> None:
    """Do once what the tests, which run in parallel, would do at the same time.

    Download Kafka, as jgo cannot download it twice at once; format a data folder; compile the
    scripts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:  # in the background, or under nohup
            signal.signal(number, lambda *_: None)  # so that what is started here takes it
    if not hasattr(config, "workerinput"):
        for folder in (REPOSITORY, REPOSITORY / "streaming"):
            compileall.compile_dir(folder, maxlevels=0, quiet=1)
        try:
            for version in (KRAFT, ZOOKEEPER):
                class_path(version)
            formatted_folder(KRAFT)
        except BrokerError as error:
            pytest.exit(str(error), 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that the others run alongside them."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    server = ForkServer(kept_environment(), GUARD)
    yield server
    server.close()


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

    def stall() -> None:
        kafka.server.process.send_signal(signal.SIGSTOP)
        # On a busy machine it may take a while until all its threads have stopped
        os.waitid(os.P_PID, kafka.server.process.pid, os.WSTOPPED | os.WNOWAIT)

    yield stall
    resume(kafka)


def resume(broker: Broker) -> None:
    """Resume a stalled broker; after a few seconds' stall, it must first rejoin its controller."""
    broker.server.process.send_signal(signal.SIGCONT)
    wait_until(functools.partial(creates_topics, broker))


def creates_topics(broker: Broker) -> bool:
    with (
        suppress(errors.KafkaError),
        KafkaAdminClient(bootstrap_servers=broker.address) as admin,
    ):
        admin.create_topics({f"resumed-{next(numbers)}": {"num_partitions": 1}})
        return True
    return False


@pytest.fixture
def mortal(kafka: Broker) -> Iterator[Broker]:
    """The broker, for tests that kill it; it is started again afterwards."""
    yield kafka
    if kafka.server not in kafka.programs:
        kafka.start()


@pytest.fixture
def scripts(kafka: Broker, tmp_path: Path, server: ForkServer) -> Scripts:
    """The scripts, configured for the tests' Kafka."""
    return Scripts(tmp_path / "scripts", {"KAFKA_BOOTSTRAP_SERVERS": kafka.address}, server)


@pytest.fixture
def lone_scripts(tmp_path: Path, server: ForkServer) -> Scripts:
    """The scripts, with no Kafka anywhere."""
    return Scripts(tmp_path, {}, server)


@pytest.fixture
def port() -> Iterator[int]:
    """A port where nobody listens, and that no other program gets."""
    with ReservedPort() as port:
        yield port


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """configure(text): what is called in this process has that .env, and no other settings.

    It returns the path of .env. Messages begin with `script.py: `.
    """
    path = tmp_path / "configured" / ".env"
    path.parent.mkdir()
    for name in [name for name in os.environ if SETTING.match(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("config.ENV_FILE", str(path))
    monkeypatch.setattr("streaming.console._secrets", set())
    monkeypatch.setattr(sys, "argv", ["script.py"])
    client_log = logging.getLogger("kafka")  # to which each Kafka object listens
    monkeypatch.setattr(client_log, "handlers", list(client_log.handlers))
    monkeypatch.setattr(client_log, "propagate", client_log.propagate)

    def write(text: str | bytes = "") -> Path:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        return path

    write()
    return write


@pytest.fixture
def refusal(
    configure: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str]]:
    """refusal(function, *arguments): the status and the message with which it ends this process."""

    def call(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str]:
        with pytest.raises(SystemExit) as ended:
            function(*arguments)
        return ended.value.code, capfd.readouterr().err.removeprefix("script.py: ").rstrip("\n")

    return call


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, str]:
    """Files: a certificate for localhost, its key, and the authority that signed it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, root = (tmp_path / name for name in ("chain.pem", "key.pem", "root.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    return str(chain), str(key), str(root)


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
    guard = time.monotonic() + GUARD
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        assert time.monotonic() < guard
        for batch in consumer.poll(1000, max_records=5000).values():
            found += batch
    consumer.close()
    return sorted(found, key=lambda record: (record.partition, record.offset))


@pytest.fixture
def read(kafka: Broker) -> Read:
    """read(topic): its records."""
    return functools.partial(read_topic, kafka.address)
