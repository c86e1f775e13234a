"""What a person types, sees and presses: flags, --help, messages, signals and the log."""

import errno
import functools
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import consumer
from broker import Broker
from conftest import (
    SCRIPTS,
    Read,
    Result,
    Running,
    Scripts,
    split_log,
    unread_pipe,
    values,
    wait_until,
)
from streaming.console import say
from streaming.flags import brokers_type
from x_api import Step, XApi

pytestmark = pytest.mark.versions

NUMBER = "is not a whole number from 1 to 999999999"
TOPIC = "is not a valid topic name (1 to 249 letters, digits, '.', '_' or '-')"
PAIR = "is not in the form NAME=VALUE"
SECONDS = "is not a number of seconds, such as 1 or 0.5"
BROKERS = "is not in the form HOST:PORT,HOST:PORT"
Refusal = Callable[..., tuple[Any, str]]


def redefine(scripts: Scripts, part: str, *code: str) -> None:
    """Make the copy of a part of the scripts have these definitions, too."""
    with (scripts.folder / "streaming" / f"{part}.py").open("a") as file:
        file.writelines(f"{line}\n" for line in code)


# ------------------------------------------------------------------ flags


USAGE_ERRORS: dict[tuple[str, ...], str] = {
    ("producer", "-n", "0"): f"argument -n: '0' {NUMBER}",
    ("producer", "--partitions", "1000000000"): f"argument --partitions: '1000000000' {NUMBER}",
    ("producer", "--interval", "soon"): f"argument --interval: 'soon' {SECONDS}",
    ("producer", "--interval", "nan"): f"argument --interval: 'nan' {SECONDS}",
    ("producer", "--topic-config", "x"): f"argument --topic-config: 'x' {PAIR}",
    ("producer", "-t", "a b"): f"argument -t: 'a b' {TOPIC}",
    ("consumer", "-t", ""): f"argument -t: '' {TOPIC}",
    ("consumer", "-t", ".."): f"argument -t: '..' {TOPIC}",
    ("consumer", "-t", "x" * 250): f"argument -t: '{'x' * 250}' {TOPIC}",
    ("producer", "-K", ""): "argument -K: '' is not a separator",
    ("producer", "-K", ":"): "-K needs lines to split: name a FILE, or pipe them in",
    ("producer", "--strip-cr"): "--strip-cr needs lines: name a FILE, or pipe them in",
    ("producer", "-Z", "-"): "-Z needs -K",
    ("producer", "-H", "name"): f"argument -H: 'name' {PAIR}",
    ("producer", "-H", "=x"): f"argument -H: '=x' {PAIR}",
    ("producer", "-H", "\udcff=x"): r"argument -H: the name in '\udcff=x' is not UTF-8",
    ("consumer", "--lat"): "unrecognized arguments: --lat",
    ("twitter-stream", "--param", "lang"): f"argument --param: 'lang' {PAIR}",
    **{
        ("producer", "-b", text): f"argument -b: '{text}' {BROKERS}"
        for text in ("", ":9092", "host:", "host:0", "host:65536", "a,,b", "a b:1", "[::1", "::1")
    },
}


def test_usage_errors(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for (script, *arguments), sentence in USAGE_ERRORS.items():
        parse_flags = importlib.import_module(script).parse_flags
        assert refusal(parse_flags, arguments) == (2, f"{sentence}. See --help.")


def test_brokers_that_b_takes() -> None:
    for text in ("host", "host:65535", "1.2.3.4:1", "[::1]:9092", "[fe80::1%eth0]", "SSL://a:1,b"):
        assert brokers_type(text) == text


def test_a_long_message_is_cut_in_its_middle(refusal: Refusal) -> None:
    whole = f"script.py: argument -n: '{'x' * 1000}' {NUMBER}. See --help."
    cut = f"{whole[:300]} ... {whole[-190:]}".removeprefix("script.py: ")
    assert refusal(consumer.parse_flags, ["-n", "x" * 1000]) == (2, cut)


def test_help_shows_the_usage_what_the_script_does_and_examples(lone_scripts: Scripts) -> None:
    """It needs no Kafka, and no settings either. An unknown flag is a usage error."""
    (lone_scripts.folder / ".env").write_text("NONSENSE=1\n")
    runs = [[lone_scripts.start(each, flag) for flag in ("--help", "--typo")] for each in SCRIPTS]
    for script, (helped, refused) in zip(SCRIPTS, runs, strict=True):
        done = helped.end()
        assert (done.returncode, done.stderr) == (0, b"")
        usage, purpose, examples, *_ = done.stdout.decode().split("\n\n")
        flags = "[-h] [-t TOPIC] [-n COUNT] [-b HOST:PORT[,...]]"
        assert usage.startswith(f"usage: {script}.py {flags}")
        assert re.match(r"(Publish|Print|Republish) [^\n]+[.:]", purpose)
        assert examples.startswith(f"examples:\n  {script}.py")
        assert "exit status" in done.stdout.decode().lower()
        done = refused.end()
        assert (done.returncode, done.stdout) == (2, b"")
        message = f"{script}.py: unrecognized arguments: --typo. See --help.\n"
        assert done.stderr.decode() == message


# ------------------------------------------------------------------ what a script is started in


def run_after(command: str, scripts: Scripts, *call: object, **options: Any) -> Result:
    """Run a script in a shell that has first run this command."""
    script, *arguments = map(str, call)
    line = scripts.call(script, tuple(arguments), options)
    return Running(["bash", "-c", f'{command} && exec "$@"', "bash", *line], options).end()


def test_the_current_folder_has_been_deleted(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """A relative path is a sentence; what needs none works."""
    delete = f"mkdir '{tmp_path}/gone' && cd '{tmp_path}/gone' && rmdir '{tmp_path}/gone'"
    (tmp_path / "lines").write_bytes(b"line\n")
    assert run_after(delete, scripts, "producer", "-t", topic, tmp_path / "lines").returncode == 0
    done = run_after(delete, scripts, "consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"line\n", b"")
    token = {"BEARER_TOKEN": "token"}
    with XApi() as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        done = run_after(delete, scripts, "twitter-stream", "-t", f"{topic}-x", "-n", 1, env=env)
    assert done.returncode == 0, done.stderr
    missing = os.strerror(errno.ENOENT)
    tls = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": "ca.pem"}
    for call, env, sentence in (
        (("producer", "lines"), {}, f"cannot read lines: {missing}"),
        (("consumer",), tls, f"cannot use KAFKA_SSL_CAFILE=ca.pem: {missing}"),
        (("twitter-stream",), {**tls, **token}, f"cannot use KAFKA_SSL_CAFILE=ca.pem: {missing}"),
    ):
        done = run_after(delete, scripts, *call, env=env)
        message = f"{call[0]}.py: {sentence}\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", message)
    env_file = scripts.folder / ".env"
    env_file.write_text("TYPO=1\n")
    done = run_after(delete, scripts, "consumer")
    assert done.returncode == 2
    assert f"unknown setting TYPO in {env_file};".encode() in done.stderr


def test_more_descriptors_than_select_takes(scripts: Scripts, topic: str, tmp_path: Path) -> None:
    """Those from 3 to 1,100 are open already, so that all that a script opens comes after them."""
    occupy = 'ulimit -n 4096 && for n in {3..1100}; do eval "exec $n</dev/null"; done'
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with open(fifo, "r+b", buffering=0) as pipe:
        pipe.write(b"one\ntwo\n")
        done = run_after(occupy, scripts, "producer", "-t", topic, "-n", 2, fifo)
    sentence = f"producer.py: published 2 events to {topic}\n"
    assert (done.returncode, done.stderr.decode()) == (0, sentence)
    done = run_after(occupy, scripts, "consumer", "-t", topic, "-e")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\ntwo\n", b"")
    with XApi() as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        done = run_after(occupy, scripts, "twitter-stream", "-t", f"{topic}-x", "-n", 3, env=env)
    sentence = f"published 3 tweets to {topic}-x (0 reconnects, 0 skipped)"
    assert (done.returncode, done.stderr.decode()) == (0, f"twitter-stream.py: {sentence}\n")


def test_optimized_mode(scripts: Scripts, topic: str) -> None:
    """Kafka-python's own decoder needs assert statements, which it removes."""
    env = {"PYTHONOPTIMIZE": "2"}
    run = functools.partial(scripts.run, env=env)
    with XApi([Step(tweets=3)]) as api:
        stream = {**env, "STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        assert scripts.run("twitter-stream", "-t", topic, "-n", 3, env=stream).returncode == 0
        sent = b"".join(line + b"\n" for line in api.sent[:3])
    assert run("producer", "-t", topic, input=b"last\n").returncode == 0
    for flags in ([], ["-g", topic]):
        done = run("consumer", "-t", topic, "-n", 4, *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, sent + b"last\n", b"")
    for script in SCRIPTS:
        assert run(script, "--help").returncode == 0


# ------------------------------------------------------------------ standard error


def test_control_characters_in_names_are_escaped(lone_scripts: Scripts, tmp_path: Path) -> None:
    """Other characters stay as they are; bytes that are not UTF-8 are shown by their numbers."""
    red, readable, latin = b"\x1b[31mre\nd\x7f", "größe 晚安 👩‍🚀".encode(), b"gr\xf6\xdfe"
    shown = rb"\x1b[31mre\nd\x7f", readable, rb"gr\udcf6\udcdfe"
    names = [os.fsdecode(name) for name in (red, readable, latin)]
    done = lone_scripts.run("producer", *names, cwd=tmp_path)
    lines = [b"producer.py: cannot read %s: No such file or directory\n" % name for name in shown]
    assert (done.returncode, done.stderr) == (2, b"".join(lines))
    done = lone_scripts.run("producer", "--\x1b[31m", cwd=tmp_path)
    unknown = rb"producer.py: unrecognized arguments: --\x1b[31m. See --help."
    assert (done.returncode, done.stderr) == (2, unknown + b"\n")
    env = {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CAFILE": names[0] + "?"}
    done = lone_scripts.run("consumer", env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr


def test_nobody_reads_standard_error(
    scripts: Scripts, topic: str, read: Read, kafka: Broker
) -> None:
    with unread_pipe() as (unread, writer):
        unread.close()
        running = scripts.start("producer", "-t", topic, "-n", 1, stderr=writer)
        os.close(writer)
        assert running.end().returncode == 0, kafka.server.log
    assert len(read(topic)) == 1


def test_no_message_goes_to_what_has_taken_the_place_of_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it was closed at the start, a connection may get its number."""
    monkeypatch.setattr(sys, "stderr", None)
    say("a message")
    assert capfd.readouterr().err == ""


def test_v_shows_the_log_of_the_client_masked(scripts: Scripts, topic: str) -> None:
    """Here the password is a text that is sure to appear in the log."""
    address = scripts.env["KAFKA_BOOTSTRAP_SERVERS"]
    with XApi() as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        following = scripts.start("twitter-stream", "-v", "-t", "tweets", "-n", 1, env=env)
        env = {"KAFKA_SASL_PLAIN_PASSWORD": address}
        done = scripts.run("producer", "-v", "-t", topic, input=b"one\ntwo\n", env=env)
        check_log(done, "producer", f"producer.py: published 2 events to {topic}")
        assert b" at *** " in done.stderr
        assert address.encode() not in done.stderr
        done = scripts.run("consumer", "-v", "-t", topic, "-e")
        check_log(done, "consumer")
        assert done.stdout == b"one\ntwo\n"
        published = "twitter-stream.py: published 1 tweet to tweets (0 reconnects, 0 skipped)"
        check_log(following.end(), "twitter-stream", published)


def check_log(done: Result, script: str, *messages: str) -> None:
    """Standard error holds the client's log, and these messages of the script."""
    log, others = split_log(script, done.stderr)
    assert any("bootstrap" in line for line in log), log
    assert (done.returncode, others) == (0, list(messages))


# ------------------------------------------------------------------ bugs


def check_traceback(stderr: bytes, function: str, last: str) -> None:
    """Standard error ends with a traceback through this function."""
    assert b"Traceback (most recent call last):\n" in stderr
    assert f", in {function}\n".encode() in stderr
    assert stderr.decode().endswith(f"\n{last}\n")


def test_a_bug_shows_a_traceback_after_all_is_delivered(
    scripts: Scripts, topic: str, read: Read
) -> None:
    """Its text could be that of a client error."""
    text = "'NoneType' object is not subscriptable: ECONNREFUSED"
    redefine(
        scripts,
        "sources",
        "class SampleSource(SampleSource):",
        "    def chunks(self):",
        "        yield Chunk(None, [sample_value(number) for number in (1, 2, 3)])",
        f"        raise TypeError({text!r})",
    )
    done = scripts.run("producer", "-t", topic)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(f"producer.py: published 3 events to {topic}\nTrace".encode())
    check_traceback(done.stderr, "chunks", f"TypeError: {text}")
    assert len(read(topic)) == 3


def test_a_bug_while_connecting_gets_no_advice(lone_scripts: Scripts) -> None:
    """The client is created in a thread of its own."""
    redefine(
        lone_scripts,
        "kafka_internals",
        "class Consumer(Consumer):",
        "    def __init__(self, **options):",
        "        options.get('sasl')['sasl']",
    )
    done = lone_scripts.run("consumer")
    assert (done.returncode, done.stdout) == (1, b"")
    check_traceback(done.stderr, "__init__", "TypeError: 'NoneType' object is not subscriptable")
    assert done.stderr.startswith(b"Traceback")
    assert b"KAFKA_" not in done.stderr


def test_a_lack_of_threads_is_no_matter_of_settings(lone_scripts: Scripts) -> None:
    redefine(
        lone_scripts,
        "kafka_internals",
        "class Consumer(Consumer):",
        "    def __init__(self, **options):",
        '        raise RuntimeError("can\'t start new thread")',
    )
    done = lone_scripts.run("consumer")
    assert done.returncode == 1
    check_traceback(done.stderr, "__init__", "RuntimeError: can't start new thread")


def test_a_traceback_shows_no_secret(lone_scripts: Scripts) -> None:
    secrets = {
        "BEARER_TOKEN": "secret-token",
        "KAFKA_SASL_PLAIN_PASSWORD": "secret-[password",
        "KAFKA_SSL_PASSWORD": "secret",
    }
    redefine(
        lone_scripts,
        "kafka_client",
        "class Kafka:",
        "    def __init__(self, *_):",
        "        import os",
        f"        raise RuntimeError(' '.join(os.environ[name] for name in {list(secrets)}))",
    )
    done = lone_scripts.run("twitter-stream", env=secrets)
    assert (done.returncode, done.stdout) == (1, b"")
    check_traceback(done.stderr, "__init__", "RuntimeError: *** *** ***")
    assert b"secret-" not in done.stderr


# ------------------------------------------------------------------ signals


def test_a_signal_during_the_slow_imports_ends_silently(
    lone_scripts: Scripts, tmp_path: Path
) -> None:
    """The package says that it is being imported, and its import never ends."""
    package = tmp_path / "packages" / "kafka"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n"
    )
    env = {"PYTHONPATH": str(package.parent)}
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    running = [lone_scripts.start(script, env=env) for script in SCRIPTS]
    for process, number in zip(running, numbers, strict=True):
        process.wait_for(lambda it: it.out == b"importing\n")
        done = process.end(number)
        assert (done.returncode, done.stderr) == (-number, b"")


def test_process_1_of_a_container_ends_at_once_while_it_connects(scripts: Scripts) -> None:
    """Where the kernel ignores signals without a handler; here the scripts only believe it."""
    one = "os = types.SimpleNamespace(**{**vars(os), 'getpid': lambda: 1})"
    redefine(scripts, "stop", "import types", one)
    env = {"BEARER_TOKEN": "token"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for call, number in (
            (("producer",), signal.SIGTERM),
            (("consumer", "--list"), signal.SIGINT),
            (("twitter-stream",), signal.SIGHUP),
        ):
            running = scripts.start(*call, "-b", address, env=env)
            connection, _ = silent.accept()
            with connection:
                done = running.end(number)
            assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


def test_a_signal_while_a_read_blocks(scripts: Scripts, topic: str, read: Read) -> None:
    """As on Windows, where nothing can wait for a pipe; half a line has already been read."""
    windows = "sys = types.SimpleNamespace(**{**vars(sys), 'platform': 'win32'})"
    redefine(scripts, "sources", "import types", windows)
    running = scripts.start("producer", "-t", topic, stdin=subprocess.PIPE)
    running.send(b"one\ntwo\nthree\nfou")
    wait_until(running.takes_signals)
    wait_until(lambda: len(read(topic)) == 3)
    done = running.end(signal.SIGTERM)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, b"")
    assert done.stderr.decode() == (
        f"producer.py: published 3 events to {topic}, stopped before line 4 of standard input\n"
    )
    assert values(read(topic)) == [b"one", b"two", b"three"]
