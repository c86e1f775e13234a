"""The command-line interface of the scripts: flags, messages and signals.

Importing this module, like any other here, only defines things. A script calls `start` first,
and `Stop.handle_signals` once it has work to lose.
"""

import argparse
import gc
import math
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NoReturn

if sys.platform == "win32":
    import windows

# Modules installed by requirements.txt, and the packages that provide them
PACKAGES = {"dotenv": "python-dotenv", "kafka": "kafka-python", "requests": "requests"}
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]
# For tests: the length of a second in X's rules and in progress messages, and a factor for all
# limits on how long to wait for Kafka, X or an orderly shutdown
SECOND = float(os.environ.get("STREAM_TEST_SECOND") or 1)
PATIENCE = float(os.environ.get("STREAM_TEST_PATIENCE") or 1)
# Of a longer message, only this many characters of its beginning and of its end are shown
MESSAGE_BEGINNING, MESSAGE_END = 300, 190

_secrets: set[str] = set()


def start() -> None:
    """Set up the process; call this before the slow imports.

    Until the script has work to lose (Stop.handle_signals), Ctrl-C kills it immediately and
    silently. The garbage collector runs less often than by default, because events in flight are
    not garbage: with the defaults, publishing takes 11% longer and printing 9%.
    """
    keep_standard_descriptors()
    # kafka-python 3.0 reads its schemas with functions that Python 3.11 and 3.12 call deprecated;
    # with -W error that would end the script
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.excepthook = report_uncaught
    threading.excepthook = lambda args: report_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )
    gc.set_threshold(100_000, 50, 1000)


def keep_standard_descriptors() -> None:
    """Open any of descriptors 0 to 2 that is closed, or a connection to Kafka would get its number.

    They are opened for reading only, so that writing to them still fails.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)


def report_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """Name a missing package; print the traceback of anything else, because it is a bug."""
    if isinstance(error, ModuleNotFoundError) and error.name in PACKAGES:
        say(
            f"the package {PACKAGES[error.name]} is not installed. "
            "Run: pip install -r requirements.txt (see Install in README.md)"
        )
    else:
        _write(mask("".join(traceback.format_exception(kind, error, trace))))


def register_secret(secret: str | None) -> None:
    """Mask this text in every message from now on, unless it is blank."""
    if secret and secret.strip():
        _secrets.add(secret)


def mask(text: str) -> str:
    """Return the text with every secret replaced by ***."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def say(message: object, live: bool = False) -> None:
    """Write a one-line message to standard error; the next message overwrites a live one."""
    text = mask(f"{os.path.basename(sys.argv[0])}: {message}")
    text = " ".join(text.splitlines())
    if len(text) > MESSAGE_BEGINNING + MESSAGE_END:
        text = f"{text[:MESSAGE_BEGINNING]} ... {text[-MESSAGE_END:]}"
    if os.isatty(2):
        text = f"\r{_fit(text, live)}"
    _write(text if live else f"{text}\n")


def fail(message: str, status: int = 1) -> NoReturn:
    """Exit with a message that says what failed, on what, why, and what to do."""
    say(message)
    raise SystemExit(status)


class Throttle:
    """Says each kind of message at most once in `seconds` seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said_at: dict[str, float] = {}  # by kind: a time.monotonic()
        self._lock = threading.Lock()

    def say(self, kind: str, message: str) -> None:
        """Write the message, unless one of its kind was written recently."""
        now = time.monotonic()
        with self._lock:
            recent = {key: at for key, at in self._said_at.items() if now < at + self._seconds}
            is_due = kind not in recent
            self._said_at = {**recent, kind: now} if is_due else recent
        if is_due:
            say(message)


def pluralize(number: int, unit: str) -> str:
    """Format a number with its unit: `1 event`, `2 events`."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _fit(text: str, live: bool) -> str:
    """Pad text to cover a live line; truncate a live one, because wrapped text would remain.

    The last column stays empty because some terminals wrap when it is filled.
    """
    try:
        columns = os.get_terminal_size(2).columns
    except OSError:  # Windows treats the null device as a terminal
        columns = 0
    width = (columns or 80) - 1  # 0: the width is unknown
    padded = text.ljust(width)
    return padded[:width] if live else padded


def _write(text: str) -> None:
    # Not os.write: on Windows, the console would decode the bytes in its own code page
    with (
        suppress(OSError),  # nobody is reading; the exit status still shows the outcome
        open(2, "wb", buffering=0, closefd=False) as standard_error,
    ):
        standard_error.write(text.encode(errors="backslashreplace"))


def pattern_type(
    pattern: str, expected: str, convert: Callable[[str], Any] = str
) -> Callable[[str], Any]:
    """Return an argparse type that accepts only text matching the whole pattern."""

    def parse(text: str) -> Any:
        if re.fullmatch(pattern, text, re.ASCII | re.DOTALL):
            return convert(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")

    return parse


topic_type = pattern_type(
    r"(?!\.{1,2}$)[\w.-]{1,249}",
    "a valid topic name (1 to 249 letters, digits, '.', '_' or '-')",
)
count_type = pattern_type(r"0*[1-9]\d{0,8}", "a whole number from 1 to 999999999", int)
seconds_type = pattern_type(r"\d{1,9}(\.\d*)?", "a number of seconds, such as 1 or 0.5", float)
name_value_type = pattern_type(
    r"[^=]+=.+", "in the form NAME=VALUE", lambda text: tuple(text.split("=", 1))
)
# A name, an IPv4 address or an IPv6 address in brackets, and a port; like Kafka's tools, also
# accept a protocol name in front
BROKER = re.compile(
    r"(?:[A-Z_]+://)?(?:\[[\w:.%]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?", re.ASCII
)


def is_broker_list(text: str) -> bool:
    """Return whether the text is HOST:PORT or HOST, or several of these, separated by commas."""
    brokers = [BROKER.fullmatch(broker.strip()) for broker in text.split(",")]
    return all(broker and 0 < int(broker["port"] or 9092) < 1 << 16 for broker in brokers)


def brokers_type(text: str) -> str:
    if not is_broker_list(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not in the form HOST:PORT,HOST:PORT")
    return text


UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def time_type(text: str) -> int:
    """Return a time as Kafka counts it: milliseconds since 1970, UTC.

    The text says how long ago (90s, 10m, 2h, 3d), or is an ISO 8601 date with or without a time;
    without a UTC offset, it is local time.
    """
    ago = re.fullmatch(r"(\d{1,9})([smhd])", text, re.ASCII)
    try:
        if ago:
            seconds = time.time() - int(ago[1]) * UNIT_SECONDS[ago[2]]
        else:
            seconds = _timestamp(datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text)))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time, such as 10m (ago), 2026-11-25 or 2026-11-25T14:00:00Z"
        ) from None
    return max(int(seconds * 1000), 0)


def _timestamp(moment: datetime) -> float:
    """Return the seconds since 1970; Windows itself cannot convert an earlier local time."""
    try:
        return moment.timestamp()
    except OSError:
        return moment.replace(tzinfo=timezone.utc).timestamp()


ESCAPES = {b"t": b"\t", b"n": b"\n", b"0": b"\0", b"\\": b"\\"}


def separator_type(text: str) -> bytes:
    r"""Convert SEP to bytes; the escapes \t, \n, \0, \xHH and \\ have their usual meanings.

    Any other backslash stands for itself.
    """
    if not text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a separator")
    return re.sub(rb"\\([tn0\\]|x[0-9A-Fa-f]{2})", _unescape, os.fsencode(text))


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    return bytes.fromhex(code[1:].decode()) if code[:1] == b"x" else ESCAPES[code]


def header_type(text: str) -> tuple[str, bytes]:
    """Split NAME=VALUE at the first =; NAME is text, VALUE is any bytes, or empty."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not in the form NAME=VALUE")
    try:
        return os.fsencode(name).decode("utf-8"), os.fsencode(value)
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"the name in {text!r} is not UTF-8") from None


class Parser(argparse.ArgumentParser):
    """The flags common to all scripts; a usage error prints one line and exits with status 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "-t",
            dest="topic",
            metavar="TOPIC",
            type=topic_type,
            default="sample",
            help="Kafka topic (default: sample)",
        )
        self.add_argument(
            "-n", dest="count", metavar="COUNT", type=count_type, help="stop after COUNT events"
        )
        self.add_argument(
            "-b",
            dest="brokers",
            metavar="HOST:PORT[,...]",
            type=brokers_type,
            help="Kafka brokers (default: KAFKA_BOOTSTRAP_SERVERS, or else localhost:9092)",
        )
        self.add_argument(
            "-v",
            dest="verbose",
            action="store_true",
            help="print the Kafka client's log to standard error",
        )

    def add_pairs(
        self, flag: str, dest: str, description: str, pair_type: Callable[[str], Any]
    ) -> None:
        """Add a flag that takes NAME=VALUE and can be repeated; `dest` becomes a list of pairs."""
        self.add_argument(
            flag,
            dest=dest,
            metavar="NAME=VALUE",
            type=pair_type,
            action="append",
            default=[],
            help=f"{description}; can be repeated",
        )

    def error(self, message: str) -> NoReturn:
        fail(f"{message}. See --help.", 2)


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
