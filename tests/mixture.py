"""Random files published under faults, read back in several ways, and compared event by event.

A round publishes a file of random lines with producer.py to a new topic, while Kafka is stopped or
killed, the topic's limit is lowered, or producer.py gets a signal. kcat and consumer.py read the
topic. Both must find the same events, and they must be those that producer.py says it has
published: none missing, changed or twice; in the order of the file within each partition; keys in
the partitions that Java's client would choose.
"""

import argparse
import base64
import functools
import io
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.partitioner import murmur2

from broker import Broker
from conftest import creates_topics, resume
from messages import HELD_UP, Summary, read_summary, split_log
from processes import Running, Scripts, wait_until

MOST_LINES, MOST_BYTES = 200_000, 20_000_000
LIMIT = 1 << 20  # bytes of an event: the default of KAFKA_MAX_REQUEST_SIZE
OVERHEAD = 100  # an event may be refused if it is less than that below a limit
HANGS = 120.0  # seconds that a program may take
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
SEPARATORS = {":": b":", r"\t": b"\t", "=>": b"=>"}  # as -K takes them, and what they stand for
HEADERS = ("source=mixture", "empty=", "größe=5 €", "again=1", "again=2", "sum=1+1=2")
WORDS = ("a", "key:", "=>", '"', "\\", "\r", "\t", "\0", "\x7f", "\u2028", "größe", "日本", "🙂")
FAULTS = ("stopped", "killed", "lowered", "signalled")
NO_KEYS = " (separator not found in any line, so no event has a key)"
TOTALS = ("rounds", "events", *FAULTS, "splits", "differences")

Header = tuple[bytes, bytes]


class Event(NamedTuple):
    key: bytes | None
    value: bytes | None

    def line(self, separator: bytes | None) -> bytes:
        """How consumer.py prints it, with -K if there is a separator."""
        start = b"" if separator is None or self.key is None else self.key + separator
        return start + (self.value or b"")


class Stored(NamedTuple):
    """An event as it is found in the topic."""

    partition: int
    offset: int
    timestamp: int  # milliseconds since 1970
    event: Event
    headers: list[Header]


class Fault(NamedTuple):
    """One of FAULTS; its number is the seconds, the limit or the signal.

    Its moment is how much of a pipe's input comes before it, from 0 to 1; with a file, how late it
    is. 0: perhaps before the first event.
    """

    kind: str
    moment: float
    number: int


class Plan(NamedTuple):
    """What happens in a round."""

    data: bytes  # the file
    events: list[Event]  # of its lines
    flags: list[str]  # of producer.py
    headers: list[Header]
    partitions: int
    limit: int  # the topic's max.message.bytes
    settings: dict[str, str]
    faults: list[Fault]
    is_piped: bool

    def __str__(self) -> str:
        size, codec = f"{len(self.data):,} bytes", self.settings["KAFKA_COMPRESSION_TYPE"]
        source = f"{'pipe' if self.is_piped else 'file'} of {len(self.events):,} lines, {size}"
        faults = ", ".join(f"{fault.kind} {fault.number}" for fault in self.faults) or "no fault"
        topic = f"{self.partitions} partitions of {self.limit:,}, {codec}"
        return f"{source}, {' '.join(self.flags)}; {topic}; {faults}"


# ------------------------------------------------------------------ what happens in a round


def make_plan(chance: random.Random) -> Plan:
    separator = chance.choice([None, None, *SEPARATORS])
    has_tombstones = bool(separator) and chance.random() < 0.5
    limit = int(LIMIT / chance.choice([1, 1, 1, chance.uniform(1, 100)]))
    lines = make_lines(chance, SEPARATORS.get(separator or ""), has_tombstones, limit)
    headers = chance.choices(HEADERS, k=chance.choice([0, 0, 1, 4]))
    faults = make_faults(chance, limit)
    flags = [flag for header in headers for flag in ("-H", header)]
    flags += ["-K", separator] if separator else []
    flags += ["-Z"] * has_tombstones + ["-v"] * any(fault.kind == "lowered" for fault in faults)
    settings = make_settings(chance, sum(map(len, lines)))
    if "-v" in flags:  # large batches, so that they have to be split
        settings |= {"KAFKA_BATCH_SIZE": "", "KAFKA_LINGER_MS": chance.choice(["", "500"])}
    # An empty last line needs it
    newline = b"\n" if not lines[-1] or chance.random() < 0.8 else b""
    return Plan(
        b"\n".join(lines) + newline,
        [to_event(line, SEPARATORS.get(separator or ""), has_tombstones) for line in lines],
        flags,
        [(name, value) for name, _, value in (each.encode().partition(b"=") for each in headers)],
        chance.randint(1, 12),
        limit,
        settings,
        faults,
        chance.random() < 0.7,
    )


def make_lines(
    chance: random.Random, separator: bytes | None, has_tombstones: bool, limit: int
) -> list[bytes]:
    """Lines of one kind (text, other text or random bytes; short or long), some much larger."""
    largest = chance.choice([8, 60, 200, 200, 200, 5000])
    count = int(min(10 ** chance.triangular(0, 5.3, 5.3), MOST_LINES, MOST_BYTES / largest))
    texts = ("plain text, ", " ".join(WORDS), "".join(chance.choices(WORDS, k=10_000)))
    source = chance.choice([*map(str.encode, texts), *[chance.randbytes(100_000)] * 2])
    source = source.replace(b"\n", b"") * (3 * LIMIT // len(source))

    def piece(size: int) -> bytes:
        start = chance.randrange(len(source) - size)
        return source[start : start + size]

    keys = [piece(chance.randrange(40)) for _ in range(chance.choice([1, 5, 1000, count]))]
    keyed = chance.choice([1, 1, chance.random()]) if separator else 0
    lines = [piece(chance.randrange(largest + 1)) for _ in range(count)]
    for index in range(count):
        if separator and chance.random() < keyed:
            is_tombstone = has_tombstones and chance.random() < 0.1
            value = b"" if is_tombstone else lines[index]
            lines[index] = chance.choice(keys) + separator + value
    for _ in range(chance.choice([0, 0, 1, 3, 10])):
        near = limit + chance.randrange(-300, 300)
        lines[chance.randrange(count)] += piece(chance.choice([5000, 100_000, near, 2 * limit]))
    return lines


def to_event(line: bytes, separator: bytes | None, has_tombstones: bool) -> Event:
    """What a line means, by the rules of -K and -Z."""
    if separator is None or separator not in line:
        return Event(None, line)
    key, _, value = line.partition(separator)
    return Event(key, None if has_tombstones and not value else value)


def make_settings(chance: random.Random, size: int) -> dict[str, str]:
    """Settings for both scripts; `size` bytes go over the wire in not too many pieces."""
    piece = size // 500 + 1000
    choices: dict[str, list[object]] = {
        "KAFKA_COMPRESSION_TYPE": [*CODECS],
        "KAFKA_LINGER_MS": ["", "", 0, 1, 50, 500],
        "KAFKA_BATCH_SIZE": ["", "", "", piece, 20_000 + piece],
        "KAFKA_MAX_PARTITION_FETCH_BYTES": ["", "", piece, 100_000 + piece],
        "KAFKA_FETCH_MAX_BYTES": ["", "", piece, 100_000 + piece],
        "KAFKA_MAX_POLL_RECORDS": ["", "", 100 + piece],
    }
    return {name: str(chance.choice(values)) for name, values in choices.items()}


def make_faults(chance: random.Random, limit: int) -> list[Fault]:
    """Make none to two; a signal is the last."""
    kinds = chance.sample(FAULTS, k=chance.choice([0, 1, 1, 1, 2]))
    kinds.sort(key=lambda kind: kind == "signalled")
    moments = sorted(chance.choice([0, *[chance.random()] * 9]) for _ in kinds)
    numbers = {
        "stopped": chance.randint(1, 4),
        "killed": signal.SIGKILL,
        "lowered": limit / 10 ** chance.uniform(1, 2.3) + 300,
        "signalled": chance.choice([signal.SIGINT, signal.SIGTERM]),
    }
    pairs = zip(kinds, moments, strict=True)
    return [Fault(kind, moment, int(numbers[kind])) for kind, moment in pairs]


# ------------------------------------------------------------------ publishing and reading


class Run(NamedTuple):
    """How producer.py ran; the times are milliseconds since 1970."""

    began: int
    ended: int
    status: int
    summary: Summary
    skipped: set[int]  # the numbers, from 1, of the events that it has named as too large
    splits: int


class Stage(NamedTuple):
    """Where a round takes place."""

    broker: Broker
    scripts: Scripts
    topic: str
    folder: Path  # for its files
    plan: Plan

    def create_topic(self) -> None:
        """Create it, and wait until the broker knows of it, too."""
        settings = {"max.message.bytes": str(self.plan.limit)}
        topic = {"num_partitions": self.plan.partitions, "configs": settings}
        with KafkaAdminClient(bootstrap_servers=self.broker.address) as admin:
            admin.create_topics({self.topic: topic})
        wait_until(lambda: len(self.sizes()) == self.plan.partitions)

    def sizes(self) -> list[int]:
        """How many bytes there are in each partition."""
        logs = self.broker.data.glob(f"log/{self.topic}-*/*0.log")
        return [path.stat().st_size for path in logs]

    def publish(self, chance: random.Random) -> Run:
        path = self.folder / "lines"
        path.write_bytes(self.plan.data)
        began = now()
        running = self.scripts.start(
            "producer",
            *("-t", self.topic, *self.plan.flags, "-" if self.plan.is_piped else path),
            stdin=subprocess.PIPE if self.plan.is_piped else subprocess.DEVNULL,
            env=self.plan.settings,
        )
        killer = threading.Timer(HANGS, running.process.kill)  # it may not even read its input
        killer.daemon = True
        killer.start()
        self.disturb(running, chance)
        done = running.end()
        killer.cancel()
        (self.folder / "producer.err").write_bytes(done.stderr)
        said = "\n".join(split_log("producer", done.stderr)[1]).replace(NO_KEYS, "")
        # A signal may have ended it before it had anything to lose, or when all was done and said
        has_said = done.returncode >= 0 or ": published " in said
        summary = read_summary(said.encode()) if has_said else Summary(0, next_line=1)
        skipped = set(map(int, re.findall(r": skipped event (\d+) ", said)))
        splits = done.stderr.count(b"splitting batch and retrying")
        return Run(began, now(), done.returncode, summary, skipped, splits)

    def disturb(self, running: Running, chance: random.Random) -> None:
        """Pipe its input, if it is piped, and cause each fault when its moment has come."""
        data, position = self.plan.data, 0
        with ThreadPoolExecutor(1) as pool, suppress(BrokenPipeError):
            for fault in self.plan.faults:
                end = int(fault.moment * len(data))
                self.pipe(running, data[position:end], chance)
                position = end
                if fault.moment:
                    self.wait_for_events(running)
                if not self.plan.is_piped:
                    time.sleep(fault.moment / 5)
                job = pool.submit(self.cause, fault, running)
                if fault.kind == "lowered" or chance.random() < 0.3:
                    job.result()
            self.pipe(running, data[position:], chance)
            if self.plan.is_piped:
                running.close_input()

    def pipe(self, running: Running, data: bytes, chance: random.Random) -> None:
        """Write in pieces of random sizes, if there is a pipe."""
        largest = chance.choice([10, 1000, 70_000, 1_000_000]) + len(data) // 1000
        stream = io.BytesIO(data)
        while self.plan.is_piped and (block := stream.read(chance.randint(1, largest))):
            running.send(block)

    def wait_for_events(self, running: Running) -> None:
        """Wait until the topic has some; not long, as the input so far may have none."""
        with suppress(AssertionError):
            wait_until(lambda: running.process.poll() is not None or any(self.sizes()), seconds=3)

    def cause(self, fault: Fault, running: Running) -> None:
        if fault.kind == "stopped":
            self.broker.server.process.send_signal(signal.SIGSTOP)
            time.sleep(fault.number)
            resume(self.broker)
        elif fault.kind == "killed":
            self.broker.kill()
            self.broker.start()
            wait_until(functools.partial(creates_topics, self.broker))
        elif fault.kind == "lowered":
            settings = {"max.message.bytes": str(fault.number)}
            topic = ConfigResource(ConfigResourceType.TOPIC, self.topic, settings)
            with KafkaAdminClient(bootstrap_servers=self.broker.address) as admin:
                admin.alter_configs([topic])
        else:
            running.process.send_signal(fault.number)

    def consume(self, *flags: object) -> bytes:
        """What consumer.py prints."""
        env = self.plan.settings
        done = self.scripts.start("consumer", "-t", self.topic, *flags, env=env).end(seconds=HANGS)
        (self.folder / f"consumer {flags}").write_bytes(done.stdout)
        said = HELD_UP.sub(b"", done.stderr)
        assert (done.returncode, said) == (0, b""), f"{flags}: {done.returncode}, {said!r}"
        return done.stdout

    def consume_json(self, *flags: object) -> list[Stored]:
        return [
            Stored(
                event["partition"],
                event["offset"],
                event["timestamp"],
                Event(json_bytes(event, "key"), json_bytes(event, "value")),
                [(json_bytes(each, "key"), json_bytes(each, "value")) for each in event["headers"]],
            )
            for event in map(json.loads, self.consume("--json", *flags).splitlines())
        ]


def now() -> int:
    return time.time_ns() // 1_000_000


def json_bytes(event: dict[str, Any], name: str) -> Any:
    """The bytes, or None, of a field of what consumer.py --json prints."""
    if f"{name}_base64" in event:
        return base64.b64decode(event[f"{name}_base64"])
    return None if event[name] is None else event[name].encode()


def read_with_kcat(address: str, topic: str) -> Iterator[Stored]:
    command = ["kcat", "-C", "-e", "-q", "-o", "beginning", "-b", address, "-t", topic]
    command += ["-X", "check.crcs=true", "-f", r"%p %o %T %K %S %h\n%k%s\n"]
    done = subprocess.run(command, capture_output=True, timeout=HANGS)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    stream = io.BytesIO(done.stdout)
    while line := stream.readline():
        *numbers, headers = line[:-1].split(b" ", 5)
        partition, offset, timestamp, *sizes = map(int, numbers)
        event = Event(*(stream.read(size) if size >= 0 else None for size in sizes))
        assert stream.read(1) == b"\n"
        parts = [header.partition(b"=") for header in headers.split(b",") if header]
        pairs = [(name, value) for name, _, value in parts]
        yield Stored(partition, offset, timestamp, event, pairs)


def read_with_librdkafka(address: str, topic: str) -> Iterator[Stored]:
    """Read with the library that kcat is made of."""
    settings = {"group.id": "unused", "enable.partition.eof": True, "check.crcs": True}
    consumer: Any = confluent_kafka.Consumer({"bootstrap.servers": address, **settings})
    reading = set(consumer.list_topics(topic).topics[topic].partitions)
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in reading])
    while reading:
        for found in consumer.consume(5000, 1):
            if not found.error():
                place = (found.partition(), found.offset(), found.timestamp()[1])
                headers = [(name.encode(), value) for name, value in found.headers() or []]
                yield Stored(*place, Event(found.key(), found.value()), headers)
            elif found.error().code() == confluent_kafka.KafkaError._PARTITION_EOF:
                reading.discard(found.partition())
    consumer.close()


READERS = {"kcat": read_with_kcat, "librdkafka": read_with_librdkafka}

# ------------------------------------------------------------------ comparing


def by_partition(each: Stored) -> int:
    return each.partition


def check_equal(found: Iterable[Stored], expected: Iterable[Stored], what: str) -> None:
    """Check that these are the same events, in the same order within each partition."""
    columns = (sorted(events, key=by_partition) for events in (found, expected))
    for one, other in itertools.zip_longest(*columns):
        assert one == other, f"{what}: {show(one)}, not {show(other)}"


def is_in_order(some: Iterable[object], of: Iterable[object]) -> bool:
    """Whether all of them are there in this order, with others in between."""
    others = iter(of)
    return all(each in others for each in some)


def show(*events: object) -> str:
    """How many there are, and the beginning of the first."""
    first = repr(events[0])
    return f"{len(events):,}, such as {first:.300}" if len(events) > 1 else f"{first:.300}"


def check_topic(plan: Plan, run: Run, stored: list[Stored]) -> None:
    """Check what is in the topic against the file and against what producer.py has said."""
    summary, failed = run.summary, run.summary.failed - len(run.skipped)
    numbered = [each for each in enumerate(plan.events, 1) if each[0] not in run.skipped]
    possible = Counter(event for _, event in numbered)
    end = summary.next_line or len(plan.events) + 1
    required = Counter(event for number, event in numbered if number < end)
    found = Counter(each.event for each in stored)
    assert not found - possible, f"not in the file, or twice: {show(*found - possible)}"
    assert not required - found, f"lost: {show(*required - found)}"
    assert failed or found == required, f"published, but not counted: {show(*found - required)}"
    bounds = (summary.published, summary.published + failed)
    assert bounds[0] <= len(stored) <= bounds[1], f"{len(stored)} events, not {bounds}"
    for partition, events in itertools.groupby(stored, by_partition):
        check_partition(plan, run, partition, list(events))


def check_partition(plan: Plan, run: Run, partition: int, stored: list[Stored]) -> None:
    where = f"partition {partition}"
    events = [each.event for each in stored]
    assert is_in_order(events, plan.events), f"{where}: not in the order of the file"
    assert [each.offset for each in stored] == list(range(len(stored))), f"{where}: offsets"
    for key in {event.key for event in events} - {None}:
        right = (murmur2(key) & 0x7FFFFFFF) % plan.partitions
        assert partition == right, f"{where}: key {key!r} belongs to partition {right}"
    for each in stored:
        assert each.headers == plan.headers, f"{where}: headers {each.headers}"
        assert run.began <= each.timestamp <= run.ended, f"{where}: timestamp {each.timestamp}"


def check_end(plan: Plan, run: Run) -> None:
    """Check that producer.py has skipped, failed and stopped only where there is a reason."""
    signals = [fault.number for fault in plan.faults if fault.kind == "signalled"]
    if run.status < 0:
        assert -run.status in signals, f"status {run.status} (-9: it would not end)"
        return
    lowered = [fault.number for fault in plan.faults if fault.kind == "lowered"]
    refused = min([plan.limit, *lowered]) - OVERHEAD - len(repr(plan.headers))
    sizes = [len(event.key or b"") + len(event.value or b"") for event in plan.events]
    small = [number for number in run.skipped if sizes[number - 1] <= refused]
    assert not small, f"skipped, but small enough: {show(*small)}"
    if run.summary.failed > len(run.skipped):
        assert lowered, "failed though no limit was lowered"
        assert max(sizes) > refused, "failed though all events are small enough"
    elif run.summary.next_line:
        assert signals, "stopped without a reason"
    stopped = 128 + signals[0] if signals and run.summary.next_line else 0
    status = 1 if run.summary.failed else stopped
    assert run.status == status, f"status {run.status}, not {status}"


def check_lines(stage: Stage, stored: list[Stored], separator: str | None) -> None:
    """Check what consumer.py prints without --json."""
    printed = stage.consume("-e", *(["-K", separator] if separator else [])).split(b"\n")[:-1]
    lines = [each.event.line(SEPARATORS.get(separator or "")) for each in stored]
    assert Counter(printed) == Counter(lines), f"lines with separator {separator}"
    for _, group in itertools.groupby(zip(stored, lines, strict=True), lambda it: it[0].partition):
        assert is_in_order((line for _, line in group), printed), "lines out of order"


def check_part(stage: Stage, stored: list[Stored], count: int) -> None:
    """Check -n COUNT, --last COUNT, and a group that stops after COUNT and goes on."""
    group = ("-g", stage.topic)
    first = stage.consume_json(*group, "-n", count)
    assert len(first) == count, f"-n {count}: {len(first)} events"
    check_equal(first + stage.consume_json(*group, "-e"), stored, f"-g, first -n {count}")
    sizes = Counter(map(by_partition, stored))
    last = [each for each in stored if each.offset >= sizes[each.partition] - count]
    check_equal(stage.consume_json("-e", "--last", count), last, f"--last {count}")


# ------------------------------------------------------------------ rounds


def play(stage: Stage, reader: str, chance: random.Random) -> Counter[str]:
    """Publish, read and check; return what to add to the totals.

    Raise AssertionError at a difference.
    """
    run = stage.publish(chance)
    stored = sorted(READERS[reader](stage.broker.address, stage.topic), key=by_partition)
    check_end(stage.plan, run)
    check_topic(stage.plan, run, stored)
    check_equal(stage.consume_json("-e"), stored, "consumer.py")
    if stored and chance.random() < 0.5:
        check_part(stage, stored, chance.randint(1, len(stored)))
    else:
        check_lines(stage, stored, chance.choice([None, *SEPARATORS]))
    faults = Counter(fault.kind for fault in stage.plan.faults)
    return faults + Counter(rounds=1, events=len(stored), splits=run.splits)


def try_round(broker: Broker, scripts: Scripts, name: str, reader: str) -> Counter[str]:
    """Play the round of that name, and print a line about it; its files stay at a difference."""
    chance = random.Random(name)
    plan, topic = make_plan(chance), f"mixture-{name}"
    folder = Path(tempfile.mkdtemp(prefix=f"{topic}-"))
    stage = Stage(broker, scripts, topic, folder, plan)
    print(f"{name}: {plan}: ", end="", flush=True)
    try:
        stage.create_topic()
        counts = play(stage, reader, chance)
    except (AssertionError, pytest.fail.Exception, subprocess.TimeoutExpired) as difference:
        print(f"DIFFERENCE: {difference}; see {folder}", flush=True)
        return Counter(rounds=1, differences=1)
    finally:
        while Running.every:
            Running.every.pop().clean_up()
    print(f"{counts['events']:,} events, {counts['splits']:,} splits, the same", flush=True)
    shutil.rmtree(folder)
    with KafkaAdminClient(bootstrap_servers=broker.address) as admin:
        admin.delete_topics([topic])
    return counts


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    if options.reader == "kcat" and not shutil.which("kcat"):
        print("mixture.py needs kcat; install it, or use --reader librdkafka", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    numbers = range(1, options.rounds + 1) if options.round is None else [options.round]
    end = time.monotonic() + options.minutes * 60
    total = Counter[str]()
    with Broker() as broker, tempfile.TemporaryDirectory() as folder:
        scripts = Scripts(Path(folder), {"KAFKA_BOOTSTRAP_SERVERS": broker.address})
        for number in itertools.takewhile(lambda _: time.monotonic() < end, numbers):
            total += try_round(broker, scripts, f"{seed}-{number}", options.reader)
    print(", ".join(f"{name}: {total[name]:,}" for name in TOTALS))
    return 1 if total["differences"] else 0


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="mixture.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=30, help="start no round after that (default: 30)"
    )
    parser.add_argument("--rounds", type=int, default=10**6, help="at most that many rounds")
    parser.add_argument("--seed", type=int, help="(default: a new one each time)")
    parser.add_argument("--round", type=int, help="play only this one of the seed's rounds")
    parser.add_argument("--reader", choices=READERS, default="kcat", help="(default: kcat)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
