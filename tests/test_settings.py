"""Settings in .env and the environment, and the messages when they lead to no connection."""

import codecs
import itertools
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from errno import EISDIR, ENOENT
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors

from broker import ReservedPort
from config import read_settings
from conftest import REPOSITORY, SCRIPTS, Read, Scripts, fits, split_log, values, without
from streaming.kafka_client import Kafka

pytestmark = pytest.mark.versions

Configure = Callable[..., Path]
Refusal = Callable[..., tuple[Any, str]]

TOKEN = {"BEARER_TOKEN": "secret-token"}
LOGIN = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_PLAIN_USERNAME": "user",
    "KAFKA_SASL_PLAIN_PASSWORD": r"""secret'"[(.*\secret$""",
}
TLS = {"KAFKA_SECURITY_PROTOCOL": "SSL"}
CHECK_SERVERS = "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
CHECK_TLS = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*."
CHECK_LOGIN = "Check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*."


def servers(address: str) -> dict[str, str]:
    return {"KAFKA_BOOTSTRAP_SERVERS": address}


# ------------------------------------------------------------------ no connection


class Failure(NamedTuple):
    """A run that finds no Kafka, and the sentence with the cause; … stands for OpenSSL's words."""

    script: str
    address: str
    cause: str
    env: dict[str, str] = {}  # noqa: RUF012
    flags: tuple[str, ...] = ()


def failures(real: str, port: int, other_port: int, silent: str) -> list[Failure]:
    """What there is at each address: Kafka itself, nobody at the ports, and one who is silent."""
    nobody, host = f"127.0.0.1:{port}", "nowhere.invalid"
    two = f"127.0.0.1:{port},127.0.0.1:{other_port}"
    refused = "connection refused. Is it running there? Check"
    unknown = f"unknown host {host}. Check KAFKA_BOOTSTRAP_SERVERS and the broker's …"
    no_login = f"the broker does not support this login. {CHECK_LOGIN}"
    resolver = {"RES_OPTIONS": "timeout:1 attempts:1"}  # where no resolver answers
    return [
        *(Failure(name, nobody, f"{refused} KAFKA_BOOTSTRAP_SERVERS.") for name in SCRIPTS),
        Failure("consumer", two, f"{refused} -b.", flags=("-b", two)),
        Failure("producer", f"{host}:9092", unknown, resolver),
        *(Failure("consumer", silent, f"no response. {CHECK_SERVERS}", env) for env in ({}, TLS)),
        Failure("consumer", real, f"TLS failed: …. {CHECK_TLS}", TLS),
        Failure("producer", real, no_login, LOGIN),
        Failure("consumer", real, no_login, LOGIN, flags=("-v",)),
    ]


@pytest.mark.long
def test_a_failing_connect_ends_with_its_cause(scripts: Scripts, port: int) -> None:
    """All side by side, as each of them keeps trying for 8 seconds times the patience.

    No message has more than the cause and the advice, such as an error's class or OpenSSL's codes.
    """
    patience = 2
    real = scripts.env.pop("KAFKA_BOOTSTRAP_SERVERS")
    with ReservedPort() as other_port, socket.create_server(("127.0.0.1", 0)) as server:
        cases = failures(real, port, other_port, f"127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        running = []
        for script, address, _, env, flags in cases:
            env = {**servers(address), **TOKEN, "STREAM_TEST_PATIENCE": str(patience), **env}
            running.append(scripts.start(script, *flags, env=env))
        for (script, address, cause, _, flags), process in zip(cases, running, strict=True):
            done = process.end()
            assert (done.returncode, done.stdout) == (1, b""), (script, address, done.stderr)
            log, [line] = split_log(script, done.stderr)
            assert fits(f"{script}.py: cannot connect to Kafka at {address}: {cause}", line), line
            assert not re.search(r"\w+Error|\[|_ssl", line)
            assert bool(log) == ("-v" in flags)
            assert b"secret" not in done.stderr
        assert time.monotonic() - began >= 8 * patience


# What Pythons 3.10 to 3.13 with OpenSSL 1.1.1 to 3.5 say of a handshake, and put around it
HANDSHAKE_FAILURES = [
    "unexpected eof while reading",
    "TLS/SSL connection has been closed (EOF)",
    "certificate verify failed: self-signed certificate in certificate chain",
    "certificate verify failed: Hostname mismatch, certificate is not valid for 'localhost'",
]
CODES = ["", "[SSL] ", "[SSL: UNEXPECTED_EOF_WHILE_READING] ", "[Errno 104] "]
PLACES = ["", ".", " (_ssl.c:992)", ". (_ssl.c:1007)"]
# With TLS 1.3, a broker refuses a client's certificate only after the handshake
LATER_FAILURES = ["ssl/tls alert bad certificate", "decryption failed or bad record mac"]


def configured() -> Kafka:
    """The cluster that the settings are about."""
    return Kafka(read_settings().kafka, None, False)


def reason_after(*messages: str) -> str:
    """What the user is told after these entries in the client's log."""
    kafka = configured()
    for message in messages:
        kafka.log.emit(logging.makeLogRecord({"msg": message}))
    return str(kafka.explain(errors.KafkaConnectionError()))


def test_whatever_the_words_a_failure_of_tls_is_explained(configure: Configure) -> None:
    failures = [
        *itertools.product(["Handshake failed: "], CODES, HANDSHAKE_FAILURES, PLACES),
        *itertools.product([""], CODES, LATER_FAILURES, [" (_ssl.c:2580)"]),
    ]
    for phase, code, cause, place in failures:
        error = f"KafkaConnectionError: {phase}{code}{cause}{place}"
        for entry in (
            f"Bootstrap connection to bootstrap-0 failed: {error} (backoff 0.09 secs)",
            f"<KafkaConnection node_id=1 host=a:1>: Connection lost: {error}",
        ):
            assert reason_after(entry) == f"TLS failed: {cause}. {CHECK_TLS}", entry


def test_a_failure_of_tls_names_the_files_in_use(
    configure: Configure, certificate: tuple[str, str, str]
) -> None:
    chain, key, root = certificate
    files = f"KAFKA_SSL_CAFILE={root}\nKAFKA_SSL_CERTFILE={chain}\nKAFKA_SSL_KEYFILE={key}\n"
    login = "KAFKA_SASL_MECHANISM=PLAIN\nKAFKA_SASL_PLAIN_USERNAME=a\nKAFKA_SASL_PLAIN_PASSWORD=b\n"
    named = (
        f" (KAFKA_SSL_CAFILE is {root}, KAFKA_SSL_CERTFILE is {chain}, KAFKA_SSL_KEYFILE is {key})"
    )
    entry = "Connection lost: KafkaConnectionError: Handshake failed: [SSL] nonsense (_ssl.c:1)"
    for protocol, expected in (("sasl_ssl", named), ("plaintext", "")):
        configure(f"KAFKA_SECURITY_PROTOCOL={protocol}\n{files}{login}")
        assert reason_after(entry) == f"TLS failed: nonsense{expected}. {CHECK_TLS}"


def test_the_reason_for_a_refusal_outlives_answers_that_are_lost(configure: Configure) -> None:
    """Each attempt is logged; where its answer was lost, only that the connection was closed."""
    no_user = "Authentication failed: no such user"
    refusals = {
        f"[Error 58] SaslAuthenticationFailedError: {no_user}": f"login refused: {no_user}",
        "[Error 33] UnsupportedSaslMechanismError": "the broker does not support this login",
        "InvalidReceiveError: 352518912": "not a Kafka response",
        "socket disconnected": "the broker closed the connection",
    }
    assert reason_after() == f"no response. {CHECK_SERVERS}"
    for answer, cause in refusals.items():
        entries = [
            f"Bootstrap connection to bootstrap-0 failed: {reason} (backoff 0.93 secs)"
            for reason in ("socket disconnected", answer, "socket disconnected")
        ]
        advice = CHECK_TLS if "Invalid" in answer else CHECK_LOGIN
        assert reason_after(*entries) == f"{cause}. {advice}"
        later = reason_after(*entries, "Connection lost: 111 ECONNREFUSED")
        assert later == f"connection refused. {CHECK_SERVERS}"


# ------------------------------------------------------------------ what is checked first


SASL = "KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT\n"
PLAIN = f"{SASL}KAFKA_SASL_MECHANISM=PLAIN\n"
SCRAM = (
    "KAFKA_SECURITY_PROTOCOL=sasl_ssl\nKAFKA_SASL_MECHANISM=SCRAM-SHA-256\n"
    "KAFKA_SASL_PLAIN_USERNAME=user\n"
)
SSL = "KAFKA_SECURITY_PROTOCOL=SSL\n"
PROTOCOLS = "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
UNKNOWN = "unknown setting {} in {{path}}; did you mean {}?"
NOT_A_NAME = "{path}: expected NAME=VALUE on every line. See .env.example."
NO_ASSIGNMENT = "{path}, near line 3: expected NAME=VALUE. See .env.example."
MUST_BE = "KAFKA_{} must be {}. See .env.example."
MISSING = "KAFKA_SASL_{} is missing; {} needs it. See .env.example."
UNREADABLE = "cannot use KAFKA_SSL_{1}={0}: {2}"
ESCAPED = r"cannot use KAFKA_SSL_CAFILE='C:\new\tls\\ca.pem': …. Put the path in single quotes."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("BEARER=x", UNKNOWN.format("BEARER", "BEARER_TOKEN")),
        ("KAFKA_ACKS=1", UNKNOWN.format("KAFKA_ACKS", "KAFKA_…")),  # the scripts decide it
        ("kafka_client_id=x", UNKNOWN.format("kafka_client_id", "KAFKA_CLIENT_ID")),
        (
            "BEARER_TOKEN=first\nsecondhalf",
            NOT_A_NAME,
        ),
        ("secret2half=", NOT_A_NAME),
        (
            "\n# a comment\n\nwhat is this",
            NO_ASSIGNMENT,
        ),
        ("KAFKA_SECURITY_PROTOCOL=SASL-SSL", MUST_BE.format("SECURITY_PROTOCOL", PROTOCOLS)),
        ("KAFKA_BOOTSTRAP_SERVERS=a:b", MUST_BE.format("BOOTSTRAP_SERVERS", "in the form …,…")),
        ("KAFKA_COMPRESSION_TYPE=rar", MUST_BE.format("COMPRESSION_TYPE", "none, …, lz4 or zstd")),
        ("KAFKA_LINGER_MS=1.5", MUST_BE.format("LINGER_MS", "a whole number")),
        ("KAFKA_SSL_CHECK_HOSTNAME=no", MUST_BE.format("SSL_CHECK_HOSTNAME", "true or false")),
        (SASL, MISSING.format("MECHANISM", "SASL_PLAINTEXT")),
        (PLAIN, MISSING.format("PLAIN_USERNAME", "SASL_PLAINTEXT")),
        (f"{SCRAM}KAFKA_SASL_PLAIN_PASSWORD=", MISSING.format("PLAIN_PASSWORD", "SASL_SSL")),
        (f"{SSL}KAFKA_SSL_KEYFILE=/no", UNREADABLE.format("/no", "KEYFILE", os.strerror(ENOENT))),
        (f"{SSL}KAFKA_SSL_CAFILE=/", UNREADABLE.format("/", "CAFILE", os.strerror(EISDIR))),
        (f"{SSL}KAFKA_SSL_CIPHERS=rot13", "cannot use KAFKA_SSL_CIPHERS=rot13: No cipher …"),
        (f'{SSL}KAFKA_SSL_CAFILE="C:\\new\\tls\\ca.pem"', ESCAPED),
    ],
)
def test_a_bad_setting(configure: Configure, refusal: Refusal, text: str, sentence: str) -> None:
    path = configure(text)
    status, message = refusal(configured)
    assert status == 2
    assert fits(sentence.format(path=path), message), message


def test_an_env_file_that_cannot_be_read(configure: Configure, refusal: Refusal) -> None:
    path = configure(b"KAFKA_CLIENT_ID=a\r\n" + "BEARER_TOKEN=b\r\n".encode("utf-16-le"))
    sentence = f"cannot read {path}: part of it is UTF-16 text, which Windows PowerShell's >> "
    assert refusal(read_settings) == (2, f"{sentence}writes. Save it as UTF-8.")
    configure(b"BEARER_TOKEN=\xff\n")
    sentence = f"cannot read {path}: it is not UTF-8 text. Save it as UTF-8."
    assert refusal(read_settings) == (2, sentence)
    path.unlink()
    path.mkdir()
    assert refusal(read_settings) == (2, f"cannot read {path}: {os.strerror(EISDIR)}")
    path.rmdir()
    path.symlink_to("not-mounted")
    sentence = f"cannot read {path}: it is a link to a file that does not exist"
    assert refusal(read_settings) == (2, sentence)


def test_an_env_file_of_windows(configure: Configure) -> None:
    """PowerShell's > and Notepad begin UTF-16 with a byte order mark."""
    for encoding, mark in (
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
    ):
        configure(mark + "KAFKA_CLIENT_ID=größe\r\n# größe\r\n".encode(encoding))
        assert read_settings().kafka["client_id"] == "größe"


def test_a_codec_whose_package_is_missing(scripts: Scripts, tmp_path: Path) -> None:
    env = {"KAFKA_COMPRESSION_TYPE": "ZSTD", **without("zstandard", tmp_path)}
    done = scripts.run("producer", "-n", 1, env=env)
    sentence = (
        "producer.py: the Kafka client rejects a KAFKA_* setting: the package for zstd compression "
        "is not installed. Run: pip install -r requirements.txt\n"
    )
    assert (done.returncode, done.stderr.decode()) == (2, sentence)


def test_a_setting_that_the_client_rejects(scripts: Scripts) -> None:
    """The words are the client's own."""
    in_flight = "max_in_flight_requests_per_connection"
    for env, words in (
        ({"KAFKA_CLIENT_DNS_LOOKUP": "foo"}, "client_dns_lookup must be one of …; got 'foo'"),
        ({"KAFKA_RETRIES": "0"}, "enable_idempotence=True is incompatible with …retries=0"),
        ({f"KAFKA_{in_flight.upper()}": "6"}, f"enable_idempotence=True …{in_flight}=6"),
    ):
        done = scripts.run("producer", "-n", 1, env=env)
        assert (done.returncode, done.stdout) == (2, b"")
        sentence = f"producer.py: the Kafka client rejects a KAFKA_* setting: {words}\n"
        assert fits(sentence, done.stderr.decode()), done.stderr


def test_a_script_looks_at_its_own_env_file_before_it_connects(
    lone_scripts: Scripts, tmp_path: Path
) -> None:
    """The one beside it, whatever the current folder. Nobody listens, or the status would be 1."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".env").write_text("NONSENSE=1\n")
    path = lone_scripts.folder / ".env"
    path.write_text("TYPO=1\n")
    runs = {
        (script, name): lone_scripts.start(script, env={**servers("127.0.0.1:1"), **TOKEN}, cwd=cwd)
        for cwd, name in ((elsewhere, str(path)), (lone_scripts.folder, ".env"))
        for script in SCRIPTS
    }
    for (script, name), process in runs.items():
        done = process.end()
        assert (done.returncode, done.stdout) == (2, b"")
        sentence = f"{script}.py: unknown setting TYPO in {name}; did you mean …?\n"
        assert fits(sentence, done.stderr.decode()), done.stderr


# ------------------------------------------------------------------ what they change


def test_settings_reach_only_the_clients_that_know_them(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as the type that the client wants; strangers in the environment are ignored."""
    strangers = {"KAFKA_HOME": "/opt/kafka", "KAFKA_HEAP_OPTS": "-Xmx1g", "KAFKA_ACKS": "0"}
    numbers = {"KAFKA_LINGER_MS": "5", "KAFKA_REQUEST_TIMEOUT_MS": "7000", "KAFKA_RETRIES": ""}
    for name, value in {**strangers, **numbers}.items():
        monkeypatch.setenv(name, value)
    configure(
        "# comment\n\nKAFKA_LINGER_MS=1 # the environment overrides it\n"
        "export KAFKA_COMPRESSION_TYPE=None\nKAFKA_SSL_CHECK_HOSTNAME=FALSE\n"
        "KAFKA_MAX_POLL_RECORDS='10'\nKAFKA_RETRIES=3\nKAFKA_SSL_CAFILE=\n"
        'KAFKA_CLIENT_ID="a ${HOME}#c"\nKAFKA_SECURITY_PROTOCOL=plaintext\n'
    )
    common = {
        "reconnect_backoff_max_ms": 1000,
        "bootstrap_servers": "localhost:9092",
        "client_id": "a ${HOME}#c",
        "request_timeout_ms": 7000,
        "security_protocol": "PLAINTEXT",
        "ssl_check_hostname": False,
    }
    publishing = {"linger_ms": 5, "compression_type": None, "retries": 3, "acks": "all"}
    kafka = configured()
    assert kafka.options(KafkaAdminClient) == common
    assert kafka.options(KafkaConsumer) == {**common, "max_poll_records": 10}
    found = kafka.options(KafkaProducer, linger_ms=100, acks="all")
    assert found == {**common, **publishing}


@pytest.mark.parametrize(
    ("mechanism", "sent"), [("PLAIN", "a,o=x=2C"), ("SCRAM-SHA-512", "a=2Co=3Dx=3D2C")]
)
def test_only_scram_escapes_the_user_name(configure: Configure, mechanism: str, sent: str) -> None:
    configure(
        f"KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT\nKAFKA_SASL_MECHANISM={mechanism}\n"
        "KAFKA_SASL_PLAIN_USERNAME='a,o=x=2C'\nKAFKA_SASL_PLAIN_PASSWORD=secret\n"
    )
    assert configured().options(KafkaProducer)["sasl_plain_username"] == sent


def test_every_line_of_env_example_is_a_setting(configure: Configure) -> None:
    """With each setting uncommented, every name is accepted."""
    example = (REPOSITORY / ".env.example").read_text()
    names = re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)
    known = {"BEARER_TOKEN", "STREAM_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SASL_MECHANISM"}
    assert known <= set(names)
    for text in (example, "".join(f"{name}=\n" for name in names)):
        configure(text)
        assert read_settings() == ("", "", {})


def test_b_overrides_the_environment_and_the_environment_the_env_file(
    scripts: Scripts, topic: str, read: Read, port: int
) -> None:
    """An empty variable counts as unset. The settings change what the scripts do."""
    address = scripts.env.pop("KAFKA_BOOTSTRAP_SERVERS")
    nowhere = f"127.0.0.1:{port}"
    env_file = scripts.folder / ".env"
    shutil.copy(REPOSITORY / ".env.example", env_file)
    with env_file.open("a") as file:
        file.write(f"\nKAFKA_BOOTSTRAP_SERVERS={nowhere}\nKAFKA_COMPRESSION_TYPE=gzip\n")
    done = scripts.run("producer", "-t", topic, input=b"one\n", env=servers(address))
    assert done.returncode == 0
    flags = ("-t", topic, "-b", f"{nowhere},{address}")
    limit = {**servers(nowhere), "KAFKA_MAX_REQUEST_SIZE": "1000"}
    done = scripts.run("producer", *flags, input=b"two\n" + b"x" * 2000, env=limit)
    assert done.returncode == 1
    assert b"1 failed: event 2 (2000 bytes): larger than" in done.stderr
    done = scripts.run("consumer", *flags, "-e", env=servers(nowhere))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\ntwo\n", b"")
    env_file.write_text(f"KAFKA_BOOTSTRAP_SERVERS='{address}' # end\n")
    done = scripts.run("producer", "-t", topic, input=b"three\n", env=servers(""))
    assert done.returncode == 0
    assert set(values(read(topic))) == {b"one", b"two", b"three"}


def test_an_env_file_with_a_secret_that_everybody_can_read_is_reported(
    configure: Configure, capfd: pytest.CaptureFixture[str]
) -> None:
    for mode, text, is_reported in (
        (0o644, "BEARER_TOKEN=hidden", True),
        (0o604, "KAFKA_SASL_PLAIN_PASSWORD=hidden", True),
        (0o604, "KAFKA_PROXY_URL=http://user:hidden@proxy", True),
        (0o640, "BEARER_TOKEN=hidden", False),
        (0o644, "BEARER_TOKEN=\nKAFKA_SASL_PLAIN_USERNAME=user", False),
    ):
        path = configure(text)
        path.chmod(mode)
        read_settings()
        advice = f"{path} contains secrets, but any user can read it. Run: chmod 600 {path}"
        assert capfd.readouterr().err == (f"script.py: {advice}\n" if is_reported else "")
