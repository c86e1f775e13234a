"""Events on their way to Kafka: which of them are in which batch, and what became of them."""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from streaming.records import Column

BYTES_PER_EVENT = 12  # what is noted about it: 8 for its number, 4 for its size
BYTES_PER_BATCH = 1500  # the client's objects, and ours


class Events(NamedTuple):
    """Some events, in the order of the source: their numbers in it, sizes, keys and values.

    A size is that of key and value together, in bytes. Without `keys`, all keys are null.
    """

    numbers: Sequence[int]
    sizes: Sequence[int]
    keys: Column | None
    values: Column

    def part(self, start: int, end: int | None = None) -> "Events":
        """Return a slice of the events."""
        return Events(
            self.numbers[start:end],
            self.sizes[start:end],
            self.keys and self.keys[start:end],
            self.values[start:end],
        )

    def at(self, indices: list[int]) -> "Events":
        """Return the events at these indices."""
        return Events(
            list(map(self.numbers.__getitem__, indices)),
            list(map(self.sizes.__getitem__, indices)),
            self.keys and list(map(self.keys.__getitem__, indices)),
            list(map(self.values.__getitem__, indices)),
        )


class FailedEvents(NamedTuple):
    """Events that were not delivered, for one reason."""

    numbers: Sequence[int]
    size: int  # of the first one, in bytes
    error: Exception | None  # None: there is no outcome yet


class TrackedBatch:
    """The events of one batch of the client, and what became of them.

    The client keeps a future for each event, but uses it only if it splits a batch because Kafka
    rejects it as too large: it then binds each event's future to that of its new batch. So this
    object replaces that list, and creates futures only on request.

    The main thread adds events, under the partition's lock, until the client closes the batch; from
    then on, only the client's thread changes it.
    """

    def __init__(self, future: Any) -> None:
        self.is_full = False
        self.encoded_bytes = 0
        self.parts: list[TrackedBatch] = []  # what it was split into
        self.future = future  # the client's, for the whole batch
        self._numbers, self._sizes = array("Q"), array("I")
        self._moved = 0  # how many events the client has moved to the parts

    def add(self, numbers: Sequence[int], sizes: Sequence[int], encoded_bytes: int) -> None:
        self._numbers.extend(numbers)
        self._sizes.extend(sizes)
        self.encoded_bytes += encoded_bytes

    @property
    def bytes_in_memory(self) -> int:
        return self.encoded_bytes + BYTES_PER_EVENT * len(self) + BYTES_PER_BATCH

    # What the client uses of its list of futures

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> "EventOfBatch":
        return EventOfBatch(self, index)

    def move(self, index: int, future: Any) -> "TrackedBatch":
        """Move an event to the new batch that has this future, and return that batch."""
        if not (self.parts and self.parts[-1].future is future):
            self.parts.append(TrackedBatch(future))
        part = self.parts[-1]
        share = self.encoded_bytes // len(self)
        part.add([self._numbers[index]], [self._sizes[index]], share)
        self._moved += 1
        return part

    # The outcome; the client's thread may change it at any time

    @property
    def is_split(self) -> bool:
        """Whether all events have moved to the parts: then it will never be done itself."""
        return self._moved == len(self)

    @property
    def is_done(self) -> bool:
        return bool(self.future.is_done)

    def wait(self, seconds: float) -> None:
        """Wait until it is done, but no longer than this."""
        self.future.wait(seconds)

    def failed(self) -> list[FailedEvents]:
        """Return the events that were not delivered; call it only once it is done."""
        _base_offset, _timestamp, error_of = self.future.value
        if error_of is None:
            return []
        # One error for all, unless Kafka has named single events: then each call makes a new one
        if error_of(0) is error_of(len(self) - 1):
            return [self.all_failed(error_of(0))]
        return [
            FailedEvents([number], size, error_of(index))
            for index, (number, size) in enumerate(zip(self._numbers, self._sizes, strict=True))
        ]

    def all_failed(self, error: Exception | None) -> FailedEvents:
        return FailedEvents(self._numbers, self._sizes[0], error)


class EventOfBatch:
    """Stands in for an event's future: only what the client uses when it splits a batch."""

    def __init__(self, batch: TrackedBatch, index: int) -> None:
        self._batch, self._index = batch, index

    def rebind(self, future: Any, index: int) -> None:
        """Move the event to another batch, for the first time or again."""
        self._batch, self._index = self._batch.move(self._index, future), index
