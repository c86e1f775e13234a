"""tests/bench.py with few events: the parts that need no Java print their tables."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY


@pytest.mark.stress
def test_the_bench_runs(tmp_path: Path) -> None:
    bench, parts = str(REPOSITORY / "tests" / "bench.py"), ["tweets", "latency", "growth", "many"]
    done = subprocess.run(
        [sys.executable, bench, "--rounds", "1", "--scale", "0.001", *parts],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "demo"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=True,
    )
    assert re.search(r"^\| \*\*producer.py\*\* \| 1.00 \|", done.stdout, re.MULTILINE)
    assert re.search(r"^\| \*\*twitter-stream.py\*\* \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert re.search(r"median \d+ ms, 95 % within \d+ ms", done.stdout)
    growth, many = ["10", "100", "1,000", "3,000"], ["1", "2", "4"]
    assert re.findall(r"^\| ([\d,]+) \|", done.stdout, re.MULTILINE) == growth + many
    assert "failed" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
