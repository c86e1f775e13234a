"""Two rounds of the mixture, and whether its checks tell what is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from conftest import REPOSITORY
from messages import Summary
from mixture import Event, Fault, Plan, Run, Stored, check_end, check_equal, check_topic

PAIRS = [
    *((b"%d" % (number % 7), b"value %d" % number) for number in range(40)),
    *[(b"0", b""), (b"0", None), (None, b"no key"), (None, b"value twice"), (None, b"value twice")],
]
EVENTS = [Event(key, value) for key, value in PAIRS]
HEADERS = [(b"name", b"value")]
PLAN = Plan(b"", EVENTS, [], HEADERS, 1, 1 << 20, {}, [], False)
STORED = [Stored(0, offset, 50, event, HEADERS) for offset, event in enumerate(EVENTS)]
RUN = Run(0, 100, 0, Summary(len(EVENTS)), set(), 0)
STOPPED = RUN._replace(summary=Summary(20, next_line=21))
FAILED = RUN._replace(summary=Summary(20, failed=25, reason="why", next_line=21))
SKIPPED = RUN._replace(summary=Summary(44, failed=1, reason="why"), skipped={9})


def mixture(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "tests" / "mixture.py"), *options]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "demo"), **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, env=env)


@pytest.mark.stress
def test_two_rounds_find_no_difference() -> None:
    done = mixture("--seed", "7", "--rounds", "2", "--reader", "librdkafka")
    assert done.returncode == 0, done.stdout + done.stderr
    *rounds, total = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in rounds] == ["seed 7", "7-1", "7-2"]
    assert total.startswith("rounds: 2, events: ")
    assert total.endswith(", differences: 0")


def test_without_kcat_it_says_so() -> None:
    done = mixture(PATH="")
    message = "mixture.py needs kcat; install it, or use --reader librdkafka\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def renumbered(stored: list[Stored]) -> list[Stored]:
    return [each._replace(offset=offset) for offset, each in enumerate(stored)]


def changed(**fields: Any) -> Callable[[list[Stored]], list[Stored]]:
    """What makes the fourth event another one."""
    return lambda stored: [*stored[:3], stored[3]._replace(**fields), *stored[4:]]


@pytest.mark.parametrize(
    ("run", "count"), [(RUN, 45), (STOPPED, 20), (FAILED, 20), (FAILED, 45), (SKIPPED, 45)]
)
def test_what_is_right_passes(run: Run, count: int) -> None:
    right = [each for each in STORED[:count] if each.offset + 1 not in run.skipped]
    check_topic(PLAN, run, renumbered(right))


CHANGES: dict[str, tuple[Run, Callable[[list[Stored]], list[Stored]], str]] = {
    "one is missing": (RUN, lambda it: it[:8] + it[9:], "lost"),
    "one of two equal ones is missing": (RUN, lambda it: it[:-1], "lost"),
    "one came twice": (RUN, lambda it: [*it, it[8]], "not in the file, or twice"),
    "two are swapped": (RUN, lambda it: [it[1], it[0], *it[2:]], "not in the order of the file"),
    "another value": (RUN, changed(event=Event(b"3", b"value 33")), "not in the file"),
    "no key": (RUN, changed(event=Event(None, b"value 3")), "not in the file"),
    "null and empty": (RUN, lambda it: [*it[:40], it[41], it[40], *it[42:]], "not in the order"),
    "no header": (RUN, changed(headers=[]), "headers"),
    "another time": (RUN, changed(timestamp=101), "timestamp"),
    "another partition": (
        RUN,
        lambda it: [each._replace(partition=1) for each in it],
        "belongs to partition 0",
    ),
    "one before the stop is missing": (STOPPED, lambda it: it[:8] + it[9:20], "lost"),
    "one after the stop": (STOPPED, lambda it: it[:21], "published, but not counted"),
    "one before the failure is missing": (FAILED, lambda it: it[:8] + it[9:], "lost"),
    "the skipped one is there": (SKIPPED, lambda it: it, "not in the file"),
    "fewer than published": (
        FAILED._replace(summary=FAILED.summary._replace(published=21)),
        lambda it: it[:20],
        "20 events",
    ),
    "more than can have been": (
        FAILED._replace(summary=FAILED.summary._replace(failed=1)),
        lambda it: it[:22],
        "22 events",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_is_told(change: str) -> None:
    run, make_wrong, told = CHANGES[change]
    with pytest.raises(AssertionError, match=told):
        check_topic(PLAN, run, renumbered(make_wrong(STORED)))


def test_an_offset_without_an_event_is_told() -> None:
    with pytest.raises(AssertionError, match="partition 0: offsets"):
        check_topic(PLAN, RUN, [*STORED[:-1], STORED[-1]._replace(offset=45)])


def test_readers_that_differ_are_told() -> None:
    check_equal(STORED, list(STORED), "consumer")
    for make_wrong in (changed(timestamp=51), changed(headers=[]), lambda it: it[:-1]):
        with pytest.raises(AssertionError, match="consumer: Stored"):
            check_equal(STORED, make_wrong(STORED), "consumer")


INTERRUPTED = PLAN._replace(faults=[Fault("signalled", 0.5, 2)])
LOWERED = PLAN._replace(faults=[Fault("lowered", 0.5, 100)])
LOWERED_LITTLE = PLAN._replace(faults=[Fault("lowered", 0.5, 1000)])
ENDS: dict[str, tuple[Plan, Run, str]] = {
    "skipped though small": (PLAN, SKIPPED, "skipped, but small enough: 9"),
    "failed without a fault": (PLAN._replace(limit=100), FAILED, "no limit was lowered"),
    "failed though all are small": (LOWERED_LITTLE, FAILED, "all events are small enough"),
    "stopped without a signal": (PLAN, STOPPED, "stopped without a reason"),
    "status 0 though it was stopped": (INTERRUPTED, STOPPED, "status 0, not 130"),
    "status 0 though one failed": (LOWERED, FAILED, "status 0, not 1"),
    "status 1 though none failed": (PLAN, RUN._replace(status=1), "status 1, not 0"),
    "it would not end": (INTERRUPTED, RUN._replace(status=-9), "status -9"),
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_that_has_no_reason_is_told(end: str) -> None:
    plan, run, told = ENDS[end]
    with pytest.raises(AssertionError, match=told):
        check_end(plan, run)


def test_an_end_that_has_a_reason_passes() -> None:
    check_end(PLAN, RUN)
    check_end(INTERRUPTED, STOPPED._replace(status=130))
    check_end(INTERRUPTED, RUN._replace(status=-2))
    check_end(LOWERED, FAILED._replace(status=1))
    check_end(PLAN._replace(limit=100), SKIPPED._replace(status=1))
