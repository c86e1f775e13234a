"""Runs in a Windows Python, on a console: starts programs and acts on them as a user would.

  agent.py PORT

It is an XML-RPC server on that port of 127.0.0.1; the methods are those of Agent. The tests
themselves run on Linux.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from ctypes import wintypes
from typing import Any
from xmlrpc.server import SimpleXMLRPCServer

assert sys.platform == "win32"

kernel = ctypes.windll.kernel32
STANDARD_OUTPUT = -11
KILL_ON_JOB_CLOSE = 0x2000
EXTENDED_LIMITS, EXTENDED_LIMITS_SIZE, FLAGS_OFFSET = 9, 144, 16
COLUMNS, ROWS = 80, 50  # the part of the console that is read


class Process:
    """A program, with its output so far.

    `stdin` is "pipe", "null", or the path of a file.
    `output` is "console", "pipe" (read continuously), "stuck" (a pipe of which only the first byte
    is read), or a number: the pipe's reader goes away after that many bytes.
    """

    def __init__(self, command: list[str], env: dict[str, str], stdin: str, output: Any) -> None:
        inputs = {"pipe": subprocess.PIPE, "null": subprocess.DEVNULL}
        on_console = output == "console"
        self.popen = subprocess.Popen(
            command,
            stdin=inputs[stdin] if stdin in inputs else open(stdin, "rb"),  # noqa: SIM115
            stdout=None if on_console else subprocess.PIPE,
            stderr=None if on_console else subprocess.PIPE,
            env={**os.environ, **env},
        )
        self.out, self.err = bytearray(), bytearray()
        self.readers = []
        if not on_console:
            self.read(self.popen.stderr, self.err, sys.maxsize)
        if output == "pipe":
            self.read(self.popen.stdout, self.out, sys.maxsize)
        elif output == "stuck":
            stream = open(self.popen.stdout.fileno(), "rb", closefd=False)  # noqa: SIM115
            self.read(stream, self.out, 1)
        elif isinstance(output, int):
            self.read(self.popen.stdout, self.out, output)

    def read(self, stream: Any, into: bytearray, limit: int) -> None:
        reader = threading.Thread(target=copy, args=(stream, into, limit), daemon=True)
        reader.start()
        self.readers.append(reader)


def copy(stream: Any, into: bytearray, limit: int) -> None:
    with stream:
        while len(into) < limit and (block := stream.read1(min(limit - len(into), 1 << 16))):
            into += block


class Agent:
    def __init__(self, server: SimpleXMLRPCServer) -> None:
        self.server = server
        self.processes: list[Process] = []

    def quit(self) -> None:
        """End everything, once this call has been answered."""
        threading.Thread(target=self.server.shutdown).start()

    def start(self, command: list[str], env: dict[str, str], stdin: str, output: str | int) -> int:
        """Start a program; return its number."""
        self.processes.append(Process(command, env, stdin, output))
        return len(self.processes) - 1

    def send(self, number: int, data: bytes) -> None:
        self.processes[number].popen.stdin.write(data)
        self.processes[number].popen.stdin.flush()

    def close_input(self, number: int) -> None:
        with suppress(OSError):
            self.processes[number].popen.stdin.close()

    def output(self, number: int) -> list[bytes]:
        """Return what it has written so far to standard output and to standard error."""
        process = self.processes[number]
        return [bytes(process.out), bytes(process.err)]

    def wait(self, number: int, seconds: float) -> int | None:
        """Wait for it to end; return its status, or None if it is still running."""
        process = self.processes[number]
        try:
            status = process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        for reader in process.readers:
            reader.join(5)
        return status - (1 << 32) if status > 1 << 31 else status  # XML-RPC integers have 32 bits

    def kill(self, number: int) -> None:
        self.processes[number].popen.kill()

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C, which reaches all programs on the console."""
        kernel.GenerateConsoleCtrlEvent(signal.CTRL_C_EVENT, 0)

    def clear(self, code_page: int) -> None:
        """Clear the console, and set its code page."""
        kernel.SetConsoleOutputCP(code_page)
        handle = kernel.GetStdHandle(STANDARD_OUTPUT)
        written = wintypes.DWORD()
        start = wintypes._COORD(0, 0)
        size = COLUMNS * 200
        blank = ctypes.c_wchar(" ")
        kernel.FillConsoleOutputCharacterW(handle, blank, size, start, ctypes.byref(written))
        kernel.SetConsoleCursorPosition(handle, start)

    def screen(self) -> list[str]:
        """Return the lines that the console shows, without trailing blanks."""
        handle = kernel.GetStdHandle(STANDARD_OUTPUT)
        line = ctypes.create_unicode_buffer(COLUMNS + 1)
        count = wintypes.DWORD()
        lines = []
        for row in range(ROWS):
            start = wintypes._COORD(0, row)
            kernel.ReadConsoleOutputCharacterW(handle, line, COLUMNS, start, ctypes.byref(count))
            lines.append(line[: count.value].rstrip("\0 "))
        while lines and not lines[-1]:
            lines.pop()
        return lines


def end_all_together() -> None:
    """Put everything into one job, so that Windows ends it all when this program ends."""
    limits = (ctypes.c_byte * EXTENDED_LIMITS_SIZE)()
    wintypes.DWORD.from_buffer(limits, FLAGS_OFFSET).value = KILL_ON_JOB_CLOSE
    job = kernel.CreateJobObjectW(None, None)
    kernel.SetInformationJobObject(job, EXTENDED_LIMITS, limits, EXTENDED_LIMITS_SIZE)
    kernel.AssignProcessToJobObject(job, wintypes.HANDLE(kernel.GetCurrentProcess()))


def main() -> None:
    end_all_together()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SimpleXMLRPCServer(
        ("127.0.0.1", int(sys.argv[1])), logRequests=False, allow_none=True, use_builtin_types=True
    ) as server:
        server.register_instance(Agent(server))
        server.serve_forever()


if __name__ == "__main__":
    main()
