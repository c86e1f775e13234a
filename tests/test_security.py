"""The scripts and a secured Kafka: SASL, TLS, mutual TLS and ACLs, with all settings in .env; and what stays secret."""

import datetime
import importlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from broker import Broker
from x_api import XApi

import pytest
import trustme
from conftest import REPOSITORY, Result, Running, Scripts
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
# user: what an ACL allows on a topic
RIGHTS = {
    "everyone": (ACLOperation.ALL, "*"),
    "writer": (ACLOperation.WRITE, "open"),
    "reader": (ACLOperation.READ, "open"),
    "creator": (ACLOperation.WRITE, "missing"),  # who may write to it, but not create it
    "nobody": (ACLOperation.ALTER, "open"),
}


def as_user(user: str) -> dict[str, str]:
    return {**SCRAM, "KAFKA_SASL_PLAIN_USERNAME": user, "KAFKA_SASL_PLAIN_PASSWORD": f"secret-of-{user}"}


class Secured(Broker):
    """A broker that asks who you are; only those who come to its PLAINTEXT port may do everything.

    Its `folder` has what the clients need: ca.pem and other-ca.pem, client.pem and client.key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority, other = trustme.CA(), trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        other.cert_pem.write_to_path(folder / "other-ca.pem")
        yesterday = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
        self.save(authority.issue_cert("127.0.0.1"), "broker")
        self.save(authority.issue_cert("127.0.0.1", not_after=yesterday), "expired")
        self.save(authority.issue_cert("client.test", common_name="everyone"), "client", b"secret-of-the-key")
        self.save(other.issue_cert("client.test", common_name="everyone"), "stranger")
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        own = (f"{name}:{name}" for name in ("PLAINTEXT", "SASL_SSL", "SSL"))
        settings = {
            "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", "EXPIRED:SSL", *own]),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "auto.create.topics.enable": "false",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": f'{plain} user_everyone="secret-of-everyone";',
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": folder / "broker-both.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": folder / "ca.pem",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": folder / "expired-both.pem",
        }
        users = [f"SCRAM-SHA-512=[name={user},password=secret-of-{user}]" for user in RIGHTS]
        self.silent = socket.create_server(("127.0.0.1", 0))  # it never answers
        super().__init__(settings=settings, listeners=("SASL_SSL", "SSL", "EXPIRED"), credentials=users)

    def __exit__(self, *arguments: object) -> None:
        super().__exit__(*arguments)
        self.silent.close()

    def save(self, issued: trustme.LeafCert, name: str, password: bytes = b"") -> None:
        """NAME.pem and NAME.key; and both in NAME-both.pem, for the broker. Kafka reads PKCS8 keys only."""
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
        how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)
        chain = issued.cert_chain_pems[0].bytes()
        for suffix, content in ((".pem", chain), (".key", text), ("-both.pem", text + chain)):
            (self.folder / f"{name}{suffix}").write_bytes(content)

    def scripts(self, folder: Path, settings: dict[str, str]) -> Scripts:
        """The scripts, with these settings in .env and nothing in the environment."""
        folder.mkdir(exist_ok=True)
        names = {**self.addresses, "PLAINTEXT": self.address, "folder": self.folder}
        names["LOCALHOST"] = self.addresses["SASL_SSL"].replace("127.0.0.1", "localhost")
        names["SILENT"] = f"127.0.0.1:{self.silent.getsockname()[1]}"
        lines = [f"{name}={value.format(**names)}\n" for name, value in settings.items()]
        (folder / ".env").write_text("".join(lines))
        (folder / ".env").chmod(0o600)
        return Scripts(folder, {})


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    broker = Secured(tmp_path_factory.mktemp("secured"))
    with broker:
        with KafkaAdminClient(bootstrap_servers=broker.address) as admin:
            admin.create_topics({"open": {"num_partitions": 1}, "closed": {"num_partitions": 1}})
            rules = [(user, operation, ResourceType.TOPIC, name) for user, (operation, name) in RIGHTS.items()]
            rules.append(("everyone", ACLOperation.ALL, ResourceType.GROUP, "*"))
            rules.append(("everyone", ACLOperation.CREATE, ResourceType.CLUSTER, "kafka-cluster"))
            for user, operation, kind, name in rules:
                resource = ResourcePattern(kind, name)
                admin.create_acls([ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, resource)])
        with KafkaProducer(bootstrap_servers=broker.address) as producer:
            producer.send("open", b"an event").get(10)
        yield broker


@pytest.mark.parametrize("way", WAYS)
def test_round_trips_with_the_settings_in_the_env_file(secured: Secured, tmp_path: Path, topic: str, way: str) -> None:
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
    assert done.stderr.decode() == f"twitter-stream.py: published 20 tweets to {tweets} (0 reconnects, 0 skipped)\n"
    running = scripts.start("consumer", "-t", topic, "-e", "-K", ":", "-g", topic)
    printed = scripts.run("consumer", "-t", tweets, "-e")
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert printed.stdout == b"".join(line + b"\n" for line in api.sent[:20])
    printed = running.end()
    assert (printed.returncode, printed.stderr) == (0, b"")
    assert sorted(printed.stdout.splitlines()) == [b"a:1", b"b:2"]


NO_CONNECTION = r"no connection to Kafka at (127\.0\.0\.1|localhost):\d+: "
NO_TLS = NO_CONNECTION + r"no TLS connection, check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_\*: "
NO_LOGIN = NO_CONNECTION + r"check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_\*: "
ENDED = ".*socket disconnected"  # kafka-python may lose an answer that the end of the connection follows at once
NO_PAIR = "cannot use KAFKA_SSL_CERTFILE, KAFKA_SSL_KEYFILE or KAFKA_SSL_PASSWORD: "
NO_RIGHT = r"no right to do this, the user needs an ACL: \[Error {}\] {}AuthorizationFailedError"
NO_TOPIC_RIGHT = NO_RIGHT.format(29, "Topic")
NO_FILE = r"\[Errno 2\] No such file or directory"
WRONG = "secret-wrong"
ONE, END = ("producer", "-n", 1, "-t", "open"), ("consumer", "-e", "-t", "open")


def but(settings: dict[str, str], **changed: str) -> dict[str, str]:
    """The settings with some of them changed, by their names without KAFKA_."""
    return {**settings, **{f"KAFKA_{name}": value for name, value in changed.items()}}


# settings, arguments, status, sentence; those that last longest first
FAILURES: dict[str, tuple[dict[str, str], tuple[object, ...], int, str]] = {
    "wrong SCRAM password": (
        but(SCRAM, SASL_PLAIN_PASSWORD=WRONG),
        ONE,
        1,
        f"{NO_LOGIN}(.*invalid credentials with SASL mechanism SCRAM-SHA-512|{ENDED})",
    ),
    "wrong PLAIN password": (
        but(PLAIN, SASL_PLAIN_PASSWORD=WRONG),
        END,
        1,
        f"{NO_LOGIN}(.*Invalid username or password|{ENDED})",
    ),
    "unknown user": (
        {**as_user("unknown"), "BEARER_TOKEN": "secret-token"},
        ("twitter-stream",),
        1,
        f"{NO_LOGIN}(.*invalid credentials with SASL mechanism SCRAM-SHA-512|{ENDED})",
    ),
    "no password": (but(SCRAM, SASL_PLAIN_PASSWORD=""), END, 1, f"{NO_LOGIN}.*NoneType.*"),
    "unsupported mechanism": (
        but(SCRAM, SASL_MECHANISM="SCRAM-SHA-256"),
        END,
        1,
        f"{NO_LOGIN}(.*UnsupportedSaslMechanismError|{ENDED})",
    ),
    "wrong CA": (but(SCRAM, SSL_CAFILE="{folder}/other-ca.pem"), ONE, 1, f"{NO_TLS}.*unable to get .*issuer cert.*"),
    "the system's CAs": (but(TLS, SSL_CAFILE=""), END, 1, f"{NO_TLS}.*unable to get .*issuer cert.*"),
    "expired certificate": (
        but(TLS, BOOTSTRAP_SERVERS="{EXPIRED}"),
        ONE,
        1,
        f"{NO_TLS}.*certificate has expired.*",
    ),
    "host name mismatch": (
        but(SCRAM, BOOTSTRAP_SERVERS="{LOCALHOST}"),
        END,
        1,
        f"{NO_TLS}.*Hostname mismatch, certificate is not valid for 'localhost'.*",
    ),
    "PLAINTEXT to the SASL_SSL port": (
        {"KAFKA_BOOTSTRAP_SERVERS": "{SASL_SSL}"},
        ONE,
        1,
        f"({NO_TLS}InvalidReceiveError: .*|{NO_LOGIN}{ENDED})",
    ),
    "PLAINTEXT to the SSL port": (
        {"KAFKA_BOOTSTRAP_SERVERS": "{SSL}"},
        END,
        1,
        f"({NO_TLS}InvalidReceiveError: .*|{NO_LOGIN}{ENDED})",
    ),
    "SASL_PLAINTEXT to the SASL_SSL port": (
        but(SCRAM, SECURITY_PROTOCOL="SASL_PLAINTEXT"),
        END,
        1,
        f"({NO_TLS}InvalidReceiveError: .*|{NO_LOGIN}{ENDED})",
    ),
    "TLS to the PLAINTEXT port": (but(TLS, BOOTSTRAP_SERVERS="{PLAINTEXT}"), ONE, 1, f"{NO_TLS}.*"),
    "SASL_SSL to the PLAINTEXT port": (but(SCRAM, BOOTSTRAP_SERVERS="{PLAINTEXT}"), END, 1, f"{NO_TLS}.*"),
    "TLS to a port that never answers": (
        but(TLS, BOOTSTRAP_SERVERS="{SILENT}"),
        ONE,
        1,
        rf"{NO_CONNECTION}is Kafka running there, is KAFKA_BOOTSTRAP_SERVERS right\?: no answer",
    ),
    "no client certificate": (
        but(TLS, SSL_CERTFILE="", SSL_KEYFILE="", SSL_PASSWORD=""),
        ONE,
        1,
        f"{NO_TLS}.*(BAD_CERTIFICATE|CERTIFICATE_REQUIRED).*",
    ),
    "a stranger's client certificate": (
        but(TLS, SSL_CERTFILE="{folder}/stranger.pem", SSL_KEYFILE="{folder}/stranger.key"),
        END,
        1,
        f"{NO_TLS}.*(CERTIFICATE_UNKNOWN|UNKNOWN_CA).*",
    ),
    "no right to write": (
        as_user("reader"),
        ONE,
        1,
        "published 0 events to open, 1 failed: event 1 of .* bytes: no right to do this, the user needs an ACL: .*",
    ),
    "no right to know": (
        as_user("writer"),
        ("producer", "-n", 1, "-t", "closed"),
        1,
        f"published 0 events to closed, 1 failed: event 1 of .* bytes: {NO_TOPIC_RIGHT}: closed",
    ),
    "no right to create": (
        as_user("creator"),
        ("producer", "-n", 1, "-t", "missing"),
        1,
        f"cannot create topic missing: {NO_TOPIC_RIGHT}",
    ),
    "no right to read": (as_user("writer"), END, 1, f"{NO_TOPIC_RIGHT}: .*'open'.*"),
    "no right to read, endless": (as_user("writer"), ("consumer", "-t", "open"), 1, f"{NO_TOPIC_RIGHT}: .*'open'.*"),
    "no right to know, read": (
        as_user("nobody"),
        ("consumer", "-t", "closed"),
        1,
        f"cannot read topic closed: {NO_TOPIC_RIGHT}",
    ),
    "no right to the group": (
        as_user("reader"),
        ("consumer", "-g", "readers", "-t", "open"),
        1,
        f"{NO_RIGHT.format(30, 'Group')}: readers",
    ),
    "no CA file": (but(SCRAM, SSL_CAFILE="/nowhere"), ONE, 2, f"cannot use KAFKA_SSL_CAFILE: {NO_FILE}"),
    "a CA file that holds none": (
        but(TLS, SSL_CAFILE="{folder}/broker.key"),
        END,
        2,
        "cannot use KAFKA_SSL_CAFILE: .*(certificate|CERTIFICATE).*",
    ),
    "no certificate file": (but(TLS, SSL_CERTFILE="/nowhere"), ONE, 2, NO_PAIR + NO_FILE),
    "another's key": (but(TLS, SSL_KEYFILE="{folder}/broker.key"), END, 2, f"{NO_PAIR}.*KEY_VALUES_MISMATCH.*"),
    "wrong password of the key": (but(TLS, SSL_PASSWORD=WRONG), ONE, 2, f"{NO_PAIR}.*"),
    "no password of the key": (but(TLS, SSL_PASSWORD=""), END, 2, f"{NO_PAIR}.*"),
}


@pytest.fixture(scope="module")
def failed(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[tuple[Result, float]]]:
    """What came of each of the FAILURES, and the seconds it took; side by side, as many try for 8 seconds."""

    def run(scripts: Scripts, arguments: tuple[Any, ...]) -> tuple[Result, float]:
        began = time.monotonic()
        return scripts.run(*arguments, timeout=25), time.monotonic() - began

    jobs = {}
    with ThreadPoolExecutor(len(FAILURES)) as pool:
        for name, (settings, arguments, _, _) in FAILURES.items():
            jobs[name] = pool.submit(run, secured.scripts(tmp_path_factory.mktemp("scripts"), settings), arguments)
            time.sleep(0.4)  # seconds of work that a start is
    return jobs


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_ends_in_one_sentence(failed: dict[str, Future[tuple[Result, float]]], name: str) -> None:
    _, arguments, status, sentence = FAILURES[name]
    done, seconds = failed[name].result()
    assert (done.returncode, done.stdout) == (status, b""), done.stderr
    assert re.fullmatch(rf"{arguments[0]}\.py: {sentence}\n", done.stderr.decode()), done.stderr
    assert b"secret" not in done.stderr
    assert seconds < 15


def test_the_reason_for_a_refused_login_outlives_answers_that_are_lost() -> None:
    """Kafka closes after its answer at once, and kafka-python may see the end alone; each attempt is logged."""
    found = importlib.import_module("config").Reasons()
    refused = "[Error 58] SaslAuthenticationFailedError: Authentication failed: Invalid username or password"
    for reason, kept in (("socket disconnected", "socket disconnected"), (refused, refused)):
        for last in (reason, "socket disconnected"):
            message = f"Bootstrap connection to bootstrap-0 failed: {last} (backoff 0.93 secs)"
            found.emit(logging.makeLogRecord({"msg": message}))
        assert found.last == kept
    found.emit(logging.makeLogRecord({"msg": "Connection lost: 111 ECONNREFUSED"}))
    assert found.last == "111 ECONNREFUSED"


def test_the_right_to_write_to_an_existing_topic_is_enough(secured: Secured, tmp_path: Path) -> None:
    scripts = secured.scripts(tmp_path / "scripts", as_user("writer"))
    done = scripts.run("producer", "-t", "open", input=b"one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, b"producer.py: published 2 events to open\n")


def test_no_password_is_shown_at_any_log_level(secured: Secured, tmp_path: Path, topic: str) -> None:
    """The debug log of kafka-python has passwords in plain text, and twitter-stream.py's requests have the token."""
    start = (
        "import logging, runpy, sys; logging.basicConfig(level=1); logging.debug('all is logged');"
        " runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    running = []
    with XApi() as api:
        for number, settings in enumerate(WAYS.values()):
            x = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
            scripts = secured.scripts(tmp_path / str(number), {**settings, **x})
            for script, *arguments in (("producer", "-n", 1), ("twitter-stream", "-n", 1), ("consumer", "-n", 1)):
                options: dict[str, Any] = {"cwd": scripts.folder}  # from there python -c imports config.py
                command = scripts.call(script, ("-t", f"{topic}-{number}", *arguments), options)
                running.append(Running([command[0], "-c", start, *command[1:]], options))
                assert b"secret" not in Path(f"/proc/{running[-1].process.pid}/cmdline").read_bytes()
        for each in running:
            done = each.end()
            assert done.returncode == 0, done.stderr
            assert b"all is logged" in done.stderr
            assert b"secret" not in done.stdout + done.stderr


def test_git_ignores_the_env_file() -> None:
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")
def test_an_env_file_with_a_secret_that_everybody_can_read_is_told_once(secured: Secured, tmp_path: Path) -> None:
    once, end = ("-t", "open", "-n", 1), ("-t", "open", "-e")
    with XApi() as api:
        x = {"BEARER_TOKEN": api.token, "STREAM_URL": api.url}
        cases: list[tuple[int, dict[str, str], str, tuple[object, ...], bool]] = [
            (0o644, x, "twitter-stream", once, True),
            (0o604, {"KAFKA_SASL_PLAIN_PASSWORD": "secret"}, "producer", once, True),
            (0o644, {"KAFKA_SSL_PASSWORD": "secret"}, "consumer", end, True),
            (0o640, x, "producer", once, False),
            (0o644, {"BEARER_TOKEN": "", "KAFKA_SASL_PLAIN_USERNAME": "user"}, "producer", once, False),
        ]
        running = []
        for number, (mode, settings, script, arguments, _) in enumerate(cases):
            address = {"KAFKA_BOOTSTRAP_SERVERS": "{PLAINTEXT}"}
            scripts = secured.scripts(tmp_path / str(number), {**address, **settings})
            (scripts.folder / ".env").chmod(mode)
            running.append((scripts.folder / ".env", scripts.start(script, *arguments)))
        for (_, _, script, _, told), (path, each) in zip(cases, running, strict=True):
            done = each.end()
            lines = [line for line in done.stderr.decode().splitlines() if "published" not in line]
            sentence = f"{script}.py: every user of this machine can read the secrets in {path}: chmod 600 {path}"
            assert (done.returncode, lines) == (0, [sentence] if told else [])
