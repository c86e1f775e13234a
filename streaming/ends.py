"""Where to stop with -e: the end that each partition had at the start."""

from contextlib import suppress

from kafka import TopicPartition, errors

from streaming.kafka_internals import Consumer, FetchedBatch, positions
from streaming.timing import PATIENCE

RESPONSE_TIMEOUT_MS = int(3000 * PATIENCE)

Offsets = dict[TopicPartition, int]


class Ends:
    """The partitions that are still to be read, and how far.

    The offsets of batches show when an end is reached. But the last ones before it may be hidden
    (aborted events, or Kafka's own records at the end of a transaction); only the client's position
    passes these, and look_again() looks at that.
    """

    def __init__(self, consumer: Consumer, ends: Offsets, firsts: Offsets) -> None:
        self._consumer, self._ends = consumer, ends
        # != as a group's offset may be beyond the end if the topic was recreated: then it is read
        # from its beginning
        self._unfinished = {p for p, end in ends.items() if firsts[p] != end}

    def are_reached(self, knows_partitions: bool) -> bool:
        """Return whether this consumer has nothing left to read.

        `knows_partitions` says whether it knows which partitions are its own; a member of a group
        may have none.
        """
        if not self._unfinished:
            return True
        return knows_partitions and not self._unfinished & self._consumer.assignment()

    def before_ends(self, batches: list[FetchedBatch]) -> list[FetchedBatch]:
        """Return the events before the ends."""
        return [
            batch.before(self._ends[batch.partition])
            for batch in batches
            if batch.offset < self._ends.get(batch.partition, 0)  # 0: it was added later
        ]

    def within(self, offsets: Offsets) -> Offsets:
        """Return those offsets that are not beyond their partition's end.

        A partition without an end was added later; it is never read.
        """
        return {p: offset for p, offset in offsets.items() if offset <= self._ends.get(p, -1)}

    def note(self, batches: list[FetchedBatch]) -> None:
        """Finish the partitions whose end these batches reach; their events have been printed."""
        for batch in batches:
            if batch.next_offset >= self._ends.get(batch.partition, 0):
                self._finish(batch.partition)

    def look_again(self) -> None:
        """Finish partitions that are at their end, even if no event has shown it.

        An end has moved back if the topic was deleted and recreated.
        """
        candidates = self._unfinished & self._consumer.assignment()
        if not candidates:
            return
        with suppress(errors.KafkaError):  # if it lasts, the next poll raises it
            ends = self._consumer.end_offsets(list(candidates), RESPONSE_TIMEOUT_MS)
            for partition, end in ends.items():
                self._ends[partition] = min(end, self._ends[partition])
        known = positions(self._consumer)
        for partition in candidates & known.keys():
            if known[partition] >= self._ends[partition]:
                self._finish(partition)

    def _finish(self, partition: TopicPartition) -> None:
        """Stop reading a partition, however much arrives there."""
        self._unfinished.discard(partition)
        with suppress(KeyError):  # it is no longer assigned
            self._consumer.pause(partition)
