"""The pages' commands for Windows, typed at its command prompt."""

from pathlib import Path

import pytest

from broker import ReservedPort
from conftest import copy_project, wait_until
from remote import Console
from test_readme import README, blocks
from wine import PYTHON, windows_path

# In place of the launcher and a virtual environment, which need an installed Python
SHIM = f'@"{windows_path(PYTHON)}" %*\r\n'
BROKER = r"py demo\broker.py"  # in a sentence of README.md
VISITS = ["10.0.0.7 GET /index.html", "10.0.0.9 GET /prices.html"]


@pytest.mark.long
def test_the_commands_for_windows(console: Console, tmp_path: Path) -> None:
    with ReservedPort() as port:
        pass  # a socket of Linux would keep those of Wine from it
    assert f"run `{BROKER}`" in README
    beside, here = f"{BROKER} --port {port}\n", commands(port)
    env = {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{port}", "TEMP": windows_path(tmp_path)}
    broker = console.start_shell(make_project(tmp_path / "beside"), beside, env)
    broker.wait_for(lambda it: b"is ready on" in it.out)
    assert list(tmp_path.glob("kafka-*"))
    ended = console.start_shell(make_project(tmp_path / "here"), here, env).end()
    console.press_ctrl_c()
    assert broker.end().err == ""
    wait_until(lambda: not list(tmp_path.glob("kafka-*")))  # its command prompt may end first
    lines = [*VISITS, "ann:Paris"]
    assert [line for line in ended.out.decode().splitlines() if line in lines] == [
        *VISITS,
        "ann:Paris",
        *VISITS * 2,
    ]
    assert ended.err.splitlines() == [
        "producer.py: published 2 events to sample",
        "producer.py: published 1 event to people",
    ]


def commands(port: int) -> str:
    """The commands of all pages, for a broker at that port."""
    texts = [each.text for each in blocks() if each.language == "bat" and not each.why_not_run]
    return "".join(texts).replace("localhost:9092", f"localhost:{port}")


def make_project(folder: Path) -> Path:
    """A copy of the project, with what stands in for the launcher and the virtual environment."""
    copy_project(folder)
    (folder / ".venv" / "Scripts").mkdir(parents=True)
    for shim in ("py.bat", ".venv/Scripts/python.bat"):
        (folder / shim).write_text(SHIM)
    return folder


def test_skipping_the_lines_that_kafka_has(console: Console) -> None:
    """With the command for resuming a file, up to the pipe to producer.py."""
    [block] = [block for block in blocks() if block.note.endswith("a longer file")]
    command = block.text.partition("|")[0]
    command = command.replace(r".venv\Scripts\python", f'"{windows_path(PYTHON)}"')
    console.file("big.log", b"".join(b"%d\r\n" % number for number in range(48_213)))
    shell = console.start_shell(console.folder, f"{command}\n", {})
    lines = shell.end().out.splitlines(keepends=True)
    assert [line for line in lines if line[:-2].isdigit()] == [
        b"48210\r\n",
        b"48211\r\n",
        b"48212\r\n",
    ]
