"""Readers of a group member's output that take their time; and what a group commits."""

import fcntl
import os
import random
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import confluent_kafka
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import MemberToRemove

from broker import Broker
from conftest import Running, Scripts, Terminal, resume, unread_pipe, wait_until
from streaming import writing
from streaming.output import Output
from streaming.writing import PIECE_BYTES, BackgroundWriter, Block, Next

BACKLOG = 20_000  # jobs of 60 bytes; a pipe holds about a thousand of them
SOON = {"KAFKA_HEARTBEAT_INTERVAL_MS": "100"}  # a member notices at once that others come and go


def job(number: int) -> bytes:
    return b"job %05d, whose text is as long as that of a real job is\n" % number


def publish_jobs(scripts: Scripts, topic: str, *flags: object) -> None:
    keyed = b"".join(b"%d:%s" % (number, job(number)) for number in range(BACKLOG))
    done = scripts.run("producer", "-t", topic, "-K", ":", *flags, input=keyed)
    assert done.returncode == 0


def committed(admin: KafkaAdminClient, group: str) -> int:
    """How many events the group has committed, in all partitions."""
    return sum(found.offset for found in admin.list_group_offsets({group: None})[group].values())


def members(admin: KafkaAdminClient, group: str) -> list[str]:
    [found] = admin.describe_groups([group]).values()
    return [member["member_id"] for member in found["members"]]


@contextmanager
def slow_member(
    scripts: Scripts, group: str, *flags: object, **settings: str
) -> Iterator[tuple[Running, BinaryIO]]:
    """A member of the group that reads the topic of the same name, and its full pipe."""
    with unread_pipe() as (reader, out):
        options: dict[str, Any] = {"stdout": out, "env": {**SOON, **settings}}
        member = scripts.start("consumer", "-t", group, "-g", group, *flags, **options)
        wait_until(lambda: is_full(out) or member.process.poll() is not None)
        os.close(out)
        yield member, reader


def is_full(pipe: int) -> bool:
    return not select.select([], [pipe], [], 0)[1]


def bytes_in(reader: BinaryIO) -> int:
    """How many bytes are in the pipe now."""
    [size] = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, bytes(4)))
    return size  # type: ignore[no-any-return]


def read_available(reader: BinaryIO) -> bytes:
    """What is in the pipe now, and nothing that is written meanwhile."""
    return os.read(reader.fileno(), bytes_in(reader))


def printed_once(*outputs: bytes) -> bool:
    """Whether these are all jobs, each once and whole."""
    jobs = sorted(line for output in outputs for line in output.splitlines(keepends=True))
    return jobs == [job(number) for number in range(BACKLOG)]


# ------------------------------------------------------------------ members of a group


@pytest.mark.long
def test_a_member_whose_reader_stands_still_keeps_its_partitions(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """Longer than max.poll.interval.ms; what has been written is committed, and only that.

    No other member sees a rebalance. Ctrl-C ends it in order.
    """
    publish_jobs(scripts, topic, "--partitions", 2)
    with slow_member(scripts, topic, KAFKA_MAX_POLL_INTERVAL_MS="20000") as (first, reader):
        other = scripts.start("consumer", "-t", topic, "-g", topic, env=SOON)
        other.wait_for(lambda it: it.out.count(b"\n") > 1000)
        wait_until(lambda: len(members(admin, topic)) == 2)
        before = sorted(members(admin, topic))
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 22)
        assert sorted(members(admin, topic)) == before
        assert first.err.count(b"\n") == 1  # it reads one of two partitions
        assert b"1 of 2" in first.err
        assert not other.err
        done = other.end(signal.SIGTERM)
        first.wait_for(lambda it: b"2 of 2" in it.err)
        ended = first.end(signal.SIGINT)
        printed = reader.read()
    assert (done.returncode, ended.returncode) == (0, 0)
    assert committed(admin, topic) == printed.count(b"\n") + done.stdout.count(b"\n")
    rest = scripts.run("consumer", "-t", topic, "-g", topic, "-e")
    assert (rest.returncode, rest.stderr) == (0, b"")
    assert printed_once(printed, done.stdout, rest.stdout)


def test_members_join_and_leave_while_a_reader_is_slow(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """Nothing is printed twice, and nothing is left out."""
    publish_jobs(scripts, topic, "--partitions", 2)
    with slow_member(scripts, topic) as (first, reader):
        wait_until(lambda: committed(admin, topic) > 900)
        assert committed(admin, topic) < 1200  # what fits the pipe
        outputs = [read_available(reader)]
        for _ in range(2):
            with slow_member(scripts, topic) as (second, unread):
                first.wait_for(lambda it: it.err.endswith(b"now reads 1 of 2 partitions\n"))
                outputs.append(read_available(reader))
                done = [second.end(signal.SIGTERM)]
                outputs.append(unread.read())
            first.wait_for(lambda it: it.err.endswith(b"now reads 2 of 2 partitions\n"))
            outputs.append(read_available(reader))
        with slow_member(scripts, topic) as (second, unread):
            first.wait_for(lambda it: it.err.endswith(b"now reads 1 of 2 partitions\n"))
            done += [second.end(signal.SIGTERM), first.end(signal.SIGTERM)]
            outputs += [reader.read(), unread.read()]
    assert [each.returncode for each in done] == [0, 0, 0]
    assert not any(b"printed again" in each.stderr for each in done)
    assert committed(admin, topic) == sum(output.count(b"\n") for output in outputs)
    outputs.append(scripts.run("consumer", "-t", topic, "-g", topic, "-e").stdout)
    assert printed_once(*outputs)


def test_a_bounded_run_while_a_member_comes_and_goes(scripts: Scripts, topic: str) -> None:
    """Events that were left to the other member do not count."""
    publish_jobs(scripts, topic, "--partitions", 2)
    with slow_member(scripts, topic, "-n", 15_000) as (first, reader):
        with slow_member(scripts, topic) as (other, unread):
            first.wait_for(lambda it: it.err.endswith(b"now reads 1 of 2 partitions\n"))
            assert other.end(signal.SIGTERM).returncode == 0
            outputs = [unread.read()]
        first.wait_for(lambda it: it.err.endswith(b"now reads 2 of 2 partitions\n"))
        outputs.append(reader.read())
        assert first.end().returncode == 0
    assert outputs[1].count(b"\n") == 15_000
    with slow_member(scripts, topic, "-e") as (first, reader):
        other = scripts.start("consumer", "-t", topic, "-g", topic, "-e", env=SOON)
        outputs += [other.end().stdout, reader.read()]
        assert first.end().returncode == 0
    assert printed_once(*outputs)


def test_events_beyond_count_are_left_to_others(scripts: Scripts, topic: str) -> None:
    """Though the client has read them, when a partition goes to another member."""
    publish_jobs(scripts, topic, "--partitions", 2)
    with slow_member(scripts, topic, "-n", 2000) as (first, reader):
        other = scripts.start("consumer", "-t", topic, "-g", topic, env=SOON)
        first.wait_for(lambda it: it.err.endswith(b"now reads 1 of 2 partitions\n"))
        outputs = [reader.read()]
        assert first.end().returncode == 0
    assert outputs[0].count(b"\n") == 2000
    other.wait_for(lambda it: it.out.count(b"\n") == BACKLOG - 2000)
    outputs.append(other.end(signal.SIGTERM).stdout)
    assert printed_once(*outputs)


def test_members_that_are_stopped_together(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """Each commits what it has written, though the other one leaves the group meanwhile."""
    publish_jobs(scripts, topic, "--partitions", 2)
    with (
        slow_member(scripts, topic) as (first, reader),
        slow_member(scripts, topic) as (second, unread),
    ):
        first.wait_for(lambda it: it.err.endswith(b"now reads 1 of 2 partitions\n"))
        for member in (first, second):
            member.process.send_signal(signal.SIGTERM)
        done = [first.end(), second.end()]
        outputs = [reader.read(), unread.read()]
    assert [each.returncode for each in done] == [0, 0]
    assert b"again" not in done[0].stderr + done[1].stderr
    assert committed(admin, topic) == sum(output.count(b"\n") for output in outputs)


def test_a_terminal_that_is_stopped(scripts: Scripts, topic: str, admin: KafkaAdminClient) -> None:
    """Nobody knows how much of the last piece it will show; a message says so."""
    publish_jobs(scripts, topic)
    with Terminal() as terminal:
        run = ("consumer", "-t", topic, "-g", topic)
        member = scripts.start(*run, stdout=terminal.device, env={"STREAM_TEST_PATIENCE": "1"})
        terminal.give_away()
        tasks = Path(f"/proc/{member.process.pid}/task")
        wait_until(lambda: any("wait_woken" in wchan(task) for task in tasks.iterdir()))
        wait_until(lambda: committed(admin, topic))
        ended = member.end(signal.SIGINT)
        shown = ""
        with suppress(OSError):  # that is its end
            while True:
                shown += terminal.read()
    message = re.fullmatch(
        rf"consumer\.py: cannot commit for group {topic}: the output is stuck in the middle of "
        r"a write\. Up to (\d+) events will be printed again\.\n",
        ended.stderr.decode(),
    )
    assert ended.returncode == 0
    assert message
    assert 0 <= shown.count("\n") - committed(admin, topic) <= int(message[1])


def wchan(task: Path) -> str:
    """The kernel function in which a thread waits."""
    try:
        return (task / "wchan").read_text()
    except OSError:  # it has just ended
        return ""


def test_a_member_that_the_group_has_removed(
    scripts: Scripts, topic: str, admin: KafkaAdminClient
) -> None:
    """It says how many events will be printed again: those since its last commit."""
    publish_jobs(scripts, topic)
    deaf = {"KAFKA_HEARTBEAT_INTERVAL_MS": "200000", "KAFKA_SESSION_TIMEOUT_MS": "900000"}
    with slow_member(scripts, topic, "-e", **deaf) as (member, reader):
        wait_until(lambda: committed(admin, topic))
        removed = [MemberToRemove(member_id=each) for each in members(admin, topic)]
        admin.remove_group_members(topic, removed)
        printed = read_available(reader)
        member.wait_for(lambda it: it.err)
        printed += reader.read()
        ended = member.end()
    lines = printed.splitlines()
    twice = len(lines) - len(set(lines))
    message = (
        f"consumer.py: cannot commit for group {topic}: the group has moved on without this "
        f"member. Up to {twice} events will be printed again.\n"
    )
    assert (ended.returncode, ended.stderr.decode()) == (0, message)
    assert len(set(lines)) == BACKLOG


def test_kafka_is_away_when_the_run_ends(
    scripts: Scripts,
    topic: str,
    admin: KafkaAdminClient,
    kafka: Broker,
    stalled: Callable[[], None],
) -> None:
    """The reader went on, but no commit came through."""
    publish_jobs(scripts, topic)
    with slow_member(scripts, topic) as (member, reader):
        wait_until(lambda: committed(admin, topic) * len(job(0)) == bytes_in(reader))
        before = committed(admin, topic)
        stalled()
        printed = read_available(reader)
        wait_until(lambda: select.select([reader], [], [], 0)[0])
        ended = member.end(signal.SIGTERM)
        printed += reader.read()
    resume(kafka)
    count = printed.count(b"\n")
    message = (
        f"consumer.py: cannot commit for group {topic}: the run ended before Kafka confirmed "
        f"the commit. Up to {count - before} events will be printed again.\n"
    )
    assert (ended.returncode, ended.stderr.decode()) == (0, message)
    rest = scripts.run("consumer", "-t", topic, "-g", topic, "-e").stdout
    assert printed.splitlines() == [job(number)[:-1] for number in range(count)]
    assert BACKLOG - count <= rest.count(b"\n") <= BACKLOG - before
    assert rest.endswith(job(BACKLOG - 1))


def test_lag_is_0_after_a_transaction(
    scripts: Scripts, topic: str, kafka: Any, admin: KafkaAdminClient
) -> None:
    """Nor is anything said when Kafka then deletes all of it: no event has expired unread."""
    admin.create_topics({topic: {"num_partitions": 1}})
    address = {"bootstrap.servers": kafka.address}
    client = confluent_kafka.Producer({**address, "transactional.id": topic})
    client.init_transactions()
    client.begin_transaction()
    for number in range(4):
        client.produce(topic, b"%d" % number)
    client.commit_transaction()
    run = ("consumer", "-t", topic, "-g", topic)
    endless = scripts.start("consumer", "-t", topic, "-g", f"{topic}-endless")
    assert scripts.run(*run, "-e").stdout == b"0\n1\n2\n3\n"
    wait_until(lambda: committed(admin, f"{topic}-endless") == 5)
    assert endless.end(signal.SIGTERM).stderr == b""
    assert committed(admin, topic) == 5
    admin.delete_records({TopicPartition(topic, 0): 5})
    again = scripts.run(*run, "-e")
    assert (again.returncode, again.stdout, again.stderr) == (0, b"", b"")


# ------------------------------------------------------------------ pieces


@contextmanager
def own_output() -> Iterator[BinaryIO]:
    """The reading end of a pipe that is this process's standard output meanwhile."""
    with unread_pipe() as (reader, writer):
        saved = os.dup(1)
        os.dup2(writer, 1)
        os.close(writer)
        try:
            yield reader
        finally:
            os.dup2(saved, 1)
            os.close(saved)


@pytest.mark.parametrize("sizes", [range(1500), range(3000, 9000, 7), [0, 5, 300_000, 1]])
@pytest.mark.parametrize("blocks", [True, False])
def test_how_far_lines_have_been_written(sizes: Sequence[int], blocks: bool) -> None:
    """Exactly: and not into a line that a pipe takes whole, wherever its reader stops."""
    chance = random.Random(7)
    lines = [b"x" * chance.choice(sizes) for _ in range(500)]
    block = Block(lines, in_pieces=True)
    found = b""
    with own_output() as pipe:
        os.set_blocking(1, blocks)
        output: Any = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
        while not block.is_done:
            block.write_until(time.monotonic() + 0.05, output)
            found += read_available(pipe)
            assert block.lines_written == found.count(b"\n")
            assert max(sizes) >= PIECE_BYTES or found.endswith(b"\n")
    assert found == b"".join(line + b"\n" for line in lines)


def test_a_write_that_does_not_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a pipe on Windows, or of a terminal that is stopped."""
    monkeypatch.setattr(writing, "is_writable", lambda _: True)
    lines = [b"%0999d" % number for number in range(200)]
    block = Block(lines, in_pieces=True)
    writer = BackgroundWriter()
    found = b""
    with own_output() as pipe:
        for _ in range(2):
            writer.write(block, 0.01)
        assert 0 < block.lines_written < 200
        while not block.is_done:
            found += read_available(pipe)
            writer.write(block, 0.01)
        found += read_available(pipe)
    assert found.splitlines() == lines


def test_a_line_that_was_begun_is_finished() -> None:
    """Though nothing may be printed any more; and nothing after it is."""
    lines = [b"x" * 200_000, b"next"]
    batch: Any = SimpleNamespace(pairs=lambda: [([None] * 2, lines)])
    calls: list[tuple[int, int]] = []
    found = bytearray()
    with own_output() as pipe:

        def refuse(written: int, begun: int) -> Next:
            calls.append((written, begun))
            found.extend(read_available(pipe))
            return Next.FINISH_LINE

        written = Output(None, False, in_pieces=True).write([batch], refuse)
        found += read_available(pipe)
    assert (written, bytes(found)) == (1, lines[0] + b"\n")
    assert len(calls) > 1
    assert set(calls) == {(0, 1)}


def test_what_is_stuck_in_a_write_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written later; nothing after it is."""
    monkeypatch.setattr(writing, "is_writable", lambda _: True)
    lines = [b"%0999d" % number for number in range(200)]
    batch: Any = SimpleNamespace(pairs=lambda: [([None] * 200, lines)])
    calls: list[tuple[int, int]] = []
    answers = iter([Next.FINISH_LINE, Next.FINISH_LINE, Next.LEAVE])

    def refuse(written: int, begun: int) -> Next:
        calls.append((written, begun))
        return next(answers)

    with own_output() as pipe:
        written = Output(None, False, in_pieces=True).write([batch], refuse)
        found = b""
        while found.count(b"\n") < calls[0][1]:
            found += read_available(pipe)
    assert len(set(calls)) == 1
    assert calls[0] == (written, written + 4)
    assert found.splitlines() == lines[: written + 4]
