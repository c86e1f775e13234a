"""The batches of a fetch, compared with the events that kafka-python reads in it; without Kafka."""

import random
import struct
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from kafka import TopicPartition, errors
from kafka.consumer.fetcher import Fetcher
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.record.util import calc_crc32c

from streaming import ends, follow
from streaming.commits import first_events
from streaming.kafka_internals import FetchedBatch, FetchedPartition
from streaming.output import Output

PARTITION = TopicPartition("events", 3)
NONE, GZIP, LZ4 = 0, 1, 3
CODECS = range(5)  # none, gzip, snappy, lz4, zstd
LAYOUT = DefaultRecordBatch.HEADER_STRUCT
TIMESTAMP_TYPE, TRANSACTIONAL, CONTROL = 8, 16, 32  # bits of a batch's attributes
ABORT, COMMIT = struct.pack(">hh", 0, 0), struct.pack(">hh", 0, 1)  # keys of Kafka's own records


class Header(NamedTuple):
    """Of a batch."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records_count: int


class Event(NamedTuple):
    offset: int
    timestamp: int | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[bytes, bytes | None]]


def with_records(batch: bytes, records: bytes, **fields: Any) -> bytes:
    """A batch with other records, and fields of its header, and the right checksum."""
    length = LAYOUT.size - DefaultRecordBatch.AFTER_LEN_OFFSET + len(records)
    header = Header(*LAYOUT.unpack_from(batch))._replace(length=length, **fields)
    body = LAYOUT.pack(*header)[DefaultRecordBatch.ATTRIBUTES_OFFSET :] + records
    return bytes(LAYOUT.pack(*header._replace(crc=calc_crc32c(body))) + records)


def changed(batch: bytes, **fields: int) -> bytes:
    return with_records(batch, batch[LAYOUT.size :], **fields)


def batch_of(base: int, values: list[bytes | None], codec: int = NONE, **fields: int) -> bytes:
    """A batch of events without keys, one for each offset from `base` on."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 1000 + number, None, value, [])
    return changed(bytes(builder.build()), base_offset=base, **fields)


def fetched(data: bytes, start: int = 0, kind: Any = FetchedPartition, **options: Any) -> Any:
    return kind(start, PARTITION, MemoryRecords(data), **options)


def one(data: bytes, start: int = 0) -> FetchedBatch:
    [batch] = fetched(data, start).take()
    assert isinstance(batch, FetchedBatch)
    return batch


# ------------------------------------------------------------------ random fetches


class Log:
    """A partition's log at random."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.end = chance.choice([0, 5, 1 << 33])
        self.batches: list[tuple[int, int, bytes]] = []  # the first offset, the end, its bytes
        self.aborted: list[tuple[int, Any]] = []  # the offset of its marker, and what Kafka says
        self.open: dict[int, int] = {}  # the first offset of each producer's transaction

    def add(self, batch: bytes, length: int) -> None:
        self.batches.append((self.end, self.end + length, batch))
        self.end += length

    def add_batch(self) -> None:
        """Some events, most with gaps between them; Kafka keeps a batch's end if it is a gap."""
        chance, producer = self.chance, self.chance.choice([-1, 7, 8])
        builder = DefaultRecordBatchBuilder(
            2, chance.choice(CODECS), producer >= 0, producer, 0, 0, 1 << 30
        )
        delta = -1
        for _ in range(chance.choice([1, 2, 100])):
            delta += chance.choice([1, 1, 1, 7, 9000])
            builder.append(delta, 10**12 + chance.randrange(-99, 999), *self.event())
        batch = bytes(builder.build())
        attributes = Header(*LAYOUT.unpack_from(batch)).attributes
        last = delta + chance.choice([0, 0, 3])
        fields = {"base_offset": self.end, "leader_epoch": chance.randrange(9)}
        fields |= {"attributes": attributes | chance.choice([0, 0, TIMESTAMP_TYPE])}
        if producer >= 0:
            self.open.setdefault(producer, self.end)
        self.add(changed(batch, last_offset_delta=last, **fields), last + 1)

    def event(self) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
        chance = self.chance
        key = chance.choice([None, b"", b"k", chance.randbytes(70)])
        value = chance.choice([None, b"", b"v", chance.randbytes(9000)])
        headers = [("é", b"1"), ("", None)] if chance.random() < 0.1 else []
        return key, value, headers

    def add_end_of_transaction(self) -> None:
        """Kafka's own record."""
        if self.open:
            producer, first = self.open.popitem()
            key = self.chance.choice([ABORT, COMMIT])
            if key == ABORT:
                told = SimpleNamespace(producer_id=producer, first_offset=first)
                self.aborted.append((self.end, told))
            builder = DefaultRecordBatchBuilder(2, NONE, True, producer, 0, -1, 1 << 20)
            builder.append(0, 1000, key, struct.pack(">hi", 0, 0), [])
            attributes = CONTROL | TRANSACTIONAL
            batch = changed(bytes(builder.build()), base_offset=self.end, attributes=attributes)
            self.add(batch, 1)

    def add_old_batch(self) -> None:
        """As before Kafka 0.11."""
        chance = self.chance
        count, codec = chance.choice([1, 5]), chance.choice([NONE, GZIP, LZ4])
        builder = MemoryRecordsBuilder(1, codec, 1 << 30, offset=0 if codec else self.end)
        for _ in range(count):
            key, value, _ = self.event()
            builder.append(10**12 + chance.randrange(999), key, value)
        builder.close()
        data = bytes(builder.buffer())
        last = struct.pack(">q", self.end + count - 1)  # the offset of a compressed batch
        self.add(last + data[8:] if codec else data, count)

    def fetch(self) -> tuple[int, bytes, list[Any]]:
        """Where to start; what Kafka returns, with part of a batch at the end; what was aborted.

        It may begin with a batch too many.
        """
        start = self.chance.randrange(self.batches[0][0], self.end)
        before = sum(end <= start for _, end, _ in self.batches)
        wanted = self.batches[max(before - self.chance.choice([0, 0, 1]), 0) :]
        data = b"".join(batch for _, _, batch in wanted)
        partial = self.batches[0][2][: self.chance.choice([0, 5, 30])]
        aborted = [told for marker, told in self.aborted if marker >= start]
        self.chance.shuffle(aborted)
        return start, data + partial, aborted


def random_log(chance: random.Random, is_old: bool) -> Log:
    log = Log(chance)
    steps = [log.add_old_batch] if is_old else [log.add_batch, log.add_end_of_transaction]
    for _ in range(chance.randrange(1, 12)):
        chance.choice(steps)()
    if not log.batches:
        log.add_batch()
    return log


def expected_events(records: list[Any]) -> list[Event]:
    return [
        Event(
            record.offset,
            record.timestamp,
            record.key,
            record.value,
            [(name.encode(), value) for name, value in record.headers],
        )
        for record in records
    ]


def events_of(batches: list[FetchedBatch]) -> list[Event]:
    return [Event(*record) for batch in batches for record in batch.records()]


def check_cuts(batches: list[FetchedBatch], events: list[Event], chance: random.Random) -> None:
    """Compare the first so many events, and those before an offset, with what slices say."""
    count = chance.randrange(len(events) + 2)
    assert events_of(first_events(batches, count)) == events[:count]
    middle = chance.choice([*events, Event(0, 0, None, None, [])]).offset + chance.choice([0, 1])
    wanted = [event for event in events if event.offset < middle]
    cut = [batch.before(middle) for batch in batches if batch.offset < middle]
    assert events_of(cut) == wanted
    count = chance.randrange(len(wanted) + 2)
    first = first_events(cut, count)
    assert events_of(first) == wanted[:count]
    if first and 0 < count <= len(wanted):
        assert first[-1].next_offset > wanted[count - 1].offset
        assert not [event for event in wanted[count:] if event.offset < first[-1].next_offset]


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("isolation", [IsolationLevel.READ_COMMITTED, 0])
def test_a_fetch_has_the_events_that_kafka_python_finds(is_old: bool, isolation: Any) -> None:
    """Whatever the codec, gaps, start, timestamps, transactions, or the format."""
    for seed in range(150):
        chance = random.Random(seed)
        start, data, aborted = random_log(chance, is_old).fetch()
        options = {"isolation_level": isolation, "aborted_transactions": aborted}
        theirs = fetched(data, start, Fetcher.PartitionRecords, **options)
        ours = fetched(data, start, **options)
        events = expected_events(theirs.take())
        batches: list[FetchedBatch] = []
        while ours and (some := ours.take(chance.choice([1, 2, None]))):
            batches += some
            if ours:
                assert ours.next_fetch_offset == some[-1].next_offset
        assert events_of(batches) == events, seed
        pairs = [
            pair
            for each in batches
            for columns in each.pairs()
            for pair in zip(*columns, strict=True)
        ]
        assert pairs == [(event.key, event.value) for event in events], seed
        assert (ours.next_fetch_offset, ours.leader_epoch, bool(ours)) == (
            theirs.next_fetch_offset,
            theirs.leader_epoch,
            bool(theirs),
        ), seed
        assert sum(batch.most_events for batch in batches) >= len(events)
        check_cuts(batches, events, chance)


# ------------------------------------------------------------------ batches without events


def test_a_batch_without_records_only_moves_the_place() -> None:
    """Compaction leaves such a batch, also of an abort marker."""
    aborted = [SimpleNamespace(producer_id=7, first_offset=0)]
    for attributes in (0, CONTROL | TRANSACTIONAL):
        fields = {"attributes": attributes, "producer_id": 7, "last_offset_delta": 9}
        data = batch_of(0, [], **fields) + batch_of(10, [b"a"])
        part = fetched(
            data, isolation_level=IsolationLevel.READ_COMMITTED, aborted_transactions=aborted
        )
        [batch] = part.take()
        assert (batch.offset, part.next_fetch_offset) == (10, 11)


def test_what_is_read_is_counted_and_the_end_is_told() -> None:
    """The fetcher's metrics need it, and the order in which it reads partitions."""
    data = batch_of(0, [b"a", b"b"], GZIP) + batch_of(2, [b"c"])
    metrics, drained = Mock(), Mock()
    part = fetched(data, metric_aggregator=metrics, on_drain=drained)
    assert len(part.take(1)) == 1
    assert not drained.called
    assert len(part.take(5)) == 1
    drained.assert_called_once_with(part)
    metrics.record.assert_called_once_with(PARTITION, len(data), 3)


# ------------------------------------------------------------------ corrupt events


def corrupted(values: list[bytes | None], base: int = 10) -> bytes:
    """A batch whose last record is malformed: its length is wrong. The checksum is right."""
    batch = batch_of(base, values)
    data = bytearray(batch[LAYOUT.size :])
    data[LAYOUT.size - len(batch_of(0, values[-1:]))] += 2
    return with_records(batch, bytes(data))


def printed(batches: list[FetchedBatch], capfdbinary: Any, **how: Any) -> tuple[bytes, str]:
    """What is printed, and the error after it."""
    with pytest.raises(errors.KafkaError) as raised:
        Output(**{"separator": None, "as_json": False, **how}).write(batches)
    return capfdbinary.readouterr().out, str(raised.value.args[0])


WRONG_LENGTH = (
    "the event at partition 3, offset 12 is corrupt: a record does not end where its length says"
)


def test_events_before_a_malformed_one_are_printed(capfdbinary: Any) -> None:
    good = batch_of(5, [b"%d" % number for number in range(5, 10)])
    bad = corrupted([b"10", b"11", b"12"])
    after = batch_of(13, [b"13"])
    batches = fetched(good + bad + after, 5).take()
    assert printed(batches, capfdbinary) == (b"5\n6\n7\n8\n9\n10\n11\n", WRONG_LENGTH)
    assert printed([one(bad, 11)], capfdbinary) == (b"11\n", WRONG_LENGTH)
    lines, error = printed([one(bad)], capfdbinary, as_json=True)
    assert (lines.count(b"\n"), error) == (2, WRONG_LENGTH)


def test_a_malformed_event_matters_only_if_it_is_wanted(capfdbinary: Any) -> None:
    bad = one(corrupted([b"10", b"11", b"12"]))
    for part in (bad.first(2)[0], bad.before(12)):
        Output(None, False).write([part])
        assert capfdbinary.readouterr().out == b"10\n11\n"
    assert bad.first(2)[1] == 2
    assert one(corrupted([b"10", b"11", b"12", b"13"]), 11).first(5)[1] == 2
    part, count = bad.first(3)
    assert count == 3
    assert printed([part], capfdbinary) == (b"10\n11\n", WRONG_LENGTH)


def test_the_place_of_a_wrong_checksum() -> None:
    good, bad = batch_of(0, [b"0"]), bytearray(batch_of(1, [b"1", b"2"]))
    bad[-2] ^= 1
    part = fetched(good + bytes(bad))
    assert [batch.offset for batch in part.take()] == [0]
    assert part.next_fetch_offset == 1
    with pytest.raises(errors.CorruptRecordError) as raised:
        part.take()
    reason = "the event at partition 3, offset 1 is corrupt: its checksum is wrong"
    assert raised.value.args == (reason,)
    unchecked = fetched(good + bytes(bad), check_crcs=False)
    assert [event.value for event in events_of(unchecked.take())][:2] == [b"0", b"1"]


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_batch_that_cannot_be_decompressed(codec: int, capfdbinary: Any) -> None:
    batch = with_records(batch_of(10, [b"10"]), b"nonsense" * 4, attributes=codec)
    lines, error = printed([one(batch)], capfdbinary)
    assert lines == b""
    assert error.startswith("the event at partition 3, offset 10 is corrupt: it cannot be decomp")


def test_a_codec_without_its_package(monkeypatch: pytest.MonkeyPatch, capfdbinary: Any) -> None:
    """It is noticed where the batch is read, after the events before it are printed."""
    monkeypatch.setattr("kafka.codec.lz4", None)
    data = batch_of(0, [b"0"]) + batch_of(1, [b"1", b"2"])
    poor = changed(batch_of(3, [b"3"]), attributes=LZ4)
    batches = fetched(data + poor).take()
    error = "Libraries for lz4 compression codec not found"
    assert printed(batches, capfdbinary) == (b"0\n1\n2\n", error)
    assert first_events(batches, 9) == batches


# ------------------------------------------------------------------ what is kept, and what is cut


def old_batch(value: bytes) -> bytes:
    """A compressed event as before Kafka 0.11."""
    builder = MemoryRecordsBuilder(1, GZIP, 1 << 30)
    builder.append(1000, None, value)
    builder.close()
    return bytes(builder.buffer())


@pytest.mark.parametrize("is_old", [False, True])
def test_what_was_decompressed_is_not_kept(is_old: bool) -> None:
    """A fetch of 4 MB may have gigabytes."""
    value = b"x" * 1_000_000
    batch = one(old_batch(value) if is_old else batch_of(0, [value], GZIP))
    inner = batch._batch
    size = len(inner._buffer)
    assert size < 5000
    for _ in range(2):
        assert list(batch.pairs()) == [([None], [b"x" * 1_000_000])]
        assert [len(record.value or b"") for record in batch.records()] == [1_000_000]
    assert len(inner._buffer) == size


def test_e_ends_inside_a_batch() -> None:
    """A partition is finished there, and no batch after that counts; others go on."""
    consumer = Mock()
    other = TopicPartition("events", 4)
    reading = ends.Ends(consumer, {PARTITION: 3, other: 8}, {PARTITION: 0, other: 0})
    batches = fetched(batch_of(0, [b"0", b"1"]) + batch_of(2, [b"2", b"3"])).take()
    later = fetched(batch_of(4, [b"4"]), 4).take()
    taken = reading.before_ends(batches + later)
    assert [event.value for event in events_of(taken)] == [b"0", b"1", b"2"]
    assert [batch.next_offset for batch in taken] == [2, 3]
    consumer.pause.assert_not_called()  # before they are printed
    reading.note(batches + later)
    assert {call.args for call in consumer.pause.call_args_list} == {(PARTITION,)}
    assert not reading.are_reached(knows_partitions=False)
    later_offsets = {PARTITION: 3, other: 9, TopicPartition("events", 5): 0}
    assert reading.within(later_offsets) == {PARTITION: 3}
    exact = ends.Ends(consumer, {PARTITION: 2}, {PARTITION: 0})
    assert exact.before_ends(batches[:1])[0].next_offset == 2
    exact.note(batches[:1])
    assert exact.are_reached(knows_partitions=False)


def test_a_poll_asks_for_about_5000_events() -> None:
    """As many batches as have so many events, if they are like those of the poll before."""
    follower = follow.Follower(Mock(), "events", None, Mock())
    follower._consumer = Mock()
    wanted: list[int] = []
    for sizes in ([1], [1] * 4999, [], [10, 30], [200] * 250, [900_000], [4000], [1]):
        batches = [SimpleNamespace(most_events=size) for size in sizes]
        follower._consumer.poll.return_value = {PARTITION: batches} if batches else {}
        assert follower._poll() == batches
        wanted.append(follower._consumer.poll.call_args.kwargs["max_records"])
    assert wanted == [1, 5000, 5000, 5000, 250, 25, 1, 1]


def test_many_small_batches_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And large ones about a megabyte at a time."""
    written: list[bytes] = []

    def write(data: memoryview) -> int:
        written.append(bytes(data))
        return len(data)

    output = SimpleNamespace(write=write)
    monkeypatch.setattr("streaming.writing.open", lambda *_, **__: output, raising=False)
    small = b"".join(batch_of(number, [b"%d" % number]) for number in range(500))
    assert Output(None, False).write(fetched(small).take()) == 500
    assert written == [b"".join(b"%d\n" % number for number in range(500))]
    written.clear()
    large = b"".join(batch_of(number, [b"x" * 300_000]) for number in range(9))
    assert Output(None, False).write(fetched(large).take()) == 9
    assert list(map(len, written)) == [4 * 300_001, 4 * 300_001, 300_001]
