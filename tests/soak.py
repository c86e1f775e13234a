"""twitter-stream.py under faults, in five parts.

faults  each kind of fault once, at X's pace
quiet   a filtered stream on which tweets are rare, with a fault now and then
kills   kill -9 again and again, and whether --backfill fills the gaps
memory  memory and descriptors over thousands of failing connects
volume  a million tweets, 4.8 hours of the sampled stream, at full speed: a fault of a random kind
        every 10,000 tweets, and Kafka killed and started again twice
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import certifi
import trustme
from kafka import KafkaConsumer, TopicPartition

from broker import Broker, ReservedPort
from x_api import TOKEN, Step, XApi, tweet

HERE = Path(__file__).parent.parent
PARTS = ("faults", "quiet", "kills", "memory", "volume")
SUMMARY = re.compile(
    r"published (?P<published>\d+) tweets? to \S+"
    r" \((?P<reconnects>\d+) reconnects?, (?P<skipped>\d+) skipped"
    r"(, \d+ duplicates?)?(, (?P<gaps>\d+) gaps?)?\)"
)
X_SILENCE = 22  # seconds; a longer gap is reported
POSTING_RATE = 58  # tweets a second, as in the sampled stream
MEMORY_LIMIT = 80  # MB, for any number of failing connects
# A connection open at that moment has some: a socket, the CA bundle
DESCRIPTORS_OF_A_CONNECTION = 5
# For the memory part: the longest wait after a 503, 320 s by X's rules, is then 32 ms
SHORT_SECOND = 0.0001
DISCONNECT = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "bye",
}
DISCONNECT["type"] = "https://api.x.com/2/problems/operational-disconnect"
TOO_MANY_CONNECTIONS = {
    "title": "ConnectionException",
    "detail": "too many",
    "connection_issue": "TooManyConnections",
}
WEB_PAGE = "<html><title>Sorry</title><p>Something went wrong</p></html>"
ODD_TWEETS = [
    b'{"data":{"id":"1","text":"a byte of latin-1: caf\xe9"}}',
    b'{"data":{"id":"2","text":"a raw tab: \t"}}',
    b'{"data":{"id":"3","text":"a pair of CESU-8: \xed\xa0\xbd\xed\xb8\x80"}}',
]


def line(message: object) -> str:
    return f"{json.dumps(message)}\r\n"


def limited(remaining: int, seconds: float, body: str = "") -> Step:
    """A 429 that leaves `remaining` connects until the reset in `seconds` seconds."""
    headers = {"x-rate-limit-remaining": str(remaining)}
    return Step(status=429, headers=headers, reset_after=seconds, body=body)


class Fault(NamedTuple):
    """How a connection ends after its tweets, and what the next ones do, as steps.

    Tweets must flow again after `least` to `most` seconds of X's rules, and the summary must count
    `skipped` lines as skipped.
    """

    steps: list[Step]
    least: float
    most: float
    skipped: int = 0


FAULTS = {
    "the stream ends": Fault([Step()], 0, 1),
    "the connection is cut": Fault([Step(end="cut")], 0, 1),
    "it is cut within a chunk and a line": Fault([Step(end="torn")], 0, 1, skipped=1),
    "the last line has no newline": Fault([Step(end="tail")], 0, 1),
    "it is reset": Fault([Step(end="reset")], 0, 1),
    "a chunk is garbled": Fault([Step(end="garbled")], 0, 1),
    "silence": Fault([Step(end="silence")], 21, 25),
    "a line a byte at a time": Fault([Step(end="drip")], 21, 25, skipped=1),
    "closed without an answer": Fault([Step(), Step(before="close")], 0.25, 1.5),
    "reset within the header": Fault([Step(), Step(before="reset")], 0.25, 1.5),
    "a 503": Fault([Step(), Step(status=503)], 5, 7),
    "two 503, HTML": Fault(
        [Step(), *[Step(status=503, body="<html>Over capacity</html>")] * 2], 15, 19
    ),
    "a web page with status 200": Fault([Step(), Step(body=WEB_PAGE, tweets=0)], 5, 7),
    "a 400 after tweets": Fault([Step(), Step(status=400, body=WEB_PAGE)], 5, 7),
    "a 401 after tweets": Fault([Step(), Step(status=401, body=WEB_PAGE)], 5, 7),
    "a 403 after tweets": Fault([Step(), Step(status=403, body=WEB_PAGE)], 5, 7),
    "a 404 after tweets": Fault([Step(), Step(status=404, body=WEB_PAGE)], 5, 7),
    "a 429": Fault([Step(), Step(status=429)], 60, 73),
    "a 429, used up for 70 s": Fault([Step(), limited(remaining=0, seconds=70)], 69, 77),
    "a 429, TooManyConnections": Fault(
        [Step(), limited(remaining=47, seconds=840, body=line(TOO_MANY_CONNECTIONS))], 5, 7
    ),
    "an empty 200": Fault([Step(), Step(tweets=0)], 0.25, 1.5),
    "a redirect": Fault(
        [Step(), Step(status=302, headers={"Location": "http://localhost:1/"})], 5, 7
    ),
    "a disconnect message": Fault(
        [Step(), Step(body=f"\r\n{line({'errors': [DISCONNECT]})}", tweets=0)], 0, 1
    ),
    "the same, not wrapped": Fault([Step(), Step(body=f"\r\n{line(DISCONNECT)}", tweets=0)], 0, 1),
    "TooManyConnections": Fault([Step(), Step(body=line(TOO_MANY_CONNECTIONS), tweets=0)], 5, 7),
    "lines that are no tweets": Fault(
        [Step(), Step(body='[1]\r\nnot json\n{"data":{}}\r\n', tweets=0)], 0.25, 1.5, skipped=3
    ),
    "a line of 2 MB": Fault(
        [Step(), Step(body="x" * 2_000_000 + "\n", tweets=0)], 0.25, 1.5, skipped=1
    ),
    "keep-alives with blanks": Fault([Step(body=" \r\n\t\r\n \n")], 0, 1),
    "tweets that are not UTF-8 or not JSON": Fault([Step(lines=ODD_TWEETS)], 0, 1),
    "tweets sent twice": Fault([Step(), Step(again=10, tweets=0, end="cut")], 0, 1),
}


class Follower:
    """twitter-stream.py as a process, for use in a `with` block, which ends it with kill -9.

    `second` is how long a second of X's rules lasts; `settings` are added to the environment.
    """

    def __init__(
        self, broker: Broker, url: str, topic: str, second: float, *flags: str, **settings: str
    ) -> None:
        env = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": broker.address,
            "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
            "STREAM_URL": url,
            "BEARER_TOKEN": TOKEN,
            "STREAM_TEST_SECOND": str(second),
            "NO_PROXY": "127.0.0.1",
            **settings,
        }
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115 # __exit__ closes it
        command = [sys.executable, str(HERE / "twitter-stream.py"), "-t", topic, *flags]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stderr=self.messages
        )

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.messages.close()

    def wait_until(self, condition: Callable[[], Any], seconds: float) -> None:
        """Poll until the condition holds; raise SystemExit if the process ends or time runs out."""
        end = time.monotonic() + seconds
        while not condition():
            self.check_running()
            if time.monotonic() > end:
                raise SystemExit(f"soak.py: twitter-stream.py hangs: {self.last_message()}")
            time.sleep(0.02)

    def check_running(self) -> None:
        """Raise SystemExit if the process has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"soak.py: twitter-stream.py has ended: {self.last_message()}")

    def last_messages(self) -> list[str]:
        """Its latest messages, without the script's name; the first may be cut off."""
        descriptor = self.messages.fileno()
        # Not seek(): the process shares the file position and writes there
        start = max(os.fstat(descriptor).st_size - 4000, 0)
        lines = os.pread(descriptor, 4000, start).decode(errors="replace").splitlines()
        return [line.partition(": ")[2] for line in lines]

    def last_message(self) -> str:
        return (self.last_messages() or [""])[-1]

    def reconnects(self) -> int:
        """The number of reconnects in its last progress message."""
        counts = re.findall(r"\((\d+) reconnects?, ", "\n".join(self.last_messages()))
        return int(counts[-1]) if counts else 0

    def stop(self) -> re.Match[str]:
        """End it with SIGTERM; return its summary."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        message = self.last_message()
        summary = SUMMARY.fullmatch(message)
        if status or not summary:
            raise SystemExit(f"soak.py: twitter-stream.py ended with status {status}: {message}")
        return summary

    def memory(self) -> float:
        """The resident set, in MB (Linux)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        [size] = re.findall(r"VmRSS:\s+(\d+) kB", text)
        return int(size) / 1024

    def descriptors(self) -> int:
        """How many file descriptors are open (Linux)."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def count_values(broker: Broker, topic: str) -> Counter[bytes]:
    """Each value in the topic, and how often it occurs."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.address, auto_offset_reset="earliest", enable_auto_commit=False
    )
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end = consumer.end_offsets([partition])[partition]
    found = Counter[bytes]()
    while consumer.position(partition) < end:
        for batch in consumer.poll(1000, max_records=5000).values():
            found.update(record.value for record in batch)
    consumer.close()
    return found


class Row(NamedTuple):
    """A row of a table, and whether the goal was met."""

    text: str
    is_met: bool


def table_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def print_head(*names: str) -> None:
    print(table_row(*names))
    print("|---" * len(names) + "|", flush=True)


def print_rows(rows: list[Row]) -> bool:
    """Print the rows, marking those that missed their goal; return whether none did."""
    for row in rows:
        print(row.text if row.is_met else f"{row.text} MISSED", flush=True)
    return all(row.is_met for row in rows)


# ------------------------------------------------------------------ each fault once


def try_fault(broker: Broker, number: int, name: str) -> Row:
    fault = FAULTS[name]
    script = [dataclasses.replace(fault.steps[0], tweets=100), *fault.steps[1:], Step()]
    topic = f"fault-{number}"
    with XApi(script, rate=100) as api, Follower(broker, api.url, topic, 1) as follower:
        follower.wait_until(lambda: len(api.flows) > 1 and len(api.sent) > 200, 150)
        summary = follower.stop()
        pause = api.flows[1][0] - api.flows[0][1]
    found = count_values(broker, topic)
    count = found.total()
    sent = Counter(api.sent[:count])
    lost, invented = (sent - found).total(), (found - sent).total()
    skipped, gaps = int(summary["skipped"]), int(summary["gaps"] or 0)
    is_exact = lost == invented == 0 and count == int(summary["published"])
    is_told = skipped == fault.skipped and gaps == int(pause > X_SILENCE)
    goal = f"{fault.least:g} to {fault.most:g} s"
    cells = [name, len(api.requests), count, lost, invented, skipped, gaps, f"{pause:.2f} s", goal]
    return Row(table_row(*cells), is_exact and is_told and fault.least <= pause <= fault.most)


def show_faults() -> bool:
    """Try each fault once, six at a time; here a second is a real second."""
    counts = ("connects", "published", "lost", "invented", "skipped", "gaps told")
    print_head("fault", *counts, "tweets again after", "goal")
    with Broker() as broker, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(try_fault, broker, *pair) for pair in enumerate(FAULTS)]
        rows = [job.result() for job in jobs]
    return print_rows(rows)


# ------------------------------------------------------------------ a quiet stream

QUIET_FAULTS = (
    "the stream ends",
    "a 404 after tweets",
    "a 503",
    "silence",
    "it is reset",
    "a 400 after tweets",
    "a web page with status 200",
    "a disconnect message",
    "a 403 after tweets",
    "a 429",
    "the connection is cut",
    "a 401 after tweets",
    "TooManyConnections",
)
QUIET_SECOND = 0.1  # the length of a second of X's rules
QUIET_RATE = 100  # tweets posted a second, of which few match the rule
QUIET_RULE = {"value": "lang:en 000", "tag": "rare"}  # one in a thousand
QUIET_CONNECTION = 500  # posted until the next fault: 5 s, longer than the silence of a gap
QUIET_KEEP_ALIVE = 0.5  # seconds


def show_quiet(faults: int, seed: int) -> bool:
    """Follow a stream on which a tweet comes every 100 s of X's rules, and keep-alives.

    A gap lasts from the last tweet or keep-alive to the beginning of the next connection with any.
    """
    chance = random.Random(seed)
    names = [QUIET_FAULTS[number % len(QUIET_FAULTS)] for number in range(faults)]
    chance.shuffle(names)
    script = [*script_of(names, QUIET_CONNECTION, QUIET_SECOND, batch=1)[:-1], Step()]
    print(f"a quiet stream with {faults} faults, seed {seed}")
    with Broker() as broker, XApi(script, rate=QUIET_RATE, keep_alive=QUIET_KEEP_ALIVE) as api:
        api.rules.add([QUIET_RULE])
        with Follower(broker, api.filtered_url, "quiet", QUIET_SECOND) as follower:
            follower.wait_until(lambda: len(api.requests) >= len(script), 60 + 20 * faults)
            sent = len(api.sent)
            follower.wait_until(lambda: len(api.sent) > sent, 60)
            summary = follower.stop()
        found = count_values(broker, "quiet")
    return report_quiet(api, summary, found)


def report_quiet(api: XApi, summary: re.Match[str], found: Counter[bytes]) -> bool:
    """Print what came and what was said; return whether both are as they should be."""
    sent = Counter(api.sent[: found.total()])
    lost, invented = (sent - found).total(), (found - sent).total()
    pauses = [after[0] - before[1] for before, after in itertools.pairwise(api.flows)]
    silence = X_SILENCE * QUIET_SECOND
    # The other side may measure a little less or more
    certain, possible = (
        sum(pause > silence + margin for pause in pauses) for margin in (0.2, -0.2)
    )
    gaps, published = int(summary["gaps"] or 0), int(summary["published"])
    counts = ("published", "lost", "invented", "skipped", "gaps", "gaps told")
    print_head("stream", "connects", *counts)
    first = ["quiet", len(api.requests), published, lost, invented, summary["skipped"]]
    row = table_row(*first, f"{certain} to {possible}", gaps)
    is_exact = lost == invented == 0 and published == found.total() > 0
    is_told = summary["skipped"] == "0" and certain <= gaps <= possible
    return print_rows([Row(row, is_exact and is_told and api.most_open == 1)])


# ------------------------------------------------------------------ kill -9


def show_kills(count: int, seed: int) -> bool:
    """Kill it `count` times, every 1 to 4 s, with --backfill; print what the topic then lacks."""
    chance = random.Random(seed)
    print(
        f"kill -9 {count} times, seed {seed}; X posts {POSTING_RATE} tweets a second all the time"
    )
    with Broker() as broker, XApi([Step(posts=True)], rate=POSTING_RATE) as api:
        kills = [run_and_kill(broker, api, chance.uniform(1, 4)) for _ in range(count)]
        run_and_stop(broker, api)
        found = count_values(broker, "kills")
    return report_kills(api, kills, found)


def run_and_kill(broker: Broker, api: XApi, seconds: float) -> float:
    """Run it for `seconds`, then kill it; return the time.monotonic() of the kill."""
    with Follower(broker, api.url, "kills", 1, "--backfill") as follower:
        time.sleep(seconds)
        follower.check_running()
        return time.monotonic()


def run_and_stop(broker: Broker, api: XApi) -> None:
    """Run it until a tweet posted 3 s after it connected is in the topic."""
    earlier = len(api.requests)
    with Follower(broker, api.url, "kills", 1, "--backfill") as follower:
        follower.wait_until(lambda: len(api.requests) > earlier, 60)
        last = tweet(api.count_posted(time.monotonic()) + 3 * POSTING_RATE)
        follower.wait_until(lambda: last in count_values(broker, "kills"), 60)
        follower.stop()


class Found(NamedTuple):
    """Which posted tweets the topic has: how often each number occurs, and which must be there.

    `invented` is how many events are not posted tweets.
    """

    numbers: Counter[int]
    expected: range
    invented: int

    def missing(self, posted: range) -> int:
        return sum(number in self.expected and not self.numbers[number] for number in posted)

    def twice(self, posted: range) -> int:
        return sum(max(self.numbers[number] - 1, 0) for number in posted)


def find_numbers(values: Counter[bytes], posted: int) -> Found:
    """Look for the first `posted` tweets among the values, which are in the topic's order.

    All from the first one published to the last must be there.
    """
    numbers_of = {tweet(number): number for number in range(posted)}
    known = {value: count for value, count in values.items() if value in numbers_of}
    numbers = Counter({numbers_of[value]: count for value, count in known.items()})
    expected = range(next(iter(numbers)), max(numbers) + 1)
    return Found(numbers, expected, values.total() - numbers.total())


def report_kills(api: XApi, kills: list[float], values: Counter[bytes]) -> bool:
    """Print a row for each kill, and the totals; return whether none is missing or duplicated.

    A gap lasts until the next connect, even if another run is killed before that.
    """
    found = find_numbers(values, api.count_posted(time.monotonic()))
    print_head("kill", "gap (s)", "posted in it", "asked back (minutes)", "missing", "twice")
    begin = found.expected.start
    for number, kill in enumerate(kills, 1):
        connect = next(request for request in api.requests if request.time > kill)
        end = api.count_posted(connect.time)
        # Tweets lost on their way to a killed run were posted before the gap
        posted = range(begin, end)
        begin = max(begin, end)
        gap, missed = f"{connect.time - kill:.1f}", end - api.count_posted(kill)
        asked_back = connect.query.get("backfill_minutes", "none")
        counts = (found.missing(posted), found.twice(posted))
        print(table_row(number, gap, missed, asked_back, *counts))
    missing, twice = found.missing(found.expected), found.twice(range(found.expected.stop))
    print(table_row("all", "", "", "", missing, twice))
    # Its first backfill may bring tweets that were posted before its first connect
    earlier = sum(number < found.expected.start for number in found.numbers)
    print(
        f"posted from the first one published to the last: {len(found.expected):,}; "
        f"published {values.total():,}, {earlier} of them earlier, {found.invented} never posted",
        flush=True,
    )
    return missing == twice == found.invented == 0


# ------------------------------------------------------------------ memory


FAILURES: dict[str, Step | None] = {
    "refused": None,  # nothing listens there
    "TLS without an answer": Step(before="close"),
    "503": Step(status=503),
    "reset within the header": Step(before="reset"),
}


class Usage(NamedTuple):
    descriptors: int
    memory: float  # MB


def show_memory(connects: int) -> bool:
    """Fail to connect `connects` times in each way, side by side; print what is left behind."""
    print_head(
        "each connect fails",
        "connects",
        "descriptors at 100",
        "at the end",
        "memory at 100 (MB)",
        "at the end",
        "limit",
    )
    with Broker() as broker, ThreadPoolExecutor() as pool:
        jobs = [pool.submit(fail_to_connect, broker, name, connects) for name in FAILURES]
        rows = [job.result() for job in jobs]
    return print_rows(rows)


def fail_to_connect(broker: Broker, name: str, connects: int) -> Row:
    topic = f"failing-{list(FAILURES).index(name)}"
    with (
        failing_server(name) as (url, settings),
        Follower(broker, url, topic, SHORT_SECOND, **settings) as follower,
    ):
        early = usage_after(follower, 100)
        late = usage_after(follower, connects)
        reconnects = int(follower.stop()["reconnects"])
    descriptors = (early.descriptors, late.descriptors)
    memory = (f"{early.memory:.1f}", f"{late.memory:.1f}")
    is_flat = late.descriptors <= early.descriptors + DESCRIPTORS_OF_A_CONNECTION
    text = table_row(name, reconnects, *descriptors, *memory, MEMORY_LIMIT)
    return Row(text, is_flat and late.memory < MEMORY_LIMIT)


@contextmanager
def failing_server(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL at which each connect fails in this way, and the settings it needs."""
    step = FAILURES[name]
    if not step:
        with ReservedPort() as port:
            yield f"http://127.0.0.1:{port}/", {}
    elif name.startswith("TLS"):
        with tempfile.TemporaryDirectory() as folder:
            certificate, bundle = make_certificate(Path(folder))
            with XApi([step], certificate=certificate) as api:
                yield api.url, {"REQUESTS_CA_BUNDLE": bundle}
    else:
        with XApi([step]) as api:
            yield api.url, {}


def make_certificate(folder: Path) -> tuple[tuple[str, str], str]:
    """Files: a certificate for 127.0.0.1 and its key; the authorities to trust.

    The authorities are many, as usual: an unfreed TLS connection keeps them all in memory.
    """
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key, bundle = (folder / name for name in ("chain.pem", "key.pem", "bundle.pem"))
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    usual = Path(certifi.where()).read_bytes()
    bundle.write_bytes(usual + authority.cert_pem.bytes())
    return (str(chain), str(key)), str(bundle)


def usage_after(follower: Follower, connects: int) -> Usage:
    follower.wait_until(lambda: follower.reconnects() >= connects, 1200)
    return Usage(follower.descriptors(), follower.memory())


# ------------------------------------------------------------------ many tweets


class Volume(NamedTuple):
    """What was measured during a run with many tweets."""

    summary: re.Match[str]
    memory: list[float]  # MB, at 10% and at 100% of the tweets
    outages: list[float]  # seconds


def show_volume(tweets: int, every: int, seed: int, second: float) -> bool:
    """Run it, and print what was measured; return whether nothing was lost or invented.

    `every` is the number of tweets between two faults, `second` the length of a second of X's
    rules.
    """
    chance = random.Random(seed)
    names = [chance.choice(list(FAULTS)) for _ in range(tweets // every)]
    print(f"seed {seed}, a second of X's rules lasts {second:g} s; the faults:")
    for name, count in sorted(Counter(names).items()):
        print(f"  {count} x {name}", flush=True)
    began = time.monotonic()
    with Broker() as broker, XApi(script_of(names, every, second)) as api:
        with Follower(broker, api.url, "soak", second) as follower:
            volume = follow_all(follower, broker, api, tweets)
        found = count_values(broker, "soak")
    is_good = report_volume(volume, api, found)
    print(f"time        {time.monotonic() - began:9.0f} s", flush=True)
    return is_good


def script_of(names: list[str], every: int, second: float, batch: int = 50) -> list[Step]:
    """The steps of the faults with these names; after them, only silence."""
    script: list[Step] = []
    for name in names:
        first, *others = FAULTS[name].steps
        script.append(dataclasses.replace(first, tweets=every, batch=batch))
        for step in others:
            # x-rate-limit-reset is a point in time, so it has to be shortened here
            script.append(dataclasses.replace(step, reset_after=step.reset_after * second))
    return [*script, Step(tweets=0, end="silence")]


def follow_all(follower: Follower, broker: Broker, api: XApi, tweets: int) -> Volume:
    def wait_for(part: float) -> None:
        follower.wait_until(lambda: len(api.sent) >= part * tweets, 3600)

    wait_for(0.1)
    memory = [follower.memory()]
    outages = []
    for part in (0.33, 0.66):
        wait_for(part)
        outages.append(restart(broker))
    wait_for(1.0)
    memory.append(follower.memory())
    # Whoever takes the last step has read all tweets
    follower.wait_until(lambda: len(api.requests) >= len(api.script), 3600)
    return Volume(follower.stop(), memory, outages)


def restart(broker: Broker) -> float:
    """Kill the broker and start it again; return how many seconds that took."""
    began = time.monotonic()
    broker.kill()
    broker.start()
    return time.monotonic() - began


def report_volume(volume: Volume, api: XApi, found: Counter[bytes]) -> bool:
    """Print what was measured; return whether it is as it should be."""
    sent = Counter(api.sent)
    lost, extra, twice = (sent - found).total(), (found - sent).total(), len(api.sent) - len(sent)
    first, second = volume.outages
    early, late = volume.memory
    print(f"Kafka killed and started again, back after {first:.1f} and {second:.1f} s")
    print(f"sent whole  {len(api.sent):9,}")
    print(f"published   {found.total():9,} (its summary: {volume.summary[0]})")
    print(f"lost        {lost:9,}")
    print(f"duplicates  {extra + twice:9,} ({twice:,} were sent twice)")
    print(f"connects    {len(api.requests):9,} (at most {api.most_open} at a time)")
    print(f"memory      {early:9.1f} MB at 10 %, {late:.1f} MB at 100 %")
    is_exact = lost == extra == 0 and found.total() == int(volume.summary["published"])
    return is_exact and abs(late - early) <= 20 and api.most_open == 1


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    parts: dict[str, Callable[[], bool]] = {
        "faults": show_faults,
        "quiet": lambda: show_quiet(options.quiet_faults, seed),
        "kills": lambda: show_kills(options.kills, seed),
        "memory": lambda: show_memory(options.connects),
        "volume": lambda: show_volume(options.tweets, options.every, seed, options.second),
    }
    results = [parts[name]() for name in PARTS if name in (options.only or PARTS)]
    return 0 if all(results) else 1


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="only this part; repeatable (default: all)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="for the faults and the kills (default: a new one each time)",
    )
    parser.add_argument(
        "--quiet-faults", type=int, default=26, help="faults in the quiet stream (default: 26)"
    )
    parser.add_argument("--kills", type=int, default=20, help="(default: 20)")
    parser.add_argument(
        "--connects", type=int, default=4000, help="failing connects of each kind (default: 4,000)"
    )
    parser.add_argument(
        "--tweets", type=int, default=1_000_000, help="tweets in volume (default: 1,000,000)"
    )
    parser.add_argument(
        "--every", type=int, default=10_000, help="tweets between its faults (default: 10,000)"
    )
    parser.add_argument(
        "--second", type=float, default=0.1, help="length of X's second in it (default: 0.1)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
