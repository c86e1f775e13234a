"""The demo, and the programs of demo/ that people run by hand, under Windows."""

import socket
from pathlib import Path

import pytest

from broker import ReservedPort
from remote import Console
from wine import REPOSITORY, windows_path

DEMO = REPOSITORY / "demo"


@pytest.mark.long
def test_the_demo(console: Console, tmp_path: Path) -> None:
    """With Kafka on a Windows Java; the first time, jgo takes a minute under Wine."""
    folder = windows_path(tmp_path)
    ended = console.start_program(DEMO / "demo.py", env={"TEMP": folder, "TMP": folder}).end()
    assert ended.status == 0, ended.err
    lines = ended.out.decode().splitlines()
    assert [line for line in lines if line.startswith(">")] == [
        "> python producer.py -n 5 --interval 0.2",
        r"> python producer.py demo\visits.log",
        "> python twitter-stream.py -n 5 --param tweet.fields=created_at,lang",
        "> python consumer.py -e",
        "> python consumer.py -e --json",
    ]
    assert lines.count("10.0.0.7 GET /index.html") == 1
    assert ended.err.splitlines() == [
        "producer.py: published 5 events to sample",
        "producer.py: published 2 events to sample",
        "twitter-stream.py: published 5 tweets to sample (0 reconnects, 0 skipped)",
    ]
    assert not list(tmp_path.glob("kafka-*"))


def test_the_stand_in_for_x(console: Console) -> None:
    with ReservedPort() as port:
        pass  # a socket of Linux would keep those of Wine from it
    program = console.start_program(DEMO / "x_api.py", "--port", port)
    program.wait_for(lambda it: it.out)
    socket.create_connection(("127.0.0.1", port)).close()
    console.press_ctrl_c()
    ended = program.end()
    assert (ended.status, ended.err) == (0, "")
