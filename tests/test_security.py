"""The scripts and a secured Kafka: SASL, TLS, mutual TLS and ACLs, all set in .env."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from broker import Broker, ReservedPort, listeners_of
from config import read_settings
from conftest import GUARD, REPOSITORY, SCRIPTS, Running, Scripts, fits, split_log
from forkserver import ForkServer
from streaming.kafka_client import Kafka
from x_api import XApi

pytestmark = pytest.mark.versions

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
ANY_NAME = {
    **PLAIN,
    "KAFKA_BOOTSTRAP_SERVERS": "{LOCALHOST}",  # a name that is not in the certificate
    "KAFKA_SSL_CHECK_HOSTNAME": "false",
}
TLS = {
    "KAFKA_BOOTSTRAP_SERVERS": "{SSL}",
    "KAFKA_SECURITY_PROTOCOL": "SSL",
    "KAFKA_SSL_CAFILE": "{folder}/ca.pem",
    "KAFKA_SSL_CERTFILE": "{folder}/client.pem",
    "KAFKA_SSL_KEYFILE": "{folder}/client.key",
    "KAFKA_SSL_PASSWORD": "secret-of-the-key",
}
WAYS = {"SCRAM-SHA-512": SCRAM, "PLAIN, by another name": ANY_NAME, "mutual TLS": TLS}
WRITER = "writer,o=x"  # SCRAM escapes its comma and =
# What an ACL allows each user on a topic
RIGHTS = {
    "everyone": (ACLOperation.ALL, "*"),
    WRITER: (ACLOperation.WRITE, "open"),
    "reader": (ACLOperation.READ, "open"),
    "creator": (ACLOperation.WRITE, "new"),  # who may write to it, but not create it
    "watcher": (ACLOperation.DESCRIBE, "empty"),  # who may see it and group watched, but not read
}


def as_user(user: str) -> dict[str, str]:
    return {
        **SCRAM,
        "KAFKA_SASL_PLAIN_USERNAME": user,
        "KAFKA_SASL_PLAIN_PASSWORD": f"secret-of-{user}",
    }


def save_certificates(folder: Path) -> None:
    """Write ca.pem and other-ca.pem, and the certificates and keys of broker and client."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    save(authority.issue_cert("127.0.0.1"), folder / "broker")
    client = authority.issue_cert("client.test", common_name="everyone")
    save(client, folder / "client", b"secret-of-the-key")


def save(issued: trustme.LeafCert, path: Path, password: bytes = b"") -> None:
    """Write PATH.pem and PATH.key, and both in PATH-both.pem, for Kafka, which reads only PKCS8."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    text = key.private_bytes(pem, pkcs8, encryption)
    chain = issued.cert_chain_pems[0].bytes()
    path.with_name(f"{path.name}.pem").write_bytes(chain)
    path.with_name(f"{path.name}.key").write_bytes(text)
    path.with_name(f"{path.name}-both.pem").write_bytes(text + chain)


class Secured(Broker):
    """A broker that authenticates its clients; only those on a PLAINTEXT port may do everything.

    Its `folder` holds their certificates. At its last three listeners it gives them an address
    where they cannot reach it, as is common for a broker in a container.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_certificates(folder)
        self.silent = socket.create_server(("127.0.0.1", 0))  # it never answers
        self.nobody = ReservedPort()
        self.given = {
            "SILENCE": f"127.0.0.1:{self.silent.getsockname()[1]}",
            "NOBODY": f"127.0.0.1:{self.nobody.port}",
            "NOWHERE": "kafka.invalid:9092",
        }
        self.unreachable = {f"TO_{name}": address for name, address in self.given.items()}
        super().__init__(
            listeners=("SASL_SSL", "SSL", *self.unreachable),
            credentials=[
                f"SCRAM-SHA-512=[name={user},password=secret-of-{user}]"
                for user in RIGHTS
                if user != WRITER  # Kafka's storage tool cannot take that name
            ],
        )
        self._settings = {**self.listener_settings(), **self.tls_settings()}

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)
        self.silent.close()
        self.nobody.release()

    def listener_settings(self) -> dict[str, object]:
        addresses = {"PLAINTEXT": self.address, **self.addresses, **self.unreachable}
        plaintext = dict.fromkeys(("CONTROLLER", "PLAINTEXT", *self.unreachable), "PLAINTEXT")
        protocols = {**plaintext, "SASL_SSL": "SASL_SSL", "SSL": "SSL"}
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        login = "listener.name.sasl_ssl"
        return {
            "advertised.listeners": listeners_of(addresses),
            "listener.security.protocol.map": ",".join(map(":".join, protocols.items())),
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
        }

    def fill(self, text: str) -> str:
        """The text with the names in braces replaced: listeners with addresses, and `folder`."""
        localhost = self.addresses["SASL_SSL"].replace("127.0.0.1", "localhost")
        names = {**self.addresses, **self.given, "LOCALHOST": localhost}
        return text.format(**names, folder=self.folder)

    def scripts(self, folder: Path, settings: dict[str, str], server: ForkServer) -> Scripts:
        """The scripts, with these settings in .env and none in the environment."""
        folder.mkdir(exist_ok=True)
        lines = [f"{name}={self.fill(value)}\n" for name, value in settings.items()]
        (folder / ".env").write_text("".join(lines))
        (folder / ".env").chmod(0o600)
        return Scripts(folder, {"RES_OPTIONS": "timeout:1 attempts:1"}, server)


def grant_rights(admin: KafkaAdminClient) -> None:
    topic, group, cluster = ResourceType.TOPIC, ResourceType.GROUP, ResourceType.CLUSTER
    rules = [(user, operation, topic, name) for user, (operation, name) in RIGHTS.items()]
    rules.append(("everyone", ACLOperation.ALL, group, "*"))
    rules.append(("watcher", ACLOperation.DESCRIBE, group, "watched"))
    rules.append(("everyone", ACLOperation.CREATE, cluster, "kafka-cluster"))
    for user, operation, resource, name in rules:
        pattern = ResourcePattern(resource, name)
        admin.create_acls([ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, pattern)])


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    broker = Secured(tmp_path_factory.mktemp("secured"))
    with broker:
        with KafkaAdminClient(bootstrap_servers=broker.address) as admin:
            one = {"num_partitions": 1}
            admin.create_topics({"open": one, "closed": one, "empty": one})
            password = f"secret-of-{WRITER}"
            writer = UserScramCredentialUpsertion(WRITER, ScramMechanism.SCRAM_SHA_512, password)
            admin.alter_user_scram_credentials([writer])
            grant_rights(admin)
        with KafkaProducer(bootstrap_servers=broker.address) as producer:
            producer.send("open", b"an event").get(GUARD)
        yield broker


CHECK_TLS = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*."
CHECK_LOGIN = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*."
NO_RIGHT = "not authorized. Grant the user this permission, for example with kafka-acls.sh."
NO_GROUP_RIGHT = NO_RIGHT.replace("authorized", "authorized to use the consumer group")
PRODUCE = ("producer", "-n", "1", "-t", "open")
CONSUME = ("consumer", "-e", "-t", "open")
LIST = ("consumer", "--list", "-t")


def but(settings: dict[str, str], **changed: str) -> dict[str, str]:
    """The settings with some of them changed, named without KAFKA_."""
    return {**settings, **{f"KAFKA_{name}": value for name, value in changed.items()}}


def refused(cause: str, listener: str = "SASL_SSL") -> str:
    return f"cannot connect to Kafka at {{{listener}}}: {cause}"


def tls_failed(cause: str, listener: str = "SASL_SSL") -> str:
    return refused(f"TLS failed: {cause}. {CHECK_TLS}", listener)


def unpublished(topic: str) -> str:
    return f"published 0 events to {topic}, 1 failed: event 1 (… bytes): {NO_RIGHT}"


def unreadable(topic: str, cause: str = NO_RIGHT) -> str:
    return f"cannot read topic {topic}: {cause}"


def unlisted(topic: str, cause: str = NO_RIGHT) -> str:
    return f"cannot list topic {topic}: {cause}"


class Failure(NamedTuple):
    """A run that is refused, and the sentence it ends with; … stands for OpenSSL's words.

    Kafka closes the connection right after answering that it refuses a client, so
    kafka-python may lose the answer. `answer` is part of it, as the client's log (-v) shows it;
    if it is not in the log, the sentence must say that the broker closed the connection.
    """

    settings: dict[str, str]
    arguments: tuple[str, ...]
    sentence: str
    answer: str = ""

    def expected(self, log: str) -> str:
        """The sentence, given the client's log."""
        if self.answer and self.answer not in log:
            listener = self.settings["KAFKA_BOOTSTRAP_SERVERS"].strip("{}")
            return refused(f"the broker closed the connection. {CHECK_LOGIN}", listener)
        return self.sentence


def unreachable(script: str, listener: str, cause: str) -> Failure:
    """Kafka is reached there, but at the address that it then gives, it is not."""
    sentence = (
        f"cannot {'create' if script == 'producer' else 'read'} topic new: "
        f"cannot reach {{{listener}}}, the broker's advertised address: {cause}. "
        "Is it running there? Check the broker's advertised.listeners."
    )
    return Failure(
        {"KAFKA_BOOTSTRAP_SERVERS": f"{{TO_{listener}}}"}, (script, "-t", "new"), sentence
    )


INVALID = "Authentication failed during authentication due to invalid credentials"
WRONG_SCRAM = f"login refused: {INVALID} with SASL mechanism SCRAM-SHA-512. {CHECK_LOGIN}"
NOT_KAFKA = f"not a Kafka response. {CHECK_TLS}"
UNTRUSTED = "certificate verify failed: unable to get …issuer cert…"
MISMATCH = (
    "certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost' "
    "(KAFKA_SSL_CAFILE is {folder}/ca.pem)"
)
PLAINTEXT = {"KAFKA_BOOTSTRAP_SERVERS": "{SASL_SSL}"}
NO_CERTIFICATE = but(TLS, SSL_CERTFILE="", SSL_KEYFILE="", SSL_PASSWORD="")
REFUSALS = [
    Failure(as_user("stranger"), PRODUCE, refused(WRONG_SCRAM), "SaslAuthenticationFailedError"),
    Failure(PLAINTEXT, PRODUCE, refused(NOT_KAFKA), "InvalidReceiveError"),
    Failure(but(SCRAM, SSL_CAFILE="{folder}/other-ca.pem"), PRODUCE, tls_failed(UNTRUSTED)),
    Failure(
        but(SCRAM, BOOTSTRAP_SERVERS="{LOCALHOST}"), CONSUME, tls_failed(MISMATCH, "LOCALHOST")
    ),
    Failure(NO_CERTIFICATE, PRODUCE, tls_failed("…certificate…", "SSL")),
    Failure(as_user("reader"), PRODUCE, unpublished("open")),
    Failure(as_user(WRITER), (*PRODUCE, "-t", "closed"), unpublished("closed")),
    Failure(as_user("creator"), (*PRODUCE, "-t", "new"), f"cannot create topic new: {NO_RIGHT}"),
    Failure(as_user(WRITER), CONSUME, unreadable("open")),
    Failure(as_user(WRITER), ("consumer", "-t", "closed"), unreadable("closed")),
    Failure(as_user("watcher"), (*CONSUME, "-t", "empty"), unreadable("empty")),
    Failure(as_user("reader"), (*CONSUME, "-g", "readers"), unreadable("open", NO_GROUP_RIGHT)),
    Failure(as_user("watcher"), (*LIST, "open"), unlisted("open")),
    Failure(as_user("watcher"), (*LIST, "empty", "-g", "g"), unlisted("empty", NO_GROUP_RIGHT)),
    unreachable("producer", "NOBODY", "connection refused"),
    unreachable("consumer", "SILENCE", "no response"),
    unreachable("producer", "NOWHERE", "unknown host kafka.invalid"),
]


def start_refused(
    secured: Secured, folder: Path, server: ForkServer
) -> list[tuple[Failure, Running]]:
    """Start them all side by side, as many of them keep trying for 16 seconds.

    The client's log (-v) is needed where its answer may be lost.
    """
    running = []
    for number, failure in enumerate(REFUSALS):
        scripts = secured.scripts(folder / f"refused-{number}", failure.settings, server)
        flags = ["-v"] if failure.answer else []
        process = scripts.start(*failure.arguments, *flags, env={"STREAM_TEST_PATIENCE": "2"})
        running.append((failure, process))
    return running


def check_refused(secured: Secured, running: list[tuple[Failure, Running]]) -> None:
    for failure, process in running:
        done = process.end()
        script = failure.arguments[0]
        log, [line] = split_log(script, done.stderr)
        sentence = secured.fill(failure.expected("\n".join(log)))
        assert (done.returncode, done.stdout) == (1, b""), failure
        assert fits(f"{script}.py: {sentence}", line), line
        assert not re.search(r"\[|_ssl", line), failure
        assert bool(log) == bool(failure.answer), failure
        assert b"secret" not in done.stderr, failure


def check_round_trip(
    secured: Secured, folder: Path, settings: dict[str, str], server: ForkServer
) -> None:
    """All three scripts, with their settings in .env alone."""
    topic = folder.name
    tweets = f"{topic}-tweets"
    with XApi() as api:
        x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        scripts = secured.scripts(folder, {**settings, **x}, server)
        following = scripts.start("twitter-stream", "-t", tweets, "-n", 20)
        done = scripts.run("producer", "-t", topic, "-K", ":", input=b"a:1\nb:2\n")
        assert (done.returncode, done.stdout) == (0, b""), done.stderr
        assert done.stderr.decode() == f"producer.py: published 2 events to {topic}\n"
        done = following.end()
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    published = f"published 20 tweets to {tweets} (0 reconnects, 0 skipped)"
    assert done.stderr.decode() == f"twitter-stream.py: {published}\n"
    running = scripts.start("consumer", "-t", topic, "-e", "-K", ":", "-g", topic)
    printed = scripts.run("consumer", "-t", tweets, "-e")
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert printed.stdout == b"".join(line + b"\n" for line in api.sent[:20])
    printed = running.end()
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert sorted(printed.stdout.splitlines()) == [b"a:1", b"b:2"]


def check_lists(secured: Secured, folder: Path, server: ForkServer) -> None:
    """DESCRIBE is enough to list a topic, and a group's place in it; others are left out."""
    scripts = secured.scripts(folder / "watcher", as_user("watcher"), server)
    topics = scripts.start("consumer", "--list")
    group = scripts.start("consumer", "--list", "-t", "empty", "-g", "watched")
    for listing, line in (
        (topics, b"empty  1 partition  0 events\n"),
        (group, b"partition 0  first 0  end 0  leader 1  committed -  lag -\n"),
    ):
        done = listing.end()
        assert (done.returncode, done.stdout, done.stderr) == (0, line, b"")


@pytest.mark.long
def test_a_secured_kafka_lets_in_whom_it_should_and_refuses_the_others(
    secured: Secured, tmp_path: Path, server: ForkServer
) -> None:
    """One test for everything that `make test` shows of it, as then only one worker starts it."""
    refused = start_refused(secured, tmp_path, server)
    folders = [tmp_path / f"way-{number}" for number in range(len(WAYS))]
    with ThreadPoolExecutor(len(WAYS)) as pool:
        trips = [
            pool.submit(check_round_trip, secured, folder, settings, server)
            for folder, settings in zip(folders, WAYS.values(), strict=True)
        ]
    for trip in trips:
        trip.result()
    scripts = secured.scripts(tmp_path / "writer", as_user(WRITER), server)
    done = scripts.run("producer", "-t", "open", input=b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"producer.py: published 2 events to open\n")
    check_lists(secured, tmp_path, server)
    check_refused(secured, refused)


def test_a_certificate_and_a_key_that_do_not_fit(
    tmp_path: Path, configure: Callable[..., Path], refusal: Callable[..., tuple[Any, str]]
) -> None:
    """They are found before anything connects."""
    save_certificates(tmp_path)

    def options_with(changed: dict[str, str]) -> Any:
        settings = but({**TLS, "KAFKA_BOOTSTRAP_SERVERS": ""}, **changed).items()
        configure("".join(f"{name}={value}\n" for name, value in settings).format(folder=tmp_path))
        return Kafka(read_settings().kafka, None, False).options(KafkaConsumer)

    certificate = f"cannot use KAFKA_SSL_CERTFILE={tmp_path}/client.pem: "
    advice = ". Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD."
    for changed, sentence in (
        ({"SSL_CAFILE": "{folder}/broker.key"}, "cannot use KAFKA_SSL_CAFILE=…: no certificate …"),
        ({"SSL_KEYFILE": "{folder}/broker.key"}, f"{certificate}…{advice}"),
        ({"SSL_PASSWORD": ""}, f"{certificate}wrong password or not a PEM file{advice}"),
    ):
        status, message = refusal(options_with, changed)
        assert status == 2
        assert fits(sentence, message), message
    assert options_with({})["ssl_context"].get_ca_certs()


@pytest.mark.stress
@pytest.mark.parametrize(("user", "may_read"), [("everyone", True), (WRITER, False)])
def test_backfill_after_a_restart_needs_the_right_to_read(
    secured: Secured, tmp_path: Path, server: ForkServer, user: str, may_read: bool
) -> None:
    """Without it, the script says so once and continues; topic open has a recent event."""
    with XApi() as api:
        x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        scripts = secured.scripts(tmp_path / "scripts", {**as_user(user), **x}, server)
        done = scripts.run("twitter-stream", "-t", "open", "-n", 5, "--backfill")
    assert done.returncode == 0
    refusal = (
        "twitter-stream.py: cannot read topic open: not authorized. --backfill cannot fill the "
        "gap since the last run; it needs the READ permission on the topic.\n"
    )
    *others, _ = done.stderr.decode().splitlines(keepends=True)
    assert [line for line in others if "no tweets" not in line] == [refusal] * (not may_read)
    assert ("backfill_minutes" in api.requests[0].query) == may_read


@pytest.mark.stress
def test_the_list_has_only_what_the_user_may_see(
    secured: Secured, tmp_path: Path, server: ForkServer
) -> None:
    """Whoever has a right to a topic may also see it; the user reader has none to topic closed."""
    scripts = secured.scripts(tmp_path / "scripts", as_user("reader"), server)
    topics = scripts.start("consumer", "--list", "--json")
    closed = scripts.start("consumer", "--list", "-t", "closed")
    group = scripts.start("consumer", "--list", "-t", "open", "-g", "readers")
    done = topics.end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["topic"] for line in done.stdout.splitlines()] == ["open"]
    for listing, sentence in ((closed, f"closed: {NO_RIGHT}"), (group, f"open: {NO_GROUP_RIGHT}")):
        done = listing.end()
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr.decode() == f"consumer.py: cannot list topic {sentence}\n"


SHOW_EVERYTHING = """
import logging, runpy, sys, kafka
for name in list(logging.root.manager.loggerDict):
    if name.startswith("kafka."):
        logging.getLogger(name).setLevel(logging.DEBUG)
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.stress
def test_no_password_is_shown_at_any_log_level(
    secured: Secured, tmp_path: Path, topic: str, server: ForkServer
) -> None:
    """At DEBUG kafka-python logs what it sends, passwords included; -v itself stops at INFO."""
    running = []
    with XApi() as api:
        for way, settings in WAYS.items():
            x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
            scripts = secured.scripts(tmp_path / way, {**settings, **x}, server)
            for script in SCRIPTS:
                options: dict[str, Any] = {"cwd": scripts.folder}  # -c imports config.py from there
                flags = ("-t", topic, "-n", "1", "-v")
                python, *arguments = scripts.call(script, flags, options)
                script_run = Running([python, "-c", SHOW_EVERYTHING, *arguments], options)
                running.append((way, script_run))
        for way, script_run in running:
            command_line = Path(f"/proc/{script_run.process.pid}/cmdline").read_bytes()
            done = script_run.end()
            assert done.returncode == 0, done.stderr
            assert b": kafka.net.connection: " in done.stderr
            assert b"***" in done.stderr or "PLAIN" not in way  # the others send no password
            assert b"secret" not in command_line + done.stdout + done.stderr


def test_git_ignores_the_env_file() -> None:
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()
