"""How far a group has come: committed as its member prints, and what is said if that fails."""

from contextlib import suppress
from typing import Any

from kafka import OffsetAndMetadata, errors

from streaming.console import pluralize, say
from streaming.ends import Offsets
from streaming.kafka_errors import CONNECTION_ERRORS
from streaming.kafka_internals import Consumer, FetchedBatch, positions
from streaming.stop import Stop
from streaming.timing import PATIENCE

# Two commits and a look at the group may follow a signal, and have to fit in Stop.LIMIT
COMMIT_TIMEOUT_MS = int(1500 * PATIENCE)
KEEP_PLACE_TIMEOUT_MS = 700
MOVED_ON = "the group has moved on without this member"
GENERATION_ERRORS = (errors.CommitFailedError, errors.RebalanceInProgressError)


class Commits:
    """Commits for a group what its member has printed, and no more.

    What could not be committed before the group moved on, or the run ended, is printed again by
    whoever has the partitions then; a message says how many events.
    """

    def __init__(self, consumer: Consumer, group: str, stop: Stop) -> None:
        self._consumer, self._group, self._stop = consumer, group, stop
        self._place: Any = None  # the member's place in the group when the events were read
        self._batches: list[FetchedBatch] = []  # the events that are to be printed now
        self._reached: Offsets = {}  # where reading continues after them
        self._printed = 0  # how many of them have been printed
        self._committed: Offsets = {}
        self._uncommitted = 0  # events printed since the last commit
        self._has_moved = False  # the group has shared out its partitions again
        self.is_cut = False  # the rest of the events will not be printed

    def begin(self, batches: list[FetchedBatch], reached: Offsets) -> None:
        """Note which events are to be printed, and where reading continues after them."""
        place = self._consumer.group_metadata()
        if place != self._place:
            self.give_up(MOVED_ON)
        self._place, self._batches, self._reached = place, batches, reached
        self._printed = 0
        self._has_moved = self.is_cut = False

    def keep_up(self, printed: int) -> bool:
        """Commit, and keep the member's place in the group, while printing takes its time.

        `printed` is how many of the events have been printed. Return whether to print the rest: not
        after a request to stop, nor if the group has shared out its partitions again, as then the
        rest is for their next owners.
        """
        if not self.is_cut and not self._stop.requested:
            self._note(printed)
            self._commit(offsets_after(first_events(self._batches, printed)))
        with suppress(*CONNECTION_ERRORS):
            self._consumer.keep_place(KEEP_PLACE_TIMEOUT_MS)
        self._has_moved = self._consumer.group_metadata() != self._place
        self.is_cut = self._has_moved or self._stop.requested
        return not self.is_cut

    def finish(self, printed: int) -> None:
        """Commit when no more of the events will be printed."""
        if self._has_moved:
            self._rewind()
            self._note(printed)
        else:
            self._note(printed)
            printed_batches = first_events(self._batches, printed)
            self._commit(offsets_after(printed_batches) if self.is_cut else self._reached)

    def _rewind(self) -> None:
        """Go back to the first event that is not printed, where the client keeps its position.

        That is so in a partition that the member had before; in others, it goes on where the group
        has committed.
        """
        firsts = {batch.partition: batch.offset for batch in reversed(self._batches)}
        nexts = {**firsts, **offsets_after(first_events(self._batches, self._printed))}
        for partition in nexts.keys() & positions(self._consumer).keys():
            self._consumer.seek(partition, nexts[partition])

    def give_up(self, reason: str) -> None:
        """Say that events are not committed, if there are any."""
        if self._uncommitted:
            events = pluralize(self._uncommitted, "event")
            say(
                f"cannot commit for group {self._group}: {reason}. "
                f"Up to {events} will be printed again."
            )
        self._uncommitted = 0

    def _note(self, printed: int) -> None:
        self._uncommitted += printed - self._printed
        self._printed = printed

    def _commit(self, offsets: Offsets) -> None:
        """Commit offsets; if Kafka does not respond, the next call makes up for it."""
        new = {p: offset for p, offset in offsets.items() if self._committed.get(p) != offset}
        if not new:
            return
        try:
            commit(self._consumer, new, COMMIT_TIMEOUT_MS)
        except GENERATION_ERRORS:
            self.give_up(MOVED_ON)
        except errors.RetriableError:
            pass
        else:
            self._committed.update(new)
            self._uncommitted = 0


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
