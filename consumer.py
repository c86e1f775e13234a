"""Print the events of a Kafka topic, one a line: all there are, then each as it comes.

examples:
  consumer.py                     every event of topic sample, from the first on, until Ctrl-C
  consumer.py -e                  what is there now, then end
  consumer.py --latest -n 10      the next ten events
  consumer.py -t users -K :       key:value lines
  consumer.py --json | jq .value  one JSON object an event
  consumer.py -g readers          share the partitions with other members of the group, go on
                                  where it stopped

A topic that does not exist yet is waited for. Kafka is looked for at localhost:9092, or where
KAFKA_BOOTSTRAP_SERVERS says, in .env or in the environment. Exit status: 0 done, stopped or the
reader went away, 1 a failure, 2 usage or settings, 130 or 143 stopped by a signal before the end.
"""

import base64
import json
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from config import Parser, client_settings, connect, explain, fail, stop, tell

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition, errors

BATCH = 5000  # events a write
FETCH_BYTES = 4 << 20  # at once from a broker; of kafka-python's 50 MB up to five copies are in memory
POLL_MS = 700  # how long to wait for events; no divisor of the time between two looks for new topics
# kafka-python 3.0.12 never comes back from a rebalance whose last answer arrives between two polls: so many seconds
# are enough of it, and it is begun anew
REBALANCE = 10.0
ANSWER_MS = 3000  # how long Kafka may take to answer; half of it to take leave from the group


def as_text(name: str, data: bytes | None) -> dict[str, str | None]:
    """{name: text}, or {name_base64: …} for bytes that are not UTF-8."""
    try:
        return {name: None if data is None else data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data or b"").decode()}


def as_json(record: Any) -> bytes:
    event = {name: getattr(record, name) for name in ("topic", "partition", "offset", "timestamp")}
    event |= as_text("key", record.key) | as_text("value", record.value)
    event["headers"] = [{"key": key, **as_text("value", value)} for key, value in record.headers]
    return json.dumps(event, ensure_ascii=False).encode()


def as_line(record: Any, sep: bytes | None) -> bytes:
    """The value; with `sep` key, sep, value, so that producer.py -K reads them again."""
    return (record.key + sep if sep and record.key is not None else b"") + (record.value or b"")


def check_missing(topic: str, waits: bool) -> None:
    """Tell that the topic is waited for; or end, where it may not be read or nobody waits."""
    with connect(KafkaAdminClient, client_settings(KafkaAdminClient)) as admin:
        error = errors.for_code(admin.describe_topics([topic])[0]["error_code"])
    if error is errors.UnknownTopicOrPartitionError and waits:
        tell(f"waiting for topic {topic}, which does not exist")
    elif error.errno and not (waits and issubclass(error, errors.RetriableError)):
        fail(f"cannot read topic {topic}: {explain(error())}")


def is_at_end(consumer: Any, ends: dict[TopicPartition, int]) -> bool:
    """Is each assigned partition read to its end? By position, as offsets have gaps."""
    assigned = consumer.assignment()
    done = {each for each in assigned & ends.keys() if (consumer.position(each, ANSWER_MS) or 0) >= ends[each]}
    consumer.pause(*done)
    return done == assigned & ends.keys() and (bool(assigned) or "stable" in consumer.group_metadata().state)


def commit(consumer: Any, offsets: dict[TopicPartition, int]) -> bool:
    """Note for the group where to go on; where that fails, what was printed is printed again."""
    with suppress(errors.CommitFailedError, errors.RetriableError):
        consumer.commit({each: OffsetAndMetadata(offset, "", -1) for each, offset in offsets.items()}, ANSWER_MS)
        return True
    return False


def find_ends(consumer: Any, options: Any) -> dict[TopicPartition, int]:
    """Where each partition ends now, for -e and --latest; a new group is set to go on there."""
    partitions = [TopicPartition(options.topic, number) for number in consumer.partitions_for_topic(options.topic)]
    if not partitions:
        check_missing(options.topic, waits=not options.e)
    ends: dict[TopicPartition, int] = consumer.end_offsets(partitions) if options.e or options.latest else {}
    if options.latest and options.g:  # not by auto_offset_reset: that would lose what comes before the first commit
        new = {each: end for each, end in ends.items() if end and consumer.committed(each) is None}
        if new and not commit(consumer, new):
            fail(f"cannot set where group {options.g} starts while it has members: leave out --latest, or stop them")
    return ends


def polls(consumer: Any, options: Any, ends: dict[TopicPartition, int]) -> Iterator[list[Any]]:
    """The events that come, poll by poll, until a signal or, with -e, the ends.

    Between two polls it puts right what Kafka has changed, and what kafka-python has lost.
    """
    topic = options.topic
    # A pattern: only the list of all topics never creates one (kafka-python 3.0.12 ignores its own setting)
    pattern = f"^{topic}$".replace(".", r"\.")
    consumer.subscribe(pattern=pattern)
    if options.latest and not options.g and ends:  # by seeking: partitions added later are read from their first event
        while not consumer.assignment() and not stop.number:
            consumer.poll(100)
        for partition, offset in ends.items():
            consumer.seek(partition, offset)
    there, settled = bool(ends), time.monotonic()  # whether the topic was there, when the group was last settled
    while not (stop.number or (options.e and is_at_end(consumer, ends))):
        polled = consumer.poll(POLL_MS, max_records=BATCH).values()
        yield [r for each in polled for r in each if not options.e or r.offset < ends.get((topic, r.partition), 0)]
        before, there = there, bool(consumer.subscription())
        if before and not there:  # it has been deleted
            check_missing(topic, waits=not options.e)
        if options.e and not polled:  # an end may have moved back, as the topic was deleted and is there again
            with suppress(errors.KafkaError):
                ends |= {each: min(end, ends[each]) for each, end in consumer.end_offsets(ends, ANSWER_MS).items()}
        if "rebalancing" not in consumer.group_metadata().state:
            settled = time.monotonic()
        elif time.monotonic() > settled + REBALANCE:
            stop.interruptible(consumer.unsubscribe, end=os._exit)  # all that is printed is committed, or cannot be
            consumer.subscribe(pattern=pattern)
            there, settled = False, time.monotonic()


def print_events(consumer: Any, options: Any) -> None:
    """Print events until the options, a signal or the reader's end say that it is enough."""
    ends = stop.interruptible(find_ends, consumer, options, end=os._exit)  # before there is anything to lose
    out = os.fdopen(1, "wb", closefd=False)  # not sys.stdout.buffer: with python -u that writes in parts
    reader = select.poll() if hasattr(select, "poll") else None  # Windows tells of a closed pipe only at a write
    if reader:
        reader.register(1, 0)
    left = options.n
    for records in polls(consumer, options, ends):
        records = records[:left]
        out.write(b"".join([(as_json(r) if options.json else as_line(r, options.K)) + b"\n" for r in records]))
        out.flush()
        if records and options.g:
            commit(consumer, {TopicPartition(options.topic, r.partition): r.offset + 1 for r in records})
        left = left and left - len(records)
        if left == 0 or (reader and reader.poll(0)):
            break


def main(argv: list[str] | None = None) -> int:
    parser = Parser(__doc__)
    parser.add_argument("-g", metavar="GROUP", help="share the partitions within the group, commit what is printed")
    parser.add_argument("-e", action="store_true", help="end where each partition ended at the start")
    parser.add_argument("--latest", action="store_true", help="only events that come from now on; a group goes on")
    parser.add_argument("-K", metavar="SEP", type=os.fsencode, help="print key, SEP, value")
    parser.add_argument("--json", action="store_true", help="print one JSON object an event")
    options = parser.parse_args(argv)
    stop.endless = not (options.n or options.e)
    ours = {"group_id": options.g, "enable_auto_commit": False, "exclude_internal_topics": False}
    ours |= {"auto_offset_reset": "earliest", "metadata_max_age_ms": 2000, "isolation_level": "read_committed"}
    ours |= {"fetch_max_bytes": FETCH_BYTES, "max_partition_fetch_bytes": FETCH_BYTES}
    consumer = connect(KafkaConsumer, client_settings(KafkaConsumer, **ours))
    try:
        with suppress(BrokenPipeError):  # the reader has had enough
            print_events(consumer, options)
        return stop.status
    except OSError as error:
        fail(f"cannot write to standard output: {error.strerror}")
    finally:
        with suppress(Exception):
            consumer.close(timeout_ms=ANSWER_MS // 2)


if __name__ == "__main__":
    raise SystemExit(main())
