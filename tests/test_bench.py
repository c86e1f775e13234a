"""tests/bench.py with few events, and what it makes of outputs and times."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import (
    GOALS,
    WORKS,
    Result,
    cell,
    exit_status,
    judge,
    judge_memory,
    show_goals,
    table_columns,
    table_head,
    write_chart,
)
from conftest import REPOSITORY
from measure import Done, Runs, Work, is_same, watch


def runs(*seconds: float, failure: str = "") -> Runs:
    return Runs(Done(each, 70, failure) for each in seconds)


def result(failure: str = "") -> Result:
    """Publishing: kcat takes a second, and producer.py two, three or seven, if it does not fail."""
    own = runs(7, 2, 3, failure=failure)
    return Result("publish", {"producer.py": own, "kcat": runs(1)})


@pytest.mark.stress
def test_the_bench_runs(tmp_path: Path) -> None:
    program, chart = str(REPOSITORY / "tests" / "bench.py"), tmp_path / "chart.svg"
    done = subprocess.run(
        [sys.executable, program, "--rounds", "1", "--scale", "0.001", "--chart", str(chart)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "demo"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    own_cells = re.findall(r"^\| [^|]+ \| \d+\.\d\d \(\d+\) \|", done.stdout, re.MULTILINE)
    assert len(own_cells) == len(WORKS)
    assert re.search(r"^\| publish the event \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == [chart]


def test_tools_that_publish_and_print_in_the_same_way_share_a_column() -> None:
    columns = list(table_columns(has_before=True))
    assert table_head(columns[:3]) == (
        "| seconds (MB) | producer.py / consumer.py | producer.py before / consumer.py before "
        "| kcat |\n|---|---|---|---|"
    )
    assert [cell(result(), column) for column in columns[:4]] == ["3.00 (70)", "", "1.00 (70)", ""]
    assert cell(result("status 1"), columns[0]) == "failed: status 1"
    own = Result("print", {"consumer.py": runs(2), "consumer.py before": runs(4)})
    assert [cell(own, column) for column in columns[:3]] == ["2.00 (70)", "4.00 (70)", ""]


def test_a_tool_that_is_slow_or_fails_does_not_run_again() -> None:
    assert not runs(30, 29).is_enough
    assert runs(30, 31).is_enough
    assert runs(1, failure="status 1").is_enough


def test_goals_are_met_missed_or_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    [kcat] = [goal for goal in GOALS if goal.work == "publish" and goal.fast == "kcat"]
    assert judge(kcat, {"publish": result()})[1:] == ("3.00", True)
    assert judge(kcat._replace(factor=2), {"publish": result()})[1:] == ("3.00", False)
    assert judge(kcat._replace(limit="at least"), {"publish": result()})[1:] == ("3.00", False)
    assert judge(kcat, {"publish": result("failed")})[1:] == ("", None)
    assert judge(kcat, {})[1:] == ("", None)
    assert judge_memory("producer.py", 70, {"publish": result()})[1:] == ("70", True)
    assert not show_goals({"publish": result()})  # 70 MB are too many
    assert "| producer.py takes at most 60 MB | 70 | MISSED |\n" in capsys.readouterr().out
    assert show_goals({})


def test_a_missed_goal_or_a_failed_tool_sets_the_status() -> None:
    assert exit_status({"publish-7": result()}, 1) == 1  # 70 MB are too many
    assert exit_status({"publish-7": result()}, 0.5) == 0
    assert exit_status({"publish-7": result("failed")}, 0.5) == 1


def test_a_small_chart_of_what_did_not_fail(tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    write_chart(chart, {"publish": result("failed"), "help": result()})
    root = ElementTree.parse(chart).getroot()  # noqa: S314
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["publish, seconds", "kcat", "1.0 s"]
    write_chart(chart, {"print": result()})
    bars = re.findall(r'<rect class="(own|other)"', chart.read_text())
    assert bars == ["other", "own"]  # the shortest first


def test_processes_that_end_fail_or_finish_their_work() -> None:
    ended = watch(subprocess.Popen([sys.executable, "-c", "print(sum(range(10**7)))"]))
    assert (ended.failure, ended.seconds > 0, 0 < ended.megabytes < 30) == ("", True, True)
    assert watch(subprocess.Popen(["/bin/sh", "-c", "exit 3"])).failure.startswith("status 3 ")
    assert watch(subprocess.Popen(["/bin/sleep", "900"]), lambda: True).failure == ""


@pytest.mark.parametrize(
    ("printed", "partitions", "is_json", "expected"),
    [
        (b"1\n2\n", 1, False, True),
        (b"2\n1\n", 1, False, False),
        (b"2\n1\n", 6, False, True),
        (b"1\n", 1, False, False),
        (b"1\n2\n3\n", 6, False, False),
        (b'{"value":"1"}\n{"payload":"2"}\n', 1, True, True),
        (b'{"value":"1"}\n{"payload":"3"}\n', 1, True, False),
    ],
)
def test_output_is_compared(
    tmp_path: Path, printed: bytes, partitions: int, is_json: bool, expected: bool
) -> None:
    sent, out = tmp_path / "sent", tmp_path / "out"
    sent.write_bytes(b"1\n2\n")
    out.write_bytes(printed)
    work = Work("print", "", {}, partitions=partitions, is_json=is_json)
    assert is_same(sent, out, work) is expected
