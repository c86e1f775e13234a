"""twitter-stream.py under faults: each kind once at X's own pace, then a day of stream at full speed.

The day: a fault of a random kind every 10,000 tweets, and Kafka killed and started again twice on the way.
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
from typing import Any

from broker import Broker
from x_api import Step, XApi

from kafka import KafkaConsumer, TopicPartition

HERE = Path(__file__).parent.parent
SUMMARY = re.compile(r"published (\d+) tweets to \S+ \((\d+) reconnects, (\d+) skipped\)")
DISCONNECT = {"title": "operational-disconnect", "disconnect_type": "UpstreamOperationalDisconnect", "detail": "bye"}
DISCONNECT["type"] = "https://api.x.com/2/problems/operational-disconnect"
TOO_MANY = {"title": "ConnectionException", "detail": "too many", "connection_issue": "TooManyConnections"}


def line(message: object) -> str:
    return f"{json.dumps(message)}\r\n"


# By name: what a connection does at the end of its tweets, or what the next ones bring; and within how many
# seconds of X's rules tweets are to flow again
FAULTS: dict[str, tuple[list[Step], float, float]] = {
    "the stream ends": ([Step()], 0, 1),
    "the connection is cut": ([Step(end="cut")], 0, 1),
    "it is cut within a chunk and a line": ([Step(end="torn")], 0, 1),
    "it is cut before the line's end": ([Step(end="tail")], 0, 1),
    "it is reset": ([Step(end="reset")], 0, 1),
    "a chunk is garbled": ([Step(end="garbled")], 0, 1),
    "silence": ([Step(end="silence")], 21, 25),
    "a 503": ([Step(), Step(status=503)], 5, 7),
    "two 503, HTML": ([Step(), *[Step(status=503, body="<html>Over capacity</html>")] * 2], 15, 19),
    "a 429": ([Step(), Step(status=429)], 60, 73),
    "an empty 200": ([Step(), Step(tweets=0)], 0.25, 1.5),
    "a redirect": ([Step(), Step(status=302, headers={"Location": "http://localhost:1/"})], 5, 7),
    "a disconnect message": ([Step(), Step(body=f"\r\n{line({'errors': [DISCONNECT]})}", tweets=0)], 0, 1),
    "the same, not wrapped": ([Step(), Step(body=f"\r\n{line(DISCONNECT)}", tweets=0)], 0, 1),
    "TooManyConnections": ([Step(), Step(body=line(TOO_MANY), tweets=0)], 5, 7),
    "lines that are no tweets": ([Step(), Step(body='[1]\r\nnot json\n{"data":{}}\r\n', tweets=0)], 0.25, 1.5),
    "a line of 2 MB": ([Step(), Step(body="x" * 2_000_000 + "\n", tweets=0)], 0.25, 1.5),
    "tweets sent twice": ([Step(), Step(again=10, tweets=0, end="cut")], 0, 1),
}


class Follower:
    """twitter-stream.py as a process, for use in a `with`."""

    def __init__(self, broker: Broker, api: XApi, topic: str, second: float) -> None:
        env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": broker.address, "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}
        env |= {"STREAM_URL": api.url, "BEARER_TOKEN": api.token, "STREAM_TEST_SECOND": str(second)}
        env |= {"NO_PROXY": "127.0.0.1"}
        self.told = tempfile.TemporaryFile("w+")  # noqa: SIM115 # __exit__ closes it
        command = [sys.executable, str(HERE / "twitter-stream.py"), "-t", topic]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stderr=self.told)

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.told.close()

    def wait_until(self, condition: Callable[[], Any], seconds: float) -> None:
        """Poll until the condition holds; SystemExit where the process ends before or it takes too long."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"soak.py: twitter-stream.py ended or hangs: {self.last_words()}")
            time.sleep(0.02)

    def last_words(self) -> str:
        self.told.seek(0)
        return self.told.readlines()[-1].partition(": ")[2].strip()

    def stop(self) -> re.Match[str]:
        """End it with SIGTERM; returns its summary: published, reconnects, skipped."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        summary = SUMMARY.fullmatch(self.last_words())
        if status or not summary:
            raise SystemExit(f"soak.py: twitter-stream.py ended with status {status}: {self.last_words()}")
        return summary

    def memory(self) -> float:
        """The resident set, in MB (Linux)."""
        [size] = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        return int(size) / 1024


def values(broker: Broker, topic: str) -> Counter[bytes]:
    """What is in the topic, and how often."""
    consumer = KafkaConsumer(bootstrap_servers=broker.address, auto_offset_reset="earliest", enable_auto_commit=False)
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    end, found = consumer.end_offsets([partition])[partition], Counter[bytes]()
    while consumer.position(partition) < end:
        for batch in consumer.poll(1000, max_records=5000).values():
            found.update(record.value for record in batch)
    consumer.close()
    return found


def try_fault(broker: Broker, number: int, name: str) -> tuple[str, bool]:
    """A row of the table, and whether the goal was met."""
    steps, least, most = FAULTS[name]
    script = [dataclasses.replace(steps[0], tweets=100), *steps[1:], Step()]
    topic = f"fault-{number}"
    with XApi(script, rate=100) as api, Follower(broker, api, topic, second=1) as follower:
        follower.wait_until(lambda: len(api.flows) > 1 and len(api.sent) > 200, 150)
        summary = follower.stop()
        pause = api.flows[1][0] - api.flows[0][1]
    found = values(broker, topic)
    sent = Counter(api.sent[: found.total()])
    lost, extra = (sent - found).total(), (found - sent).total()
    met = least <= pause <= most and not (lost or extra) and found.total() == int(summary[1])
    row = f"| {name} | {len(api.requests)} | {found.total()} | {lost} | {extra} | {summary[3]} | {pause:.2f} s "
    return f"{row}| {least:g} to {most:g} s |", met


def show_faults() -> bool:
    """Each fault once, six side by side, a second being a second."""
    print("| fault | connects | published | lost | invented | skipped | tweets again after | goal |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with Broker() as broker, ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(try_fault, broker, *pair) for pair in enumerate(FAULTS)]
        results = [job.result() for job in jobs]
    for row, met in results:
        print(row if met else f"{row} MISSED", flush=True)
    return all(met for _, met in results)


def live_a_day(tweets: int, every: int, seed: int, second: float) -> bool:
    """The day; `second` is how long a second of X's rules is. Returns whether nothing was lost or invented."""
    chance = random.Random(seed)
    script: list[Step] = []
    kinds: Counter[str] = Counter()
    for _ in range(tweets // every):
        kind = chance.choice(list(FAULTS))
        kinds[kind] += 1
        first, *rest = FAULTS[kind][0]
        script += [dataclasses.replace(first, tweets=every, batch=50), *rest]
    print(f"seed {seed}, a second of X's rules lasts {second:g} s; the faults:")
    print("".join(f"  {count} x {kind}\n" for kind, count in sorted(kinds.items())), end="", flush=True)
    began = time.monotonic()
    sizes, outages = [], []
    # At the end the stand-in has nothing more: whoever connects once more has read all there was
    with Broker() as broker, XApi([*script, Step(tweets=0, end="silence")]) as api:
        with Follower(broker, api, "soak", second) as follower:
            for part in (0.1, 0.33, 0.66, 1.0):
                enough = part * tweets
                follower.wait_until(lambda enough=enough: len(api.sent) >= enough, 3600)  # type: ignore[misc]
                if part in (0.1, 1.0):
                    sizes.append(follower.memory())
                else:
                    down = time.monotonic()
                    broker.kill()
                    broker.start()
                    outages.append(time.monotonic() - down)
            follower.wait_until(lambda: len(api.requests) > len(script), 3600)
            summary = follower.stop()
        found = values(broker, "soak")
    sent = Counter(api.sent)
    lost, extra, twice = (sent - found).total(), (found - sent).total(), len(api.sent) - len(sent)
    print(f"Kafka killed and started again, back after {outages[0]:.1f} and {outages[1]:.1f} s")
    print(f"sent whole  {len(api.sent):9,}")
    print(f"published   {found.total():9,} (told: {summary[0]})")
    print(f"lost        {lost:9,}")
    print(f"duplicates  {extra + twice:9,} ({twice:,} were sent twice)")
    print(f"connects    {len(api.requests):9,} (at most {api.most_open} at a time)")
    print(f"memory      {sizes[0]:9.1f} MB at 10 %, {sizes[1]:.1f} MB at 100 %")
    print(f"time        {time.monotonic() - began:9.0f} s", flush=True)
    flat = abs(sizes[1] - sizes[0]) <= 20
    return not (lost or extra) and found.total() == int(summary[1]) and flat and api.most_open == 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tweets", type=int, default=1_000_000, help="of the day (default: 1,000,000)")
    parser.add_argument("--every", type=int, default=10_000, help="tweets between two faults (default: 10,000)")
    parser.add_argument("--seed", type=int, default=None, help="of the faults (default: another one each time)")
    parser.add_argument("--second", type=float, default=0.1, help="length of a second of X's rules (default: 0.1)")
    parser.add_argument("--day-only", action="store_true", help="without the table of faults")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    good = options.day_only or show_faults()
    return 0 if live_a_day(options.tweets, options.every, seed, options.second) and good else 1


if __name__ == "__main__":
    raise SystemExit(main())
