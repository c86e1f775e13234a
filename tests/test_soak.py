"""The soak's million tweets, at a hundredth of that, and a little of its other parts."""

import os
import re
import subprocess
import sys

import pytest

from conftest import REPOSITORY


def soak(*options: str) -> str:
    """What soak.py prints; it must find nothing wrong."""
    command = [sys.executable, str(REPOSITORY / "tests" / "soak.py"), *options]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "demo")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cells(table: str, name: str) -> list[str]:
    """The cells of the row with that name."""
    [row] = re.findall(rf"^\| {name} \|(.*)\|$", table, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


@pytest.mark.stress
def test_many_tweets_with_faults_are_neither_lost_nor_invented() -> None:
    printed = soak("--only", "volume", "--tweets", "10000", "--every", "500", "--second", "0.05")
    [published] = re.findall(r"^published +([\d,]+) ", printed, re.MULTILINE)
    assert int(published.replace(",", "")) >= 10_000
    assert re.search(r"^lost +0$", printed, re.MULTILINE)
    assert re.search(r"^connects +[\d,]+ \(at most 1 at a time\)$", printed, re.MULTILINE)


@pytest.mark.stress
def test_a_quiet_stream_loses_nothing_and_has_no_gaps_but_real_ones() -> None:
    """Nor does a fault end the run, though only keep-alives may have come before."""
    printed = soak("--only", "quiet", "--quiet-faults", "4")
    connects, published, lost, invented, skipped, *_ = cells(printed, "quiet")
    assert int(connects) > 4
    assert int(published) > 0
    assert [lost, invented, skipped] == ["0", "0", "0"]


@pytest.mark.stress
def test_kills_leave_nothing_missing_and_nothing_twice() -> None:
    printed = soak("--only", "kills", "--kills", "3")
    assert len(cells(printed, "3")) == 5
    assert cells(printed, "all")[-2:] == ["0", "0"]


@pytest.mark.stress
def test_failing_connects_leave_memory_and_descriptors_as_they_were() -> None:
    printed = soak("--only", "memory", "--connects", "300")
    for name in ("refused", "TLS without an answer", "503", "reset within the header"):
        connects, early, late, _, memory, _ = cells(printed, name)
        assert int(connects) >= 300
        assert int(late) <= int(early) + 5
        assert float(memory) < 80
