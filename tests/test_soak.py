"""The soak, at a hundredth of its size."""

import subprocess
import sys

from conftest import REPOSITORY


def test_a_day_with_faults_loses_and_invents_nothing() -> None:
    options = ["--day-only", "--tweets", "10000", "--every", "500", "--second", "0.05"]
    command = [sys.executable, str(REPOSITORY / "tests" / "soak.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split()[:2] for line in done.stdout.splitlines() if line.startswith(("published", "lost")))
    assert int(found["published"].replace(",", "")) >= 10_000
    assert found["lost"] == "0"
