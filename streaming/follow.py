"""A topic's events, poll by poll: where to start, where to end, and what a group has read."""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any

from kafka import TopicPartition, errors

from streaming.commits import (
    GENERATION_ERRORS,
    Commits,
    commit,
    first_events,
    offsets_after,
)
from streaming.console import fail
from streaming.ends import RESPONSE_TIMEOUT_MS, Ends, Offsets
from streaming.kafka_client import Kafka, committed_offsets
from streaming.kafka_errors import CONNECTION_ERRORS, warn_about_expired_events
from streaming.kafka_internals import Consumer, FetchedBatch, positions
from streaming.stop import Stop
from streaming.timing import PATIENCE
from streaming.watch import (
    KafkaWatch,
    Membership,
    RebalanceWatch,
    TopicWatch,
    Watch,
    check_right_to_read,
    explain_missing_topic,
)
from streaming.writing import Next

EVENTS_PER_POLL = 5000  # and per commit: about as many, or one batch that has more
MAX_FETCH_BYTES = 4 << 20  # per broker; kafka-python's default is 50 MB, up to five times in memory
# What may follow a signal (a poll, a commit, leaving the group) has to fit in Stop.LIMIT
POLL_TIMEOUT_MS = 700
POSITION_TIMEOUT_MS = int(700 * PATIENCE)
LEAVE_TIMEOUT_MS = int(1500 * PATIENCE)
METADATA_MAX_AGE_MS = 2000  # how soon new partitions, or the topic's deletion, are noticed
RETRY_SECONDS = 0.2  # after a poll that failed because Kafka is away


class Follower:
    """Reads a topic from where it is told to start, alone or as a member of a group.

    Use it as a context manager: it connects on entry, and disconnects (and leaves the group) on
    exit. It ends the script with the reason if the topic cannot be read.
    """

    def __init__(self, kafka: Kafka, topic: str, group: str | None, stop: Stop) -> None:
        self._kafka, self._topic, self._group, self._stop = kafka, topic, group, stop
        self._consumer: Any = None
        self._membership: Membership | None = None
        self._commits: Commits | None = None
        self._starts: Offsets = {}
        self._ends: Ends | None = None  # None: it has no end
        self._max_batches = 1  # of the next poll: about EVENTS_PER_POLL, judged by the last one
        self._passed: Offsets = {}  # where the last poll has moved forward to
        self._printed = 0  # how many of the events that were yielded last
        self.is_unfinished = False  # COUNT or the ends have not been reached

    def __enter__(self) -> "Follower":
        options = self._kafka.options(
            Consumer,
            group_id=self._group,
            enable_auto_commit=False,  # it would commit events that are read but not yet printed
            exclude_internal_topics=False,  # they can be printed like any other
            auto_offset_reset="earliest",
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            isolation_level="read_committed",
            fetch_max_bytes=MAX_FETCH_BYTES,
            max_partition_fetch_bytes=MAX_FETCH_BYTES,
        )
        self._consumer = self._kafka.connect(Consumer, options)
        if self._group:
            self._membership = Membership(self._consumer, self._topic, self._group)
            self._commits = Commits(self._consumer, self._group, self._stop)
        else:
            self._subscribe()  # early: the first request for partitions then assigns them
        warn_about_expired_events()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if self._commits:
                self._commits.give_up("the run ended before Kafka confirmed the commit")
            if isinstance(error, errors.KafkaError):
                fail(f"cannot read topic {self._topic}: {self._kafka.explain(error)}")
        finally:
            with suppress(Exception):  # nothing that matters is left to do
                self._consumer.close(timeout_ms=LEAVE_TIMEOUT_MS)

    def start_at(self, latest: bool, last: int | None, since: int | None) -> None:
        """Start at the end of each partition, at its last N offsets, or at a time (ms since 1970).

        At most one of the three is given; without any, start at the first event. A group starts
        there only in partitions where it has no committed offset.
        """
        if latest:
            self._set_starts("--latest", self._current_ends())
        elif last:
            self._set_starts("--last", self._offsets_of_last(last))
        elif since is not None:
            self._set_starts("--since", self._offsets_since(since))

    def stop_at_current_ends(self) -> None:
        """Stop at the end that each partition has now; raise if the topic does not exist."""
        ends = self._current_ends()
        if not ends:
            explain_missing_topic(self._kafka, self._topic, may_wait=False)
        starts = self._committed(self._group) if self._group else self._starts
        firsts: Offsets = {**self._consumer.beginning_offsets(list(ends)), **starts}
        self._ends = Ends(self._consumer, ends, firsts)

    def read(self, count: int | None) -> Iterator[list[FetchedBatch]]:
        """Yield events, some at a time, until COUNT of them, the ends, or a request to stop.

        A poll without events yields an empty list. After each list, call commit(): what it was told
        is printed counts. Signals are handled from the first poll on.
        """
        self._begin()
        self._stop.handle_signals()
        self.is_unfinished = bool(count or self._ends)
        remaining = count
        for batches in self._batches():
            wanted = batches if remaining is None else first_events(batches, remaining)
            if self._commits:
                self._commits.begin(wanted, self._reached(wanted, batches))
            yield wanted
            if remaining is not None:
                remaining -= self._printed
                if not remaining:
                    self.is_unfinished = False
                    return

    def _reached(self, wanted: list[FetchedBatch], batches: list[FetchedBatch]) -> Offsets:
        """Return where reading continues after the wanted ones of these events."""
        reached = offsets_after(wanted)
        if reached != offsets_after(batches):
            return reached
        # Also past what no event shows, such as the end of a transaction
        return {**reached, **(self._ends.within(self._passed) if self._ends else self._passed)}

    def keep_up(self, printed: int, begun: int) -> Next:
        """Call this now and then if it takes long to print the events that were yielded last.

        For a group, this commits how many have been printed, and keeps the member's place; it
        returns what to do with the rest. See Commits.keep_up.
        """
        if not (self._commits and self._membership):
            return Next.GO_ON  # if the output is stuck, Stop's limit ends the process
        with suppress(*CONNECTION_ERRORS):
            self._membership.check(has_events=True)
        return self._commits.keep_up(printed, begun)

    def commit(self, printed: int) -> None:
        """Note how many of the events yielded last have been printed, and commit for the group."""
        self._printed = printed
        if self._commits:
            self._commits.finish(printed)

    # ------------------------------------------------------------ where to start

    def _partitions(self) -> list[TopicPartition]:
        numbers = self._consumer.partitions_for_topic(self._topic)
        return [TopicPartition(self._topic, number) for number in numbers]

    def _current_ends(self) -> Offsets:
        return self._consumer.end_offsets(self._partitions())  # type: ignore[no-any-return]

    def _offsets_of_last(self, count: int) -> Offsets:
        ends = self._current_ends()
        firsts = self._consumer.beginning_offsets(list(ends))
        return {partition: max(firsts[partition], end - count) for partition, end in ends.items()}

    def _offsets_since(self, time_ms: int) -> Offsets:
        """Return the offset of each partition's first event at or after this time, or else its end.

        Kafka looks it up in its timestamp index. Events after that one may be older, because
        timestamps need not be in order, but all events before it are older than this time.
        """
        ends = self._current_ends()
        found = self._consumer.offsets_for_times(dict.fromkeys(ends, time_ms))
        return {
            partition: found[partition].offset if found[partition] else end
            for partition, end in ends.items()
        }

    def _set_starts(self, flag: str, starts: Offsets) -> None:
        """Set where to start, as `flag` asks.

        For a group, commit it where it has no committed offset yet. auto_offset_reset will not do:
        it would lose events that arrive before the first commit.
        """
        self._starts = starts
        if not self._group:
            return
        committed = self._committed(self._group)
        new = {
            partition: start
            for partition, start in starts.items()
            if start and partition not in committed
        }
        try:
            commit(self._consumer, new, RESPONSE_TIMEOUT_MS)
        except GENERATION_ERRORS:
            fail(
                f"cannot apply {flag} to group {self._group}: it has active members. "
                f"Stop them or omit {flag}."
            )

    def _committed(self, group: str) -> Offsets:
        """Return all offsets that the group has committed."""
        return self._kafka.ask(partial(committed_offsets, group=group))

    def _begin(self) -> None:
        """Join the group, or go to where to start in all partitions."""
        if self._group:
            self._subscribe()  # only now: Kafka refuses start_at()'s commit if there are members
        if not self._partitions():
            explain_missing_topic(self._kafka, self._topic, may_wait=not self._ends)
        elif not self._group:
            self._seek()

    def _subscribe(self) -> None:
        """Subscribe to all the topic's partitions, including any added later.

        Use a pattern: when given a name, kafka-python 3.0.12 requests the topic in a way that
        creates it, whatever its settings say (its issue 2083); a pattern is only matched against
        the list of all topics.
        """
        pattern = f"^{re.escape(self._topic)}$"
        self._consumer.subscribe(pattern=pattern, listener=self._membership)

    def _seek(self) -> None:
        """Go to where to start; partitions added later are read from their first event."""
        while self._starts and not self._consumer.assignment():
            self._consumer.poll(100)
        assigned = self._consumer.assignment()
        for partition in self._starts.keys() & assigned:
            self._consumer.seek(partition, self._starts[partition])
        added = assigned - self._starts.keys()
        if self._starts and added:
            self._consumer.seek_to_beginning(*added)  # the polls above may have begun to read them
        # This makes the client ask for all unknown positions at once; a poll would wait 0.1 s first
        for partition in list(assigned)[:1]:
            self._consumer.position(partition, POSITION_TIMEOUT_MS)

    # ------------------------------------------------------------ polling

    def _batches(self) -> Iterator[list[FetchedBatch]]:
        """Yield what each poll returns until there is a request to stop, or the ends are reached.

        Between polls, the watches deal with changes in Kafka and anything the client has lost.
        """
        watches = self._watches()
        has_read = False
        while not self._stop.requested:
            if self._ends and self._ends.are_reached(self._knows_partitions):
                if not has_read:
                    check_right_to_read(self._kafka, self._topic)
                self.is_unfinished = False
                return
            before = self._positions()
            polled = self._poll()
            self._passed = {
                partition: offset
                for partition, offset in self._positions().items()
                if offset > before.get(partition, offset)
            }
            has_read = has_read or bool(polled)
            yield self._ends.before_ends(polled) if self._ends else polled
            if self._ends and not (self._commits and self._commits.drops_rest):
                self._ends.note(polled)
            if not self._stop.requested:
                self._look_around(watches, has_events=bool(polled))

    def _positions(self) -> Offsets:
        """Return where a member of a group goes on reading, in the partitions where it knows."""
        return positions(self._consumer) if self._commits else {}

    @property
    def _knows_partitions(self) -> bool:
        is_settled = self._membership is not None and self._membership.is_settled
        return is_settled or bool(self._consumer.assignment())

    def _look_around(self, watches: list[Watch], has_events: bool) -> None:
        for watch in watches:
            with suppress(*CONNECTION_ERRORS):
                watch.check(has_events)
        if self._ends and not has_events:
            self._ends.look_again()

    def _watches(self) -> list[Watch]:
        watches: list[Watch] = [
            KafkaWatch(self._kafka, self._consumer),
            TopicWatch(self._kafka, self._consumer, self._topic, may_wait=not self._ends),
        ]
        if self._membership and self._group:
            rebalances = RebalanceWatch(self._consumer, self._group, self._rejoin)
            watches += [self._membership, rebalances]
        return watches

    def _rejoin(self) -> None:
        self._consumer.unsubscribe()
        self._subscribe()

    def _poll(self) -> list[FetchedBatch]:
        """Wait up to POLL_TIMEOUT_MS for events and return them.

        There are none while Kafka is away, which KafkaWatch reports.
        """
        try:
            polled = self._consumer.poll(POLL_TIMEOUT_MS, max_records=self._max_batches)
        except CONNECTION_ERRORS:
            self._stop.wait(RETRY_SECONDS)
            return []
        found = [batch for batches in polled.values() for batch in batches]
        if found:
            events = sum(batch.most_events for batch in found)
            self._max_batches = max(1, EVENTS_PER_POLL * len(found) // events)
        return found
