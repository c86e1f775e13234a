"""Print the events in a Kafka topic, one per line: existing ones, then new ones as they arrive.

examples:
  consumer.py                     all events in topic sample, then new ones, until Ctrl-C
  consumer.py -e                  existing events only
  consumer.py --latest -n 10      the next ten events
  consumer.py --last 10 -e        the last ten events of each partition
  consumer.py --since 2h          events of the last two hours, then new ones
  consumer.py -t users -K :       key:value lines
  consumer.py --json | jq .value  one JSON object per event
  consumer.py -g readers          share the partitions within a group; resume where it left off
  consumer.py --list              all topics, each with its partitions and events
  consumer.py --list -t users     the topic's partitions; with -g, also how far the group has read

If the topic does not exist yet, consumer.py waits for it, unless -e is given. --list counts each
offset as an event; compaction and transactions leave offsets without one. The broker is
localhost:9092 unless KAFKA_BOOTSTRAP_SERVERS is set in .env or the environment.

exit status:
  0    finished, an endless run was stopped, or the reader of the output went away
  1    Kafka could not be reached, the topic could not be read or the output could not be written
  2    invalid usage or settings
  130  stopped by Ctrl-C before -n or -e finished (143: by SIGTERM, 129: by SIGHUP)
"""

import argparse
import base64
import json
import logging
import re
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

from cli import PATIENCE, Parser, Stop, count_type, fail, say, separator_type, start, time_type

if __name__ == "__main__":
    start()

from config import (
    CONNECTION_ERRORS,
    THROTTLED,
    Consumer,
    advise_package,
    apply_common_flags,
    client_log,
    client_options,
    connect,
    explain,
    explain_message,
)
from listing import list_lines

from kafka import KafkaAdminClient, OffsetAndMetadata, TopicPartition, errors
from kafka.record.default_records import DefaultRecordBatch

if sys.platform == "win32":
    import windows

MAX_POLL_RECORDS = 5000  # per poll and per write
MAX_FETCH_BYTES = 4 << 20  # per broker; kafka-python's default is 50 MB, up to five times in memory
# What may follow a signal (a poll, a commit, leaving the group) has to fit in Stop.LIMIT
POLL_TIMEOUT_MS = 700
POSITION_TIMEOUT_MS = int(700 * PATIENCE)
RESPONSE_TIMEOUT_MS = int(3000 * PATIENCE)
LEAVE_TIMEOUT_MS = int(1500 * PATIENCE)
METADATA_MAX_AGE_MS = 2000  # how soon new partitions, or the topic's deletion, are noticed
RETRY_SECONDS = 0.2  # after a poll that failed because Kafka is away
CHECK_SECONDS = 2.0  # between checks that Kafka is there
CHECK_TIMEOUT_MS = int(1000 * PATIENCE)
MAX_CHECKED_PARTITIONS = 100
AWAY_SECONDS = 5.0 * PATIENCE  # Kafka is considered away after this long without a response
REBALANCE_SECONDS = 10.0 * PATIENCE  # a rebalance that takes longer is considered stuck

READ_RECORD = DefaultRecordBatch._read_msg

Offsets = dict[TopicPartition, int]


def main(argv: list[str] | None = None) -> int:
    options = parse_flags(argv)
    apply_common_flags(options)
    if options.list:
        write_lines(list_lines(options.topic, options.group, options.json))
        return 0
    stop = Stop()
    consumer = connect(Consumer, consumer_options(options.group))
    warn_about_expired_events()
    try:
        is_complete = print_events(consumer, options, stop)
    except errors.KafkaError as error:
        fail(f"cannot read topic {options.topic}: {explain_reading(consumer, error)}")
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
    beginning = parser.add_mutually_exclusive_group()
    beginning.add_argument(
        "--latest",
        action="store_true",
        help="skip existing events; a group with committed offsets resumes from them",
    )
    beginning.add_argument(
        "--last",
        metavar="N",
        type=count_type,
        help="start with the last N events of each partition (a group: as with --latest)",
    )
    beginning.add_argument(
        "--since",
        metavar="TIME",
        type=time_type,
        help="start with the first event as recent as TIME: 90s, 10m, 2h or 3d ago, or a date such "
        "as 2026-11-25 or 2026-11-25T14:00 (a group: as with --latest)",
    )
    parser.add_argument(
        "-K",
        dest="separator",
        metavar="SEP",
        type=separator_type,
        help="print each event as key, SEP, value; "
        r"SEP can contain the escapes \t, \n, \0, \xHH and \\",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per event")
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the topics, or the partitions of -t TOPIC; with -g, the group's lag too",
    )
    default_topic = parser.get_default("topic")
    parser.set_defaults(topic=None)  # --list without -t means all topics
    options = parser.parse_args(argv)
    if options.list:
        check_list_flags(parser, options)
    else:
        options.topic = options.topic or default_topic
    return options


def check_list_flags(parser: Parser, options: argparse.Namespace) -> None:
    """Exit if a flag about events is combined with --list."""
    beginning = start_flag(options)
    event_flags = {
        "-n": options.count,
        "-e": options.stop_at_end,
        beginning: beginning,
        "-K": options.separator,
    }
    for flag, value in event_flags.items():
        if value:
            parser.error(f"argument {flag}: not allowed with argument --list")


def start_flag(options: argparse.Namespace) -> str:
    """Return the flag that says where to start, or "" if there is none; there is at most one."""
    if options.latest:
        return "--latest"
    if options.last:
        return "--last"
    return "" if options.since is None else "--since"


def consumer_options(group: str | None) -> dict[str, Any]:
    return client_options(
        Consumer,
        group_id=group,
        enable_auto_commit=False,  # it would commit events that are read but not yet printed
        exclude_internal_topics=False,  # they can be printed like any other
        auto_offset_reset="earliest",
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        isolation_level="read_committed",
        fetch_max_bytes=MAX_FETCH_BYTES,
        max_partition_fetch_bytes=MAX_FETCH_BYTES,
    )


def print_events(consumer: Any, options: argparse.Namespace, stop: Stop) -> bool:
    """Print events; return True if COUNT, the ends or the reader ended the run, not `stop`."""
    starts = start_offsets(consumer, options)
    if options.group:
        commit_starts(consumer, starts, options)
    subscribe(consumer, options.topic)
    ends = prepare_reading(consumer, options, starts)
    stop.handle_signals()
    remaining = options.count
    for records in read_events(consumer, options, ends, stop):
        wanted = records[:remaining]
        # Even with nothing to write, to notice that the reader is gone
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
    consumer: Any, options: argparse.Namespace, ends: Offsets, stop: Stop
) -> Iterator[list[Any]]:
    """Yield events poll by poll, until `stop` or, with -e, the ends.

    Between polls, the monitors deal with changes in Kafka and anything the client has lost.
    """
    monitors: list[Monitor] = [KafkaMonitor(consumer), TopicMonitor(consumer, options)]
    if options.group:
        monitors += [AssignmentMonitor(consumer, options), RebalanceMonitor(consumer, options)]
    has_read = False
    while not stop.requested:
        if options.stop_at_end and pause_finished(consumer, ends):
            if not has_read:
                check_right_to_read(options.topic)
            return
        records = poll(consumer, stop)
        has_read = has_read or bool(records)
        if options.stop_at_end:
            yield [record for record in records if record.offset < end_of(record, ends)]
        else:
            yield records
        for monitor in monitors:
            with suppress(*CONNECTION_ERRORS):
                monitor.check(has_events=bool(records))
        if options.stop_at_end and not records and not stop.requested:
            lower_ends(consumer, ends)


def poll(consumer: Any, stop: Stop) -> list[Any]:
    """Return the next events, if any; none while Kafka is away, which KafkaMonitor reports."""
    try:
        return next_events(consumer)
    except CONNECTION_ERRORS:
        stop.wait(RETRY_SECONDS)
        return []


def next_events(consumer: Any) -> list[Any]:
    """Return the next events, if there are any within POLL_TIMEOUT_MS."""
    try:
        polled = consumer.poll(POLL_TIMEOUT_MS, max_records=MAX_POLL_RECORDS)
    except errors.CorruptRecordError as error:
        accepts_any_name = DefaultRecordBatch._read_msg is not READ_RECORD
        if accepts_any_name or "UnicodeDecodeError" not in str(error):
            raise
        DefaultRecordBatch._read_msg = read_record_leniently
        consumer._fetcher._next_partition_records.drain()  # so that they are fetched again
        return []
    return [record for batch in polled.values() for record in batch]


class HeaderName(str):
    """The name of a header, which need not be UTF-8; encode() returns its bytes."""

    def encode(self, *_: Any) -> bytes:
        return super().encode("utf-8", "surrogateescape")


class LenientBuffer(bytes):
    """The bytes of a batch of events; the text in it need not be UTF-8."""

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return LenientBuffer(part) if isinstance(index, slice) else part

    def decode(self, *_: Any) -> str:
        return HeaderName(super().decode("utf-8", "surrogateescape"))


def read_record_leniently(batch: Any) -> Any:
    """Read an event whatever its header names; the client itself rejects names that are not UTF-8.

    Kafka and other clients accept any bytes. This is slower, so it is used only once needed.
    """
    if not isinstance(batch._buffer, LenientBuffer):
        batch._buffer = LenientBuffer(batch._buffer)
    return READ_RECORD(batch)


def subscribe(consumer: Any, topic: str) -> None:
    """Subscribe to all the topic's partitions, including any added later.

    Use a pattern: when given a name, kafka-python 3.0.12 requests the topic in a way that creates
    it, whatever its settings say; a pattern is only matched against the list of all topics.
    """
    consumer.subscribe(pattern=f"^{re.escape(topic)}$")


def start_offsets(consumer: Any, options: argparse.Namespace) -> Offsets:
    """Return where the flags say to start in each partition; nothing without such flags."""
    if not start_flag(options):
        return {}
    partitions = partitions_of(consumer, options.topic)
    if not partitions:
        return {}
    if options.latest:
        return consumer.end_offsets(partitions)  # type: ignore[no-any-return]
    if options.last:
        return offsets_of_last(consumer, partitions, options.last)
    return offsets_since(consumer, partitions, options.since)


def offsets_since(consumer: Any, partitions: list[TopicPartition], time_ms: int) -> Offsets:
    """Return the offset of each partition's first event at or after this time, or else its end.

    Kafka looks it up in its timestamp index. Events after that one may be older, because
    timestamps need not be in order, but all events before it are older than this time.
    """
    ends = consumer.end_offsets(partitions)
    found = consumer.offsets_for_times(dict.fromkeys(partitions, time_ms))
    return {
        partition: found[partition].offset if found[partition] else end
        for partition, end in ends.items()
    }


def offsets_of_last(consumer: Any, partitions: list[TopicPartition], count: int) -> Offsets:
    """Return the offset of each partition's `count`-th event from the end, or its first offset.

    Offsets have gaps: compacted or aborted events, and Kafka's own records at the end of a
    transaction. Only reading reveals them. So read a span that should hold that many events, and a
    longer one of any partition where it turns out to hold fewer.
    """
    firsts = consumer.beginning_offsets(partitions)
    ends = consumer.end_offsets(partitions)
    starts = {p: first for p, first in firsts.items() if ends[p] - first <= count}
    span = count
    while len(starts) < len(partitions):
        candidates = {p: max(firsts[p], ends[p] - span) for p in ends.keys() - starts.keys()}
        for partition, offsets in read_offsets(consumer, candidates, ends, count).items():
            if len(offsets) == count:
                starts[partition] = offsets[0]
            elif candidates[partition] == firsts[partition]:
                starts[partition] = firsts[partition]
        span *= 4
    return starts


def read_offsets(
    consumer: Any, starts: Offsets, ends: Offsets, count: int
) -> dict[TopicPartition, deque[int]]:
    """Read the partitions from start to end; return the offsets of the last `count` events."""
    found: dict[TopicPartition, deque[int]] = {p: deque(maxlen=count) for p in starts}
    consumer.assign(list(starts))
    set_positions(consumer, starts)
    monitor = KafkaMonitor(consumer)
    while not pause_finished(consumer, ends):
        records = next_events(consumer)
        for record in records:
            if record.offset < end_of(record, ends):
                found[partition_of(record)].append(record.offset)
        monitor.check(has_events=bool(records))
    consumer.unsubscribe()
    return found


def prepare_reading(consumer: Any, options: argparse.Namespace, starts: Offsets) -> Offsets:
    """Set where to start; return where to stop with -e: each partition's end."""
    partitions = partitions_of(consumer, options.topic)
    if not partitions:
        explain_missing_topic(options.topic, may_wait=not options.stop_at_end)
        return {}
    ends: Offsets = {}
    if options.stop_at_end:
        ends = consumer.end_offsets(partitions)
    if options.group:
        return ends
    if starts:
        seek(consumer, starts)
    else:
        request_positions(consumer)
    return ends


def partitions_of(consumer: Any, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]


def request_positions(consumer: Any) -> None:
    """Make the client request all positions it does not know; a poll would wait 0.1 s first.

    Asking for one makes it request all.
    """
    for partition in list(consumer.assignment())[:1]:
        consumer.position(partition, POSITION_TIMEOUT_MS)


def seek(consumer: Any, starts: Offsets) -> None:
    """Start at these offsets; partitions added later are read from their first event."""
    while not consumer.assignment():
        consumer.poll(100)
    set_positions(consumer, starts)


def commit_starts(consumer: Any, starts: Offsets, options: argparse.Namespace) -> None:
    """Commit where to start for a group that has no committed offsets yet.

    auto_offset_reset will not do: it would lose events that arrive before the first commit.
    """
    wanted = {partition: start for partition, start in starts.items() if start}
    # Not consumer.committed(), which asks for one partition at a time
    committed = consumer._coordinator.fetch_committed_offsets(list(wanted), RESPONSE_TIMEOUT_MS)
    new = {partition: wanted[partition] for partition in wanted.keys() - committed.keys()}
    if new and not commit(consumer, new):
        flag = start_flag(options)
        fail(
            f"cannot apply {flag} to group {options.group}: it has active members. "
            f"Stop them or omit {flag}."
        )


def pause_finished(consumer: Any, ends: Offsets) -> bool:
    """Pause each assigned partition that is at its end; return whether all are.

    This compares positions, because offsets have gaps.
    """
    assigned = consumer.assignment()
    wanted = assigned & ends.keys()
    request_positions(consumer)
    finished = {
        partition for partition in wanted if known_position(consumer, partition) >= ends[partition]
    }
    consumer.pause(*finished)
    # A member of a group may get no partitions
    knows_partitions = bool(assigned) or "stable" in consumer.group_metadata().state
    return finished == wanted and knows_partitions


# The client's own seek() and position() look at all its partitions each time: calling position()
# for each of 3,000 partitions takes half a minute
def set_positions(consumer: Any, offsets: Offsets) -> None:
    for partition, offset in offsets.items():
        consumer._subscription.seek(partition, offset)


def known_position(consumer: Any, partition: TopicPartition) -> int:
    """Return the next offset to read, or 0 if the client does not know it."""
    state = consumer._subscription.assignment.get(partition)
    position = state.position if state else None
    return position.offset if position else 0


def end_of(record: Any, ends: Offsets) -> int:
    return ends.get(partition_of(record), 0)


def lower_ends(consumer: Any, ends: Offsets) -> None:
    """Lower ends that have moved back because the topic was deleted and recreated."""
    with suppress(errors.KafkaError):
        for partition, end in consumer.end_offsets(list(ends), RESPONSE_TIMEOUT_MS).items():
            ends[partition] = min(end, ends[partition])


def explain_missing_topic(topic: str, may_wait: bool) -> None:
    """Say that the script is waiting for the topic.

    Raise if the topic is unreadable or the script must not wait.
    """
    error = errors.for_code(describe_topic(topic)["error_code"])
    if error is errors.NoError:
        return
    if not (may_wait and issubclass(error, errors.RetriableError)):
        raise error
    if error is errors.UnknownTopicOrPartitionError:
        say(f"topic {topic} does not exist yet; waiting for it")


def check_right_to_read(topic: str) -> None:
    """Raise TopicAuthorizationFailedError if reading the topic is not allowed.

    Kafka itself refuses only requests for events; without events, the client sends none.
    """
    allowed = describe_topic(topic).get("authorized_operations")
    if allowed and "READ" not in allowed:
        raise errors.TopicAuthorizationFailedError({topic})


def describe_topic(topic: str) -> dict[str, Any]:
    with connect(KafkaAdminClient, client_options(KafkaAdminClient)) as admin:
        [found] = admin.describe_topics([topic])
    return found  # type: ignore[no-any-return]


class Monitor(Protocol):
    """Deals with one matter between polls; `has_events` says whether the last poll returned any."""

    def check(self, has_events: bool) -> None: ...


class KafkaMonitor:
    """Says when Kafka, or the leader of a partition, has gone away, and when it is back.

    A poll just returns nothing then, so this sends Kafka a request now and then.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._responded_at = time.monotonic()
        self._next_check = self._responded_at + CHECK_SECONDS
        self._has_events = False  # since the last check
        self._is_away = False
        self._was_throttled = False

    def check(self, has_events: bool) -> None:
        self._has_events = self._has_events or has_events
        if time.monotonic() < self._next_check:
            return
        problem = self._problem()
        self._has_events = False
        now = time.monotonic()
        self._next_check = now + CHECK_SECONDS
        if not problem:
            self._note_response(now)
        elif now > self._responded_at + AWAY_SECONDS:
            self._report(problem)

    def _problem(self) -> str:
        """Return why Kafka, or a partition's leader, is away; "" if neither is.

        If events arrive, Kafka is there, even if its response is slow to come on a slow network.
        """
        partitions = list(self._consumer.assignment())[:MAX_CHECKED_PARTITIONS]
        try:
            if partitions:
                self._consumer.end_offsets(partitions, CHECK_TIMEOUT_MS)
            is_there = bool(partitions) or not client_log().is_disconnected
        except errors.LeaderNotAvailableError as error:
            return explain(error).cause
        except (*CONNECTION_ERRORS, errors.RetriableError):
            is_there = self._has_events
        return "" if is_there else explain_message(client_log().reason).cause

    def _report(self, problem: str) -> None:
        """Report a problem once; a throttled client may be throttled again and again."""
        if problem == THROTTLED:
            has_been_said, self._was_throttled = self._was_throttled, True
        else:
            has_been_said, self._is_away = self._is_away, True
        if not has_been_said:
            say(f"waiting for Kafka: {problem}")

    def _note_response(self, now: float) -> None:
        self._responded_at = now
        client_log().clear_reason()
        if self._is_away:
            self._is_away = False
            say("Kafka is back")


class TopicMonitor:
    """Explains why the topic is gone, if it is."""

    def __init__(self, consumer: Any, options: argparse.Namespace) -> None:
        self._consumer = consumer
        self._topic, self._may_wait = options.topic, not options.stop_at_end
        self._exists = options.stop_at_end or bool(consumer.subscription())

    def check(self, has_events: bool) -> None:
        existed, self._exists = self._exists, bool(self._consumer.subscription())
        if existed and not self._exists:
            explain_missing_topic(self._topic, self._may_wait)


class AssignmentMonitor:
    """Says when a member of a group is left with fewer partitions, or none, and when it gets more.

    Its first partitions are not worth a message.
    """

    def __init__(self, consumer: Any, options: argparse.Namespace) -> None:
        self._consumer = consumer
        self._topic, self._group = options.topic, options.group
        self._generation_without_topic: int | None = None
        self._seen: int | None = None  # the number of partitions at the last check
        self._known: int | None = None  # the same, once certain

    def check(self, has_events: bool) -> None:
        seen, self._seen = self._seen, self._count_assigned()
        # Seen twice, because kafka-python calls a group stable shortly before it has its partitions
        if self._seen is None or self._seen != seen or seen == self._known:
            return
        is_first = self._known is None and seen > 0
        self._known = seen
        if not is_first:
            self._report(seen)

    def _count_assigned(self) -> int | None:
        """Return the number of partitions, or None while the group's members are sharing them out.

        Before the topic exists, the group has nothing to share out; it rebalances soon after.
        """
        member = self._consumer.group_metadata()
        if not self._consumer.subscription():
            self._generation_without_topic = member.generation_id
        is_settled = "stable" in member.state
        if is_settled and member.generation_id != self._generation_without_topic:
            return len(self._consumer.assignment())
        return None

    def _report(self, assigned: int) -> None:
        total = len(partitions_of(self._consumer, self._topic))
        if assigned:
            say(f"this member of group {self._group} now reads {assigned} of {total} partitions")
        else:
            say(
                f"no partition for this member: the other members of group {self._group} have all "
                f"partitions of topic {self._topic} ({total}); waiting for one"
            )


class RebalanceMonitor:
    """Says when a rebalance takes a long time, and rejoins the group if it never finishes.

    A killed member holds it up until its session expires. Also, kafka-python 3.0.12 loses the last
    response of a rebalance (SyncGroup) if it arrives between two polls; the consumer then waits for
    it forever. It is safe to leave and rejoin: all printed events are committed, or cannot be.
    """

    def __init__(self, consumer: Any, options: argparse.Namespace) -> None:
        self._consumer, self._topic, self._group = consumer, options.topic, options.group
        self._idle_at = time.monotonic()  # the last time there was no rebalance
        self._has_said = False

    def check(self, has_events: bool) -> None:
        now = time.monotonic()
        state = self._consumer.group_metadata().state
        if "stable" in state:
            self._has_said = False
        if "rebalancing" not in state:
            self._idle_at = now
        if now > self._idle_at + AWAY_SECONDS and not self._has_said:
            self._has_said = True
            say(f"group {self._group} is rebalancing; waiting for its other members")
        if now > self._idle_at + REBALANCE_SECONDS:
            self._consumer.unsubscribe()
            subscribe(self._consumer, self._topic)
            self._idle_at = now


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


def commit(consumer: Any, offsets: Offsets) -> bool:
    """Commit the group's position; if that fails, printed events will be printed again."""
    wanted = {partition: OffsetAndMetadata(offset) for partition, offset in offsets.items()}
    try:
        consumer.commit(wanted, RESPONSE_TIMEOUT_MS)
    except (errors.CommitFailedError, errors.RetriableError):
        return False
    return True


def explain_reading(consumer: Any, error: Exception) -> str:
    """Explain why events cannot be read; say where one that cannot be decoded is."""
    codec = re.search(r"Libraries for (\w+) compression", str(error))
    if isinstance(error, errors.UnsupportedCodecError) and codec:
        advice = advise_package(codec[1])
        return f"the event{place_of_next(consumer)} is compressed with {codec[1]}, but {advice}"
    if isinstance(error, errors.CorruptRecordError):
        words = "its checksum is wrong" if "crc check" in str(error) else str(explain(error))
        return f"the event{place_of_next(consumer)} is corrupt: {words}"
    return str(explain(error))


def place_of_next(consumer: Any) -> str:
    """Return the place of the next event to read; only the client's fetcher knows it."""
    batches = getattr(consumer._fetcher, "_next_partition_records", None)
    if not batches:
        return ""
    return f" at partition {batches.topic_partition.partition}, offset {batches.next_fetch_offset}"


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
    event["headers"] = [
        {**json_field("key", name.encode()), **json_field("value", value)}
        for name, value in record.headers
    ]
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
    except OSError as error:
        if not (isinstance(error, BrokenPipeError) or is_reader_gone()):
            fail(f"cannot write to standard output: {error.strerror}")
        return False
    return not is_reader_gone()


def is_reader_gone() -> bool:
    """Return whether standard output is a pipe whose reader is gone."""
    if sys.platform == "win32":
        return windows.is_pipe_closing(1)
    poller = select.poll()
    poller.register(1, 0)  # errors and hang-ups are always reported
    return bool(poller.poll(0))


if __name__ == "__main__":
    raise SystemExit(main())
