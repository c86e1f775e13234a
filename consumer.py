"""Print the events in a Kafka topic, one per line: existing ones, then new ones as they arrive.

examples:
  consumer.py                     all events in topic sample, then new ones, until Ctrl-C
  consumer.py -e                  existing events only
  consumer.py --latest -n 10      the next ten events
  consumer.py -t users -K :       key:value lines
  consumer.py --json | jq .value  one JSON object per event
  consumer.py -g readers          share the partitions within a group; resume where it left off

If the topic does not exist yet, consumer.py waits for it, unless -e is given. The broker is
localhost:9092 unless KAFKA_BOOTSTRAP_SERVERS is set in .env or the environment.

exit status:
  0    finished, an endless run was stopped, or the reader of the output went away
  1    Kafka could not be reached, or the topic not read, or the output not written
  2    invalid usage or settings
  130  stopped by Ctrl-C before -n or -e finished (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import base64
import json
import logging
import re
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cli import Parser, Stop, fail, say, separator_type, start

if __name__ == "__main__":
    start()

from config import client_options, connect, explain, show_client_log

from kafka import KafkaAdminClient, KafkaConsumer, OffsetAndMetadata, TopicPartition, errors

MAX_POLL_RECORDS = 5000  # per poll and per write
MAX_FETCH_BYTES = 4 << 20  # per broker; kafka-python's default is 50 MB, up to five times in memory
# What may follow a signal (a poll, a commit, leaving the group) has to fit in Stop.LIMIT
POLL_TIMEOUT_MS = 700
RESPONSE_TIMEOUT_MS = 3000
LEAVE_TIMEOUT_MS = 1500
METADATA_MAX_AGE_MS = 2000  # after so long new partitions, or the topic's end, are noticed
REBALANCE_SECONDS = 10.0  # a rebalance that takes longer is considered stuck

EndOffsets = dict[TopicPartition, int]


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    if options.verbose:
        show_client_log()
    stop = Stop()
    consumer = connect(KafkaConsumer, consumer_options(options.group))
    warn_about_expired_events()
    try:
        is_complete = print_events(consumer, options, stop)
    except errors.KafkaError as error:
        fail(f"cannot read topic {options.topic}: {explain(error)}")
    finally:
        with suppress(Exception):  # everything promised is done
            consumer.close(timeout_ms=LEAVE_TIMEOUT_MS)
    is_endless = not (options.count or options.stop_at_end)
    return 0 if is_complete or is_endless else stop.exit_status


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument(
        "-g",
        dest="group",
        metavar="GROUP",
        help="join consumer group GROUP: share the partitions, commit what is printed",
    )
    parser.add_argument(
        "-e",
        dest="stop_at_end",
        action="store_true",
        help="stop at the end each partition had at startup",
    )
    parser.add_argument(
        "--latest",
        action="store_true",
        help="skip existing events; a group with committed offsets resumes from them",
    )
    parser.add_argument(
        "-K",
        dest="separator",
        metavar="SEP",
        type=separator_type,
        help="print each event as key, SEP, value",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per event")
    return parser.parse_args(argv)


def consumer_options(group: str | None) -> dict[str, Any]:
    return client_options(
        KafkaConsumer,
        group_id=group,
        enable_auto_commit=False,  # it commits what has been read, but not yet printed
        exclude_internal_topics=False,  # they can be printed like any other
        auto_offset_reset="earliest",
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        isolation_level="read_committed",
        fetch_max_bytes=MAX_FETCH_BYTES,
        max_partition_fetch_bytes=MAX_FETCH_BYTES,
    )


def print_events(consumer: Any, options: argparse.Namespace, stop: Stop) -> bool:
    """Print events; return True if COUNT, the ends or the reader ended it, not `stop`."""
    if options.latest and options.group:
        commit_ends(consumer, options.topic, options.group)
    subscribe(consumer, options.topic)
    ends = prepare_reading(consumer, options)
    stop.handle_signals()
    remaining = options.count
    for records in read_events(consumer, options, ends, stop):
        wanted = records[:remaining]
        # Also with nothing to write, to notice that the reader has gone
        if not write_lines([format_event(record, options) for record in wanted]):
            return True
        if options.group and wanted:
            commit(consumer, {partition_of(record): record.offset + 1 for record in wanted})
        if remaining:
            remaining -= len(wanted)
            if not remaining:
                return True
    return not stop.requested


def read_events(
    consumer: Any, options: argparse.Namespace, ends: EndOffsets, stop: Stop
) -> Iterator[list[Any]]:
    """Yield events poll by poll, until `stop` or, with -e, the ends.

    Between polls it handles changes in Kafka and anything the client has lost.
    """
    topic_exists = options.stop_at_end or bool(consumer.subscription())
    rebalance = RebalanceMonitor()
    while not stop.requested:
        if options.stop_at_end and pause_finished(consumer, ends):
            return
        polled = consumer.poll(POLL_TIMEOUT_MS, max_records=MAX_POLL_RECORDS).values()
        records = [record for batch in polled for record in batch]
        if options.stop_at_end:
            yield [record for record in records if record.offset < end_of(record, ends)]
        else:
            yield records
        topic_existed = topic_exists
        topic_exists = bool(consumer.subscription())
        if topic_existed and not topic_exists:
            explain_missing_topic(options.topic, may_wait=not options.stop_at_end)
        if options.stop_at_end and not records and not stop.requested:
            lower_ends(consumer, ends)
        if options.group and rebalance.is_stuck(consumer):
            rejoin(consumer, options.topic)
            rebalance = RebalanceMonitor()


def subscribe(consumer: Any, topic: str) -> None:
    """Subscribe to all the topic's partitions, including any added later.

    Use a pattern: when given a name, kafka-python 3.0.12 requests the topic in a way that creates
    it, whatever its settings say; a pattern is only matched against the list of all topics.
    """
    consumer.subscribe(pattern=f"^{re.escape(topic)}$")


def prepare_reading(consumer: Any, options: argparse.Namespace) -> EndOffsets:
    """Set where to start; return each partition's end for -e, where to stop."""
    partitions = partitions_of(consumer, options.topic)
    if not partitions:
        explain_missing_topic(options.topic, may_wait=not options.stop_at_end)
        return {}
    ends: EndOffsets = {}
    if options.stop_at_end or options.latest:
        ends = consumer.end_offsets(partitions)
    if options.latest and not options.group:
        seek_to_ends(consumer, ends)
    elif not options.group:
        request_positions(consumer)
    return ends


def partitions_of(consumer: Any, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]


def request_positions(consumer: Any) -> None:
    """Make the client request all positions it does not know; a poll would wait 0.1 s before.

    Asking for one makes it request all.
    """
    for partition in list(consumer.assignment())[:1]:
        consumer.position(partition, POLL_TIMEOUT_MS)


def seek_to_ends(consumer: Any, ends: EndOffsets) -> None:
    """Start at the ends; partitions added later are read from their first event."""
    while not consumer.assignment():
        consumer.poll(100)
    for partition, offset in ends.items():
        consumer.seek(partition, offset)


def commit_ends(consumer: Any, topic: str, group: str) -> None:
    """Commit the end offsets for a group that has no committed offsets yet.

    auto_offset_reset will not do: it would lose events that arrive before the first commit.
    """
    ends = consumer.end_offsets(partitions_of(consumer, topic))
    new = {
        partition: end
        for partition, end in ends.items()
        if end and consumer.committed(partition, timeout_ms=RESPONSE_TIMEOUT_MS) is None
    }
    if new and not commit(consumer, new):
        fail(
            f"cannot apply --latest to group {group}: it has active members. "
            "Stop them or omit --latest."
        )


def pause_finished(consumer: Any, ends: EndOffsets) -> bool:
    """Pause each assigned partition that is at its end; return whether all are.

    By position, because offsets have gaps.
    """
    assigned = consumer.assignment()
    wanted = assigned & ends.keys()
    request_positions(consumer)
    finished = {
        partition
        for partition in wanted
        if (consumer.position(partition, 0) or 0) >= ends[partition]
    }
    consumer.pause(*finished)
    # A member of a group may get no partitions
    knows_partitions = bool(assigned) or "stable" in consumer.group_metadata().state
    return finished == wanted and knows_partitions


def end_of(record: Any, ends: EndOffsets) -> int:
    return ends.get(partition_of(record), 0)


def lower_ends(consumer: Any, ends: EndOffsets) -> None:
    """Lower ends that have moved back because the topic was deleted and recreated."""
    with suppress(errors.KafkaError):
        for partition, end in consumer.end_offsets(list(ends), RESPONSE_TIMEOUT_MS).items():
            ends[partition] = min(end, ends[partition])


def explain_missing_topic(topic: str, may_wait: bool) -> None:
    """Say that the script waits for the topic; raise if it is unreadable or must not wait."""
    with connect(KafkaAdminClient, client_options(KafkaAdminClient)) as admin:
        [found] = admin.describe_topics([topic])
    error = errors.for_code(found["error_code"])
    if error is errors.NoError:
        return
    if not (may_wait and issubclass(error, errors.RetriableError)):
        raise error
    if error is errors.UnknownTopicOrPartitionError:
        say(f"topic {topic} does not exist yet; waiting for it")


class RebalanceMonitor:
    """Detects a rebalance that never finishes.

    kafka-python 3.0.12 loses the last response of a rebalance (SyncGroup) if it arrives between
    two polls; the consumer then waits for it forever.
    """

    def __init__(self) -> None:
        self._last_stable_at = time.monotonic()

    def is_stuck(self, consumer: Any) -> bool:
        now = time.monotonic()
        if "rebalancing" not in consumer.group_metadata().state:
            self._last_stable_at = now
        return now > self._last_stable_at + REBALANCE_SECONDS


def rejoin(consumer: Any, topic: str) -> None:
    """Leave and rejoin the group; everything printed is already committed, or cannot be."""
    consumer.unsubscribe()
    subscribe(consumer, topic)


class ExpiredEventsHandler(logging.Handler):
    """Warns when Kafka no longer has the next events; only the client's log says so."""

    def emit(self, record: logging.LogRecord) -> None:
        if re.search("out of range|Truncation detected", record.getMessage()):
            say(
                "the next events have expired or been deleted; continuing with the oldest available"
            )


def warn_about_expired_events() -> None:
    logger = logging.getLogger("kafka.consumer.fetcher")
    logger.addHandler(ExpiredEventsHandler())
    logger.setLevel(logging.INFO)


def commit(consumer: Any, offsets: EndOffsets) -> bool:
    """Commit the group's position; if that fails, printed events will be printed again."""
    wanted = {partition: OffsetAndMetadata(offset) for partition, offset in offsets.items()}
    try:
        consumer.commit(wanted, RESPONSE_TIMEOUT_MS)
    except (errors.CommitFailedError, errors.RetriableError):
        return False
    return True


def partition_of(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def format_event(record: Any, options: argparse.Namespace) -> bytes:
    r"""Return the bytes to print for an event, including the \n."""
    if options.json:
        return format_json(record) + b"\n"
    return format_line(record, options.separator) + b"\n"


def format_line(record: Any, separator: bytes | None) -> bytes:
    """Return the value; with a separator, the key and the separator come first.

    producer.py -K reads such lines.
    """
    value: bytes = record.value or b""
    if separator is None or record.key is None:
        return value
    return record.key + separator + value  # type: ignore[no-any-return]


def format_json(record: Any) -> bytes:
    """Return a JSON object: topic, partition, offset, timestamp, key, value, headers."""
    event = {name: getattr(record, name) for name in ("topic", "partition", "offset", "timestamp")}
    event.update(json_field("key", record.key))
    event.update(json_field("value", record.value))
    event["headers"] = [{"key": key, **json_field("value", value)} for key, value in record.headers]
    return json.dumps(event, ensure_ascii=False).encode()


def json_field(name: str, data: bytes | None) -> dict[str, str | None]:
    """Return {name: text}, or {name_base64: …} for bytes that are not UTF-8."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def write_lines(lines: list[bytes]) -> bool:
    """Write to standard output unbuffered; return whether its reader is still there."""
    remaining = memoryview(b"".join(lines))
    try:
        with open(1, "wb", buffering=0, closefd=False) as output:
            while remaining:
                written = output.write(remaining)
                if written is None:  # a full pipe that somebody has set to non-blocking
                    select.select([], [output], [])
                else:
                    remaining = remaining[written:]
    except BrokenPipeError:
        return False
    except OSError as error:
        fail(f"cannot write to standard output: {error.strerror}")
    return not is_reader_gone()


def is_reader_gone() -> bool:
    """Return whether the pipe's reader is gone; on Windows only the next write can tell."""
    if not hasattr(select, "poll"):
        return False
    poller = select.poll()
    poller.register(1, 0)  # errors and hang-ups are always reported
    return bool(poller.poll(0))


if __name__ == "__main__":
    raise SystemExit(main())
