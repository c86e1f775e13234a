"""Copies of the project, and the programs that the tests run in them, as users do."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import threading
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import pytest

from environment import ready_state
from forkserver import ForkedProcess, ForkServer

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = ["producer", "consumer", "twitter-stream"]
SOURCES = [
    *(f"{name}.py" for name in SCRIPTS),
    "config.py",
    *(f"streaming/{path.name}" for path in sorted((REPOSITORY / "streaming").glob("*.py"))),
]
# The environment variables that the scripts get from the developer's environment
KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "HOME", "TZ")
GUARD = 300.0  # seconds after which what a test awaits will never come
PATIENCE = 5
Result = subprocess.CompletedProcess[bytes]


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
        for place in (folder, folder / "streaming"):
            (place / "__pycache__").mkdir(parents=True, exist_ok=True)
        for name in SOURCES:
            # copy2 keeps the source's modification time, so its compiled file stays valid
            shutil.copy2(REPOSITORY / name, folder / name)
            compiled = cache_from_source(name)
            with suppress(FileNotFoundError):  # new since the tests began
                shutil.copy2(REPOSITORY / compiled, folder / compiled)

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
