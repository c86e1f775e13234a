"""How far a group has come: committed as its member prints, and what is said if that fails."""

import time
from contextlib import suppress
from typing import Any

from kafka import OffsetAndMetadata, errors

from streaming.console import pluralize, say
from streaming.ends import Offsets
from streaming.kafka_errors import CONNECTION_ERRORS
from streaming.kafka_internals import Consumer, FetchedBatch
from streaming.stop import Stop
from streaming.timing import PATIENCE
from streaming.writing import Next

# After a signal, all of these and leaving the group (1.5 s) have to fit in Stop.LIMIT, 6 s
LINE_SECONDS = 2.0 * PATIENCE  # for the rest of a line that has been begun
COMMIT_TIMEOUT_MS = int(1500 * PATIENCE)
KEEP_PLACE_TIMEOUT_MS = 700

MOVED_ON = "the group has moved on without this member"
OUTPUT_STUCK = "the output is stuck in the middle of a write"
GENERATION_ERRORS = (errors.CommitFailedError, errors.RebalanceInProgressError)


class Commits:
    """Commits for a group what its member has printed, and no more.

    What could not be committed before the group moved on, or the run ended, is printed again by
    the partitions' next owners; a message says how many events.
    """

    def __init__(self, consumer: Consumer, group: str, stop: Stop) -> None:
        self._consumer, self._group, self._stop = consumer, group, stop
        self._place: Any = None  # generation, member ID and state when the events were read
        self._batches: list[FetchedBatch] = []  # the events that are to be printed now
        self._reached: Offsets = {}  # where reading continues after them
        self._printed = 0  # how many of them have been printed
        self._begun = 0  # how many when what is being written is out, too; noted after a signal
        self._has_moved = False  # the group has shared out its partitions again
        self.drops_rest = False  # the rest of the events will not be printed
        self._pending: Offsets = {}  # to be committed
        self._uncommitted = 0  # events that have been printed, but not committed

    def begin(self, batches: list[FetchedBatch], reached: Offsets) -> None:
        """Note which events are to be printed, and where reading continues after them."""
        place = self._consumer.group_metadata()
        if place != self._place:
            self.give_up(MOVED_ON)
        self._place, self._batches, self._reached = place, batches, reached
        self._printed = self._begun = 0
        self._has_moved = self.drops_rest = False

    def keep_up(self, printed: int, begun: int) -> Next:
        """Commit, and keep the member's place in the group, while printing takes its time.

        `printed` is how many of the events have been printed, `begun` how many when the output has
        finished what it is busy with. The rest is not to be printed after a request to stop, nor if
        the group has shared out its partitions again: then it is for their next owners.
        """
        if self._stop.requested:
            self.drops_rest, self._begun = True, begun
            is_late = time.monotonic() > self._stop.requested_at + LINE_SECONDS
            return Next.LEAVE if is_late else Next.FINISH_LINE
        if not self._has_moved and (printed > self._printed or self._pending):
            self._commit(printed, self._offsets_after(printed))
        with suppress(*CONNECTION_ERRORS):
            self._consumer.keep_place(KEEP_PLACE_TIMEOUT_MS)
        self._has_moved = self._has_moved or self._consumer.group_metadata() != self._place
        self.drops_rest = self._has_moved
        return Next.FINISH_LINE if self._has_moved else Next.GO_ON

    def finish(self, printed: int) -> None:
        """Commit when no more of the events will be printed."""
        if self._has_moved:
            self._note(printed)
            self.give_up(MOVED_ON)
        else:
            self._commit(
                printed, self._offsets_after(printed) if self.drops_rest else self._reached
            )
        if self._begun > printed:
            self._note(self._begun)
            self.give_up(OUTPUT_STUCK)

    def give_up(self, reason: str) -> None:
        """Say that events are not committed, if there are any."""
        if self._uncommitted:
            events = pluralize(self._uncommitted, "event")
            say(
                f"cannot commit for group {self._group}: {reason}. "
                f"Up to {events} will be printed again."
            )
        self._pending, self._uncommitted = {}, 0

    def _offsets_after(self, printed: int) -> Offsets:
        return offsets_after(first_events(self._batches, printed))

    def _note(self, printed: int) -> None:
        self._uncommitted += printed - self._printed
        self._printed = printed

    def _commit(self, printed: int, offsets: Offsets) -> None:
        """Commit offsets; if Kafka does not respond, keep_up() or finish() tries again."""
        self._note(printed)
        self._pending |= offsets
        if not self._pending:
            return
        try:
            commit(self._consumer, self._pending, COMMIT_TIMEOUT_MS)
        except GENERATION_ERRORS:
            self.give_up(MOVED_ON)
        except errors.RetriableError:
            pass
        else:
            self._pending, self._uncommitted = {}, 0


def commit(consumer: Consumer, offsets: Offsets, timeout_ms: int) -> None:
    """Commit offsets; raise KafkaError if that fails."""
    wanted = {partition: OffsetAndMetadata(offset) for partition, offset in offsets.items()}
    consumer.commit(wanted, timeout_ms)


def first_events(batches: list[FetchedBatch], count: int) -> list[FetchedBatch]:
    """Return the first `count` events, or all if there are fewer."""
    wanted: list[FetchedBatch] = []
    for batch in batches:
        if count:
            first, events = batch.first(count)
            wanted.append(first)
            count -= events
    return wanted


def offsets_after(batches: list[FetchedBatch]) -> Offsets:
    """Return where each partition continues after these events."""
    return {batch.partition: batch.next_offset for batch in batches}
