"""Ctrl-C and Ctrl-Break wherever a script may wait, under Windows."""

import socket
from collections.abc import Callable

import pytest
from kafka import KafkaProducer

from conftest import GUARD, Read, values
from remote import Console, Program
from wine import windows_path
from x_api import Step, XApi

# Under Wine nobody can press Ctrl-Break or close the window from outside: the program does it
# itself as soon as the signpost file exists
FROM_WITHIN = """import os, runpy, signal, sys, threading, time
def press(): signal.raise_signal(signal.SIGBREAK)
def close(): sys.modules["streaming.windows"]._handlers[0](2)  # as Windows calls it, in a thread
_, event, signpost, *sys.argv = sys.argv
def wait():
    while not os.path.exists(signpost):
        time.sleep(0.1)
    globals()[event]()
threading.Thread(target=wait, daemon=True).start()
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HURRIED = {"STREAM_TEST_PATIENCE": "2"}  # where a script ends only when it loses patience
SOON = {"STREAM_TEST_SECOND": "0.2"}  # say soon that it waits for Kafka


@pytest.mark.long
def test_ctrl_c_ends_every_kind_of_wait(
    console: Console, topic: str, read: Read, producer: KafkaProducer
) -> None:
    """Ctrl-C reaches all programs on the console."""
    silent, samples, printed, tweets = (f"{topic}-{number}" for number in range(4))
    producer.send(printed, b"event").get(GUARD)
    with XApi([Step(tweets=1, end="silence")]) as api, XApi([Step(status=503)]) as failing:
        pipe = console.start("producer", "-t", silent, stdin="pipe")
        pipe.send(b"first\nsecond\nunfinished")
        asleep = console.start("producer", "-t", samples, "--interval", 1000)
        polling = [
            (console.start("consumer", "-t", printed, *flags), status)
            for flags, status in ((["-n", 5], 130), (["-g", topic], 0))
        ]
        env = {"STREAM_URL": api.url, "BEARER_TOKEN": api.token}
        reading = console.start("twitter-stream", "-t", tweets, env=env)
        waiting = console.start("twitter-stream", env={**env, "STREAM_URL": failing.url})
        for name, count in ((silent, 2), (samples, 1), (tweets, 1)):
            console.wait_for_events(name, count)
        for program, _ in polling:
            program.wait_for(lambda it: it.out)
        waiting.wait_for(lambda it: "503" in it.err)
        console.press_ctrl_c()
        assert pipe.end() == (
            130,
            b"",
            f"producer.py: published 2 events to {silent}, "
            "stopped before line 3 of standard input\n",
        )
        assert asleep.end() == (0, b"", f"producer.py: published 1 event to {samples}\n")
        for program, status in polling:
            assert program.end() == (status, b"event\n", "")
        ended = reading.end()
        assert (ended.status, ended.err.count(f"published 1 tweet to {tweets}")) == (0, 1)
        assert waiting.end().status == 0
    assert values(read(silent)) == [b"first", b"second"]


def test_ctrl_break_and_closing_the_window(console: Console, topic: str) -> None:
    (console.folder / "within.py").write_text(FROM_WITHIN)
    script, signpost = console.folder / "producer.py", console.folder / "now"
    programs = {}
    for event in ("press", "close"):
        arguments = (event, windows_path(signpost), windows_path(script), "-t", f"{topic}-{event}")
        programs[event] = console.start("within", *arguments, stdin="pipe")
        programs[event].send(b"first\n")
    for event in programs:
        console.wait_for_events(f"{topic}-{event}", 1)
    signpost.touch()
    for event, program in programs.items():
        assert program.end() == (
            149,  # 128 + SIGBREAK
            b"",
            f"producer.py: published 1 event to {topic}-{event}, "
            "stopped before line 2 of standard input\n",
        )


def test_connecting_to_a_broker_that_never_answers(console: Console) -> None:
    """There is nothing to lose yet, so it ends at once, and silently."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(GUARD)
        program = console.start("consumer", "-b", f"127.0.0.1:{server.getsockname()[1]}")
        server.accept()[0].close()  # then it surely tries again
        with server.accept()[0]:
            console.press_ctrl_c()
            ended = program.end()
    assert (ended.out, ended.err) == (b"", "")


def start_and_stall(
    console: Console, topic: str, stalled: Callable[[], None], env: dict[str, str]
) -> Program:
    """A producer that sends its second event to a Kafka that no longer answers."""
    program = console.start("producer", "-t", topic, stdin="pipe", env=env)
    program.send(b"first\n")
    console.wait_for_events(topic, 1)
    stalled()
    program.send(b"second\n")
    program.wait_for(lambda it: "waiting for Kafka" in it.err)
    return program


def test_a_stalled_kafka(console: Console, topic: str, stalled: Callable[[], None]) -> None:
    program = start_and_stall(console, topic, stalled, {**HURRIED, **SOON})
    console.press_ctrl_c()
    ended = program.end()
    assert ended.status == 1
    assert "stopped before line 2 of standard input, 1 failed: event 2 (6 bytes)" in ended.err


def test_a_second_ctrl_c(console: Console, topic: str, stalled: Callable[[], None]) -> None:
    """It ends a script at once, without a summary."""
    program = start_and_stall(console, topic, stalled, {"STREAM_TEST_PATIENCE": "100", **SOON})
    console.press_ctrl_c()
    console.press_ctrl_c()
    ended = program.end()
    assert (ended.status, "published" in ended.err) == (130, False)


def test_a_pipe_that_nobody_reads(console: Console, topic: str, producer: KafkaProducer) -> None:
    for _ in range(200):
        producer.send(topic, bytes(10_000))
    producer.flush()
    program = console.start("consumer", "-t", topic, output="stuck", env=HURRIED)
    program.wait_for(lambda it: it.out)
    console.press_ctrl_c()
    assert program.end().status == 130  # it could not end cleanly
