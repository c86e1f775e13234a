"""The soak's day, at a hundredth of its size."""

import re
import subprocess
import sys

from conftest import REPOSITORY


def test_a_day_with_faults_loses_and_invents_nothing() -> None:
    options = ["--day-only", "--tweets", "10000", "--every", "500", "--second", "0.05"]
    command = [sys.executable, str(REPOSITORY / "tests" / "soak.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [published] = re.findall(r"^published +([\d,]+) ", done.stdout, re.MULTILINE)
    assert int(published.replace(",", "")) >= 10_000
    assert re.search(r"^lost +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^connects +[\d,]+ \(at most 1 at a time\)$", done.stdout, re.MULTILINE)
