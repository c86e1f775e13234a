"""Settings and the Kafka connection.

Settings come from `.env` next to the scripts; environment variables override it. They are
BEARER_TOKEN, STREAM_URL, and KAFKA_<NAME> for the kafka-python client setting <name>.
"""

import argparse
import codecs
import difflib
import functools
import io
import logging
import os
import queue
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from cli import PATIENCE, fail, is_broker_list, register_secret, say

from dotenv.parser import Binding, parse_stream
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, codec, errors

ENV_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), ".env")
CONNECT_SECONDS = 8.0 * PATIENCE

CLIENT_DEFAULTS = (
    KafkaAdminClient.DEFAULT_CONFIG | KafkaConsumer.DEFAULT_CONFIG | KafkaProducer.DEFAULT_CONFIG
)
# Not configurable: flags set them, or the scripts' guarantees depend on them
FIXED_SETTINGS = {
    "acks",
    "auto_offset_reset",
    "enable_auto_commit",
    "exclude_internal_topics",
    "group_id",
    "transactional_id",
}
# Not configurable: Python objects, although their default is None
OBJECT_SETTINGS = {
    "key_deserializer",
    "key_serializer",
    "sasl_oauth_token_provider",
    "ssl_context",
    "value_deserializer",
    "value_serializer",
}
# {KAFKA_<NAME>: name} for the settings that can be given as text
SETTINGS_BY_VARIABLE = {
    f"KAFKA_{name.upper()}": name
    for name, default in CLIENT_DEFAULTS.items()
    if name not in FIXED_SETTINGS | OBJECT_SETTINGS
    and isinstance(default, (str, float, int, type(None)))
}
URLS = ("STREAM_URL", "KAFKA_PROXY_URL")  # a URL may contain a password
KNOWN_VARIABLES = {"BEARER_TOKEN", "STREAM_URL", *SETTINGS_BY_VARIABLE}
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
PASSWORD_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
TLS_FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")
COMPRESSION_TYPES = ("gzip", "snappy", "lz4", "zstd")
# The packages that kafka-python decompresses with, installed by requirements.txt
CODEC_PACKAGES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}

# The special characters that .env allows in double quotes, and how they are written there
ESCAPES = str.maketrans(
    {
        "\a": r"\a",
        "\b": r"\b",
        "\f": r"\f",
        "\n": r"\n",
        "\r": r"\r",
        "\t": r"\t",
        "\v": r"\v",
    }
)

_brokers_flag: str | None = None  # the value of -b


class Explanation(NamedTuple):
    """The cause of an error in plain words, and what to do about it."""

    cause: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.cause}. {self.advice}" if self.advice else self.cause


CHECK_SERVERS = "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
CHECK_TLS = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*."
CHECK_SASL = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*."
NOT_AUTHORIZED = Explanation(
    "not authorized", "Grant the user this permission, for example with kafka-acls.sh."
)
NO_GROUP_RIGHT = NOT_AUTHORIZED._replace(cause="not authorized to use the consumer group")
TLS_FAILED = Explanation("TLS failed: {}", CHECK_TLS)
TIMED_OUT = Explanation("Kafka did not respond in time")
THROTTLED = "it is throttling this client because of a quota"
NO_KEY = Explanation("a compacted topic accepts only events with a key", "Use -K.")
# Kafka accepts or rejects a batch as a whole
IN_REJECTED_BATCH = Explanation("in the same batch as an event that Kafka rejected")
TOO_LARGE = Explanation("larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE")
# The first type that matches the error wins
ERROR_EXPLANATIONS: dict[type[Exception], Explanation] = {
    errors.GroupAuthorizationFailedError: NO_GROUP_RIGHT,
    errors.AuthorizationError: NOT_AUTHORIZED,
    errors.InconsistentGroupProtocolError: Explanation(
        "the other members of the group share out its partitions in another way",
        "Use another -g, or set the range assignor there.",
    ),
    errors.UnknownTopicOrPartitionError: Explanation("no such topic", "Check -t."),
    errors.MessageSizeTooLargeError: TOO_LARGE,
    errors.RecordListTooLargeError: TOO_LARGE,
    errors.RequestTimedOutError: TIMED_OUT,
    errors.KafkaTimeoutError: TIMED_OUT,
}
# The first pattern that matches the client's message wins; {} is what its group captured
MESSAGE_EXPLANATIONS = {
    # Windows reports a refused connection as 10061, or as 10053 when it is tried twice
    r"ECONNREFUSED|Error: 100(?:61|53)\b": Explanation("connection refused", CHECK_SERVERS),
    r"DNS lookup failed for (\S+):\d+": Explanation(
        "unknown host {}", "Check KAFKA_BOOTSTRAP_SERVERS and the broker's advertised.listeners."
    ),
    r"no response|RequestTimedOutError|^KafkaConnectionError:?$": Explanation(
        "no response", CHECK_SERVERS
    ),
    # The client says that the handshake failed; other errors of OpenSSL end with a source line
    r"Handshake failed: (?:\[[^]]*\] )*(.+?)\.?(?: \(_ssl\.c:\d+\))?$": TLS_FAILED,
    r"^(?:\w+Error: )?(?:\[[^]]*\] )*(.+?)\.? \(_ssl\.c:\d+\)": TLS_FAILED,
    r"InvalidReceiveError": Explanation("not a Kafka response", CHECK_TLS),
    r"SaslAuthenticationFailedError: (?!Sasl)(.*)": Explanation("login refused: {}", CHECK_SASL),
    r"UnsupportedSaslMechanism|IllegalSaslState": Explanation(
        "the broker does not support this login", CHECK_SASL
    ),
    r"socket disconnected": Explanation("the broker closed the connection", CHECK_SASL),
    r"AuthorizationFailed": NOT_AUTHORIZED,
    r"Compacted topic cannot accept message without key": NO_KEY,
    r"part of a batch which had .* invalid records": IN_REJECTED_BATCH,
    r"Topic (\S+) not found": Explanation("no such topic: {}"),
    r"throttled by broker": Explanation(THROTTLED),
    r"NotEnoughReplicas": Explanation(
        "too few in-sync replicas for the topic's min.insync.replicas", "Are all brokers running?"
    ),
    r"(partition \d+ has no leader)": Explanation("{}", "Are all brokers running?"),
}


# There is no connection; only the client's log says why
NO_CONNECTION_ERRORS = (
    errors.KafkaConnectionError,
    errors.NodeNotReadyError,
    errors.UnknownBrokerIdError,
)
# Errors that may be due to a broker that cannot be reached
CONNECTION_ERRORS = (
    *NO_CONNECTION_ERRORS,
    errors.KafkaTimeoutError,
    errors.RequestTimedOutError,
)


def explain(error: Exception) -> Explanation:
    """Explain an error raised by the Kafka client."""
    unreachable = client_log().unreachable_address()
    if unreachable and isinstance(error, CONNECTION_ERRORS):
        return explain_unreachable(unreachable)
    if isinstance(error, NO_CONNECTION_ERRORS):
        return explain_message(client_log().reason)
    for kind, explanation in ERROR_EXPLANATIONS.items():
        if isinstance(error, kind):
            return explanation
    if isinstance(error, errors.BrokerResponseError):
        words = _message(error) or error.description
        if words:
            return explain_message(words.rstrip("."))
    return explain_message(str(error))


def explain_message(message: str) -> Explanation:
    """Explain a message from the client's log; return an unknown one unchanged."""
    for pattern, explanation in MESSAGE_EXPLANATIONS.items():
        match = re.search(pattern, message)
        if match:
            cause = explanation.cause.format(*match.groups()) + _tls_files(explanation)
            return Explanation(cause, _name_flag(explanation.advice))
    return Explanation(message)


def explain_unreachable(address: str) -> Explanation:
    """Explain why a broker cannot be reached at the address that Kafka itself gives for it.

    Often that address is a name that only the broker's own machine or container can resolve.
    """
    cause = explain_message(client_log().reason).cause
    return Explanation(
        f"cannot reach {address}, the address that Kafka gives for its broker: {cause}",
        "Is it running there? Check the broker's advertised.listeners.",
    )


def _name_flag(advice: str) -> str:
    """Name -b in the advice if that is where the brokers' addresses come from."""
    return advice.replace("KAFKA_BOOTSTRAP_SERVERS", "-b") if _brokers_flag else advice


def _tls_files(explanation: Explanation) -> str:
    """Return the TLS files in use, for a message about TLS."""
    uses_tls = settings().get("KAFKA_SECURITY_PROTOCOL", "").upper().endswith("SSL")
    if explanation.advice != CHECK_TLS or not uses_tls:
        return ""
    variables = [f"KAFKA_{name.upper()}" for name in TLS_FILES]
    files = [f"{name} is {settings()[name]}" for name in variables if name in settings()]
    return f" ({', '.join(files)})" if files else ""


def _message(error: Exception) -> str:
    """Return the error's message without the name of its class."""
    return " ".join(map(str, error.args))


class ClientLog(logging.Handler):
    """Handles kafka-python's log, the only place that says why a broker is unreachable.

    `reason` is the latest such reason. With `verbose`, every record at INFO or above is shown
    with secrets masked. DEBUG is never enabled: at that level the client logs what it sends,
    including passwords. The log is also the only place that shows which addresses Kafka gives
    for its brokers.
    """

    DEFAULT_REASON = "no response"
    REASON = re.compile(
        r"(DNS lookup failed for \S+:\d+)"
        r"|(Topic \S+ not found)"
        r"|(throttled by broker)"
        # Bootstrap connection to bootstrap-0 failed: KafkaConnectionError: 111 … (backoff 0.09 …)
        r"|(?:Bootstrap connection to .*? failed|Connection lost|attempts left\)): (?!.*DNS)"
        r"(.*?)(?: \(backoff .*)?$"
    )
    CONNECTING = re.compile(r"Initializing connection for node_id (\d+) at (\S+)")
    CHANGED = re.compile(r"<KafkaConnection node_id=(\d+) .*: Connect(ed$|ion (?:closed|lost))")

    def __init__(self) -> None:
        super().__init__()
        self.reason = self.DEFAULT_REASON
        self.verbose = False
        self._connected: set[str] = set()  # the brokers' numbers
        self._unreachable: dict[str, str] = {}  # {broker: address}, until it is connected

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self.verbose:
            say(f"{record.name}: {message}")
        match = self.REASON.search(message)
        if match and not self._follows_refusal(message):
            self.reason = next(filter(None, match.groups()), self.DEFAULT_REASON)
        self._note_address(message)

    def _note_address(self, message: str) -> None:
        """Note which brokers are connected, and the addresses of those still to be connected."""
        connecting = self.CONNECTING.match(message)
        if connecting:
            self._unreachable[connecting[1]] = connecting[2]
        changed = self.CHANGED.match(message)
        if changed and changed[2] == "ed":
            self._connected.add(changed[1])
            self._unreachable.pop(changed[1], None)
        elif changed:
            self._connected.discard(changed[1])

    @property
    def is_disconnected(self) -> bool:
        """Whether the client is trying to reach brokers but is connected to none."""
        return bool(self._unreachable) and not self._connected

    def unreachable_address(self) -> str:
        """Return the address of a broker that cannot be reached; "" if there is none.

        This is always an address that Kafka gives, never one from KAFKA_BOOTSTRAP_SERVERS.
        """
        own_servers = bootstrap_servers().split(",")
        given = [address for address in self._unreachable.values() if address not in own_servers]
        return given[0] if given else ""

    def _follows_refusal(self, message: str) -> bool:
        """Whether this only ends a connection that was refused for the reason already known."""
        was_refused = "Sasl" in self.reason or "InvalidReceive" in self.reason
        return was_refused and "disconnected" in message

    def clear_reason(self) -> None:
        """Clear the reason, because the problem is over."""
        self.reason = self.DEFAULT_REASON


@functools.cache
def client_log() -> ClientLog:
    """Return the process's only ClientLog, installing it on first use."""
    handler = ClientLog()
    logger = logging.getLogger("kafka")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logging.getLogger("kafka.net").setLevel(logging.INFO)  # for the brokers' addresses
    logger.propagate = False
    return handler


def apply_common_flags(options: argparse.Namespace) -> None:
    """Apply the flags that all scripts have, -b and -v; call this before anything else here."""
    global _brokers_flag
    _brokers_flag = options.brokers
    if options.verbose:
        client_log().verbose = True
        logging.getLogger("kafka").setLevel(logging.INFO)


def bootstrap_servers() -> str:
    """Return the brokers to connect to first, as host:port,host:port."""
    return _brokers_flag or settings().get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")


@functools.cache
def settings() -> dict[str, str]:
    """Return the settings in .env and the environment by name, without empty values."""
    values = {
        name: value
        for source in (read_env_file(), os.environ)
        for name, value in source.items()
        if value
    }
    for name, value in values.items():
        if _is_secret(name):
            register_secret(value)
        elif name in URLS or name.upper().endswith("_PROXY"):
            _register_passwords(value)
    return values


def read_env_file() -> dict[str, str]:
    """Read .env; exit if it is unreadable, malformed or contains an unknown setting."""
    path = _display_path(ENV_FILE)
    try:
        with open(ENV_FILE, "rb") as file:
            text = decode_env(file.read(), path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}", 2)
    bindings = list(parse_stream(io.StringIO(text, newline=None)))
    for binding in bindings:
        check_env_line(binding, path)
    values = {binding.key: binding.value or "" for binding in bindings if binding.key}
    warn_if_world_readable(values, path)
    return values


def decode_env(data: bytes, path: str) -> str:
    """Decode .env: UTF-8, or UTF-16 with a byte order mark, which Windows PowerShell writes."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        fail(f"cannot read {path}: it is not UTF-8 text. Save it as UTF-8.", 2)
    if "\0" in text:
        fail(
            f"cannot read {path}: part of it is UTF-16 text, which Windows PowerShell's >> writes. "
            "Save it as UTF-8.",
            2,
        )
    return text


def check_env_line(binding: Binding, path: str) -> None:
    """Exit if a line of .env is not a setting, without showing its value."""
    is_known = binding.key in KNOWN_VARIABLES
    is_bare = binding.key and binding.value is None
    if binding.error or (is_bare and not is_known):
        # Do not show it: without an = it may be the rest of a secret
        fail(f"line {_line_number(binding)} of {path} is not NAME=VALUE. See .env.example.", 2)
    if binding.key and not is_known:
        name = binding.key.upper()
        [nearest] = difflib.get_close_matches(name, KNOWN_VARIABLES, n=1, cutoff=0)
        fail(f"unknown setting {binding.key} in {path}; did you mean {nearest}?", 2)


def _line_number(binding: Binding) -> int:
    """Return the line of .env on which the binding's text begins, after any empty lines."""
    text = binding.original.string
    empty_lines = text[: len(text) - len(text.lstrip())].count("\n")
    return binding.original.line + empty_lines


def warn_if_world_readable(values: dict[str, str], path: str) -> None:
    """Warn if any user on this machine can read the secrets in .env."""
    has_secret = any(value for name, value in values.items() if _is_secret(name))
    if has_secret and os.name == "posix" and os.stat(ENV_FILE).st_mode & 0o004:
        say(f"{path} contains secrets, but any user can read it. Run: chmod 600 {path}")


def _is_secret(name: str) -> bool:
    return name == "BEARER_TOKEN" or (name.startswith("KAFKA_") and name.endswith("PASSWORD"))


def _register_passwords(url: str) -> None:
    """Register the password in a URL, however malformed: everything between USER: and the last @.

    If the password contains a character such as /, libraries treat only part of it as the
    password, or show part of it as the host.
    """
    match = re.match(r"(?:[\w+.-]*:)?(?://)?[^:@]*:(?!//)(.+)@", url, re.DOTALL)
    if not match:
        return
    password = match[1]
    register_secret(password)
    register_secret(unquote(password))
    for part in re.split(r"[/?#@:]", password):
        if len(part) > 3:  # a shorter one would mask parts of words
            register_secret(part)


def _display_path(path: str) -> str:
    """Shorten the path of a file in the current directory to its name."""
    return os.path.basename(path) if os.path.dirname(path) == os.getcwd() else path


def client_options(client_class: Any, **defaults: Any) -> dict[str, Any]:
    """Return a client's options: the defaults, overridden by .env and the environment.

    Omit settings unknown to this client. Exit if any is invalid, whichever client it is for.
    """
    given = client_settings()
    check_sasl(given)
    check_tls(given)
    check_compression(given.get("compression_type"))
    return {
        "reconnect_backoff_max_ms": 1000,
        **defaults,
        **{name: value for name, value in given.items() if name in client_class.DEFAULT_CONFIG},
        "bootstrap_servers": bootstrap_servers(),
    }


def client_settings() -> dict[str, Any]:
    """Return the kafka-python client settings in .env and the environment, by kafka-python's names.

    Each value has the same type as the client's own default.
    """
    texts = settings()
    values: dict[str, Any] = {}
    for variable in sorted(SETTINGS_BY_VARIABLE.keys() & texts.keys()):
        name = SETTINGS_BY_VARIABLE[variable]
        try:
            values[name] = parse_setting(name, texts[variable])
        except ValueError as error:  # do not show the value: it may be a misplaced secret
            fail(f"{variable} must be {error}. See .env.example.", 2)
    return values


def parse_setting(name: str, text: str) -> object:
    """Convert a setting to the type the client expects.

    Raise ValueError with a message saying what the value must be.
    """
    default = CLIENT_DEFAULTS[name]
    if name == "bootstrap_servers" and not is_broker_list(text):
        raise ValueError("in the form HOST:PORT,HOST:PORT")
    if name == "security_protocol":
        return _parse_choice(text, {protocol: protocol for protocol in SECURITY_PROTOCOLS})
    if name == "compression_type":
        return _parse_choice(text, {"none": None, **{name: name for name in COMPRESSION_TYPES}})
    if isinstance(default, bool):
        return _parse_choice(text, {"true": True, "false": False})
    if isinstance(default, int) or name.endswith("_bytes"):
        return _parse_number(text, int, "a whole number")
    if isinstance(default, float):
        return _parse_number(text, float, "a number")
    return text


def _parse_choice(text: str, choices: dict[str, Any]) -> object:
    """Return the value of the choice that the text names, ignoring case."""
    for name, value in choices.items():
        if text.lower() == name.lower():
            return value
    *others, last = choices
    raise ValueError(f"{', '.join(others)} or {last}")


def _parse_number(text: str, convert: Callable[[str], object], expected: str) -> object:
    try:
        return convert(text)
    except ValueError:
        raise ValueError(expected) from None


def check_sasl(options: dict[str, Any]) -> None:
    """Exit if a SASL setting is missing: the client would just keep retrying."""
    protocol = options.get("security_protocol", "")
    if not protocol.startswith("SASL"):
        return
    required = ["sasl_mechanism"]
    if options.get("sasl_mechanism") in PASSWORD_MECHANISMS:
        required += ["sasl_plain_username", "sasl_plain_password"]
    for name in required:
        if not options.get(name):
            fail(f"KAFKA_{name.upper()} is missing; {protocol} needs it. See .env.example.", 2)


def check_tls(options: dict[str, Any]) -> None:
    """Exit if a TLS file is unusable.

    The client would just keep retrying, or prompt for the key's password on the terminal.
    """
    if not options.get("security_protocol", "").endswith("SSL"):
        return
    for name in TLS_FILES:
        check_readable(f"KAFKA_{name.upper()}", options.get(name))
    for name in ("ssl_cafile", "ssl_crlfile"):
        if options.get(name):
            check_ca_file(f"KAFKA_{name.upper()}", options[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.get("ssl_ciphers"):
        check_ciphers(context, options["ssl_ciphers"])
    certificate = options.get("ssl_certfile")
    key = options.get("ssl_keyfile") or certificate
    try:
        if certificate:
            context.load_cert_chain(certificate, key, options.get("ssl_password") or "")
    except ssl.SSLError as error:
        fail(
            f"cannot use {certificate} (KAFKA_SSL_CERTFILE) with key {key}: {_tls_reason(error)}. "
            "Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD.",
            2,
        )


def check_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError as error:
        fail(f"cannot use KAFKA_SSL_CIPHERS={ciphers}: {_tls_reason(error)}", 2)


def check_compression(compression_type: str | None) -> None:
    """Exit if the package for this compression type is missing."""
    if compression_type not in CODEC_PACKAGES:
        return
    if not getattr(codec, f"has_{compression_type}")():
        advice = advise_package(compression_type)
        fail(f"cannot use KAFKA_COMPRESSION_TYPE={compression_type}: {advice}", 2)


def advise_package(compression_type: str) -> str:
    """Say which missing package compression and decompression need, and how to install it."""
    package = CODEC_PACKAGES[compression_type]
    return f"the package {package} is not installed. Run: pip install -r requirements.txt"


def check_ca_file(variable: str, path: str) -> None:
    """Exit if a variable names an unusable file of CA certificates or revocations."""
    check_readable(variable, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        fail(f"cannot use {path} ({variable}): {_tls_reason(error)}", 2)


def check_readable(variable: str, path: str | None) -> None:
    """Exit if the file that a variable names is unreadable."""
    if not path:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        if path.isprintable():
            fail(f"cannot read {path} ({variable}): {error.strerror}", 2)
        fail(
            f"cannot read {path.translate(ESCAPES)} ({variable}): in double quotes, a \\ and the "
            "letter after it are a special character. Put the path in single quotes.",
            2,
        )


def _tls_reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's error message without its codes."""
    text = re.sub(r"^\[[^]]*\] | \(_ssl.*$|\.$", "", str(error.args[-1]))
    return "wrong password or not a PEM file" if text == "PEM lib" else text


class Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python has no types
    """A KafkaConsumer that names a partition without a leader; its parent raises KeyError."""

    def beginning_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().beginning_offsets(*arguments, **options)

    def end_offsets(self, *arguments: Any, **options: Any) -> Any:
        with missing_leader_named():
            return super().end_offsets(*arguments, **options)


@contextmanager
def missing_leader_named() -> Iterator[None]:
    """Raise LeaderNotAvailableError instead of KeyError."""
    try:
        yield
    except KeyError as error:
        [partition] = error.args
        message = f"partition {partition.partition} has no leader"
        raise errors.LeaderNotAvailableError(message) from error


def connect(client_class: Any, options: dict[str, Any]) -> Any:
    """Return a connected client; exit with the reason on failure or after CONNECT_SECONDS.

    The client is created in a thread, because it hangs on a TLS handshake that is never answered.
    """
    log = client_log()
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def create() -> None:
        try:
            outcome.put(client_class(**options))
        except Exception as error:  # handled in the main thread
            outcome.put(error)

    threading.Thread(target=create, daemon=True).start()
    try:
        result = outcome.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        result = errors.KafkaConnectionError(log.reason)
    if isinstance(result, Exception):
        fail_to_connect(result, options["bootstrap_servers"])
    return result


def fail_to_connect(error: Exception, servers: str) -> NoReturn:
    """Exit with the reason the client failed; raise an unexpected error."""
    if isinstance(error, (errors.KafkaConfigurationError, ValueError, AssertionError)):
        fail(f"the Kafka client rejects a KAFKA_* setting: {_message(error)}", 2)
    if isinstance(error, errors.KafkaError):
        fail(f"cannot connect to Kafka at {servers}: {explain(error)}")
    raise error
