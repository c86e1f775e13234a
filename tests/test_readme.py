"""README.md says what is: its commands are run, its help texts compared."""

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from broker import Broker
from x_api import Step, XApi

import pytest
from conftest import REPOSITORY, SOURCES, Scripts

README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that follows it."""
    for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = each.partition("\n")
        yield command, output


def plain(output: str) -> str:
    """The output without what differs from run to run: numbers and names of temporary folders."""
    return re.sub(r"/\S*/tmp\w+|\d+", "N", output)


def test_the_help_texts_are_the_real_ones(lone_scripts: Scripts) -> None:
    texts = [
        lone_scripts.run(script.removesuffix(".py"), "--help", env={"COLUMNS": "100"}).stdout.decode()
        for script in SOURCES
        if script != "config.py"
    ]
    assert [text.rstrip() for text in blocks("text")] == [text.rstrip() for text in texts]


def test_the_log_looks_like_the_real_one(scripts: Scripts) -> None:
    with XApi([Step(tweets=50), Step()], rate=50) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": "0.05"}
        running = scripts.start("twitter-stream", "-t", "tweets", env=env)
        running.wait_for(lambda it: it.err.count(b"/s (1 reconnects") == 1)
        done = running.end(signal.SIGTERM)
    assert plain(done.stderr.decode()) == plain(*blocks("log"))


def test_the_numbers_are_the_real_ones() -> None:
    x, producer = importlib.import_module("twitter-stream"), importlib.import_module("producer")
    waits = dict.fromkeys(["network", "http", "rate"], (0.0, 0.0)) | x.WAITS
    text = " ".join(README.split())
    for told in (
        "{} s more each time, up to {} s, for the network".format(*waits["network"]),
        "from {} s, doubling, up to {} s, for an HTTP error".format(*waits["http"]),
        f"from {waits['rate'][0]} s, doubling, for a rate limit",
        f"{x.SILENCE} s of silence",
        f"more than {x.CONNECTS} times in {x.WINDOW // 60} minutes, so {x.CONNECTS * 5} in {x.WINDOW * 5 // 60}",
        f"over {x.LINE_BYTES >> 20} MiB",
        f"{producer.IN_FLIGHT:,} tweets or {producer.IN_FLIGHT_BYTES >> 20} MB",
        "within an hour" if x.PATIENCE == 3600 else "?",
    ):
        assert told in text


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user: a Kafka with no topic yet, a stand-in for X, python in the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Broker() as broker, XApi() as api:
        env = {"PATH": path, "KAFKA_BOOTSTRAP_SERVERS": broker.address, "NO_PROXY": "127.0.0.1"}
        yield env | {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}


def test_the_examples_print_what_they_say(shell: dict[str, str], lone_scripts: Scripts) -> None:
    seen = 0
    for block in blocks("console"):
        for command, output in commands(block):
            if "$ make" in block:
                continue
            done = subprocess.run(  # noqa: S602
                command, shell=True, cwd=lone_scripts.folder, env=shell, capture_output=True, text=True, timeout=60
            )
            assert plain(done.stdout + done.stderr) == plain(output), command
            seen += 1
    assert seen == 6


def test_the_demo_prints_what_the_readme_says_and_leaves_nothing(tmp_path: Path) -> None:
    [block] = [block for block in blocks("console") if "$ make demo" in block]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tests" / "demo.py"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=True,
    )
    parts = block.partition("\n")[2].split("...\n")
    pattern = ".*".join(re.escape(plain(part)) for part in parts)
    assert re.fullmatch(pattern, plain(done.stdout.replace(str(tmp_path), "/tmp")), re.DOTALL), done.stdout  # noqa: S108
    assert done.stdout.count('"text":"Morning run') == 1
    assert done.stdout.count('\\"text\\":\\"Morning run') == 1
    assert list(tmp_path.iterdir()) == []


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", README)) | set(re.findall(r"^\$ make ([a-z]+)", README, re.MULTILINE))
    assert {"demo", "test", "broker", "stress", "soak", "bench", "lint", "clean"} == named
    assert named <= targets


def test_the_tables_of_the_bench_name_all_that_it_measures() -> None:
    """kcat is measured where it is installed; `-f raw` fails, as it prints b'...'."""
    bench = importlib.import_module("bench")
    names = {each.name for each in bench.producers() + bench.consumers()} - {"kcat", "python -m kafka.consumer -f raw"}
    assert all(f"| {name} |" in README for name in names)
