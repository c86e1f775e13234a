"""Settings in .env and the environment, and the messages when they lead to no connection."""

import re
import shutil
import socket
import time
from pathlib import Path

from broker import Broker, free_ports, listeners_of
from x_api import Step, XApi

import pytest
from conftest import (
    CODEC_PACKAGES,
    REPOSITORY,
    SCRIPTS,
    Read,
    Running,
    Scripts,
    read_summary,
    values,
    without,
)

NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
TOKEN = {"BEARER_TOKEN": "secret-token"}
SASL = {"KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}
PLAIN = {**SASL, "KAFKA_SASL_MECHANISM": "PLAIN"}
LOGIN = {
    **PLAIN,
    "KAFKA_SASL_PLAIN_USERNAME": "user",
    "KAFKA_SASL_PLAIN_PASSWORD": "hidden",
}
CHECK_SERVERS = "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."


def check_failure(running: Running, script: str, sentence: str, status: int = 1) -> None:
    """Wait for a script to fail with one message, given as a regular expression."""
    done = running.end()
    assert (done.returncode, done.stdout) == (status, b"")
    assert re.fullmatch(rf"{script}\.py: {sentence}\n", done.stderr.decode()), done.stderr


# ------------------------------------------------------------------ the connection


def test_no_broker(lone_scripts: Scripts) -> None:
    """Side by side, as each of them keeps trying for 8 seconds."""
    reasons = {
        "127.0.0.1:1": f"connection refused. {CHECK_SERVERS}",
        "localhost:1": f"connection refused. {CHECK_SERVERS}",
        "nowhere.invalid:9092": (
            "unknown host nowhere.invalid. "
            "Check KAFKA_BOOTSTRAP_SERVERS and the broker's advertised.listeners."
        ),
    }
    began = time.monotonic()
    running = [
        (script, address, lone_scripts.start(script, env={**servers(address), **TOKEN}))
        for script in SCRIPTS
        for address in reasons
    ]
    for script, address, process in running:
        sentence = f"cannot connect to Kafka at {address}: {reasons[address]}"
        check_failure(process, script, re.escape(sentence))
    assert time.monotonic() - began < 16


def servers(address: str) -> dict[str, str]:
    return {"KAFKA_BOOTSTRAP_SERVERS": address}


def test_b_overrides_the_setting(scripts: Scripts, topic: str, kafka: Broker) -> None:
    (scripts.folder / ".env").write_text("KAFKA_BOOTSTRAP_SERVERS=127.0.0.1:1\n")
    arguments = ("-b", f"127.0.0.1:1,{kafka.address}", "-t", topic)
    done = scripts.run("producer", *arguments, input=b"line\n", env=NOWHERE)
    assert (done.returncode, done.stderr.decode()) == (
        0,
        f"producer.py: published 1 event to {topic}\n",
    )
    with XApi([Step()]) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, **NOWHERE}
        done = scripts.run("twitter-stream", *arguments, "-n", 1, env=env)
    assert (done.returncode, read_summary(done.stderr).published) == (0, 1)
    done = scripts.run("consumer", *arguments, "-n", 1, env=NOWHERE)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"line\n", b"")


def test_no_broker_at_b(lone_scripts: Scripts) -> None:
    process = lone_scripts.start("consumer", "-b", "[::1]:1,127.0.0.1:1")
    sentence = r"cannot connect to Kafka at \[::1\]:1,127\.0\.0\.1:1: connection refused\. "
    check_failure(process, "consumer", sentence + r"Is it running there\? Check -b\.")


@pytest.mark.parametrize("text", ["", ":9092", "host:", "host:0", "host:65536", "a,,b", "a b:1"])
def test_b_wants_brokers(lone_scripts: Scripts, text: str) -> None:
    process = lone_scripts.start("producer", "-b", text)
    sentence = rf"argument -b: '{re.escape(text)}' is not in the form HOST:PORT,HOST:PORT\. See --"
    check_failure(process, "producer", f"{sentence}help.", 2)


def test_a_broker_whose_own_address_cannot_be_reached(tmp_path: Path) -> None:
    """Common for a broker in a container; the script reaches it only at a different address."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        advertised = {
            "UNKNOWN": "kafka.invalid:9092",
            "REFUSED": "127.0.0.1:1",
            "SILENT": f"127.0.0.1:{silent.getsockname()[1]}",
        }
        causes = {
            "UNKNOWN": "unknown host kafka.invalid",
            "REFUSED": "connection refused",
            "SILENT": "no response",
        }
        protocols = dict.fromkeys(["CONTROLLER", "PLAINTEXT", *advertised], "PLAINTEXT")
        [port] = free_ports(1)
        settings = {
            "advertised.listeners": listeners_of({"PLAINTEXT": f"127.0.0.1:{port}", **advertised}),
            "listener.security.protocol.map": ",".join(map(":".join, protocols.items())),
        }
        with Broker(port, settings=settings, listeners=list(advertised)) as broker:
            scripts = Scripts(tmp_path / "scripts", {})
            running = [
                (script, name, scripts.start(script, "-b", broker.addresses[name], "-t", "new"))
                for script in ("producer", "consumer")
                for name in advertised
            ]
            for script, name, process in running:
                what = "create" if script == "producer" else "read"
                sentence = (
                    f"cannot {what} topic new: cannot reach {advertised[name]}, the address that "
                    f"Kafka gives for its broker: {causes[name]}. Is it running there? "
                    "Check the broker's advertised.listeners."
                )
                check_failure(process, script, re.escape(sentence))


def test_the_default_is_localhost(lone_scripts: Scripts) -> None:
    """This holds whether or not the developer has a broker there."""
    running = lone_scripts.start("consumer", "-v")
    running.wait_for(lambda it: re.search(rb" at localhost:9092 ", it.err))


def test_a_port_that_never_answers(lone_scripts: Scripts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        running = [
            lone_scripts.start("consumer", env={**servers(address), **security})
            for security in ({}, {"KAFKA_SECURITY_PROTOCOL": "SSL"}, LOGIN)
        ]
        sentence = f"cannot connect to Kafka at {address}: no response. {CHECK_SERVERS}"
        for process in running:
            check_failure(process, "consumer", re.escape(sentence))
        assert time.monotonic() - began < 16


def test_the_wrong_security_protocol(scripts: Scripts) -> None:
    """TLS, and a login, where the broker expects neither."""
    address = re.escape(scripts.env["KAFKA_BOOTSTRAP_SERVERS"])
    check = r"Check KAFKA_SECURITY_PROTOCOL and KAFKA_{}_\*\."
    reasons = [
        ({"KAFKA_SECURITY_PROTOCOL": "SSL"}, f"TLS failed: [^.]+. {check.format('SSL')}"),
        (LOGIN, f"the broker does not support this login. {check.format('SASL')}"),
    ]
    running = [scripts.start("consumer", env=security) for security, _ in reasons]
    for process, (_, reason) in zip(running, reasons, strict=True):
        check_failure(process, "consumer", f"cannot connect to Kafka at {address}: {reason}")


# ------------------------------------------------------------------ what is checked first


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("security", "missing"),
    [
        (SASL, "KAFKA_SASL_MECHANISM"),
        (PLAIN, "KAFKA_SASL_PLAIN_USERNAME"),
        ({**LOGIN, "KAFKA_SASL_PLAIN_PASSWORD": ""}, "KAFKA_SASL_PLAIN_PASSWORD"),
    ],
)
def test_an_incomplete_login(
    lone_scripts: Scripts, script: str, security: dict[str, str], missing: str
) -> None:
    began = time.monotonic()
    process = lone_scripts.start(script, env={**NOWHERE, **TOKEN, **security})
    sentence = f"{missing} is missing; SASL_PLAINTEXT needs it. See .env.example."
    check_failure(process, script, re.escape(sentence), 2)
    assert time.monotonic() - began < 8, "it tried to connect"


def test_a_login_with_scram_needs_a_password_and_over_tls_too(lone_scripts: Scripts) -> None:
    security = {"KAFKA_SECURITY_PROTOCOL": "sasl_ssl", "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}
    env = {**NOWHERE, **security, "KAFKA_SASL_PLAIN_USERNAME": "user"}
    sentence = r"KAFKA_SASL_PLAIN_PASSWORD is missing; SASL_SSL needs it\. See \.env\.example\."
    check_failure(lone_scripts.start("consumer", env=env), "consumer", sentence, 2)


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("CAFILE", "missing", "cannot read {} (KAFKA_SSL_CAFILE): No such file or directory"),
        ("CERTFILE", "missing", "cannot read {} (KAFKA_SSL_CERTFILE): No such file or directory"),
        ("KEYFILE", "missing", "cannot read {} (KAFKA_SSL_KEYFILE): No such file or directory"),
        ("CAFILE", "", "cannot read {} (KAFKA_SSL_CAFILE): Is a directory"),
        ("CAFILE", "text", "cannot use {} (KAFKA_SSL_CAFILE): no certificate or crl found"),
        (
            "CERTFILE",
            "text",
            "cannot use {0} (KAFKA_SSL_CERTFILE) with key {0}: wrong password or not a "
            "PEM file. Check KAFKA_SSL_KEYFILE and KAFKA_SSL_PASSWORD.",
        ),
    ],
)
def test_a_file_for_tls_is_named(
    lone_scripts: Scripts, tmp_path: Path, name: str, file: str, sentence: str
) -> None:
    (tmp_path / "text").write_text("no PEM\n")
    path = tmp_path / file
    env = {**NOWHERE, "KAFKA_SECURITY_PROTOCOL": "SSL", f"KAFKA_SSL_{name}": str(path)}
    process = lone_scripts.start("producer", "-n", 1, env=env)
    check_failure(process, "producer", re.escape(sentence.format(path)), 2)


# ------------------------------------------------------------------ .env


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "KAFKA_BOOTSTRAP_SERVER=x",
            "unknown setting KAFKA_BOOTSTRAP_SERVER in {}; did you mean KAFKA_BOOTSTRAP_SERVERS?",
        ),
        (
            "kafka_sasl_mechanism=x",
            "unknown setting kafka_sasl_mechanism in {}; did you mean KAFKA_SASL_MECHANISM?",
        ),
        ("BEARER=x", "unknown setting BEARER in {}; did you mean BEARER_TOKEN?"),
        ("BEARER_TOKEN=first\nsecondhalf", "line 2 of {} is not NAME=VALUE. See .env.example."),
        ("what is this", "line 1 of {} is not NAME=VALUE. See .env.example."),
        ("\n# a comment\n\nwhat is this", "line 4 of {} is not NAME=VALUE. See .env.example."),
        (
            "KAFKA_SECURITY_PROTOCOL=SASL-SSL",
            "KAFKA_SECURITY_PROTOCOL must be PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL. "
            "See .env.example.",
        ),
        (
            "KAFKA_BOOTSTRAP_SERVERS=localhost:abc",
            "KAFKA_BOOTSTRAP_SERVERS must be in the form HOST:PORT,HOST:PORT. See .env.example.",
        ),
        (
            "KAFKA_COMPRESSION_TYPE=rar",
            "KAFKA_COMPRESSION_TYPE must be none, gzip, snappy, lz4 or zstd. See .env.example.",
        ),
        (
            "KAFKA_SECURITY_PROTOCOL=SSL\nKAFKA_SSL_CRLFILE=/dev/null/x",
            "cannot read /dev/null/x (KAFKA_SSL_CRLFILE): Not a directory",
        ),
        (
            "KAFKA_SECURITY_PROTOCOL=SSL\nKAFKA_SSL_CRLFILE=/etc/passwd",
            "cannot use /etc/passwd (KAFKA_SSL_CRLFILE): no certificate or crl found",
        ),
        (
            "KAFKA_SECURITY_PROTOCOL=SSL\nKAFKA_SSL_CIPHERS=rot13",
            "cannot use KAFKA_SSL_CIPHERS=rot13: No cipher can be selected",
        ),
        ("KAFKA_LINGER_MS=soon", "KAFKA_LINGER_MS must be a whole number. See .env.example."),
        (
            "KAFKA_SSL_CHECK_HOSTNAME=maybe",
            "KAFKA_SSL_CHECK_HOSTNAME must be true or false. See .env.example.",
        ),
    ],
)
def test_a_bad_env_file(lone_scripts: Scripts, text: str, sentence: str) -> None:
    path = lone_scripts.folder / ".env"
    path.write_text(f"{text}\n")
    env = {} if "SERVERS=" in text else NOWHERE
    process = lone_scripts.start("producer", "-n", 1, env=env)
    check_failure(process, "producer", re.escape(sentence.format(path)), 2)


@pytest.mark.parametrize(("codec", "module", "package"), CODEC_PACKAGES)
def test_a_codec_whose_package_is_missing(
    lone_scripts: Scripts, tmp_path: Path, codec: str, module: str, package: str
) -> None:
    env = {**NOWHERE, **without(module, tmp_path), "KAFKA_COMPRESSION_TYPE": codec.upper()}
    process = lone_scripts.start("producer", "-n", 1, env=env)
    sentence = f"cannot use KAFKA_COMPRESSION_TYPE={codec}: the package {package} is not installed"
    check_failure(process, "producer", f"{sentence}. Run: pip install -r requirements.txt", 2)


def test_a_setting_that_the_scripts_decide(lone_scripts: Scripts) -> None:
    path = lone_scripts.folder / ".env"
    path.write_text("KAFKA_ACKS=1\n")
    process = lone_scripts.start("producer", "-n", 1, env=NOWHERE)
    sentence = rf"unknown setting KAFKA_ACKS in {re.escape(str(path))}; did you mean KAFKA_\w+\?"
    check_failure(process, "producer", sentence, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("KAFKA_CLIENT_DNS_LOOKUP=foo", r"client_dns_lookup must be one of .*; got 'foo'"),
        (
            "KAFKA_ENABLE_IDEMPOTENCE=true\nKAFKA_RETRIES=0",
            "enable_idempotence=True is incompatible with .*retries=0",
        ),
    ],
)
def test_a_setting_that_the_client_rejects(scripts: Scripts, text: str, words: str) -> None:
    """The words are the client's own."""
    (scripts.folder / ".env").write_text(f"{text}\n")
    process = scripts.start("producer", "-n", 1)
    sentence = rf"the Kafka client rejects a KAFKA_\* setting: {words}"
    check_failure(process, "producer", sentence, 2)


def test_an_env_file_in_the_current_folder_is_named_as_it_is_seen_there(
    lone_scripts: Scripts,
) -> None:
    (lone_scripts.folder / ".env").write_text("TYPO=1\n")
    process = lone_scripts.start("consumer", cwd=lone_scripts.folder)
    sentence = r"unknown setting TYPO in \.env; did you mean \w+\?"
    check_failure(process, "consumer", sentence, 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_an_env_file_of_windows(lone_scripts: Scripts, encoding: str) -> None:
    """PowerShell's > and Notepad begin UTF-16 with a byte order mark."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = f"{mark}# größe\r\nKAFKA_BOOTSTRAP_SERVERS=127.0.0.1:9\r\n"
    (lone_scripts.folder / ".env").write_bytes(text.encode(encoding))
    sentence = (
        "cannot connect to Kafka at 127.0.0.1:9: connection refused. "
        "Is it running there? Check KAFKA_BOOTSTRAP_SERVERS."
    )
    check_failure(lone_scripts.start("consumer", "-e"), "consumer", re.escape(sentence), 1)


def test_an_env_file_of_two_encodings(lone_scripts: Scripts) -> None:
    path = lone_scripts.folder / ".env"
    path.write_bytes(b"KAFKA_CLIENT_ID=a\r\n" + "BEARER_TOKEN=b\r\n".encode("utf-16-le"))
    sentence = (
        f"cannot read {path}: part of it is UTF-16 text, which Windows PowerShell's >> writes. "
        "Save it as UTF-8."
    )
    check_failure(lone_scripts.start("consumer"), "consumer", re.escape(sentence), 2)


def test_a_path_in_double_quotes(lone_scripts: Scripts) -> None:
    text = 'KAFKA_SECURITY_PROTOCOL=SSL\nKAFKA_SSL_CAFILE="C:\\new\\tls\\ca.pem"\n'
    (lone_scripts.folder / ".env").write_text(text)
    sentence = (
        r"cannot read C:\new\tls\ca.pem (KAFKA_SSL_CAFILE): in double quotes, a \ and the letter "
        "after it are a special character. Put the path in single quotes."
    )
    check_failure(lone_scripts.start("consumer"), "consumer", re.escape(sentence), 2)


def test_an_unreadable_env_file(lone_scripts: Scripts) -> None:
    path = lone_scripts.folder / ".env"
    path.write_bytes(b"BEARER_TOKEN=\xff\n")
    sentence = f"cannot read {path}: it is not UTF-8 text. Save it as UTF-8."
    check_failure(lone_scripts.start("consumer"), "consumer", re.escape(sentence), 2)
    path.unlink()
    path.mkdir()
    sentence = f"cannot read {path}: Is a directory"
    check_failure(lone_scripts.start("consumer"), "consumer", re.escape(sentence), 2)


def test_the_env_file_is_the_one_beside_the_scripts(lone_scripts: Scripts, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".env").write_text("NONSENSE=1\n")
    path = lone_scripts.folder / ".env"
    path.write_text("TYPO=1\n")
    process = lone_scripts.start("consumer", cwd=elsewhere)
    sentence = rf"unknown setting TYPO in {re.escape(str(path))}; did you mean \w+\?"
    check_failure(process, "consumer", sentence, 2)


# ------------------------------------------------------------------ what they change


def test_the_environment_overrides_the_env_file(scripts: Scripts, topic: str, read: Read) -> None:
    address = scripts.env.pop("KAFKA_BOOTSTRAP_SERVERS")
    (scripts.folder / ".env").write_text(
        f"# comment\n\nKAFKA_BOOTSTRAP_SERVERS='{address}' # end\n"
        "export KAFKA_LINGER_MS=1\nKAFKA_SSL_CAFILE=\n"
    )
    assert scripts.run("producer", "-t", topic, input=b"first\n").returncode == 0
    process = scripts.start("producer", "-t", topic, env={"KAFKA_LINGER_MS": "soon"})
    sentence = r"KAFKA_LINGER_MS must be a whole number\. See \.env\.example\."
    check_failure(process, "producer", sentence, 2)
    done = scripts.run("producer", "-t", topic, input=b"second\n", env=servers(""))
    assert done.returncode == 0, "an empty variable counts as unset"
    assert values(read(topic)) == [b"first", b"second"]


def test_strangers_in_the_environment_are_ignored(scripts: Scripts, topic: str) -> None:
    strangers = {"KAFKA_HOME": "/opt/kafka", "KAFKA_HEAP_OPTS": "-Xmx1g", "KAFKA_ACKS": "0"}
    done = scripts.run("producer", "-t", topic, "-n", 1, env=strangers)
    published = f"producer.py: published 1 event to {topic}\n"
    assert (done.returncode, done.stderr.decode()) == (0, published)


def test_settings_reach_only_the_clients_that_know_them(scripts: Scripts, topic: str) -> None:
    env = {
        "KAFKA_COMPRESSION_TYPE": "gzip",
        "KAFKA_MAX_POLL_RECORDS": "10",
        "KAFKA_ISOLATION_LEVEL": "read_committed",
    }
    done = scripts.run("producer", "-t", topic, "-n", 1, env=env)
    assert (done.returncode, done.stderr.decode().count("\n")) == (0, 1)
    done = scripts.run("consumer", "-t", topic, "-e", env=env)
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (0, 1, b"")


def test_a_setting_changes_what_it_says(scripts: Scripts, topic: str) -> None:
    env = {"KAFKA_MAX_REQUEST_SIZE": "1000"}
    done = scripts.run("producer", "-t", topic, input=b"x" * 2000, env=env)
    limits = "larger than the topic's max.message.bytes or KAFKA_MAX_REQUEST_SIZE"
    event = f"event 1 (2000 bytes): {limits}"
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"producer.py: skipped {event}\n"
        f"producer.py: published 0 events to {topic}, 1 failed: {event}\n"
    )


def test_every_line_of_env_example_is_a_setting(scripts: Scripts, topic: str) -> None:
    """With each setting uncommented, every name is accepted."""
    example = (REPOSITORY / ".env.example").read_text()
    names = re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)
    known = {"BEARER_TOKEN", "STREAM_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SASL_MECHANISM"}
    assert known <= set(names)
    published = f"producer.py: published 1 event to {topic}\n"
    (scripts.folder / ".env").write_text("".join(f"{name}=\n" for name in names))
    done = scripts.run("producer", "-t", topic, "-n", 1)
    assert (done.returncode, done.stderr.decode()) == (0, published)
    shutil.copy(REPOSITORY / ".env.example", scripts.folder / ".env")
    done = scripts.run("producer", "-t", topic, "-n", 1)
    assert (done.returncode, done.stderr.decode()) == (0, published)
