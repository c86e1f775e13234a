"""Events on their way to Kafka: which of them are in which batch, and what became of them."""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from streaming.records import Column

BYTES_OF_NOTES = 12  # what is noted about each event: its number, its size


class Events(NamedTuple):
    """Some events, in the order of the source: their numbers there, sizes, keys and values.

    A size is that of key and value, in bytes. Without `keys`, all keys are null.
    """

    numbers: Sequence[int]
    sizes: Sequence[int]
    keys: Column | None
    values: Column

    def part(self, start: int, end: int | None = None) -> "Events":
        """Return the events from one index to another, as a slice does."""
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


class Failed(NamedTuple):
    """Events that were not delivered, for one reason."""

    numbers: Sequence[int]
    size: int  # of the first one, in bytes
    error: Exception | None  # None: neither has said anything yet


class SentBatch:
    """The events of one batch of the client, and what became of them.

    The client keeps a future for each event, but uses it only if it splits a batch because Kafka
    rejects it as too large: it then binds each event's future to that of its new batch. So this
    takes the place of its list of futures, and makes them only when they are asked for.
    """

    def __init__(self, future: Any) -> None:
        self.is_full = False
        self.encoded_bytes = 0
        self.parts: list[SentBatch] = []  # what it was split into
        self.future = future  # of the client, for the whole batch
        self._numbers, self._sizes = array("Q"), array("I")
        self._moved = 0  # how many events the client has moved to the parts

    def add(self, numbers: Sequence[int], sizes: Sequence[int], encoded_bytes: int) -> None:
        self._numbers.extend(numbers)
        self._sizes.extend(sizes)
        self.encoded_bytes += encoded_bytes

    @property
    def bytes_in_memory(self) -> int:
        return self.encoded_bytes + BYTES_OF_NOTES * len(self)

    # What the client does with its list of futures

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> "EventOfBatch":
        return EventOfBatch(self, index)

    def move(self, index: int, future: Any) -> "SentBatch":
        """Move an event to the new batch that has this future, and return that one."""
        if not (self.parts and self.parts[-1].future is future):
            self.parts.append(SentBatch(future))
        part = self.parts[-1]
        part.add([self._numbers[index]], [self._sizes[index]], self._sizes[index])
        self._moved += 1
        return part

    # What became of it; the client's thread may change that at any time

    @property
    def is_split(self) -> bool:
        """Whether its parts have taken its place."""
        return self._moved == len(self)

    @property
    def is_done(self) -> bool:
        return bool(self.future.is_done)

    def wait(self, seconds: float) -> None:
        """Wait until it is done, or for this time."""
        self.future.wait(seconds)

    def failed(self) -> list[Failed]:
        """Return which events were not delivered, once it is done."""
        _base_offset, _timestamp, error_of = self.future.value
        if error_of is None:
            return []
        if error_of(0) is error_of(len(self) - 1):  # the same for all
            return [self.all_failed(error_of(0))]
        return [
            Failed([number], size, error_of(index))
            for index, (number, size) in enumerate(zip(self._numbers, self._sizes, strict=True))
        ]

    def all_failed(self, error: Exception | None) -> Failed:
        return Failed(self._numbers, self._sizes[0], error)


class EventOfBatch:
    """An event's future, as far as the client uses it when it splits a batch."""

    def __init__(self, batch: SentBatch, index: int) -> None:
        self._batch, self._index = batch, index

    def rebind(self, future: Any, index: int) -> None:
        self._batch, self._index = self._batch.move(self._index, future), index
