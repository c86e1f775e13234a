"""The scripts and a secured Kafka: SASL, TLS, mutual TLS and ACLs, all set in .env."""

import datetime
import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from broker import Broker
from config import ClientLog, explain_message
from x_api import XApi

import pytest
import trustme
from conftest import REPOSITORY, SCRIPTS, Result, Running, Scripts
from cryptography.hazmat.primitives import serialization
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

pytestmark = [pytest.mark.stress, pytest.mark.xdist_group("security")]  # one broker for them all

SASL = {
    "KAFKA_BOOTSTRAP_SERVERS": "{SASL_SSL}",
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SSL_CAFILE": "{folder}/ca.pem",
}
SCRAM = {
    **SASL,
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "KAFKA_SASL_PLAIN_USERNAME": "everyone",
    "KAFKA_SASL_PLAIN_PASSWORD": "secret-of-everyone",
}
PLAIN = {**SCRAM, "KAFKA_SASL_MECHANISM": "PLAIN"}
TLS = {
    "KAFKA_BOOTSTRAP_SERVERS": "{SSL}",
    "KAFKA_SECURITY_PROTOCOL": "SSL",
    "KAFKA_SSL_CAFILE": "{folder}/ca.pem",
    "KAFKA_SSL_CERTFILE": "{folder}/client.pem",
    "KAFKA_SSL_KEYFILE": "{folder}/client.key",
    "KAFKA_SSL_PASSWORD": "secret-of-the-key",
}
WAYS = {"SCRAM-SHA-512": SCRAM, "PLAIN": PLAIN, "mutual TLS": TLS}
# What an ACL allows each user on a topic
RIGHTS = {
    "everyone": (ACLOperation.ALL, "*"),
    "writer": (ACLOperation.WRITE, "open"),
    "reader": (ACLOperation.READ, "open"),
    "creator": (ACLOperation.WRITE, "missing"),  # who may write to it, but not create it
    "nobody": (ACLOperation.ALTER, "open"),
    "watcher": (ACLOperation.DESCRIBE, "empty"),  # who may see it, but not read it
}


def as_user(user: str) -> dict[str, str]:
    return {
        **SCRAM,
        "KAFKA_SASL_PLAIN_USERNAME": user,
        "KAFKA_SASL_PLAIN_PASSWORD": f"secret-of-{user}",
    }


class Secured(Broker):
    """A broker that authenticates its clients; only those on its PLAINTEXT port may do everything.

    Its `folder` holds what the clients need: ca.pem and other-ca.pem, client.pem and client.key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.save_certificates()
        self.silent = socket.create_server(("127.0.0.1", 0))  # it never answers
        super().__init__(
            settings={**self.listener_settings(), **self.tls_settings()},
            listeners=("SASL_SSL", "SSL", "EXPIRED"),
            credentials=[
                f"SCRAM-SHA-512=[name={user},password=secret-of-{user}]" for user in RIGHTS
            ],
        )

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)
        self.silent.close()

    def listener_settings(self) -> dict[str, object]:
        names = ("PLAINTEXT", "SASL_SSL", "SSL")
        protocols = ["CONTROLLER:PLAINTEXT", "EXPIRED:SSL", *(f"{name}:{name}" for name in names)]
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        login = "listener.name.sasl_ssl"
        return {
            "listener.security.protocol.map": ",".join(protocols),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "auto.create.topics.enable": "false",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            f"{login}.plain.sasl.jaas.config": f'{plain} user_everyone="secret-of-everyone";',
            f"{login}.scram-sha-512.sasl.jaas.config": f"{scram};",
        }

    def tls_settings(self) -> dict[str, object]:
        return {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.folder / "broker-both.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.folder / "ca.pem",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": self.folder / "expired-both.pem",
        }

    def save_certificates(self) -> None:
        authority, other = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(self.folder / "ca.pem")
        other.cert_pem.write_to_path(self.folder / "other-ca.pem")
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        self.save(authority.issue_cert("127.0.0.1"), "broker")
        self.save(authority.issue_cert("127.0.0.1", not_after=yesterday), "expired")
        client = authority.issue_cert("client.test", common_name="everyone")
        self.save(client, "client", b"secret-of-the-key")
        self.save(other.issue_cert("client.test", common_name="everyone"), "stranger")

    def save(self, issued: trustme.LeafCert, name: str, password: bytes = b"") -> None:
        """Write NAME.pem and NAME.key, and both in NAME-both.pem, for the broker.

        Kafka reads only PKCS8 keys.
        """
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password:
            encryption = serialization.BestAvailableEncryption(password)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        chain = issued.cert_chain_pems[0].bytes()
        (self.folder / f"{name}.pem").write_bytes(chain)
        (self.folder / f"{name}.key").write_bytes(text)
        (self.folder / f"{name}-both.pem").write_bytes(text + chain)

    def fill(self, text: str) -> str:
        """The text with the names in braces replaced: listeners with addresses, and `folder`."""
        return text.format(
            **self.addresses,
            PLAINTEXT=self.address,
            LOCALHOST=self.addresses["SASL_SSL"].replace("127.0.0.1", "localhost"),
            SILENT=f"127.0.0.1:{self.silent.getsockname()[1]}",
            folder=self.folder,
        )

    def scripts(self, folder: Path, settings: dict[str, str]) -> Scripts:
        """The scripts, with these settings in .env and nothing in the environment."""
        folder.mkdir(exist_ok=True)
        lines = [f"{name}={self.fill(value)}\n" for name, value in settings.items()]
        (folder / ".env").write_text("".join(lines))
        (folder / ".env").chmod(0o600)
        return Scripts(folder, {})


def grant_rights(admin: KafkaAdminClient) -> None:
    rules = [
        (user, operation, ResourceType.TOPIC, name) for user, (operation, name) in RIGHTS.items()
    ]
    rules.append(("everyone", ACLOperation.ALL, ResourceType.GROUP, "*"))
    rules.append(("everyone", ACLOperation.CREATE, ResourceType.CLUSTER, "kafka-cluster"))
    for user, operation, resource, name in rules:
        pattern = ResourcePattern(resource, name)
        admin.create_acls([ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, pattern)])


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    broker = Secured(tmp_path_factory.mktemp("secured"))
    with broker:
        with KafkaAdminClient(bootstrap_servers=broker.address) as admin:
            admin.create_topics(
                {name: {"num_partitions": 1} for name in ("open", "closed", "empty")}
            )
            grant_rights(admin)
        with KafkaProducer(bootstrap_servers=broker.address) as producer:
            producer.send("open", b"an event").get(10)
        yield broker


@pytest.mark.parametrize("way", WAYS)
def test_round_trips_with_the_settings_in_the_env_file(
    secured: Secured, tmp_path: Path, topic: str, way: str
) -> None:
    tweets = f"{topic}-tweets"
    with XApi() as api:
        x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        scripts = secured.scripts(tmp_path / "scripts", {**WAYS[way], **x})
        following = scripts.start("twitter-stream", "-t", tweets, "-n", 20)
        done = scripts.run("producer", "-t", topic, "-K", ":", input=b"a:1\nb:2\n")
        assert (done.returncode, done.stdout) == (0, b"")
        assert done.stderr.decode() == f"producer.py: published 2 events to {topic}\n"
        done = following.end()
    assert (done.returncode, done.stdout) == (0, b"")
    assert (
        done.stderr.decode()
        == f"twitter-stream.py: published 20 tweets to {tweets} (0 reconnects, 0 skipped)\n"
    )
    running = scripts.start("consumer", "-t", topic, "-e", "-K", ":", "-g", topic)
    printed = scripts.run("consumer", "-t", tweets, "-e")
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert printed.stdout == b"".join(line + b"\n" for line in api.sent[:20])
    printed = running.end()
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert sorted(printed.stdout.splitlines()) == [b"a:1", b"b:2"]


@pytest.mark.parametrize(("user", "may_read"), [("everyone", True), ("writer", False)])
def test_backfill_after_a_restart_needs_the_right_to_read(
    secured: Secured, tmp_path: Path, user: str, may_read: bool
) -> None:
    """Without it, the script says so once and continues; topic open has a recent event."""
    with XApi() as api:
        x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        scripts = secured.scripts(tmp_path / "scripts", {**as_user(user), **x})
        done = scripts.run("twitter-stream", "-t", "open", "-n", 5, "--backfill")
    assert done.returncode == 0
    refusal = (
        "twitter-stream.py: cannot read topic open: not authorized. --backfill cannot fill the "
        "gap since the last run; it needs the READ permission on the topic.\n"
    )
    *others, _ = done.stderr.decode().splitlines(keepends=True)
    assert [line for line in others if "no tweets from" not in line] == [refusal] * (not may_read)
    assert ("backfill_minutes" in api.requests[0].query) == may_read


CHECK_SERVERS = "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
CHECK_TLS = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*."
CHECK_LOGIN = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*."
NO_RIGHT = "not authorized. Grant the user this permission, for example with kafka-acls.sh."
NO_GROUP_RIGHT = NO_RIGHT.replace("authorized", "authorized to use the consumer group")
CERTIFICATE = "cannot use {folder}/client.pem (KAFKA_SSL_CERTFILE) with key {folder}"
CHECK_KEY = "Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD."
WRONG = "secret-wrong"
PRODUCE = ("producer", "-n", 1, "-t", "open")
CONSUME = ("consumer", "-e", "-t", "open")


def but(settings: dict[str, str], **changed: str) -> dict[str, str]:
    """The settings with some of them changed, named without KAFKA_."""
    return {**settings, **{f"KAFKA_{name}": value for name, value in changed.items()}}


def refused(cause: str, listener: str = "SASL_SSL") -> str:
    return f"cannot connect to Kafka at {{{listener}}}: {cause}"


def tls_failed(cause: str, listener: str = "SASL_SSL", *variables: str) -> str:
    """The sentence, which names the files that these variables are set to."""
    files = ", ".join(f"{name} is {TLS[name]}" for name in variables)
    return refused(f"TLS failed: {cause}{f' ({files})' if files else ''}. {CHECK_TLS}", listener)


def unpublished(topic: str) -> str:
    return f"published 0 events to {topic}, 1 failed: event 1 (… bytes): {NO_RIGHT}"


class Failure(NamedTuple):
    """A run that cannot succeed, and the sentence it ends with; … stands for OpenSSL's words.

    Kafka closes the connection right after answering that it refuses a client, so
    kafka-python may lose the answer. `answer` is part of it, as the client's log (-v) shows it;
    if it is not in the log, the sentence must say that the broker closed the connection.
    """

    settings: dict[str, str]
    arguments: tuple[object, ...]
    sentence: str
    status: int = 1
    answer: str = ""

    def expected(self, log: str) -> str:
        if self.answer and self.answer not in log:
            listener = self.settings["KAFKA_BOOTSTRAP_SERVERS"].strip("{}")
            return refused(f"the broker closed the connection. {CHECK_LOGIN}", listener)
        return self.sentence


WRONG_SCRAM = (
    "login refused: Authentication failed during authentication due to invalid credentials "
    f"with SASL mechanism SCRAM-SHA-512. {CHECK_LOGIN}"
)
WRONG_PLAIN = f"login refused: Authentication failed: Invalid username or password. {CHECK_LOGIN}"
NOT_KAFKA = f"not a Kafka response. {CHECK_TLS}"
UNTRUSTED = "certificate verify failed: unable to get …issuer cert…"

# The settings lead to a broker that refuses them; the slowest cases come first
FAILURES = {
    "wrong SCRAM password": Failure(
        but(SCRAM, SASL_PLAIN_PASSWORD=WRONG),
        PRODUCE,
        refused(WRONG_SCRAM),
        answer="SaslAuthenticationFailedError",
    ),
    "wrong PLAIN password": Failure(
        but(PLAIN, SASL_PLAIN_PASSWORD=WRONG),
        CONSUME,
        refused(WRONG_PLAIN),
        answer="SaslAuthenticationFailedError",
    ),
    "unknown user": Failure(
        {**as_user("unknown"), "BEARER_TOKEN": "secret-token"},
        ("twitter-stream",),
        refused(WRONG_SCRAM),
        answer="SaslAuthenticationFailedError",
    ),
    "unsupported mechanism": Failure(
        but(SCRAM, SASL_MECHANISM="SCRAM-SHA-256"),
        CONSUME,
        refused(f"the broker does not support this login. {CHECK_LOGIN}"),
        answer="UnsupportedSaslMechanismError",
    ),
    "PLAINTEXT to the SASL_SSL port": Failure(
        {"KAFKA_BOOTSTRAP_SERVERS": "{SASL_SSL}"},
        PRODUCE,
        refused(NOT_KAFKA),
        answer="InvalidReceiveError",
    ),
    "PLAINTEXT to the SSL port": Failure(
        {"KAFKA_BOOTSTRAP_SERVERS": "{SSL}"},
        CONSUME,
        refused(NOT_KAFKA, "SSL"),
        answer="InvalidReceiveError",
    ),
    "SASL_PLAINTEXT to the SASL_SSL port": Failure(
        but(SCRAM, SECURITY_PROTOCOL="SASL_PLAINTEXT"),
        CONSUME,
        refused(NOT_KAFKA),
        answer="InvalidReceiveError",
    ),
    "wrong CA": Failure(
        but(SCRAM, SSL_CAFILE="{folder}/other-ca.pem"), PRODUCE, tls_failed(UNTRUSTED)
    ),
    "the system's CAs": Failure(but(TLS, SSL_CAFILE=""), CONSUME, tls_failed(UNTRUSTED, "SSL")),
    "expired certificate": Failure(
        but(TLS, BOOTSTRAP_SERVERS="{EXPIRED}"),
        PRODUCE,
        tls_failed(
            "certificate verify failed: certificate has expired",
            "EXPIRED",
            "KAFKA_SSL_CAFILE",
            "KAFKA_SSL_CERTFILE",
            "KAFKA_SSL_KEYFILE",
        ),
    ),
    "host name mismatch": Failure(
        but(SCRAM, BOOTSTRAP_SERVERS="{LOCALHOST}"),
        CONSUME,
        tls_failed(
            "certificate verify failed: Hostname mismatch, "
            "certificate is not valid for 'localhost'",
            "LOCALHOST",
            "KAFKA_SSL_CAFILE",
        ),
    ),
    "TLS to the PLAINTEXT port": Failure(
        but(TLS, BOOTSTRAP_SERVERS="{PLAINTEXT}"), PRODUCE, tls_failed("…", "PLAINTEXT")
    ),
    "SASL_SSL to the PLAINTEXT port": Failure(
        but(SCRAM, BOOTSTRAP_SERVERS="{PLAINTEXT}"), CONSUME, tls_failed("…", "PLAINTEXT")
    ),
    "TLS to a port that never answers": Failure(
        but(TLS, BOOTSTRAP_SERVERS="{SILENT}"),
        PRODUCE,
        refused(f"no response. {CHECK_SERVERS}", "SILENT"),
    ),
    "no client certificate": Failure(
        but(TLS, SSL_CERTFILE="", SSL_KEYFILE="", SSL_PASSWORD=""),
        PRODUCE,
        tls_failed("…certificate…", "SSL"),
    ),
    "a stranger's client certificate": Failure(
        but(TLS, SSL_CERTFILE="{folder}/stranger.pem", SSL_KEYFILE="{folder}/stranger.key"),
        CONSUME,
        tls_failed("… alert …", "SSL"),
    ),
    "no right to write": Failure(as_user("reader"), PRODUCE, unpublished("open")),
    "no right to know": Failure(
        as_user("writer"), ("producer", "-n", 1, "-t", "closed"), unpublished("closed")
    ),
    "no right to create": Failure(
        as_user("creator"),
        ("producer", "-n", 1, "-t", "missing"),
        f"cannot create topic missing: {NO_RIGHT}",
    ),
    "no right to read, and nothing there": Failure(
        as_user("watcher"),
        ("consumer", "-e", "-t", "empty"),
        f"cannot read topic empty: {NO_RIGHT}",
    ),
    "no right to read": Failure(as_user("writer"), CONSUME, f"cannot read topic open: {NO_RIGHT}"),
    "no right to read, endless": Failure(
        as_user("writer"), ("consumer", "-t", "open"), f"cannot read topic open: {NO_RIGHT}"
    ),
    "no right to know, read": Failure(
        as_user("nobody"), ("consumer", "-t", "closed"), f"cannot read topic closed: {NO_RIGHT}"
    ),
    "no right to the group": Failure(
        as_user("reader"),
        ("consumer", "-g", "readers", "-t", "open"),
        f"cannot read topic open: {NO_GROUP_RIGHT}",
    ),
    "no password": Failure(
        but(SCRAM, SASL_PLAIN_PASSWORD=""),
        CONSUME,
        "KAFKA_SASL_PLAIN_PASSWORD is missing; SASL_SSL needs it. See .env.example.",
        2,
    ),
    "no CA file": Failure(
        but(SCRAM, SSL_CAFILE="/nowhere"),
        PRODUCE,
        "cannot read /nowhere (KAFKA_SSL_CAFILE): No such file or directory",
        2,
    ),
    "a CA file without a certificate": Failure(
        but(TLS, SSL_CAFILE="{folder}/broker.key"),
        CONSUME,
        "cannot use {folder}/broker.key (KAFKA_SSL_CAFILE): no certificate …",
        2,
    ),
    "no certificate file": Failure(
        but(TLS, SSL_CERTFILE="/nowhere"),
        PRODUCE,
        "cannot read /nowhere (KAFKA_SSL_CERTFILE): No such file or directory",
        2,
    ),
    "no key file": Failure(
        but(TLS, SSL_KEYFILE="/nowhere"),
        PRODUCE,
        "cannot read /nowhere (KAFKA_SSL_KEYFILE): No such file or directory",
        2,
    ),
    "another's key": Failure(
        but(TLS, SSL_KEYFILE="{folder}/broker.key"),
        CONSUME,
        f"{CERTIFICATE}/broker.key: key values mismatch. {CHECK_KEY}",
        2,
    ),
    "wrong password of the key": Failure(
        but(TLS, SSL_PASSWORD=WRONG),
        PRODUCE,
        f"{CERTIFICATE}/client.key: wrong password or not a PEM file. {CHECK_KEY}",
        2,
    ),
    "no password of the key": Failure(
        but(TLS, SSL_PASSWORD=""),
        CONSUME,
        f"{CERTIFICATE}/client.key: wrong password or not a PEM file. {CHECK_KEY}",
        2,
    ),
}
REFUSED = [name for name, failure in FAILURES.items() if failure.answer]


class Timed(NamedTuple):
    result: Result
    seconds: float


def run_timed(scripts: Scripts, *arguments: Any) -> Timed:
    began = time.monotonic()
    result = scripts.run(*arguments, timeout=25)
    return Timed(result, time.monotonic() - began)


@pytest.fixture(scope="module")
def runs(
    secured: Secured, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Future[Timed]]:
    """The run of each of the FAILURES and, under True, of each of the REFUSED with -v.

    They run side by side, as many of them keep trying for 8 seconds.
    """
    jobs = {}
    names = [*((name, True) for name in REFUSED), *((name, False) for name in FAILURES)]
    with ThreadPoolExecutor(len(names)) as pool:
        for name, verbose in names:
            settings, arguments, *_ = FAILURES[name]
            scripts = secured.scripts(tmp_path_factory.mktemp("scripts"), settings)
            flags = ["-v"] if verbose else []
            jobs[name, verbose] = pool.submit(run_timed, scripts, *arguments, *flags)
            time.sleep(0.5)  # starting one is that much work
    return jobs


def matches(secured: Secured, sentence: str, line: str) -> bool:
    pattern = re.escape(secured.fill(sentence)).replace("…", ".*")
    return bool(re.fullmatch(pattern, line))


@pytest.mark.parametrize("name", [name for name in FAILURES if name not in REFUSED])
def test_a_failure_ends_in_one_sentence(
    secured: Secured, runs: dict[tuple[str, bool], Future[Timed]], name: str
) -> None:
    failure = FAILURES[name]
    done, seconds = runs[name, False].result()
    assert (done.returncode, done.stdout) == (failure.status, b""), done.stderr
    [line] = done.stderr.decode().splitlines()
    assert matches(secured, f"{failure.arguments[0]}.py: {failure.sentence}", line), line
    assert b"secret" not in done.stderr
    assert seconds < 15


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_ends_in_a_sentence_that_says_what_the_client_knows(
    secured: Secured, runs: dict[tuple[str, bool], Future[Timed]], name: str
) -> None:
    failure = FAILURES[name]
    done, seconds = runs[name, True].result()
    assert (done.returncode, done.stdout) == (1, b""), done.stderr
    *log, line = done.stderr.decode().splitlines()
    assert all(entry.startswith(f"{failure.arguments[0]}.py: kafka.") for entry in log)
    sentence = failure.expected("\n".join(log))
    assert matches(secured, f"{failure.arguments[0]}.py: {sentence}", line), line
    assert b"secret" not in done.stderr
    assert seconds < 15


@pytest.mark.parametrize("name", REFUSED)
def test_without_v_a_refusal_is_one_line(
    secured: Secured, runs: dict[tuple[str, bool], Future[Timed]], name: str
) -> None:
    """The test cannot know which of the two sentences it is; both begin and end the same way."""
    failure = FAILURES[name]
    done, seconds = runs[name, False].result()
    assert (done.returncode, done.stdout) == (1, b""), done.stderr
    [line] = done.stderr.decode().splitlines()
    address = secured.fill(failure.settings["KAFKA_BOOTSTRAP_SERVERS"])
    assert line.startswith(f"{failure.arguments[0]}.py: cannot connect to Kafka at {address}: ")
    assert re.search(r"Check KAFKA_SECURITY_PROTOCOL and KAFKA_S(ASL|SL)_\*\.$", line)
    assert b"secret" not in done.stderr
    assert seconds < 15


def test_the_reason_for_a_refusal_outlives_answers_that_are_lost() -> None:
    """Each attempt is logged; where its answer was lost, only that the connection was closed."""
    refusals = {
        "[Error 58] SaslAuthenticationFailedError: Authentication failed: no such user": (
            f"login refused: Authentication failed: no such user. {CHECK_LOGIN}"
        ),
        "[Error 33] UnsupportedSaslMechanismError": (
            f"the broker does not support this login. {CHECK_LOGIN}"
        ),
        "InvalidReceiveError: 352518912": NOT_KAFKA,
        "socket disconnected": f"the broker closed the connection. {CHECK_LOGIN}",
    }
    for answer, sentence in refusals.items():
        log = ClientLog()
        assert log.reason == "no response"
        for reason in ("socket disconnected", answer, "socket disconnected"):
            message = f"Bootstrap connection to bootstrap-0 failed: {reason} (backoff 0.93 secs)"
            log.emit(logging.makeLogRecord({"msg": message}))
        assert (log.reason, str(explain_message(log.reason))) == (answer, sentence)
        log.emit(logging.makeLogRecord({"msg": "Connection lost: 111 ECONNREFUSED"}))
        assert log.reason == "111 ECONNREFUSED"
        log.clear_reason()
        assert log.reason == "no response"


def test_the_right_to_write_to_an_existing_topic_is_enough(
    secured: Secured, tmp_path: Path
) -> None:
    scripts = secured.scripts(tmp_path / "scripts", as_user("writer"))
    done = scripts.run("producer", "-t", "open", input=b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"producer.py: published 2 events to open\n")


def test_the_list_has_only_what_the_user_may_see(secured: Secured, tmp_path: Path) -> None:
    """Whoever has a right to a topic may also see it; the user reader has none to topic closed."""
    scripts = secured.scripts(tmp_path / "scripts", as_user("reader"))
    topics = scripts.start("consumer", "--list", "--json")
    closed = scripts.start("consumer", "--list", "-t", "closed")
    group = scripts.start("consumer", "--list", "-t", "open", "-g", "readers")
    done = topics.end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["topic"] for line in done.stdout.splitlines()] == ["open"]
    for consumer, topic, sentence in (
        (closed, "closed", NO_RIGHT),
        (group, "open", NO_GROUP_RIGHT),
    ):
        done = consumer.end()
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"consumer.py: cannot list topic {topic}: {sentence}\n"


SHOW_EVERYTHING = """
import logging, runpy, sys, kafka
for name in list(logging.root.manager.loggerDict):
    if name.startswith("kafka."):
        logging.getLogger(name).setLevel(logging.DEBUG)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_no_password_is_shown_at_any_log_level(
    secured: Secured, tmp_path: Path, topic: str
) -> None:
    """At DEBUG kafka-python logs what it sends, passwords included; -v itself stops at INFO."""
    running = []
    with XApi() as api:
        for way, settings in WAYS.items():
            x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
            scripts = secured.scripts(tmp_path / way, {**settings, **x})
            for script in SCRIPTS:
                options: dict[str, Any] = {"cwd": scripts.folder}  # -c imports config.py from there
                flags = ("-t", topic, "-n", 1, "-v")
                python, *arguments = scripts.call(script, flags, options)
                script_run = Running([python, "-c", SHOW_EVERYTHING, *arguments], options)
                running.append((way, script_run))
        for way, script_run in running:
            command_line = Path(f"/proc/{script_run.process.pid}/cmdline").read_bytes()
            done = script_run.end()
            assert done.returncode == 0, done.stderr
            assert b": kafka.net.connection: " in done.stderr
            assert b"***" in done.stderr or way != "PLAIN"  # the others send no password
            assert b"secret" not in command_line + done.stdout + done.stderr


def test_git_ignores_the_env_file() -> None:
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_an_env_file_with_a_secret_that_everybody_can_read_is_reported_once(
    secured: Secured, tmp_path: Path
) -> None:
    once, end = ("-t", "open", "-n", 1), ("-t", "open", "-e")
    with XApi() as api:
        x = {"BEARER_TOKEN": api.token, "STREAM_URL": api.url}
        login = {"KAFKA_SASL_PLAIN_PASSWORD": "secret"}
        no_secret = {"BEARER_TOKEN": "", "KAFKA_SASL_PLAIN_USERNAME": "user"}
        cases: list[tuple[int, dict[str, str], str, tuple[object, ...], bool]] = [
            (0o644, x, "twitter-stream", once, True),
            (0o604, login, "producer", once, True),
            (0o644, {"KAFKA_SSL_PASSWORD": "secret"}, "consumer", end, True),
            (0o640, x, "producer", once, False),
            (0o644, no_secret, "producer", once, False),
        ]
        running = []
        for number, (mode, settings, script, arguments, _) in enumerate(cases):
            address = {"KAFKA_BOOTSTRAP_SERVERS": "{PLAINTEXT}"}
            scripts = secured.scripts(tmp_path / str(number), {**address, **settings})
            (scripts.folder / ".env").chmod(mode)
            running.append((scripts.folder / ".env", scripts.start(script, *arguments)))
        for (_, _, script, _, warns), (path, script_run) in zip(cases, running, strict=True):
            done = script_run.end()
            lines = [line for line in done.stderr.decode().splitlines() if "published" not in line]
            warning = (
                f"{script}.py: {path} contains secrets, but any user can read it. "
                f"Run: chmod 600 {path}"
            )
            assert (done.returncode, lines) == (0, [warning] if warns else [])
