"""Runs the scripts in forks of a Python that has already imported their packages.

Starting a script takes 0.4 s of processor time, nearly all of it for importing kafka-python; a fork
saves that. What a fork would hide (starting, importing, memory, the command line) is tested with
processes of their own; see Scripts in processes.py.
"""

import atexit
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

PACKAGES = (
    *("dotenv", "requests", "kafka", "kafka.admin"),
    *("crc32c", "lz4.frame", "snappy", "zstandard"),
)
REQUEST_BYTES = 1 << 17  # most that a request may take
MOST_DESCRIPTORS = 1 << 10  # no process here has more open


class ForkServer:
    """The tests' side of the server: starts scripts, and collects their statuses."""

    def __init__(self, env: Mapping[str, str], timeout: float) -> None:
        """`timeout` is how many seconds the server may take to answer."""
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(timeout)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._server = subprocess.Popen(
                command, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )

    def close(self) -> None:
        self._channel.close()
        self._server.wait()

    def start(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        """Start a script, and return its process ID.

        It gets the descriptors as 0, 1 and 2; the last one closes when the process ends.
        """
        return self._ask(request, descriptors)

    def collect(self, pid: int) -> int:
        """The status of a process that is ending; -N if signal N has ended it."""
        return self._ask({"collect": pid}, [])

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int]) -> int:
        message = json.dumps(request).encode()
        assert len(message) <= REQUEST_BYTES
        with self._lock:
            socket.send_fds(self._channel, [message], descriptors)
            answer = self._channel.recv(100)
        assert answer, "the fork server has ended"
        return int(answer)


class ForkedProcess:
    """A script that the server runs; for use like a subprocess.Popen."""

    def __init__(
        self,
        server: ForkServer,
        arguments: list[str],
        env: Mapping[str, str],
        cwd: Any = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
    ) -> None:
        self.args, self._server = arguments, server
        self.returncode: int | None = None
        request = {
            "arguments": arguments,
            "env": dict(env),
            "cwd": os.fspath(cwd or os.getcwd()),
        }
        with ExitStack() as theirs:
            inside, self.stdin = connect(stdin, theirs, is_input=True)
            outside, self.stdout = connect(stdout, theirs)
            error, self.stderr = connect(stderr, theirs)
            self._life, end_of_life = os.pipe()
            theirs.callback(os.close, end_of_life)
            self.pid = server.start(request, [inside, outside, error, end_of_life])

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._wait(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _wait(self, seconds: float | None) -> int | None:
        if self.returncode is None and has_closed(self._life, seconds):
            self.returncode = self._server.collect(self.pid)
            os.close(self._life)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def connect(
    stream: Any, theirs: ExitStack, is_input: bool = False
) -> tuple[int, io.FileIO | io.BufferedReader | None]:
    """The script's descriptor for a stream, as in Popen, and our end of it, if it is a PIPE.

    `theirs` closes what is opened for the script.
    """
    if stream == subprocess.PIPE:
        reader, writer = os.pipe()
        inner = reader if is_input else writer
        theirs.callback(os.close, inner)
        if is_input:
            return inner, open(writer, "wb", buffering=0)
        return inner, open(reader, "rb")
    if stream == subprocess.DEVNULL:
        inner = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, inner)
        return inner, None
    return stream if isinstance(stream, int) else stream.fileno(), None


def has_closed(reader: int, seconds: float | None) -> bool:
    """Wait until the other end of a pipe, to which nobody writes, has been closed."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    return bool(poller.poll(None if seconds is None else seconds * 1000))


# ------------------------------------------------------------------ in the server


def serve(channel: socket.socket) -> dict[str, Any]:
    """Serve requests; return one of them in each fork, and {} when the tests have ended."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, REQUEST_BYTES, 4)
        if not message:
            return {}
        request: dict[str, Any] = json.loads(message)
        if "collect" in request:
            _, status = os.waitpid(request["collect"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                channel.detach()
                take_descriptors(descriptors)
                return request
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(answer).encode())


def take_descriptors(descriptors: Sequence[int]) -> None:
    """Make these descriptors 0, 1, 2 and 3, and close all others."""
    for number, each in enumerate(descriptors):
        os.dup2(each, number)
    os.closerange(len(descriptors), MOST_DESCRIPTORS)


def become(request: dict[str, Any]) -> None:
    """Run a script in this process, as if Python had been started with it."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = request["arguments"][0]
    sys.argv[:] = request["arguments"]
    sys.path[0] = os.path.dirname(path)
    main = types.ModuleType("__main__")
    main.__file__ = path
    sys.modules["__main__"] = main
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    exec(code, vars(main))  # noqa: S102


def run(request: dict[str, Any]) -> NoReturn:
    """Run a script, and end as Python does, but without the exit handlers of C libraries.

    After a fork, OpenSSL's handler can crash if a daemon thread is inside the library.
    """
    status: Any = 0
    try:
        become(request)
    except SystemExit as end:
        status = end.code or 0
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    for package in PACKAGES:
        importlib.import_module(package)
    assert threading.active_count() == 1, "a fork has only the thread that called it"
    gc.collect()
    gc.freeze()  # so that collecting garbage in a fork does not copy this memory
    accepted = serve(socket.socket(fileno=int(sys.argv[1])))
    if accepted:
        run(accepted)
