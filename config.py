"""What the three scripts share: signals, messages, settings, the connection to Kafka.

Settings come from `.env` beside the scripts, overridden by the environment: BEARER_TOKEN,
STREAM_URL, and KAFKA_<NAME> for the setting <name> of kafka-python's clients.
"""

import argparse
import atexit
import difflib
import functools
import gc
import logging
import os
import re
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn


class Stop:
    """SIGINT and SIGTERM ask for an orderly end; the next one ends the process at once.

    A handler that raises could tear a record that is being appended, so it only takes a note,
    and ends what `interruptible` runs.
    """

    number, at = 0, float("inf")  # the signal, and time.monotonic() when it came
    endless = False  # whether being stopped is the normal end of this run
    _end: Callable[[int], object] = staticmethod(lambda _status: None)

    @property
    def status(self) -> int:
        """Of a process that ends because of it."""
        return 128 + self.number if self.number and not self.endless else 0

    def handle(self, number: int, _frame: object) -> None:
        if self.number:
            os._exit(128 + number)
        self.number, self.at = number, time.monotonic()
        self._end(self.status)

    def interruptible(self, function: Callable[..., Any], *arguments: Any, end: Any = sys.exit) -> Any:
        """Call what may block; a signal that comes, or has come before, calls `end` with the status."""
        before, self._end = self._end, end
        try:
            if self.number:
                end(self.status)
            return function(*arguments)
        finally:
            self._end = before


# What Python or the client says: what it means, what to do
CAUSES = {
    "No module named": "install the packages, see Install in README.md (pip install -r requirements.txt)",
    "ECONNREFUSED|10061|DNS|no answer": "is Kafka running there, is KAFKA_BOOTSTRAP_SERVERS right?",
    "Handshake|SSL|frame length": "no TLS connection, check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*",
    "Sasl|uthentication|socket disconnected|NoneType": "check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*",
    "invalid records|Compacted topic": "a compacted topic takes only events with a key, see -K",
    "AuthorizationFailed": "no right to do this, the user needs an ACL",
    "UnknownTopic": "there is no such topic, check -t",
    "Expiring|RequestTimedOut": "Kafka took longer than KAFKA_DELIVERY_TIMEOUT_MS",
    "SizeTooLarge|ListTooLarge": "more than KAFKA_MAX_REQUEST_SIZE or the topic's max.message.bytes",
}
secrets: set[str] = set()  # what no message may show


def tell(message: object, live: bool = False) -> None:
    """Write a line to standard error, the middle of a very long one left out; the next overwrites a live one."""
    text = f"{os.path.basename(sys.argv[0])}: {message}"
    for secret in secrets:
        text = text.replace(secret, "***")
    text = text if len(text) < 500 else f"{text[:300]} ... {text[-190:]}"
    with suppress(OSError):  # nobody listens: the exit status still speaks
        if os.isatty(2):
            width = (os.get_terminal_size(2).columns or 80) - 1  # in the last column some terminals wrap; 0: unknown
            text = f"\r{text[:width] if live else text:<{width}}"
        os.write(2, text.encode(errors="backslashreplace") + b"\n" * (not live))


def fail(sentence: str, status: int = 1) -> NoReturn:
    """End with a sentence that says what happened, to what, and what to do."""
    tell(sentence)
    raise SystemExit(status)


def explain(error: object) -> str:
    """What an error of Python or of a client, or a reason from a client's log, means."""
    return next((f"{cause}: " for pattern, cause in CAUSES.items() if re.search(pattern, str(error))), "") + str(error)


gc.set_threshold(100_000, 50, 1000)  # the events in flight are no garbage: looking through them took a tenth longer
stop = Stop()
for each in (signal.SIGINT, signal.SIGTERM):  # before the next imports, as they take 0.3 s
    signal.signal(each, stop.handle)
if hasattr(signal, "setitimer"):  # wakes what blocks each second, lest a signal that came just before waits (POSIX)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # before Python takes the handler away

# Before the next imports, too: they may not be installed
sys.excepthook = lambda _kind, error, _traceback: tell(explain(error))

from dotenv import dotenv_values  # noqa: E402
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors  # noqa: E402

ENV_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".env")
# Not for .env: decided by flags, or what the scripts promise rests on them
FIXED = {"group_id", "auto_offset_reset", "enable_auto_commit", "exclude_internal_topics", "acks", "transactional_id"}
EVERY = KafkaAdminClient.DEFAULT_CONFIG | KafkaConsumer.DEFAULT_CONFIG | KafkaProducer.DEFAULT_CONFIG
# {KAFKA_<NAME>: name} of those that text can express
NAMES = {f"KAFKA_{n.upper()}": n for n in EVERY.keys() - FIXED if isinstance(EVERY[n], (str, float, int, type(None)))}
CHOICES = {"true": True, "false": False, **{p.lower(): p for p in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")}}


class Reasons(logging.Handler):
    """The newest reason for trouble: only kafka-python's log says why a broker cannot be reached.

    It also is what tells of events that are gone before they were read.
    """

    last = "no answer"
    pattern = re.compile(
        r"DNS lookup.*|could not parse.*|Topic \S* not found|(?:n to .*? failed|lost|left\)): (?!.*DNS)(.*?)( \(back|$)"
    )

    def emit(self, record: logging.LogRecord) -> None:
        found = self.pattern.search(text := record.getMessage())
        if record.name == "kafka.consumer.fetcher" and re.search("out of range|Truncation detected", text):
            tell(f"Kafka does not have the events that were to be read next, going on with those there are: {text}")
        # A refused login is often read as a mere end of the connection, but not each time
        if found and not ("Sasl" in self.last and "disconnected" in found[0]):
            self.last = found[1] or found[0]


logging.basicConfig(handlers=[reasons := Reasons()])  # warnings and errors
logging.getLogger("kafka").setLevel(logging.WARNING)  # it writes passwords to its debug log
logging.getLogger("kafka.consumer.fetcher").setLevel(logging.INFO)  # only there it says what is gone
sys.unraisablehook = lambda _unraisable: None  # KafkaProducer.__del__ raises after a delivery has failed


def checked(pattern: str, what: str, convert: Callable[[str], Any] = str) -> Callable[[str], Any]:
    """The type of an argument that is to look like `pattern`."""

    def parse(text: str) -> Any:
        if re.fullmatch(pattern, text, re.ASCII):
            return convert(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}")

    return parse


TOPIC = checked(r"(?!\.{1,2}$)[\w.-]{1,249}", "topic name: 1 to 249 letters, digits, '.', '_' and '-'")
COUNT = checked(r"0*[1-9]\d{0,8}", "whole number from 1 to 999999999", int)
SECONDS = checked(r"\d{1,9}(\.\d*)?", "number of seconds", float)
PAIR = checked(r"[^=]+=.+", "NAME=VALUE", lambda text: text.partition("=")[::2])


class Parser(argparse.ArgumentParser):
    """`--help` opens with what the script does; a usage error is one sentence."""

    def __init__(self, text: str | None) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=argparse.SUPPRESS, description=text, formatter_class=form, allow_abbrev=False)
        self.add_argument("-n", metavar="COUNT", type=COUNT, help="end after COUNT events")
        self.add_argument("-t", dest="topic", metavar="TOPIC", type=TOPIC, default="sample", help="default: sample")

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; see --help", 2)


@functools.cache
def settings() -> dict[str, str]:
    """What .env and the environment set, by name; nothing else may stand in .env."""
    known = {"BEARER_TOKEN", "STREAM_URL", *NAMES}
    try:
        found = dotenv_values(ENV_FILE, interpolate=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        fail(f"cannot read {ENV_FILE}: {error}", 2)
    if "could not parse" in reasons.last:
        fail(f"{ENV_FILE}: {reasons.last}", 2)
    for name in sorted(found.keys() - known):
        near = difflib.get_close_matches(name.upper(), known, 1, 0)[0]
        what = name if found[name] else "a line"  # without a = it may be the rest of a secret
        fail(f"{what} in {ENV_FILE} is no setting of these scripts, do you mean {near}?", 2)
    held = any(found[name] for name in found if re.search("TOKEN|PASSWORD", name))
    if held and os.name == "posix" and os.stat(ENV_FILE).st_mode & 0o004:
        tell(f"every user of this machine can read the secrets in {ENV_FILE}: chmod 600 {ENV_FILE}")
    return {name: value for name, value in [*found.items(), *os.environ.items()] if value}


def check_tls(get: Callable[..., Any]) -> None:
    """End where a file for TLS cannot be used: the client would only try again, or ask for the key's password."""
    names = "KAFKA_SSL_CAFILE"
    try:
        context = ssl.create_default_context(cafile=get("ssl_cafile"))
        names = "KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE or KAFKA_SSL_PASSWORD"
        if get("ssl_certfile"):
            context.load_cert_chain(get("ssl_certfile"), get("ssl_keyfile"), get("ssl_password", ""))
    except OSError as error:
        fail(f"cannot use {names}: {error}", 2)


def client_settings(client: Any, **ours: Any) -> dict[str, Any]:
    """Ours, overridden by .env and the environment; typed after the client's defaults."""
    options, given = {"bootstrap_servers": "localhost:9092", "reconnect_backoff_max_ms": 1000, **ours}, settings()
    for variable in NAMES.keys() & given.keys():
        name, text = NAMES[variable], given[variable]
        kind = int if name.endswith("_bytes") else str if EVERY[name] is None else type(EVERY[name])
        try:
            if name in client.DEFAULT_CONFIG:
                options[name] = CHOICES[text.lower()] if kind is bool or "protocol" in name else kind(text)
        except (KeyError, ValueError):  # not shown: it may be a secret in the wrong place
            fail(f"{variable} cannot have this value, see .env.example; its type is {kind.__name__}", 2)
    if "SSL" in options.get("security_protocol", ""):
        check_tls(options.get)
    return options


def connect(client: Any, options: dict[str, Any]) -> Any:
    """A connected client, or the end with the reason why there is none within 8 seconds."""

    def give_up() -> None:  # not left to the client: a TLS handshake that nobody answers never ends
        tell(f"no connection to Kafka at {options['bootstrap_servers']}: {explain(reasons.last)}")
        os._exit(1)

    watchdog = threading.Timer(8.0, give_up)  # seconds
    watchdog.start()
    try:
        # Not by an exception, which kafka-python's loop may keep to itself, and wait on
        return stop.interruptible(lambda: client(**options), end=os._exit)
    except (errors.KafkaConfigurationError, ValueError, TypeError, AssertionError) as error:
        fail(f"KAFKA_* settings: {error}", 2)
    finally:
        watchdog.cancel()
