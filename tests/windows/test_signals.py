"""Ctrl-C and Ctrl-Break wherever a script may wait, under Windows."""

import socket
from collections.abc import Callable
from typing import Any

from remote import Console, Ended, Program
from wine import windows_path
from x_api import Step, XApi

import pytest
from conftest import Read, values
from kafka import KafkaProducer

SOON = 3  # seconds within which a script that waits for nobody ends
LIMIT = 10  # seconds within which it ends whatever happens, with a margin

# Under Wine nobody can press Ctrl-Break or close the window from outside: the program does it
# itself as soon as the signpost file exists
FROM_WITHIN = """import os, runpy, signal, sys, threading, time
def press(): signal.raise_signal(signal.SIGBREAK)
def close(): sys.modules["windows"]._handlers[0](2)  # as Windows calls it, in a thread
_, event, signpost, *sys.argv = sys.argv
def wait():
    while not os.path.exists(signpost):
        time.sleep(0.1)
    globals()[event]()
threading.Thread(target=wait, daemon=True).start()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def end_soon(console: Console, program: Program) -> Ended:
    """Press Ctrl-C; the program has nothing to wait for."""
    console.press_ctrl_c()
    ended = program.end(LIMIT)
    assert ended.seconds < SOON
    return ended


def test_a_silent_pipe(console: Console, topic: str, read: Read) -> None:
    program = console.start("producer", "-t", topic, stdin="pipe")
    program.send(b"first\nsecond\nunfinished")
    console.wait_for_events(topic, 2)
    ended = end_soon(console, program)
    assert (ended.status, ended.err) == (
        130,
        f"producer.py: published 2 events to {topic}, stopped before line 3 of standard input\n",
    )
    assert values(read(topic)) == [b"first", b"second"]


@pytest.mark.parametrize("interval", [0.1, 1000])
def test_sample_events(console: Console, topic: str, interval: float) -> None:
    program = console.start("producer", "-t", topic, "--interval", interval)
    console.wait_for_events(topic, 1)
    ended = end_soon(console, program)
    assert ended.status == 0
    assert ended.err.startswith("producer.py: published ")


@pytest.mark.parametrize("event", ["press", "close"])
def test_ctrl_break_and_closing_the_window(console: Console, topic: str, event: str) -> None:
    (console.folder / "within.py").write_text(FROM_WITHIN)
    script, signpost = console.folder / "producer.py", console.folder / "now"
    arguments = (event, windows_path(signpost), windows_path(script), "-t", topic)
    program = console.start("within", *arguments, stdin="pipe")
    program.send(b"first\n")
    console.wait_for_events(topic, 1)
    signpost.touch()
    ended = program.end()
    assert (ended.status, ended.err) == (
        149,  # 128 + SIGBREAK
        f"producer.py: published 1 event to {topic}, stopped before line 2 of standard input\n",
    )


@pytest.mark.parametrize("script", ["producer", "consumer"])
def test_connecting_to_a_broker_that_never_answers(console: Console, script: str) -> None:
    """There is nothing to lose yet, so it ends at once, and silently."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = console.start(script, "-b", f"127.0.0.1:{server.getsockname()[1]}")
        server.accept()[0].close()
        server.accept()
        console.press_ctrl_c()
        ended = program.end(LIMIT)
    assert ended.seconds < 1
    assert (ended.out, ended.err) == (b"", "")


def start_and_stall(
    console: Console, topic: str, stalled: Callable[[], None], **options: Any
) -> Program:
    """A producer that sends its second event to a Kafka that no longer answers."""
    program = console.start("producer", "-t", topic, stdin="pipe", **options)
    program.send(b"first\n")
    console.wait_for_events(topic, 1)
    stalled()
    program.send(b"second\n")
    return program


def test_a_stalled_kafka(console: Console, topic: str, stalled: Callable[[], None]) -> None:
    program = start_and_stall(console, topic, stalled)
    program.wait_for(lambda it: "waiting for Kafka" in it.err)
    console.press_ctrl_c()
    ended = program.end(LIMIT)
    assert ended.status == 1
    assert "stopped before line 2 of standard input, 1 failed: event 2 (6 bytes)" in ended.err


def test_an_event_that_fails_while_the_source_is_silent(
    console: Console, topic: str, stalled: Callable[[], None]
) -> None:
    env = {"KAFKA_DELIVERY_TIMEOUT_MS": "1000"}
    program = start_and_stall(console, topic, stalled, env=env)
    ended = program.end(20)
    assert ended.status == 1
    assert ended.err.endswith(
        "1 failed: event 2 (6 bytes): not acknowledged within KAFKA_DELIVERY_TIMEOUT_MS\n"
    )


@pytest.mark.parametrize(("flags", "status"), [([], 0), (["-n", "5"], 130), (["-g", "g"], 0)])
def test_polling(
    console: Console, topic: str, producer: KafkaProducer, flags: list[str], status: int
) -> None:
    producer.send(topic, b"event").get(10)
    program = console.start("consumer", "-t", topic, *flags)
    program.wait_for(lambda it: it.out)
    ended = end_soon(console, program)
    assert (ended.status, ended.out, ended.err) == (status, b"event\n", "")


def test_waiting_for_a_topic(console: Console, topic: str) -> None:
    program = console.start("consumer", "-t", topic)
    program.wait_for(lambda it: "waiting for it" in it.err)
    console.press_ctrl_c()
    assert program.end(LIMIT).status == 0


def test_a_pipe_that_nobody_reads(console: Console, topic: str, producer: KafkaProducer) -> None:
    for _ in range(200):
        producer.send(topic, bytes(10_000))
    producer.flush()
    program = console.start("consumer", "-t", topic, output="stuck")
    program.wait_for(lambda it: it.out)
    console.press_ctrl_c()
    assert program.end(LIMIT).status == 130  # it could not end cleanly


@pytest.mark.parametrize(
    "step",
    [
        Step(tweets=1, end="silence"),
        Step(tweets=1, end="finish", pause=0.5),
        Step(tweets=1, end="drip"),
    ],
)
def test_streaming(console: Console, topic: str, step: Step) -> None:
    """A silent stream, one that keeps ending, and one whose line never ends."""
    with XApi([step]) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        program = console.start("twitter-stream", "-t", topic, env=env)
        console.wait_for_events(topic, 1)
        ended = end_soon(console, program)
    assert ended.status == 0
    assert f"published 1 tweet to {topic}" in ended.err.replace("tweets", "tweet")


def test_waiting_for_x(console: Console, topic: str) -> None:
    with XApi([Step(status=503)]) as api:
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        program = console.start("twitter-stream", "-t", topic, env=env)
        program.wait_for(lambda it: "503" in it.err)
        ended = end_soon(console, program)
    assert ended.status == 0


def test_a_second_ctrl_c(console: Console, topic: str, stalled: Callable[[], None]) -> None:
    program = start_and_stall(console, topic, stalled)
    program.wait_for(lambda it: "waiting for Kafka" in it.err)
    console.press_ctrl_c()
    console.press_ctrl_c()
    ended = program.end(LIMIT)
    assert ended.seconds < 1.5
    assert ended.status == 130
