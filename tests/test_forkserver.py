"""That a script does the same in a fork of the tests' server as when users start it."""

import functools
import re
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from kafka import KafkaProducer

from conftest import GUARD, Read, Running, Scripts, wait_until
from forkserver import ForkServer
from x_api import XApi

pytestmark = pytest.mark.versions

BUG = "from streaming.console import report_bugs\n\nreport_bugs()\nraise RuntimeError('a bug')\n"


class Calls(NamedTuple):
    """What the calls need; those of each way publish to topics of their own."""

    scripts: Scripts
    badly_configured: Scripts
    source: str  # a topic to print
    target: str  # the topic to publish to
    nobody: str  # an address where nobody listens
    api: XApi
    is_real: bool

    def start(self) -> list[Running]:
        """Start the scripts; the test sends something to the first two."""
        x = {"STREAM_URL": self.api.url, "BEARER_TOKEN": self.api.token}
        start = functools.partial(self.scripts.start, real=self.is_real)
        impatient = {"STREAM_TEST_PATIENCE": "1"}
        return [
            start("producer", "-t", self.target, stdin=subprocess.PIPE),
            start("producer", "-t", f"{self.target}-pipe", stdin=subprocess.PIPE),
            start("consumer", "-b", self.nobody, env=impatient),
            start("consumer", "--help"),
            start("producer", "-n", 0),
            self.badly_configured.start("consumer", real=self.is_real),
            start("consumer", "-t", self.source, "-e"),
            start("consumer", "-t", self.source, "-e", "--json"),
            start("consumer", "-t", self.source, "--list"),
            start("twitter-stream", "-t", f"{self.target}-tweets", "-n", 3, env=x),
            start("broken"),
        ]

    def outcomes(self, running: list[Running], read: Read) -> list[tuple[int, bytes, list[str]]]:
        """The status, standard output, and standard error of each of them."""
        lines, piped, *_ = running
        lines.send(b"one\ntwo\n")
        lines.close_input()
        piped.send(b"one\ntw")
        wait_until(piped.takes_signals)
        wait_until(lambda: len(read(f"{self.target}-pipe")) == 1)
        piped.process.send_signal(signal.SIGTERM)
        results = [process.end() for process in running]
        return [(done.returncode, done.stdout, self.messages(done.stderr)) for done in results]

    def messages(self, stderr: bytes) -> list[str]:
        """The lines, but of a traceback only the last one, as the stack of a fork is deeper."""
        text = re.sub(r"(?s)Traceback .*\n(?=.)", "", stderr.decode())
        return text.replace(self.target, "TOPIC").splitlines()


def test_a_fork_does_what_a_process_does(
    scripts: Scripts,
    tmp_path: Path,
    server: ForkServer,
    topic: str,
    producer: KafkaProducer,
    read: Read,
    port: int,
) -> None:
    producer.send(topic, b"\xff an event", key=b"key").get(GUARD)
    (scripts.folder / "broken.py").write_text(BUG)
    scripts.env["STREAM_TEST_SECOND"] = "60"  # no progress is reported meanwhile
    wrong = Scripts(tmp_path / "wrong", {}, server)
    (wrong.folder / ".env").write_text("TYPO=1\n")
    nobody = f"127.0.0.1:{port}"
    with XApi() as api, XApi() as other_api:
        forks = Calls(scripts, wrong, topic, f"{topic}-forks", nobody, api, False)
        processes = Calls(scripts, wrong, topic, f"{topic}-processes", nobody, other_api, True)
        running = [(calls, calls.start()) for calls in (forks, processes)]
        forked, real = [calls.outcomes(started, read) for calls, started in running]
    assert [status for status, _, _ in real] == [0, 143, 1, 0, 2, 2, 0, 0, 0, 0, 1]
    refusal = f"consumer.py: cannot connect to Kafka at {nobody}: connection refused."
    assert real[2][-1][0].startswith(refusal)
    assert real[-1][-1] == ["RuntimeError: a bug"]
    for fork, process in zip(forked, real, strict=True):
        assert fork == process
