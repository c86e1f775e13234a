"""A group member whose output is not read, under Windows, where a write to a pipe blocks."""

import time

import pytest
from kafka import KafkaAdminClient

from conftest import wait_until
from remote import Console

BACKLOG = 5000


@pytest.mark.long
def test_a_member_whose_reader_stands_still_keeps_its_partitions(
    console: Console, topic: str, admin: KafkaAdminClient
) -> None:
    """Longer than max.poll.interval.ms; what has been written is committed, and the rest is not."""

    def committed() -> int:
        return sum(
            found.offset for found in admin.list_group_offsets({topic: None})[topic].values()
        )

    lines = [b"%099d\n" % number for number in range(BACKLOG)]
    path = console.file("jobs", b"".join(lines))
    assert console.run("producer", "-t", topic, path).status == 0
    env = {"KAFKA_MAX_POLL_INTERVAL_MS": "20000"}
    member = console.start("consumer", "-t", topic, "-g", topic, env=env, output="stuck")
    member.wait_for(lambda it: it.out)
    wait_until(committed)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 22)
    [group] = admin.describe_groups([topic]).values()
    assert [each["client_id"] for each in group["members"]] == ["kafka-python-3.0.12"]
    console.press_ctrl_c()
    message = (
        f"consumer.py: cannot commit for group {topic}: the output is stuck in the middle of a "
        "write. Up to 40 events will be printed again.\n"
    )
    assert member.end() == (0, b"0", message)
    count = committed()
    assert 0 < count < BACKLOG
    rest = console.run("consumer", "-t", topic, "-g", topic, "-e")
    assert (rest.status, rest.err) == (0, "")
    assert rest.out.replace(b"\r", b"").splitlines(keepends=True) == lines[count:]
