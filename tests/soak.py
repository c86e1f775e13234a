"""twitter-stream.py under faults: each kind once at X's pace, then a day's tweets at full speed.

On that day a fault of a random kind comes every 10,000 tweets, and Kafka is killed and started
again twice.
"""

import argparse
import dataclasses
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from broker import Broker
from x_api import Step, XApi

from kafka import KafkaConsumer, TopicPartition

HERE = Path(__file__).parent.parent
SUMMARY = re.compile(
    r"published (?P<published>\d+) tweets? to \S+ \(\d+ reconnects?, (?P<skipped>\d+) skipped\)"
)
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


def line(message: object) -> str:
    return f"{json.dumps(message)}\r\n"


class Fault(NamedTuple):
    """What a connection does at the end of its tweets, and what the next ones bring, as steps.

    Tweets have to flow again after `least` to `most` seconds of X's rules.
    """

    steps: list[Step]
    least: float
    most: float


FAULTS = {
    "the stream ends": Fault([Step()], 0, 1),
    "the connection is cut": Fault([Step(end="cut")], 0, 1),
    "it is cut within a chunk and a line": Fault([Step(end="torn")], 0, 1),
    "it is cut before the line's end": Fault([Step(end="tail")], 0, 1),
    "it is reset": Fault([Step(end="reset")], 0, 1),
    "a chunk is garbled": Fault([Step(end="garbled")], 0, 1),
    "silence": Fault([Step(end="silence")], 21, 25),
    "a 503": Fault([Step(), Step(status=503)], 5, 7),
    "two 503, HTML": Fault(
        [Step(), *[Step(status=503, body="<html>Over capacity</html>")] * 2], 15, 19
    ),
    "a 429": Fault([Step(), Step(status=429)], 60, 73),
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
        [Step(), Step(body='[1]\r\nnot json\n{"data":{}}\r\n', tweets=0)], 0.25, 1.5
    ),
    "a line of 2 MB": Fault([Step(), Step(body="x" * 2_000_000 + "\n", tweets=0)], 0.25, 1.5),
    "tweets sent twice": Fault([Step(), Step(again=10, tweets=0, end="cut")], 0, 1),
}


class Follower:
    """twitter-stream.py as a process, for use in a `with`."""

    def __init__(self, broker: Broker, api: XApi, topic: str, second: float) -> None:
        env = {
            **os.environ,
            "KAFKA_BOOTSTRAP_SERVERS": broker.address,
            "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
            "STREAM_URL": api.url,
            "BEARER_TOKEN": api.token,
            "STREAM_TEST_SECOND": str(second),
            "NO_PROXY": "127.0.0.1",
        }
        self.messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 # __exit__ closes it
        command = [sys.executable, str(HERE / "twitter-stream.py"), "-t", topic]
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
        """Poll until the condition holds; SystemExit if the process ends, or it takes longer."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(
                    f"soak.py: twitter-stream.py ended or hangs: {self.last_message()}"
                )
            time.sleep(0.02)

    def last_message(self) -> str:
        self.messages.seek(0)
        last = self.messages.read().strip().rpartition("\n")[2]
        return last.partition(": ")[2]

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


def count_values(broker: Broker, topic: str) -> Counter[bytes]:
    """What is in the topic, and how often."""
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


# ------------------------------------------------------------------ each fault once


class Row(NamedTuple):
    """A row of the table, and whether the goal was met."""

    text: str
    is_met: bool


def try_fault(broker: Broker, number: int, name: str) -> Row:
    fault = FAULTS[name]
    script = [dataclasses.replace(fault.steps[0], tweets=100), *fault.steps[1:], Step()]
    topic = f"fault-{number}"
    with XApi(script, rate=100) as api, Follower(broker, api, topic, second=1) as follower:
        follower.wait_until(lambda: len(api.flows) > 1 and len(api.sent) > 200, 150)
        summary = follower.stop()
        pause = api.flows[1][0] - api.flows[0][1]
    found = count_values(broker, topic)
    count = found.total()
    sent = Counter(api.sent[:count])
    lost, invented = (sent - found).total(), (found - sent).total()
    is_exact = lost == invented == 0 and count == int(summary["published"])
    cells = [name, len(api.requests), count, lost, invented, summary["skipped"]]
    goal = f"{fault.least:g} to {fault.most:g} s"
    text = f"| {' | '.join(map(str, cells))} | {pause:.2f} s | {goal} |"
    return Row(text, is_exact and fault.least <= pause <= fault.most)


def show_faults() -> bool:
    """Each fault once, six side by side, where a second is a second."""
    print(
        "| fault | connects | published | lost | invented | skipped | tweets again after | goal |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with Broker() as broker, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(try_fault, broker, *pair) for pair in enumerate(FAULTS)]
        rows = [job.result() for job in jobs]
    for row in rows:
        print(row.text if row.is_met else f"{row.text} MISSED", flush=True)
    return all(row.is_met for row in rows)


# ------------------------------------------------------------------ the day


class Day(NamedTuple):
    """What was measured on it."""

    summary: re.Match[str]
    memory: list[float]  # MB, at 10 % and at 100 % of the tweets
    outages: list[float]  # seconds


def live_a_day(tweets: int, every: int, seed: int, second: float) -> bool:
    """Run it, and print what was measured; return whether nothing was lost or invented.

    `every` is how many tweets there are between two faults, `second` how long a second of X's
    rules is.
    """
    chance = random.Random(seed)
    names = [chance.choice(list(FAULTS)) for _ in range(tweets // every)]
    print(f"seed {seed}, a second of X's rules lasts {second:g} s; the faults:")
    for name, count in sorted(Counter(names).items()):
        print(f"  {count} x {name}", flush=True)
    began = time.monotonic()
    with Broker() as broker, XApi(day_script(names, every)) as api:
        with Follower(broker, api, "soak", second) as follower:
            day = follow_for_a_day(follower, broker, api, tweets)
        found = count_values(broker, "soak")
    is_good = report(day, api, found)
    print(f"time        {time.monotonic() - began:9.0f} s", flush=True)
    return is_good


def day_script(names: list[str], every: int) -> list[Step]:
    """The faults of these names; after them nothing more comes."""
    script: list[Step] = []
    for name in names:
        first, *others = FAULTS[name].steps
        script += [dataclasses.replace(first, tweets=every, batch=50), *others]
    return [*script, Step(tweets=0, end="silence")]


def follow_for_a_day(follower: Follower, broker: Broker, api: XApi, tweets: int) -> Day:
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
    # Who takes the last step has read all tweets
    follower.wait_until(lambda: len(api.requests) >= len(api.script), 3600)
    return Day(follower.stop(), memory, outages)


def restart(broker: Broker) -> float:
    """Kill the broker and start it again; return how many seconds that took."""
    began = time.monotonic()
    broker.kill()
    broker.start()
    return time.monotonic() - began


def report(day: Day, api: XApi, found: Counter[bytes]) -> bool:
    """Print the day's figures; return whether they are as they should be."""
    sent = Counter(api.sent)
    lost, extra, twice = (sent - found).total(), (found - sent).total(), len(api.sent) - len(sent)
    first, second = day.outages
    early, late = day.memory
    print(f"Kafka killed and started again, back after {first:.1f} and {second:.1f} s")
    print(f"sent whole  {len(api.sent):9,}")
    print(f"published   {found.total():9,} (its summary: {day.summary[0]})")
    print(f"lost        {lost:9,}")
    print(f"duplicates  {extra + twice:9,} ({twice:,} were sent twice)")
    print(f"connects    {len(api.requests):9,} (at most {api.most_open} at a time)")
    print(f"memory      {early:9.1f} MB at 10 %, {late:.1f} MB at 100 %")
    is_exact = lost == extra == 0 and found.total() == int(day.summary["published"])
    return is_exact and abs(late - early) <= 20 and api.most_open == 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tweets", type=int, default=1_000_000, help="of the day (default: 1,000,000)"
    )
    parser.add_argument(
        "--every", type=int, default=10_000, help="tweets between two faults (default: 10,000)"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the faults (default: another one each time)"
    )
    parser.add_argument(
        "--second", type=float, default=0.1, help="length of a second of X's rules (default: 0.1)"
    )
    parser.add_argument("--day-only", action="store_true", help="without the table of faults")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    are_met = options.day_only or show_faults()
    is_good = live_a_day(options.tweets, options.every, seed, options.second)
    return 0 if are_met and is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
