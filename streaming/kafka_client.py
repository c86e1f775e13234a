"""The cluster that a script talks to: its clients, and what is wrong when they fail."""

import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from kafka import KafkaAdminClient, TopicPartition, errors

from streaming.console import fail
from streaming.kafka_errors import (
    BY_TYPE,
    CHECK_TLS,
    CONNECTION_ERRORS,
    NO_CONNECTION_ERRORS,
    ClientLog,
    Explanation,
    explain_words,
    words_of,
)
from streaming.kafka_internals import work_without_asserts
from streaming.kafka_options import TLS_FILES, check_login, tls_context, with_scram_name
from streaming.timing import PATIENCE

DEFAULT_SERVERS = "localhost:9092"
CONNECT_SECONDS = 8.0 * PATIENCE
RESPONSE_TIMEOUT_MS = int(10_000 * PATIENCE)
# A broker that has gone away is still named as a leader for 9 s (its broker.session.timeout.ms),
# and for a few more seconds if it was the active controller
ASK_SECONDS = 15.0 * PATIENCE
ASK_PAUSE = 0.2
# What clients raise for an invalid setting
SETTING_ERRORS = (errors.KafkaConfigurationError, ValueError, AssertionError)

T = TypeVar("T")


class Kafka:
    """The cluster that a script talks to.

    `settings` are the client's options, as config.py reads them, whichever client they are for;
    `brokers` is the value of -b, if given. Exits with status 2 if they do not fit together.
    """

    def __init__(self, settings: dict[str, Any], brokers: str | None, verbose: bool) -> None:
        if sys.flags.optimize:
            work_without_asserts()
        check_login(settings)
        self._settings = with_scram_name(settings)
        self._tls_context = tls_context(settings)
        self._has_flag = brokers is not None
        self.servers: str = brokers or settings.get("bootstrap_servers", DEFAULT_SERVERS)
        self.log = ClientLog(verbose)
        self.log.listen()

    def options(self, client_class: Any, **defaults: Any) -> dict[str, Any]:
        """Return a client's options: the defaults, overridden by the settings that it knows."""
        known = {
            name: value
            for name, value in self._settings.items()
            if name in client_class.DEFAULT_CONFIG
        }
        fixed: dict[str, Any] = {"bootstrap_servers": self.servers}
        if self._tls_context:
            fixed["ssl_context"] = self._tls_context
        return {"reconnect_backoff_max_ms": 1000, **defaults, **known, **fixed}

    def connect(self, client_class: Any, options: dict[str, Any] | None = None) -> Any:
        """Return a connected client, by default with the settings; exit with the reason if not."""
        try:
            return self.open(client_class, options)
        except SETTING_ERRORS as error:
            reason = explain_words(words_of(error))
            fail(f"the Kafka client rejects a KAFKA_* setting: {reason}", status=2)
        except errors.KafkaError as error:
            fail(f"cannot connect to Kafka at {self.servers}: {self.explain(error)}")

    def open(self, client_class: Any, options: dict[str, Any] | None = None) -> Any:
        """Return a connected client; raise what it raises, or KafkaError after CONNECT_SECONDS.

        The client is created in a thread, because it hangs on a TLS handshake that is never
        answered.
        """
        options = options or self.options(client_class)
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def create() -> None:
            try:
                outcome.put(client_class(**options))
            except RuntimeError as error:
                is_setting = "codec not found" in str(error)  # its package is missing
                outcome.put(ValueError(*error.args) if is_setting else error)
            except Exception as error:  # raised in the calling thread
                outcome.put(error)

        threading.Thread(target=create, daemon=True).start()
        try:
            result = outcome.get(timeout=CONNECT_SECONDS)
        except queue.Empty:
            raise errors.KafkaConnectionError(self.log.reason) from None
        if isinstance(result, Exception):
            raise result
        return result

    def ask(self, question: Callable[[Any], T]) -> T:
        """Return the answer of `question`, which is called with an admin client.

        Start over while a leader or a group's coordinator is changing, or a topic is being deleted;
        with a new client each time, as kafka-python 3.0.12 never asks again which broker is the
        coordinator. Raise KafkaError if that lasts for ASK_SECONDS, or if it will not pass.
        """
        options = self.options(KafkaAdminClient, request_timeout_ms=RESPONSE_TIMEOUT_MS)
        deadline = time.monotonic() + ASK_SECONDS
        while True:
            with self.connect(KafkaAdminClient, options) as admin:
                self.log.clear_reason()
                try:
                    return question(admin)
                except (errors.RetriableError, errors.UnknownBrokerIdError):
                    if time.monotonic() > deadline:
                        raise
            time.sleep(ASK_PAUSE)

    def explain(self, error: Exception) -> Explanation:
        """Explain an error that a client has raised."""
        address = self._advertised_address()
        if address and isinstance(error, CONNECTION_ERRORS):
            # Often a name that only the broker's own machine or container can resolve
            return Explanation(
                f"cannot reach {address}, the broker's advertised address: {self.trouble().cause}",
                "Is it running there? Check the broker's advertised.listeners.",
            )
        if isinstance(error, NO_CONNECTION_ERRORS):
            return self.trouble()
        for kind, explanation in BY_TYPE.items():
            if isinstance(error, kind):
                return explanation
        return self._explain_words(words_of(error))

    def trouble(self) -> Explanation:
        """Explain why Kafka cannot be reached at the moment; only the client's log knows."""
        return self._explain_words(self.log.reason)

    def _explain_words(self, words: str) -> Explanation:
        """Explain the client's words, and name the setting and the files in use."""
        cause, advice = explain_words(words)
        if advice == CHECK_TLS:
            cause += self._tls_files()
        if self._has_flag:
            advice = advice.replace("KAFKA_BOOTSTRAP_SERVERS", "-b")
        return Explanation(cause, advice)

    def _tls_files(self) -> str:
        """Return the TLS files in use: ` (KAFKA_SSL_CAFILE is ca.pem)`, or else ""."""
        files = [
            f"KAFKA_{name.upper()} is {self._settings[name]}"
            for name in TLS_FILES
            if self._tls_context and self._settings.get(name)
        ]
        return f" ({', '.join(files)})" if files else ""

    def _advertised_address(self) -> str:
        """Return the address that Kafka gives for a broker that cannot be reached, or ""."""
        own_servers = self.servers.split(",")
        given = [each for each in self.log.unreachable_addresses if each not in own_servers]
        return given[0] if given else ""


def committed_offsets(admin: KafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    """Return all offsets that the group has committed."""
    found = admin.list_group_offsets({group: None})[group]
    return {partition: committed.offset for partition, committed in found.items()}
