"""What a person types, sees and presses: flags, --help, messages, signals and the log."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from x_api import XApi

import pytest
from conftest import SCRIPTS, Read, Scripts, unread_pipe, values, wait_until
from kafka import KafkaProducer

NUMBER = "is not a whole number from 1 to 999999999"
TOPIC = "is not a valid topic name (1 to 249 letters, digits, '.', '_' or '-')"
PAIR = "is not in the form NAME=VALUE"
LOGIN = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_PLAIN_USERNAME": "user",
}
START = 'if __name__ == "__main__":\n    raise SystemExit(main())\n'


def redefine(scripts: Scripts, script: str, code: str) -> None:
    """Make a script's copy run this code in place of its own definitions of the same names."""
    path = scripts.folder / f"{script}.py"
    text = path.read_text()
    assert text.endswith(START)
    path.write_text(f"{text.removesuffix(START)}{code}\n\n{START}")


# ------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["producer", "-n", "0"], f"argument -n: '0' {NUMBER}"),
        (["producer", "-n", "-1"], f"argument -n: '-1' {NUMBER}"),
        (["producer", "-n", "x"], f"argument -n: 'x' {NUMBER}"),
        (["producer", "-n"], "argument -n: expected one argument"),
        (["producer", "--partitions", "0"], f"argument --partitions: '0' {NUMBER}"),
        (
            ["producer", "--partitions", "1000000000"],
            f"argument --partitions: '1000000000' {NUMBER}",
        ),
        (
            ["producer", "--interval", "soon"],
            "argument --interval: 'soon' is not a number of seconds, such as 1 or 0.5",
        ),
        (
            ["producer", "--interval", "nan"],
            "argument --interval: 'nan' is not a number of seconds, such as 1 or 0.5",
        ),
        (["producer", "--topic-config", "x"], f"argument --topic-config: 'x' {PAIR}"),
        (["producer", "-t", "a b"], f"argument -t: 'a b' {TOPIC}"),
        (["consumer", "-t", ""], f"argument -t: '' {TOPIC}"),
        (["consumer", "-t", ".."], f"argument -t: '..' {TOPIC}"),
        (["consumer", "-t", "x" * 250], f"argument -t: '{'x' * 250}' {TOPIC}"),
        (["producer", "-K", ""], "argument -K: '' is not a separator"),
        (["producer", "-K", ":"], "-K needs lines to split: name a FILE, or pipe them in"),
        (["producer", "-Z", "-"], "-Z needs -K"),
        (["producer", "-H", "name"], f"argument -H: 'name' {PAIR}"),
        (["producer", "-H", "=x"], f"argument -H: '=x' {PAIR}"),
        (
            ["producer", "-H", os.fsdecode(b"\xff=x")],
            r"argument -H: the name in '\udcff=x' is not UTF-8",
        ),
        (["consumer", "surplus"], "unrecognized arguments: surplus"),
        (["consumer", "--lat"], "unrecognized arguments: --lat"),
        (["twitter-stream", "--param", "lang"], f"argument --param: 'lang' {PAIR}"),
    ],
)
def test_a_usage_error(lone_scripts: Scripts, arguments: list[str], sentence: str) -> None:
    done = lone_scripts.run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"{arguments[0]}.py: {sentence}. See --help.\n"


def test_a_long_message_is_cut_in_its_middle(lone_scripts: Scripts) -> None:
    done = lone_scripts.run("producer", "-n", "x" * 1000)
    whole = f"producer.py: argument -n: '{'x' * 1000}' {NUMBER}. See --help."
    assert done.returncode == 2
    assert done.stderr.decode() == f"{whole[:300]} ... {whole[-190:]}\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_the_usage_what_the_script_does_and_examples(
    lone_scripts: Scripts, script: str
) -> None:
    """It needs no Kafka, and no settings either."""
    (lone_scripts.folder / ".env").write_text("NONSENSE=1\n")
    done = lone_scripts.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    usage, purpose, examples, *_ = done.stdout.decode().split("\n\n")
    assert usage.startswith(f"usage: {script}.py [-h] [-t TOPIC] [-n COUNT] [-b HOST:PORT[,...]]")
    assert re.match(r"(Publish|Print|Republish) [^\n]+[.:]", purpose)
    assert examples.startswith(f"examples:\n  {script}.py")
    assert "exit status" in done.stdout.decode().lower()


# ------------------------------------------------------------------ standard error


def test_nobody_reads_standard_error(scripts: Scripts, topic: str, read: Read) -> None:
    with unread_pipe() as (unread, writer):
        unread.close()
        running = scripts.start("producer", "-t", topic, "-n", 1, stderr=writer)
        os.close(writer)
        assert running.end().returncode == 0
    assert len(read(topic)) == 1


def test_the_log_of_the_client(scripts: Scripts, topic: str) -> None:
    done = scripts.run("producer", "-v", "-t", topic, input=b"one\ntwo\n")
    published = f"producer.py: published 2 events to {topic}"
    check_log(done.stderr, "producer", published)
    assert (done.returncode, done.stdout) == (0, b"")
    done = scripts.run("consumer", "-v", "-t", topic, "-e")
    check_log(done.stderr, "consumer")
    assert (done.returncode, done.stdout) == (0, b"one\ntwo\n")


def test_the_log_of_the_client_beside_tweets(scripts: Scripts, topic: str) -> None:
    with XApi() as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        done = scripts.run("twitter-stream", "-v", "-t", topic, "-n", 1, env=env)
    published = f"twitter-stream.py: published 1 tweet to {topic} (0 reconnects, 0 skipped)"
    check_log(done.stderr, "twitter-stream", published)
    assert (done.returncode, done.stdout) == (0, b"")


def check_log(stderr: bytes, script: str, *messages: str) -> None:
    """Standard error holds the client's log, and these messages of the script."""
    lines = stderr.decode().splitlines()
    log = [line for line in lines if re.fullmatch(rf"{script}\.py: kafka\.[\w.]+: .+", line)]
    assert any("bootstrap" in line for line in log), lines
    assert [line for line in lines if line not in log] == list(messages)


def test_the_log_of_the_client_shows_no_password(scripts: Scripts) -> None:
    """The client itself writes its settings, and what it sends, at level DEBUG."""
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    message = (
        f"producer.py: cannot connect to Kafka at {address}: "
        "the broker does not support this login. Check KAFKA_SECURITY_PROTOCOL and KAFKA_SASL_*."
    )
    running = []
    for password in ("secret", r"""secret'"[(.*\secret$"""):
        env = {**LOGIN, "KAFKA_SASL_PLAIN_PASSWORD": password}
        running.append(scripts.start("producer", "-v", "-n", 1, env=env))
    for process in running:
        done = process.end()
        check_log(done.stderr, "producer", message)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"secret" not in done.stderr


def test_the_log_of_the_client_is_masked(scripts: Scripts, topic: str) -> None:
    """Here the password is a text that is sure to appear in the log."""
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    env = {"KAFKA_SASL_PLAIN_PASSWORD": address}
    done = scripts.run("producer", "-v", "-t", topic, "-n", 1, env=env)
    check_log(done.stderr, "producer", f"producer.py: published 1 event to {topic}")
    assert b" at *** " in done.stderr
    assert address.encode() not in done.stderr


# ------------------------------------------------------------------ bugs


def test_a_bug_shows_a_traceback_after_all_is_delivered(
    scripts: Scripts, topic: str, read: Read
) -> None:
    """Its text could be that of a client error."""
    text = "'NoneType' object is not subscriptable: ECONNREFUSED"
    redefine(
        scripts,
        "producer",
        "def sample_events(interval, stop):\n"
        "    yield [sample_event(number) for number in (1, 2, 3)]\n"
        f"    raise TypeError({text!r})\n",
    )
    done = scripts.run("producer", "-t", topic)
    assert (done.returncode, done.stdout) == (1, b"")
    summary, begin, *trace, last = done.stderr.decode().splitlines()
    assert summary == f"producer.py: published 3 events to {topic}"
    assert begin == "Traceback (most recent call last):"
    assert any(", in sample_events" in line for line in trace)
    assert last == f"TypeError: {text}"
    assert len(read(topic)) == 3


def test_a_bug_of_the_consumer(scripts: Scripts, topic: str, producer: KafkaProducer) -> None:
    producer.send(topic, b"one").get(10)
    redefine(
        scripts,
        "consumer",
        "def format_event(record, options):\n    return record.key + record.value\n",
    )
    done = scripts.run("consumer", "-t", topic)
    assert (done.returncode, done.stdout) == (1, b"")
    begin, *trace, last = done.stderr.decode().splitlines()
    assert begin == "Traceback (most recent call last):"
    assert any(", in format_event" in line for line in trace)
    assert last == "TypeError: unsupported operand type(s) for +: 'NoneType' and 'bytes'"


def test_a_bug_while_connecting_gets_no_advice(lone_scripts: Scripts) -> None:
    """The client is created in a thread of its own."""
    redefine(
        lone_scripts,
        "consumer",
        "class Consumer(Consumer):\n"
        "    def __init__(self, **options):\n"
        "        options['group_id']['sasl']\n",
    )
    done = lone_scripts.run("consumer")
    assert (done.returncode, done.stdout) == (1, b"")
    begin, *_, last = done.stderr.decode().splitlines()
    assert begin == "Traceback (most recent call last):"
    assert last == "TypeError: 'NoneType' object is not subscriptable"
    assert b"KAFKA_" not in done.stderr


def test_a_traceback_shows_no_secret(lone_scripts: Scripts) -> None:
    secrets = {
        "BEARER_TOKEN": "secret-token",
        "KAFKA_SASL_PLAIN_PASSWORD": "secret-[password",
        "KAFKA_SSL_PASSWORD": "secret",
    }
    redefine(
        lone_scripts,
        "twitter-stream",
        "def stream_url(params):\n"
        "    found = settings()\n"
        f"    raise RuntimeError(' '.join(found[name] for name in {list(secrets)}))\n",
    )
    done = lone_scripts.run("twitter-stream", env=secrets)
    assert (done.returncode, done.stdout) == (1, b"")
    begin, *trace, last = done.stderr.decode().splitlines()
    assert begin == "Traceback (most recent call last):"
    assert any(", in stream_url" in line for line in trace)
    assert last == "RuntimeError: *** *** ***"
    assert b"secret-" not in done.stderr


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_the_slow_imports_ends_silently(
    lone_scripts: Scripts, tmp_path: Path, script: str, number: signal.Signals
) -> None:
    """The package says that it is being imported, and its import never ends."""
    package = tmp_path / "packages" / "kafka"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import threading\nprint('importing', flush=True)\nthreading.Event().wait(60)\n"
    )
    env = {"PYTHONPATH": str(package.parent)}
    running = lone_scripts.start(script, env=env)
    running.wait_for(lambda it: it.out == b"importing\n")
    done = running.end(number)
    assert (done.returncode, done.stderr) == (-number, b"")


# ------------------------------------------------------------------ a system without POSIX


@pytest.fixture
def poor_scripts(scripts: Scripts, tmp_path: Path) -> Scripts:
    """The scripts, run with a Python that has fewer functions, as on Windows.

    os.set_blocking stays: POSIX, unlike Windows, needs it for the pipe to which Python writes
    signals. Only producer.py sees an os.name that says this is Windows.
    """
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "for name in ('setitimer', 'siginterrupt', 'alarm', 'pthread_kill'):\n"
        "    delattr(signal, name)\n"
        "sys.poor = True\n"
    )
    scripts.env["PYTHONPATH"] = str(folder)
    check = "import sys\n\nassert sys.poor\n"
    redefine(scripts, "consumer", check)
    windows = "import types\n\nos = types.SimpleNamespace(**{**vars(os), 'name': 'nt'})\n"
    redefine(scripts, "producer", check + windows)
    return scripts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_pipe_is_silent(
    poor_scripts: Scripts, topic: str, read: Read, number: signal.Signals
) -> None:
    """The source is blocked in a read, with half a line already read."""
    running = poor_scripts.start("producer", "-t", topic, stdin=subprocess.PIPE)
    running.send(b"one\ntwo\nthree\nfou")
    wait_until(running.takes_signals)
    wait_until(lambda: len(read(topic)) == 3)
    began = time.monotonic()
    done = running.end(number)
    assert time.monotonic() - began < 6
    assert (done.returncode, done.stdout) == (128 + number, b"")
    assert done.stderr.decode() == (
        f"producer.py: published 3 events to {topic}, stopped before line 4 of standard input\n"
    )
    assert values(read(topic)) == [b"one", b"two", b"three"]


def test_the_reader_of_the_output_stands_still(
    poor_scripts: Scripts, topic: str, producer: KafkaProducer
) -> None:
    """The script is blocked in a write, and no signal can interrupt it."""
    for _ in range(100):
        producer.send(topic, b"x" * 10_000)
    producer.flush(10)
    with unread_pipe() as (unread, writer):
        running = poor_scripts.start("consumer", "-t", topic, "-e", stdout=writer)
        os.close(writer)
        assert unread.read(1) == b"x"
        began = time.monotonic()
        done = running.end(signal.SIGTERM)
        assert 5 < time.monotonic() - began < 7
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, b"")
