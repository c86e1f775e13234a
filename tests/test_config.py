"""Settings, usage and the errors that every script tells, in processes without a Kafka or with a real one."""

import ast
import contextlib
import importlib.util
import io
import itertools
import os
import re
import shutil
import socket
import time
import tokenize
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, SOURCES, Running, Scripts

ALL = ["producer", "consumer", "twitter-stream"]
TOKEN = {"BEARER_TOKEN": "secret-token"}


def test_no_broker(lone_scripts: Scripts) -> None:
    """Side by side, as each of them tries for 8 seconds."""
    right = "is Kafka running there, is KAFKA_BOOTSTRAP_SERVERS right?: "
    reasons = {
        "127.0.0.1:1": f"{right}.*ECONNREFUSED",
        "localhost:1": f"{right}.*ECONNREFUSED",
        "nowhere.invalid:9092": f"{right}DNS lookup failed for nowhere.invalid:9092, .*",
    }
    began = time.monotonic()
    running = [
        (script, address, lone_scripts.start(script, env={"KAFKA_BOOTSTRAP_SERVERS": address, **TOKEN}))
        for script in ALL
        for address in reasons
    ]
    for script, address, each in running:
        done = each.end()
        assert (done.returncode, done.stdout) == (1, b"")
        sentence = f"{script}.py: no connection to Kafka at {address}: {reasons[address]}\n"
        assert re.fullmatch(sentence.replace("?", "\\?"), done.stderr.decode()), done.stderr
    assert time.monotonic() - began < 12


def test_the_default_is_localhost(lone_scripts: Scripts) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # a broker of the developer's runs there
            taken.bind(("127.0.0.1", 9092))  # nobody listens, and nobody can
        done = lone_scripts.run("consumer", "-e", "-t", "surely-not-there")
    assert done.returncode == 1
    assert b"localhost:9092" in done.stderr or b"surely-not-there" in done.stderr


def test_a_port_that_never_answers(lone_scripts: Scripts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        env = {"KAFKA_BOOTSTRAP_SERVERS": address}
        running = [
            lone_scripts.start("consumer", env={**env, "KAFKA_SECURITY_PROTOCOL": protocol})
            for protocol in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT")
        ]
        for each in running:
            done = each.end()
            assert done.returncode == 1
            assert re.fullmatch(rf"consumer.py: no connection to Kafka at {address}: .*\n", done.stderr.decode())
        assert time.monotonic() - began < 12


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SSL"}, "no TLS connection, check KAFKA_SECURITY_PROTOCOL and KAFKA_SSL_*"),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA_SASL_MECHANISM": "PLAIN",
                "KAFKA_SASL_PLAIN_USERNAME": "user",
                "KAFKA_SASL_PLAIN_PASSWORD": "hidden",
            },
            "check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*",
        ),
    ],
)
def test_the_wrong_security_protocol(scripts: Scripts, env: dict[str, str], reason: str) -> None:
    done = scripts.run("consumer", env=env)
    assert done.returncode == 1
    assert reason in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert b"hidden" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["producer", "-n", "0"], "argument -n: '0' is no whole number from 1 to 999999999"),
        (["producer", "-n", "-1"], "argument -n: (expected one argument|'-1' is no whole number from 1 to 999999999)"),
        (["producer", "-n", "x"], "argument -n: 'x' is no whole number from 1 to 999999999"),
        (["producer", "--partitions", "0"], "argument --partitions: '0' is no whole number from 1 to 999999999"),
        (["producer", "--partitions", "1000000000"], "argument --partitions: '1000000000' is no whole number .*"),
        (["producer", "--interval", "soon"], "argument --interval: 'soon' is no number of seconds"),
        (["producer", "--interval", "nan"], "argument --interval: 'nan' is no number of seconds"),
        (["producer", "--topic-config", "x"], "argument --topic-config: 'x' is no NAME=VALUE"),
        (["producer", "-t", "a b"], "argument -t: 'a b' is no topic name: .*"),
        (["consumer", "-t", ""], "argument -t: '' is no topic name: .*"),
        (["consumer", "-t", ".."], "argument -t: '..' is no topic name: .*"),
        (["consumer", "-t", "x" * 250], "argument -t: 'x+' is no topic name: .*"),
        (["consumer", "surplus"], "unrecognized arguments: surplus"),
        (["consumer", "--lat"], "unrecognized arguments: --lat"),
        (["twitter-stream", "--param", "lang"], "argument --param: 'lang' is no NAME=VALUE"),
    ],
)
def test_usage(lone_scripts: Scripts, arguments: list[str], sentence: str) -> None:
    done = lone_scripts.run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(rf"{arguments[0]}.py: ({sentence}); see --help\n", done.stderr.decode())


@pytest.mark.parametrize("script", ALL)
def test_help_opens_with_what_the_script_does_and_shows_examples(lone_scripts: Scripts, script: str) -> None:
    done = lone_scripts.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    first, _, rest = done.stdout.decode().partition("\n")
    assert re.match(r"(Publish|Print|Republish) ", first)
    assert f"\nexamples:\n  {script}.py" in rest
    assert "exit status" in rest.lower()


NO_SETTING = "{} in .* is no setting of these scripts, do you mean {}\\?"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("KAFKA_BOOTSTRAP_SERVER=x", NO_SETTING.format("KAFKA_BOOTSTRAP_SERVER", "KAFKA_BOOTSTRAP_SERVERS")),
        ("kafka_sasl_mechanism=x", NO_SETTING.format("kafka_sasl_mechanism", "KAFKA_SASL_MECHANISM")),
        ("BEARER=x", NO_SETTING.format("BEARER", "BEARER_TOKEN")),
        ("KAFKA_ACKS=1", NO_SETTING.format("KAFKA_ACKS", ".*")),
        ("BEARER_TOKEN=first\nsecondhalf", NO_SETTING.format("a line", ".*")),
        (
            "KAFKA_SECURITY_PROTOCOL=SASL-SSL",
            "KAFKA_SECURITY_PROTOCOL cannot have this value, see .env.example; its type is str",
        ),
        ("what is this", ".*: could not parse statement starting at line 1"),
        ("KAFKA_LINGER_MS=soon", "KAFKA_LINGER_MS cannot have this value, see .env.example; its type is int"),
        (
            "KAFKA_SSL_CHECK_HOSTNAME=maybe",
            "KAFKA_SSL_CHECK_HOSTNAME cannot have this value, see .env.example; its type is bool",
        ),
        ("KAFKA_CLIENT_DNS_LOOKUP=foo", "KAFKA_\\* settings: client_dns_lookup must be one of .*"),
        ("KAFKA_ENABLE_IDEMPOTENCE=true\nKAFKA_RETRIES=0", "KAFKA_\\* settings: .*incompatible.*"),
    ],
)
def test_a_bad_env_file(scripts: Scripts, line: str, sentence: str) -> None:
    (scripts.folder / ".env").write_text(f"{line}\n")
    done = scripts.run("producer", "-n", 1)
    assert (done.returncode, done.stdout) == (2, b"")
    assert re.fullmatch(f"producer.py: {sentence}\n", done.stderr.decode()), done.stderr


def test_an_unreadable_env_file(scripts: Scripts) -> None:
    (scripts.folder / ".env").write_bytes(b"BEARER_TOKEN=\xff\n")
    done = scripts.run("consumer")
    assert done.returncode == 2
    assert re.fullmatch(r"consumer.py: cannot read .*\.env: .*\n", done.stderr.decode())


def test_the_environment_overrides_the_env_file(scripts: Scripts, topic: str) -> None:
    address = scripts.env.pop("KAFKA_BOOTSTRAP_SERVERS")
    (scripts.folder / ".env").write_text(
        f"# comment\n\nKAFKA_BOOTSTRAP_SERVERS='{address}' # end\nexport KAFKA_LINGER_MS=1\nKAFKA_SSL_CAFILE=\n"
    )
    assert scripts.run("producer", "-t", topic, "-n", 1).returncode == 0
    done = scripts.run("producer", "-t", topic, "-n", 1, env={"KAFKA_LINGER_MS": "soon"})
    assert done.returncode == 2
    done = scripts.run("producer", "-t", topic, "-n", 1, env={"KAFKA_BOOTSTRAP_SERVERS": ""})
    assert done.returncode == 0, "an empty variable is as none"


def test_strangers_in_the_environment_are_ignored(scripts: Scripts, topic: str) -> None:
    strangers = {"KAFKA_HOME": "/opt/kafka", "KAFKA_HEAP_OPTS": "-Xmx1g", "KAFKA_ACKS": "0"}
    assert scripts.run("producer", "-t", topic, "-n", 1, env=strangers).returncode == 0


def test_the_env_file_is_the_one_beside_the_scripts(lone_scripts: Scripts, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".env").write_text("NONSENSE=1\n")
    (lone_scripts.folder / ".env").write_text("TYPO=1\n")
    done = lone_scripts.run("consumer", cwd=elsewhere)
    assert done.returncode == 2
    assert f"TYPO in {lone_scripts.folder}/.env is no setting".encode() in done.stderr


def test_settings_reach_only_the_clients_that_know_them(scripts: Scripts, topic: str) -> None:
    env = {"KAFKA_COMPRESSION_TYPE": "gzip", "KAFKA_MAX_POLL_RECORDS": "10", "KAFKA_ISOLATION_LEVEL": "read_committed"}
    assert scripts.run("producer", "-t", topic, "-n", 1, env=env).returncode == 0
    assert scripts.run("consumer", "-t", topic, "-e", env=env).stdout.count(b"\n") == 1


def test_a_setting_changes_what_it_says(scripts: Scripts, topic: str) -> None:
    env = {"KAFKA_MAX_REQUEST_SIZE": "1000"}
    done = scripts.run("producer", "-t", topic, input=b"x" * 2000, env=env)
    assert done.returncode == 1
    assert b"event 1 of 2000 bytes" in done.stderr


def test_every_line_of_env_example_is_a_setting(scripts: Scripts, topic: str) -> None:
    """With every comment sign in front of a setting taken off, the file is accepted name by name."""
    example = (REPOSITORY / ".env.example").read_text()
    names = re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE)
    assert {"BEARER_TOKEN", "STREAM_URL", "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SASL_MECHANISM"} <= set(names)
    (scripts.folder / ".env").write_text("".join(f"{name}=\n" for name in names))
    assert scripts.run("producer", "-t", topic, "-n", 1).returncode == 0
    shutil.copy(REPOSITORY / ".env.example", scripts.folder / ".env")
    assert scripts.run("producer", "-t", topic, "-n", 1).returncode == 0


def test_nobody_reads_standard_error(scripts: Scripts, topic: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = scripts.start("producer", "-t", topic, "-n", 1, stderr=writer).end()
    os.close(writer)
    assert done.returncode == 0


def test_the_sources_are_small() -> None:
    """Lines of code: neither blank, nor comment, nor docstring."""
    total = 0
    for name in SOURCES:
        text = (REPOSITORY / name).read_text()
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.string.strip() and token.type != tokenize.COMMENT:
                code.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                code -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        assert len(code) < 180, name
        total += len(code)
    assert total < 630


@pytest.mark.parametrize("script", ALL)
@pytest.mark.parametrize("missing", ["dotenv", "kafka", "requests"])
def test_a_package_that_is_not_installed(lone_scripts: Scripts, tmp_path: Path, script: str, missing: str) -> None:
    """An interpreter without site-packages has of the three those that stand before the missing one."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in itertools.takewhile(lambda name: name != missing, ["dotenv", "kafka", "requests"]):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        (packages / name).symlink_to(Path(found.origin).parent)
    options: dict[str, Any] = {"env": {"PYTHONPATH": str(packages)}}
    command = lone_scripts.call(script, ("--help",), options)
    done = Running([command[0], "-S", *command[1:]], options).end()
    if missing == "requests" and script != "twitter-stream":
        assert (done.returncode, done.stderr) == (0, b"")
    else:
        assert (done.returncode, done.stdout) == (1, b"")
        advice = "install the packages, see Install in README.md (pip install -r requirements.txt)"
        assert done.stderr.decode() == f"{script}.py: {advice}: No module named '{missing}'\n"
