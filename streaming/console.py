"""Messages on standard error: one line each, without secrets."""

import os
import re
import sys
import threading
import time
import traceback
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

# Modules that requirements.txt installs, and the packages that provide them
PACKAGES = {"dotenv": "python-dotenv", "kafka": "kafka-python", "requests": "requests"}
INSTALL = "Run: pip install -r requirements.txt (see README.md)"
# Of a longer message, only this many characters of its beginning and of its end are shown
MESSAGE_BEGINNING, MESSAGE_END = 300, 190
# C0, DEL and C1, line ends, and what changes the direction of text
CONTROLS = re.compile(r"[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_secrets: set[str] = set()


def say(message: object, live: bool = False) -> None:
    """Write a one-line message to standard error; the next message overwrites a live one."""
    text = escape(mask(f"{os.path.basename(sys.argv[0])}: {message}"))
    if len(text) > MESSAGE_BEGINNING + MESSAGE_END:
        text = f"{text[:MESSAGE_BEGINNING]} ... {text[-MESSAGE_END:]}"
    if sys.stderr and os.isatty(2):
        text = f"\r{_fit(text, live)}"
    _write(text if live else f"{text}\n")


def fail(message: str, status: int = 1) -> NoReturn:
    """Exit with a message that says what failed, on what, why, and what to do."""
    say(message)
    raise SystemExit(status)


def register_secret(secret: str | None) -> None:
    """Mask this text in every message from now on, unless it is blank."""
    if secret and secret.strip():
        _secrets.add(secret)


def mask(text: str) -> str:
    """Return the text with every secret replaced by ***."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def escape(text: str) -> str:
    r"""Return the text on one line, with \x1b and the like for what would control a terminal."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def pluralize(number: int, unit: str) -> str:
    """Format a number with its unit: `1 event`, `2 events`."""
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def printable(text: str) -> str:
    """Return the text on one line, without characters that control a terminal."""
    characters = [character if character.isprintable() else " " for character in text]
    return " ".join("".join(characters).split())


def report_bugs() -> None:
    """Show the traceback of an error that nobody expects without secrets, in any thread.

    A missing package gets a sentence instead.
    """
    sys.excepthook = _report_uncaught
    threading.excepthook = lambda args: _report_uncaught(
        args.exc_type, args.exc_value, args.exc_traceback
    )


def _report_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    package = PACKAGES.get((getattr(error, "name", None) or "").partition(".")[0])
    if isinstance(error, ImportError) and package:
        is_missing = isinstance(error, ModuleNotFoundError) and "." not in str(error.name)
        if is_missing:
            problem = f"the package {package} is not installed"
        else:
            problem = f"the wrong version of {package} is installed"
        say(f"{problem}. {INSTALL}")
    else:
        _write(mask("".join(traceback.format_exception(kind, error, trace))))


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
    if sys.stderr is None:  # it was closed at the start; a connection may have its descriptor now
        return
    # Not os.write: on Windows, the console would decode the bytes in its own code page
    with (
        suppress(OSError),  # nobody is reading; the exit status still shows the outcome
        open(2, "wb", buffering=0, closefd=False) as standard_error,
    ):
        standard_error.write(text.encode(errors="backslashreplace"))
