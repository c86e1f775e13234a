"""tests/broker.py and tests/x_api.py, as people run them by hand, and the demo."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from broker import Broker, free_ports
from x_api import Step, XApi

import pytest
from conftest import REPOSITORY, Running, Scripts


def start(script: str, *arguments: object, **env: str) -> Running:
    command = [sys.executable, str(REPOSITORY / "tests" / f"{script}.py"), *map(str, arguments)]
    return Running(command, {"env": {**os.environ, **env}})


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_broker_in_the_foreground(scripts: Scripts, tmp_path: Path, number: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    [port] = free_ports(1)
    broker = start("broker", "--port", port, TMPDIR=str(folder))
    broker.wait_for(lambda it: it.out.endswith(b"\n"), 60)
    assert (
        broker.out.decode() == f"Apache Kafka 4.3.1 is ready on localhost:{port}; Ctrl-C stops it\n"
    )
    env = {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}"}
    assert scripts.run("producer", "-n", 1, env=env).returncode == 0
    [java] = children(broker.process.pid)
    done = broker.end(number)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not Path("/proc", java).exists()
    assert list(folder.iterdir()) == []


def test_without_the_packages_it_goes_on_in_the_virtual_environment(tmp_path: Path) -> None:
    """Started with a Python that has none, it restarts with the one in .venv, which is ready."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    project = tmp_path / "project"
    shutil.copytree(REPOSITORY / "tests", project / "tests")
    shutil.copy2(REPOSITORY / "requirements.txt", project)
    (project / ".venv").symlink_to(sys.prefix)
    done = Running(
        [str(tmp_path / "bare/bin/python"), "tests/broker.py", "--help"],
        {"cwd": project, "env": {**os.environ, "COLUMNS": "100"}},
    ).end()
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: broker.py ")


def test_a_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("broker", "--port", port).end()
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        f"broker.py: port {port} is already in use. Stop the other Kafka, or choose another "
        "--port.\n"
    )


def test_no_network_at_the_first_start(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    done = start(
        "broker",
        "--port",
        *free_ports(1),
        HOME=str(tmp_path),
        HTTPS_PROXY=nowhere,
        https_proxy=nowhere,
    ).end()
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "broker.py: cannot download Kafka 4.3.1 (44 MB, needed once): Connection refused. "
        "Check the network and the proxy.\n"
    )


def test_a_full_disk(tmp_path: Path) -> None:
    """The disk has 8 kB and is mounted in its own namespace."""
    broker = f"{sys.executable} tests/broker.py --port {free_ports(1)[0]}"
    script = f"mount -t tmpfs -o size=8k tmpfs {tmp_path} && exec {broker}"
    command = ["/usr/bin/env", "unshare", "--map-root-user", "--mount", "sh", "-c", script]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = Running(command, {"cwd": REPOSITORY, "env": env}).end()
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == (
        "broker.py: Kafka could not prepare its data folder: the disk is full. "
        f"Free some space in {tmp_path}.\n"
    )


def test_the_round_trip_with_zookeeper(scripts: Scripts, topic: str) -> None:
    data = b"".join(b"%d:\x00\xff%d\n" % (number % 5, number) for number in range(1000))
    with Broker(zookeeper=True) as broker:
        assert broker.version.startswith("3.9.")
        env = {"KAFKA_BOOTSTRAP_SERVERS": broker.address}
        waiting = scripts.start(
            "consumer", "-t", topic, "-g", topic, "-n", 1000, "-K", ":", env=env
        )
        waiting.wait_for(lambda it: it.err)
        assert scripts.run("producer", "-t", topic, "-K", ":", env=env, input=data).returncode == 0
        done = waiting.end()
        waits = f"consumer.py: topic {topic} does not exist yet; waiting for it\n"
        assert (done.returncode, done.stdout, done.stderr.decode()) == (0, data, waits)
        done = scripts.run("consumer", "-t", topic, "-K", ":", "-e", env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_the_stand_in_by_hand() -> None:
    [port] = free_ports(1)
    api = start(
        "x_api", "--port", port, "--token", "abc", "--rate", 0, "--script", '[{"tweets": 3}]'
    )
    api.wait_for(lambda it: it.out.endswith(b"\n"))
    url = f"http://127.0.0.1:{port}/2/tweets/sample/stream"
    assert api.out.decode() == f"STREAM_URL={url} BEARER_TOKEN=abc; Ctrl-C stops it\n"
    request = urllib.request.Request(
        f"{url}?tweet.fields=lang", headers={"Authorization": "Bearer abc"}
    )
    with urllib.request.urlopen(request) as response:
        tweets = [json.loads(line)["data"] for line in response if line != b"\r\n"]
    assert [tweet["lang"] for tweet in tweets] == ["en", "ja", "ar"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url)
    with refused.value as answer:
        assert answer.code == 401
        assert json.load(answer)["title"] == "Unauthorized"
    assert api.end(signal.SIGINT).returncode == 0


def test_the_stand_in_says_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = start("x_api", "--port", port).end()
    assert done.returncode == 1
    message = f"x_api.py: cannot use port {port}: Address already in use"
    assert (done.stdout + done.stderr).decode().startswith(message)


def test_tweets_of_the_stand_in_differ() -> None:
    with XApi([Step(tweets=200)]) as api:
        request = urllib.request.Request(api.url, headers={"Authorization": f"Bearer {api.token}"})
        with urllib.request.urlopen(request) as response:
            lines = [line for line in response.read().split(b"\r\n") if line]
    assert lines == api.sent
    assert len({json.loads(line)["data"]["id"] for line in lines}) == 200


def test_the_demo_fails_when_a_step_fails(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".*"))
    (copy / "consumer.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run(
        [sys.executable, copy / "tests" / "demo.py"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"this command ended with status 3: python consumer.py -e" in done.stderr
