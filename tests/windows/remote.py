"""What the Windows tests share: programs run by a Windows Python, on a console of their own."""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple
from xmlrpc.client import ServerProxy

import pytest
from kafka import KafkaConsumer, TopicPartition, errors

from broker import Broker, ReservedPort
from conftest import GUARD, PATIENCE, Scripts, wait_until
from wine import FOLDER, PYTHON, WINE, environment, windows_path


class Ended(NamedTuple):
    """How a program ended: its status, and what it wrote."""

    status: int
    out: bytes
    err: str


class Program:
    """A program on the console; see Agent for what can be done with it."""

    def __init__(self, agent: Any, number: int) -> None:
        self.agent, self.number = agent, number

    @property
    def out(self) -> bytes:
        return self.agent.output(self.number)[0]  # type: ignore[no-any-return]

    @property
    def err(self) -> str:
        """Its messages."""
        return self.agent.output(self.number)[1].decode()  # type: ignore[no-any-return]

    def send(self, data: bytes) -> None:
        self.agent.send(self.number, data)

    def close_input(self) -> None:
        self.agent.close_input(self.number)

    def wait_for(self, condition: Callable[["Program"], Any]) -> None:
        wait_slowly(lambda: condition(self))

    def has_ended(self) -> bool:
        return self.agent.wait(self.number, 0) is not None

    def end(self) -> Ended:
        """Wait for it to end."""
        status = self.agent.wait(self.number, GUARD)
        if status is None:
            self.agent.kill(self.number)
            pytest.fail(f"still running: {self.out[-1000:]!r} {self.err!r}")
        return Ended(status, self.out, self.err)


class Console:
    """A Windows console, with the scripts in a folder, set up for the tests' Kafka."""

    def __init__(self, agent: Any, scripts: Scripts, env: dict[str, str]) -> None:
        self.agent, self.scripts, self.env = agent, scripts, env
        self.folder = scripts.folder

    def start(self, script: str, *arguments: object, **options: Any) -> Program:
        """Start a script, with the options of start_program."""
        return self.start_program(self.folder / f"{script}.py", *arguments, **options)

    def start_program(
        self,
        path: Path,
        *arguments: object,
        env: dict[str, str] | None = None,
        stdin: str = "null",
        output: str | int = "pipe",
    ) -> Program:
        """Start a Python program; `stdin` and `output` are as for Process."""
        command = [windows_path(PYTHON), windows_path(path), *map(str, arguments)]
        number = self.agent.start(command, {**self.env, **(env or {})}, stdin, output)
        return Program(self.agent, number)

    def start_shell(self, folder: Path, lines: str, env: dict[str, str]) -> Program:
        """A command prompt in a folder; it reads commands from a file, as Wine rejects a pipe."""
        path = folder / "commands.txt"
        text = f'cd /d "{windows_path(folder)}"\n{lines}exit\n'
        path.write_bytes(text.replace("\n", "\r\n").encode())
        command = ["cmd", "/d", "/q"]
        return Program(self.agent, self.agent.start(command, env, windows_path(path), "pipe"))

    def run(self, script: str, *arguments: object, **options: Any) -> Ended:
        return self.start(script, *arguments, **options).end()

    def file(self, name: str, data: bytes) -> str:
        """Write a file; return its path as Windows knows it."""
        path = self.folder / name
        path.write_bytes(data)
        return windows_path(path)

    def press_ctrl_c(self) -> None:
        self.agent.press_ctrl_c()

    def wait_for_events(self, topic: str, count: int) -> None:
        """Wait until `count` events have arrived."""
        wait_slowly(lambda: count_events(self.env["KAFKA_BOOTSTRAP_SERVERS"], topic) >= count)

    def shown(self, code_page: int, script: str, *arguments: object, **options: Any) -> list[str]:
        """Run a script that writes to the console; return the lines that are shown."""
        self.agent.clear(code_page)
        self.run(script, *arguments, output="console", **options)
        return self.agent.screen()  # type: ignore[no-any-return]


def wait_slowly(condition: Callable[[], Any]) -> None:
    """Like wait_until, for what is dear to look up."""

    def holds() -> Any:
        time.sleep(0.1)
        return condition()

    wait_until(holds)


def count_events(address: str, topic: str) -> int:
    with (
        closing(KafkaConsumer(bootstrap_servers=address)) as consumer,
        suppress(errors.KafkaError),
    ):
        partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
        return sum(consumer.end_offsets(partitions).values()) if partitions else 0
    return 0


@pytest.fixture(scope="session")
def agent() -> Iterator[Any]:
    """The program that runs in Windows; `script` gives it a terminal, which is its console."""
    with ReservedPort() as port:
        pass  # a socket of Linux would keep those of Wine from it
    program = windows_path(Path(__file__).with_name("agent.py"))
    command = [WINE, windows_path(PYTHON), program, port]
    with subprocess.Popen(
        ["/usr/bin/script", "-qec", shlex.join(map(str, command)), "/dev/null"],
        cwd=FOLDER,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as wine:
        url = f"http://127.0.0.1:{port}"
        proxy = ServerProxy(url, allow_none=True, use_builtin_types=True)
        try:
            wait_until(lambda: answers(proxy))
            yield proxy
            proxy.quit()
            wine.wait(GUARD)
        finally:
            wine.kill()


def answers(proxy: Any) -> bool:
    try:
        proxy.screen()
    except OSError:
        return False
    return True


@pytest.fixture
def console(agent: Any, kafka: Broker, tmp_path: Path) -> Console:
    scripts = Scripts(tmp_path / "scripts", {})
    env = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.address,
        "NO_PROXY": "127.0.0.1",
        "STREAM_TEST_PATIENCE": str(PATIENCE),
    }
    return Console(agent, scripts, env)
