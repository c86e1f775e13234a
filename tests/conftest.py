"""What the tests share: a real Kafka, a topic for each test, and the scripts run as users do.

No test may depend on how fast the machine is. So a test awaits what is printed, delivered or
connected, with GUARD as the only limit, and asserts what is said, in which order, and lower bounds
of waits. The limits of the scripts' patience are PATIENCE times the users'; a test about such a
limit sets its own STREAM_TEST_PATIENCE.
"""

import compileall
import fcntl
import functools
import itertools
import os
import pty
import re
import select
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

from broker import KRAFT, ZOOKEEPER, Broker, BrokerError, ReservedPort, class_path, formatted_folder
from environment import ready_state
from forkserver import ForkedProcess, ForkServer

import pytest
import trustme
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
# The environment variables that the scripts get from the developer's environment
KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "HOME", "TZ")
GUARD = 300.0  # seconds after which what a test awaits will never come
PATIENCE = 5
Result = subprocess.CompletedProcess[bytes]
Read = Callable[[str], list[Any]]

# What a consumer may say at any time on a slow machine
HELD_UP = re.compile(
    rb"consumer\.py: (waiting for Kafka: .*|Kafka is back|group .* is rebalancing; .*)\n"
)

numbers = itertools.count(1)  # for the names of topics


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
    ignored = shutil.ignore_patterns(".git", ".venv*", ".windows", ".env", "*cache*")
    shutil.copytree(REPOSITORY, folder, ignore=ignored)


def make_environment(project: Path) -> None:
    """Make .venv in a copy of the project: it is ready, with links to the tests' own packages.

    It has no pip, so that `python -m venv .venv` has something to do.
    """
    folder = project / ".venv"
    venv.create(folder, symlinks=True)
    packages = folder / "packages"
    packages.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"pip\b|__pycache__", path.name):
            (packages / path.name).symlink_to(path)
    [own] = folder.glob("lib/python*/site-packages")
    (own / "packages.pth").write_text("../../../packages\n")
    (folder / "ready").write_text(ready_state())


def without(module: str, folder: Path) -> dict[str, str]:
    """An environment in which `module` cannot be imported; `folder` gets a stand-in for it."""
    (folder / f"{module}.py").write_text("raise ImportError")
    return {"PYTHONPATH": str(folder)}


def values(records: list[Any]) -> list[bytes | None]:
    return [record.value for record in records]


def fits(pattern: str, text: str) -> bool:
    """Whether the text is that of the pattern, in which … stands for any text."""
    return bool(re.fullmatch(re.escape(pattern).replace("…", ".*"), text))


def split_log(script: str, stderr: bytes) -> tuple[list[str], list[str]]:
    """The lines of the client's log (-v), and the script's own.

    The client may go on logging after the script's last message.
    """
    lines = stderr.decode().splitlines()
    log = [line for line in lines if re.fullmatch(rf"{script}\.py: kafka\.[\w.]+: .+", line)]
    return log, [line for line in lines if line not in log]


@contextmanager
def unread_pipe() -> Iterator[tuple[BinaryIO, int]]:
    """A pipe: its reading end, as a file that nobody reads yet, and its writing end."""
    reader, writer = os.pipe()
    with open(reader, "rb") as unread:
        yield unread, writer


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port where no connect ever completes, as too many are waiting already (Linux)."""
    with socket.socket() as server, ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@contextmanager
def server_with(answer: bytes) -> Iterator[str]:
    """The address of a server that gives each client this answer, and closes the connection."""

    class Answering(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(GUARD)
            with suppress(OSError):  # the client has left
                self.request.recv(1 << 16)
                self.request.sendall(answer)
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(1 << 16):  # or closing would reset the connection
                    pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


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
        assert select.select([self._master], [], [], GUARD)[0]
        return os.read(self._master, 10_000).decode()


def most_memory(pid: int) -> int:
    """A process's peak memory so far, in MB; 0 if it has just ended (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0


class Running:
    """A running program, with its output so far in `out` and `err`.

    With a `server`, it is a script that runs in a fork, and the command begins with Python.
    """

    every: ClassVar[list["Running"]] = []

    def __init__(
        self, command: list[str], options: dict[str, Any], server: ForkServer | None = None
    ) -> None:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        streams = {**pipes, **options}
        self.process: Any
        if server:
            self.process = ForkedProcess(server, command[1:], **streams)
        else:
            self.process = subprocess.Popen(command, **streams)
        self.out, self.err = bytearray(), bytearray()
        self._changed = threading.Condition()
        pairs = ((self.process.stdout, self.out), (self.process.stderr, self.err))
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True) for pair in pairs if pair[0]
        ]
        self._open = len(self._readers)  # outputs that have not ended
        for reader in self._readers:
            reader.start()
        self.every.append(self)

    def _read(self, stream: Any, into: bytearray) -> None:
        with stream:
            while block := stream.read1(1 << 16):
                with self._changed:
                    into += block
                    self._changed.notify_all()
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def memory(self) -> int:
        size = most_memory(self.process.pid)
        assert size, "the script has ended"
        return size

    def takes_signals(self) -> bool:
        """Whether it has something to lose, so that SIGTERM does not end it at once (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        ignored, caught = (int(mask, 16) for mask in re.findall(r"Sig(?:Ign|Cgt):\s+(\w+)", status))
        # SIGHUP, which nohup has ignored, is the last one that the scripts handle
        return all(
            mask >> (number - 1) & 1
            for number, mask in ((signal.SIGTERM, caught), (signal.SIGHUP, caught | ignored))
        )

    def wait_for(self, condition: Callable[["Running"], Any], seconds: float = GUARD) -> None:
        """Wait until the condition holds; it is checked whenever output arrives or ends."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self) or not self._open, seconds)
            assert condition(self), (bytes(self.out[-2000:]), bytes(self.err[-2000:]))

    def send(self, data: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def end(self, number: int | None = None, seconds: float = GUARD) -> Result:
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
            reader.join(GUARD)
            assert not reader.is_alive(), "something that it has started still has its output"


def wait_until(condition: Callable[[], Any], seconds: float = GUARD) -> None:
    """Poll for what nobody reports: the state of a stand-in or of Kafka."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kept_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in KEPT if name in os.environ}


class Scripts:
    """A folder with the scripts but without a developer's .env; they run with few variables set.

    They run in forks (see forkserver.py). With `real`, or an option that only Popen has, a script
    is started as users start it.
    """

    def __init__(self, folder: Path, env: dict[str, str], server: ForkServer | None = None) -> None:
        self.folder, self.env, self._server = folder, env, server
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
        ours = {"NO_PROXY": "127.0.0.1", "STREAM_TEST_PATIENCE": str(PATIENCE)}
        options["env"] = {**kept_environment(), **ours, **self.env, **options.get("env", {})}
        return [sys.executable, str(self.folder / f"{script}.py"), *map(str, arguments)]

    def start(self, script: str, *arguments: object, real: bool = False, **options: Any) -> Running:
        command = self.call(script, arguments, options)
        needs_popen = options.keys() - {"stdin", "stdout", "stderr", "env", "cwd"}
        changes_python = any(name.startswith("PYTHON") for name in options["env"])
        is_real = real or needs_popen or changes_python
        return Running(command, options, None if is_real else self._server)

    def run(
        self, script: str, *arguments: object, input: bytes | None = None, **options: Any
    ) -> Result:
        """Run to the end, with `input` or else the null device as standard input."""
        if input is None:
            return self.start(script, *arguments, **options).end()
        running = self.start(script, *arguments, stdin=subprocess.PIPE, **options)
        with suppress(BrokenPipeError):  # it does not read to the end
            running.send(input)
        running.close_input()
        return running.end()


def pytest_configure(config: pytest.Config) -> None:
    """Do once what the tests, which run in parallel, would do at the same time.

    Download Kafka, as jgo cannot download it twice at once; format a data folder; compile the
    scripts.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:  # in the background, or under nohup
            signal.signal(number, lambda *_: None)  # so that what is started here takes it
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(REPOSITORY, maxlevels=0, quiet=1)
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
    yield lambda: kafka.server.process.send_signal(signal.SIGSTOP)
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
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """configure(text): what is called in this process has that .env, and no other settings.

    It returns the path of .env. Messages begin with `script.py: `.
    """
    import cli  # here, as tests/bench.py imports this file but does not find the scripts' parts
    import config as product_config

    path = tmp_path / "configured" / ".env"
    path.parent.mkdir()
    for name in product_config.KNOWN_VARIABLES & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr(product_config, "ENV_FILE", str(path))
    monkeypatch.setattr(product_config, "_brokers_flag", None)
    monkeypatch.setattr(product_config, "client_log", functools.cache(product_config.ClientLog))
    monkeypatch.setattr(cli, "_secrets", set())
    monkeypatch.setattr(sys, "argv", ["script.py"])

    def write(text: str | bytes = "") -> Path:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        product_config.settings.cache_clear()
        return path

    write()
    yield write
    product_config.settings.cache_clear()


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
