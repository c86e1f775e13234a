"""Signals: the first one asks for an orderly end, the second one ends the process."""

import math
import os
import signal
import sys
import threading
import time

from streaming.timing import PATIENCE

if sys.platform == "win32":
    from streaming import windows

STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]


def end_silently_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once and silently, until Stop.handle_signals.

    Until then the script has nothing to lose. As the first process of a container, it needs
    handlers for that: for this one, the kernel ignores each signal that has none.
    """
    if os.getpid() == 1:
        for number in STOP_SIGNALS:
            if not _is_ignored_hangup(number):
                signal.signal(number, lambda number, _: os._exit(128 + number))
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Stop:
    """Tracks whether the script has been asked to stop, by a signal or by its own code.

    The first signal requests a graceful shutdown. A second one ends the process immediately; so
    does a timeout six seconds after the first, whatever is blocking.

    Python runs signal handlers in the main thread and between bytecode instructions, never while
    that thread is stuck in a system call, such as a write to a pipe that nobody reads. So the
    handlers here do nothing. Python also writes each signal number to a pipe
    (signal.set_wakeup_fd), and a dedicated thread reads it from there.
    """

    GRACE = 4.5 * PATIENCE  # seconds allowed for a graceful shutdown
    LIMIT = 6.0 * PATIENCE  # seconds until the process is forced to exit

    def __init__(self) -> None:
        self.signal_number = 0  # of the first signal; 0: there was none
        self.requested_at = math.inf  # time.monotonic()
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    @property
    def is_overdue(self) -> bool:
        """Whether the time for a graceful shutdown is over."""
        return time.monotonic() > self.requested_at + self.GRACE

    @property
    def exit_status(self) -> int:
        """The status for a run that a signal stopped before it finished; 0 without a signal."""
        return 128 + self.signal_number if self.signal_number else 0

    def request(self) -> None:
        """Request a graceful shutdown."""
        self.requested_at = min(self.requested_at, time.monotonic())
        self._requested.set()

    def wait(self, seconds: float) -> None:
        """Sleep, but return early if a shutdown is requested."""
        self._requested.wait(seconds)

    def handle_signals(self) -> None:
        """Start handling signals; call this once, from the main thread."""
        reader, writer = os.pipe()  # both stay open as long as the process lives
        if sys.platform != "win32":  # set_wakeup_fd requires it; Windows' pipes have no such mode
            os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch_signals, args=(reader,), daemon=True).start()
        for number in STOP_SIGNALS:
            if not _is_ignored_hangup(number):
                signal.signal(number, lambda *_: None)
        if sys.platform == "win32":
            windows.call_when_console_closes(lambda: os.write(writer, bytes([signal.SIGBREAK])))

    def _watch_signals(self, reader: int) -> None:
        self.signal_number = os.read(reader, 1)[0]
        self.request()
        forced_exit = threading.Timer(self.LIMIT, os._exit, (self.exit_status,))
        forced_exit.daemon = True
        forced_exit.start()
        second_signal = os.read(reader, 1)[0]
        os._exit(128 + second_signal)


def _is_ignored_hangup(number: signal.Signals) -> bool:
    """Return whether this is SIGHUP in a process started with nohup."""
    return number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
