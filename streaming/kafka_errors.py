"""What went wrong with Kafka, in words: from the client's errors, and from its log.

kafka-python 3.0.12 raises the same few errors for an unknown host, a refused connection, a failed
TLS handshake and a refused login; only its log tells them apart, and says that events have expired.
So ClientLog listens to the logger `kafka`, ExpiredEventsHandler to `kafka.consumer.fetcher`, and
the patterns below match what that version writes there.
"""

import logging
import re
from typing import NamedTuple

from kafka import errors

from streaming.console import say


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
THROTTLED = "a quota is throttling this client"
NO_KEY = Explanation("a compacted topic accepts only events with a key", "Use -K.")
# Kafka accepts or rejects a batch as a whole
IN_REJECTED_BATCH = Explanation("in the same batch as an event that Kafka rejected")
TOO_LARGE = Explanation("larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE")
# The first type that matches the error wins
BY_TYPE: dict[type[Exception], Explanation] = {
    errors.GroupAuthorizationFailedError: NO_GROUP_RIGHT,
    errors.AuthorizationError: NOT_AUTHORIZED,
    errors.InconsistentGroupProtocolError: Explanation(
        "the group's other members use a different assignor",
        "Use another group (-g), or set theirs to range.",
    ),
    errors.UnknownTopicOrPartitionError: Explanation("no such topic", "Check -t."),
    errors.MessageSizeTooLargeError: TOO_LARGE,
    errors.RecordListTooLargeError: TOO_LARGE,
    errors.RequestTimedOutError: TIMED_OUT,
    errors.KafkaTimeoutError: TIMED_OUT,
}
# The first pattern that matches the client's words wins; {} is what its group captured
BY_WORDS = {
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
    r"write to an internal topic": Explanation(
        "clients may not write to Kafka's own topics", "Check -t."
    ),
    r"Topic (\S+) not found": Explanation("no such topic: {}"),
    r"throttled by broker": Explanation(THROTTLED),
    r"NotEnoughReplicas": Explanation(
        "too few in-sync replicas for the topic's min.insync.replicas", "Are all brokers running?"
    ),
    r"(partition \d+ has no leader)": Explanation("{}", "Are all brokers running?"),
    r"Libraries for (\w+) compression codec not found": Explanation(
        "the package for {} compression is not installed", "Run: pip install -r requirements.txt"
    ),
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


def words_of(error: Exception) -> str:
    """Return the error's message without the name of its class; the class's own if it has none."""
    words = [str(each) for each in error.args if each is not None]
    text = " ".join(words) or getattr(error, "description", "") or str(error)
    return str(text).rstrip(".")


def explain_words(words: str) -> Explanation:
    """Explain the client's words, from an error or its log; return unknown ones unchanged."""
    for pattern, explanation in BY_WORDS.items():
        match = re.search(pattern, words)
        if match:
            return explanation._replace(cause=explanation.cause.format(*match.groups()))
    return Explanation(words)


class ClientLog(logging.Handler):
    """Listens to kafka-python's log, which alone says why, and where, a broker is unreachable.

    `reason` is the latest such reason. With `verbose`, every record at INFO or above is shown
    with secrets masked. DEBUG is never enabled: at that level the client logs what it sends,
    including passwords.
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

    def __init__(self, verbose: bool = False) -> None:
        super().__init__()
        self.reason = self.DEFAULT_REASON
        self._verbose = verbose
        self._connected: set[str] = set()  # the brokers' numbers
        self._unreachable: dict[str, str] = {}  # {broker: address}, until it is connected

    def listen(self) -> None:
        """Handle the client's log from now on, and keep it off the screen."""
        logger = logging.getLogger("kafka")
        logger.addHandler(self)
        logger.setLevel(logging.INFO if self._verbose else logging.WARNING)
        logging.getLogger("kafka.net").setLevel(logging.INFO)  # for the brokers' addresses
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self._verbose:
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

    @property
    def unreachable_addresses(self) -> list[str]:
        """The addresses of the brokers that are still to be connected."""
        return list(self._unreachable.values())

    def _follows_refusal(self, message: str) -> bool:
        """Whether this only ends a connection that was refused for the reason already known."""
        was_refused = "Sasl" in self.reason or "InvalidReceive" in self.reason
        return was_refused and "disconnected" in message

    def clear_reason(self) -> None:
        """Clear the reason, because the problem is over."""
        self.reason = self.DEFAULT_REASON


class ExpiredEventsHandler(logging.Handler):
    """Warns when Kafka no longer has the next events; the client just goes on elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        if re.search("out of range|Truncation detected", record.getMessage()):
            say(
                "the next events have expired or been deleted; continuing with the oldest available"
            )


def warn_about_expired_events() -> None:
    """Listen to the logger of the part of the client that fetches events."""
    logger = logging.getLogger("kafka.consumer.fetcher")
    logger.addHandler(ExpiredEventsHandler())
    logger.setLevel(logging.INFO)
