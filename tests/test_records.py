"""records.py against kafka-python's own classes, librdkafka and damaged bytes."""

import itertools
import time
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any, NamedTuple

import confluent_kafka
import pytest
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.record.util import decode_varint

from broker import Broker
from conftest import GUARD, Scripts
from streaming.records import (
    Malformed,
    Record,
    decode,
    decode_pairs,
    encode,
    encode_headers,
    read_varint,
    varint,
    varints,
)

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")  # in the order of their numbers
NOW = 1_700_000_000_000
BASE_OFFSET = 5_000_000_000
PLENTY = 1 << 40
TextHeader = tuple[str, bytes | None]


class Block(NamedTuple):
    """Events that are encoded in one step; with `keys` None, all keys are null."""

    keys: list[bytes | None] | None
    values: list[bytes | None]
    headers: list[TextHeader]
    timestamp_delta: int
    first_offset: int

    @property
    def events(self) -> list[tuple[bytes | None, bytes | None]]:
        return list(zip(self.keys or [None] * len(self.values), self.values, strict=True))

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes | None]]:
        return [(name.encode(), value) for name, value in self.headers]

    def encode(self, room: int = PLENTY) -> tuple[bytes, int]:
        return encode(
            self.keys,
            self.values,
            encode_headers(self.raw_headers),
            timestamp_delta=self.timestamp_delta,
            first_offset=self.first_offset,
            room=room,
        )


# ------------------------------------------------------------------ random events


def random_part(random: Random, limit: int = 300) -> bytes | None:
    """A key or a value: null, empty, short, and rarely long."""
    kind = random.random()
    if kind < 0.1:
        return None
    if kind < 0.2:
        return b""
    if kind < 0.999 or limit < 300:
        return random.randbytes(random.randint(1, limit))
    return random.randbytes(random.choice([8190, 8191, 8192, random.randint(8190, 200_000)]))


def random_headers(random: Random) -> list[TextHeader]:
    names = ["", "source", "größe", "キー", "n" * 70]
    count = random.choice([0, 0, 1, 2, 3])
    return [(random.choice(names), random_part(random)) for _ in range(count)]


def random_block(random: Random, size: int, first_offset: int, limit: int) -> Block:
    def column() -> list[bytes | None]:
        parts = [random_part(random, limit) for _ in range(size)]
        return parts if random.random() < 0.7 else [part or b"" for part in parts]

    furthest = random.choice([0, 100, 10**7, NOW])
    return Block(
        keys=column() if random.random() < 0.6 else None,
        values=column(),
        headers=random_headers(random),
        timestamp_delta=random.randint(-furthest, furthest) if first_offset else 0,
        first_offset=first_offset,
    )


def random_batch(random: Random, limit: int = 300) -> list[Block]:
    """One to four blocks; offsets may jump, as encode() allows, to where their varints get longer.

    Each 500th batch or so has thousands of small events.
    """
    is_long = random.random() < 0.002
    sizes = [9000, random.randint(1, 9000)] if is_long else [1, 2, 5, 20, 63, 64, 65, 130]
    blocks: list[Block] = []
    offset = 0
    for _ in range(random.randint(1, 4)):
        size = random.choice(sizes)
        blocks.append(random_block(random, size, offset, 10 if is_long else limit))
        offset += size
        steps = [1 << 6, 1 << 13, 1 << 20, 1 << 27, (1 << 31) - 40_000]
        later = [step for step in steps if step > offset + 100]
        if later and random.random() < 0.2:
            offset = random.choice(later) - random.randint(0, 100)
    return blocks


def random_batches(seed: int, count: int) -> Iterator[tuple[Random, list[Block]]]:
    random = Random(seed)
    for _ in range(count):
        yield random, random_batch(random)


def expected_records(blocks: list[Block]) -> list[Record]:
    return [
        Record(
            BASE_OFFSET + block.first_offset + number,
            NOW + block.timestamp_delta,
            key,
            value,
            block.raw_headers,
        )
        for block in blocks
        for number, (key, value) in enumerate(block.events)
    ]


# ------------------------------------------------------------------ writing


def new_builder(codec: int = 0, room: int = PLENTY) -> Any:
    return DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=False,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=DefaultRecordBatchBuilder.header_size_in_bytes() + room,
    )


def append(builder: Any, block: Block) -> int:
    """Append a block with kafka-python, event by event, and return how many of them fit."""
    for number, (key, value) in enumerate(block.events):
        offset, timestamp = block.first_offset + number, NOW + block.timestamp_delta
        if builder.append(offset, timestamp, key, value, block.headers) is None:
            return number
    return len(block.values)


def built_records(builder: Any) -> bytes:
    """The records of a batch as kafka-python sends it, decompressed."""
    batch = DefaultRecordBatch(builder.build())
    batch._maybe_uncompress()
    return bytes(batch._buffer[batch._pos :])


def sizes_of(blocks: Iterable[Block]) -> list[int]:
    return [
        DefaultRecordBatchBuilder.size_in_bytes(
            block.first_offset + number, block.timestamp_delta, key, value, block.headers
        )
        for block in blocks
        for number, (key, value) in enumerate(block.events)
    ]


def random_room(random: Random, blocks: list[Block]) -> int:
    """Room for all; or for some, or all, to the byte; or a byte less."""
    ends = [0, *itertools.accumulate(sizes_of(blocks))]
    exact = random.choice([ends[-1], random.choice(ends)])
    return random.choice([PLENTY, exact, max(exact - 1, 0), random.randint(0, ends[-1])])


def check_encode(blocks: list[Block], room: int = PLENTY, codec: int = 0) -> bool:
    """Compare a batch with kafka-python's, up to the first block that does not fit as a whole.

    Return whether all do.
    """
    builder = new_builder(codec, room)
    records = b""
    for block in blocks:
        encoded, events = block.encode(room - len(records))
        records += encoded
        assert events == append(builder, block)
        if events < len(block.values):
            break
    assert records == built_records(builder)
    return events == len(block.values)


def test_records_are_encoded_as_by_kafka_python() -> None:
    partial = 0
    for random, blocks in random_batches(1, 2000):
        room = random_room(random, blocks)
        partial += not check_encode(blocks, room, random.randrange(len(CODECS)))
    assert partial > 500


def test_where_lengths_take_another_byte() -> None:
    """The lengths of keys, values, headers and whole records, around each of these sizes."""
    for size in (63, 64, 8191, 8192, (1 << 20) - 1, 1 << 20):
        for length in range(size - 12 if size > 12 else 0, size + 2):
            part = b"x" * length
            blocks = [
                Block([part, b"k"], [b"v", None], [], 0, 0),
                Block(None, [part], [("name", part)], -5, 2),
            ]
            check_encode(blocks)
            check_encode(blocks, sum(sizes_of(blocks)) - 1)


def test_the_first_event_of_a_batch_always_fits() -> None:
    for room in (-10, 0, 1):
        first = Block(None, [b"x" * 100] * 3, [], 0, 0)
        assert first.encode(room) == (first._replace(values=[b"x" * 100]).encode()[0], 1)
        assert first._replace(first_offset=1).encode(room) == (b"", 0)
        assert first._replace(first_offset=64).encode(room) == (b"", 0)


def test_no_events() -> None:
    block = Block(None, [], [("name", b"")], 0, 0)
    assert block.encode(0) == block._replace(keys=[]).encode(0) == (b"", 0)


def test_only_as_many_events_as_fit_are_encoded_past_64() -> None:
    """Where the varints of the offsets get longer, and no byte is left."""
    block = Block(None, [b""] * 70, [], 0, 0)
    size = sum(sizes_of([block])[:64])
    assert [block.encode(size + more)[1] for more in (-1, 0, 1, 7, 8)] == [63, 64, 64, 64, 65]


# ------------------------------------------------------------------ reading


def batch_header(count: int) -> bytes:
    fields = (BASE_OFFSET, 0, 0, 2, 0, 0, 0, NOW, 0, -1, -1, -1, count)
    return DefaultRecordBatch.HEADER_STRUCT.pack(*fields)  # type: ignore[no-any-return]


class Names(bytes):
    """The bytes of records, of which kafka-python decodes the names of headers, whatever they are.

    The characters are the bytes.
    """

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return Names(part) if isinstance(index, slice) else part

    def decode(self, *_: Any) -> str:
        return super().decode("latin-1")


class Reader(DefaultRecordBatch):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python's reader, but for what it reads differently.

    As it comes, it takes any negative length for null, not only -1; it rejects names of headers
    that are not UTF-8; it reads the attributes, a byte, as a varint; and it returns a record whose
    last header is cut off, before it rejects the batch.
    """

    _buffer: bytes

    def __init__(self, records: bytes, count: int) -> None:
        super().__init__(batch_header(count) + records)
        self._buffer = Names(self._buffer)

    def _read_msg(self) -> Any:
        numbers = itertools.count()

        def read(buffer: bytes, position: int) -> tuple[int, int]:
            match next(numbers):
                case 1:  # the attributes
                    return buffer[position], position + 1
                case 0 | 2 | 3:  # length, timestampDelta, offsetDelta
                    return decode_varint(buffer, position)  # type: ignore[no-any-return]
            number, position = decode_varint(buffer, position)
            if number < -1:
                raise CorruptRecordError("a negative length")
            return number, position

        record = super()._read_msg(read)
        if self._pos > len(self._buffer):
            raise CorruptRecordError("a header does not end")
        return record


def as_record(record: Any, encoding: str) -> Record:
    headers = [(name.encode(encoding), value) for name, value in record.headers]
    return Record(record.offset, record.timestamp, record.key, record.value, headers)


def columns_of(records: list[Record]) -> tuple[list[bytes | None], list[bytes | None]]:
    return [record.key for record in records], [record.value for record in records]


class Outcome(NamedTuple):
    records: list[Record]
    is_complete: bool  # not Malformed


def outcome(records: Iterator[Record]) -> Outcome:
    """What is read, until the end or an error."""
    found: list[Record] = []
    try:
        for record in records:
            found.append(record)
    except (Malformed, CorruptRecordError):
        return Outcome(found, False)
    return Outcome(found, True)


def check_decode(records: bytes, count: int) -> Outcome:
    """Compare decode() with kafka-python, and decode_pairs() with decode()."""
    found = outcome(decode(records, count, BASE_OFFSET, NOW))
    reader = Reader(records, count)
    assert found == outcome(as_record(record, "latin-1") for record in reader)
    if found.is_complete:
        assert decode_pairs(records, count) == columns_of(found.records)
    else:
        with pytest.raises(Malformed):
            decode_pairs(records, count)
    return found


def test_records_are_decoded_as_by_kafka_python() -> None:
    for _, blocks in random_batches(2, 500):
        builder = new_builder()
        count = sum(append(builder, block) for block in blocks)
        records = built_records(builder)
        found = list(decode(records, count, BASE_OFFSET, NOW))
        own = DefaultRecordBatch(batch_header(count) + records)
        assert found == [as_record(record, "utf-8") for record in own]
        assert found == expected_records(blocks)
        assert decode_pairs(records, count) == columns_of(found)


def test_names_and_values_of_headers_may_be_any_bytes() -> None:
    headers: list[tuple[bytes, bytes | None]] = [(b"\xff\xfe", b"\x80"), (b"", None), (b"\0", b"")]
    records = encode(
        None, [None], encode_headers(headers), timestamp_delta=-3, first_offset=0, room=0
    ).records
    assert list(decode(records, 1, 7, 10)) == [Record(7, 7, None, None, headers)]


def test_no_records() -> None:
    for count in (0, -1):
        assert check_decode(b"", count) == ([], True)
        assert check_decode(b"\0", count) == ([], False)
    assert check_decode(b"", 1) == ([], False)


# ------------------------------------------------------------------ numbers


def test_varints_at_their_boundaries() -> None:
    for number, encoded in (
        (0, "00"),
        (-1, "01"),
        (1, "02"),
        (63, "7e"),
        (-64, "7f"),
        (64, "80 01"),
        (-65, "81 01"),
        (8191, "fe 7f"),
        (8192, "80 80 01"),
        (2**31 - 1, "fe ff ff ff 0f"),
        (-(2**31), "ff ff ff ff 0f"),
        (2**63 - 1, "fe ff ff ff ff ff ff ff ff 01"),
        (-(2**63), "ff ff ff ff ff ff ff ff ff 01"),
    ):
        data = bytes.fromhex(encoded)
        assert varint(number) == data
        zigzag = 2 * number if number >= 0 else -2 * number - 1
        assert read_varint(b"\x80" + data + b"\x80", 1) == (zigzag, 1 + len(data))
        for end in range(len(data)):
            with pytest.raises(IndexError):
                read_varint(data[:end], 0)


def test_many_varints_at_once() -> None:
    for numbers in ([], [0, 63, 64, 8191], [8191, 1, 8192], [2**31 - 1, 1, 0]):
        assert varints(numbers) == [varint(number) for number in numbers]


def test_a_varint_has_at_most_ten_bytes() -> None:
    longest = b"\x80" * 9 + b"\0"
    assert read_varint(longest, 0) == (0, 10)
    for too_long in (b"\x80" * 10, b"\x80" * 10 + b"\0", b"\x80" * 10_000):
        with pytest.raises(Malformed):
            read_varint(too_long, 0)


def with_length(body: bytes) -> bytes:
    return varint(len(body)) + body


ZERO = varint(0)
# attributes, timestampDelta, offsetDelta, keyLength, valueLength, headersCount, then one header:
# the length of its name, and that of its value
FIELDS = [b"\0", ZERO, ZERO, ZERO, ZERO, varint(1), ZERO, ZERO]


@pytest.mark.parametrize("field", range(1, len(FIELDS)))
def test_numbers_that_are_too_long_too_big_or_negative(field: int) -> None:
    """In each field of a record whose length is right."""

    def is_accepted(number: bytes, rest: bytes = b"") -> bool:
        record = b"".join([*FIELDS[:field], number, *FIELDS[field + 1 :], rest])
        return check_decode(with_length(record), 1).is_complete

    is_delta = field in (1, 2)
    assert is_accepted(ZERO) is (field != 5)  # as a header follows
    assert is_accepted(FIELDS[field][:-1] + bytes([FIELDS[field][-1] | 0x80]) + b"\x80" * 8 + b"\0")
    assert not is_accepted(b"\x80" * 10 + b"\0")
    assert not is_accepted(b"\x80" * 11 + b"\0")
    assert not is_accepted(b"\x80" * 100)
    assert is_accepted(varint(-1)) is (is_delta or field in (3, 4, 7))
    for number in (-2, -(2**31), -(2**63), 2**31 - 1, 2**63 - 1):
        assert is_accepted(varint(number)) is is_delta


def test_a_record_has_the_length_that_it_names() -> None:
    body = b"".join(FIELDS)
    for length in (len(body) - 1, len(body) + 1, 0, -1, -len(body), 2**31 - 1, 2**63 - 1):
        assert check_decode(varint(length) + body, 1) == ([], False)
    assert check_decode(with_length(body) * 3, 3).is_complete
    for count in (-1, 0, 2, 4, 2**31 - 1):
        assert not check_decode(with_length(body) * 3, count).is_complete


# ------------------------------------------------------------------ damaged bytes


def odd_number(random: Random, number: int) -> bytes:
    """A number, rarely another one or in more bytes than it takes."""
    kind = random.random()
    if kind < 0.02:
        return varint(random.choice([-1, -2, -300, 0, 1, 64, 2**31 - 1, -(2**31), 2**63 - 1]))
    if kind < 0.04:
        encoded = varint(number)
        last = bytes([encoded[-1] | 0x80])
        return encoded[:-1] + last + b"\x80" * random.randint(0, 11) + b"\0"
    return varint(number)


def odd_bytes(random: Random, part: bytes | None) -> bytes:
    return odd_number(random, -1 if part is None else len(part)) + (part or b"")


def odd_record(random: Random, offset: int) -> bytes:
    """A record, of which some fields may be wrong, while its length is mostly right."""
    headers = random_headers(random)
    fields = [
        bytes([random.choice([0] * 9 + [0x81])]),
        odd_number(random, random.randint(-100, 100)),
        odd_number(random, offset),
        odd_bytes(random, random_part(random, 20)),
        odd_bytes(random, random_part(random, 20)),
        odd_number(random, len(headers)),
    ]
    for name, value in headers:
        fields += [odd_bytes(random, name.encode()), odd_bytes(random, value)]
    body = b"".join(fields)
    return odd_number(random, len(body)) + body


def damage(random: Random, records: bytes) -> bytes:
    """Flip a bit, replace a byte, cut, insert or repeat."""
    place = random.randint(0, len(records))
    before, after = records[:place], records[place:]
    some = random.choice([1, 1, 2, 3, 10, 30])
    match random.choice(["flip", "replace", "cut", "end", "insert", "repeat"]):
        case "flip" if after:
            return before + bytes([after[0] ^ 1 << random.randrange(8)]) + after[1:]
        case "replace":
            return before + random.choice([b"\0", b"\1", b"\x7f", b"\x80", b"\xff"]) + after[1:]
        case "cut":
            return before + after[some:]
        case "end":
            return before
        case "insert":
            return before + random.choice([random.randbytes(some), b"\x80" * some]) + after
    return before + before[-some:] + after


def damaged_count(random: Random, count: int) -> int:
    wrong = [count - 1, count + 1, 0, -1, -(2**31), 2**31 - 1]
    return random.choice(wrong) if random.random() < 0.05 else count


def test_damaged_records_are_malformed_or_read_as_by_kafka_python() -> None:
    """decode() yields what comes before the damage; decode_pairs() raises in the same cases."""
    random = Random(3)
    complete = partial = 0
    for _ in range(20_000):
        count = random.randint(1, 5)
        records = b"".join(odd_record(random, offset) for offset in range(count))
        for _ in range(random.choice([0, 1, 1, 2])):
            records = damage(random, records)
        found = check_decode(records, damaged_count(random, count))
        complete += found.is_complete
        partial += bool(found.records and not found.is_complete)
    assert complete > 2000
    assert partial > 2000


def test_a_record_that_is_cut_off_is_not_yielded() -> None:
    """Wherever it is cut; a length may well be that of what is left."""
    block = Block([b"key"] * 2, [b"value"] * 2, [("name", b"value of a header")], 0, 0)
    records, _ = block.encode()
    first = len(records) // 2
    for end in range(len(records)):
        found = check_decode(records[:end], 2)
        assert found == (expected_records([block])[: end // first], False)


# ------------------------------------------------------------------ librdkafka


def random_words(random: Random) -> bytes:
    """A part that any codec makes smaller; no line ends or colons."""
    words = [b"event", b"\0", b"\xff\xfe", "größe".encode(), b"x" * 200]
    return b" ".join(random.choices(words, k=random.randint(1, 40)))


def words_or_less(random: Random) -> bytes | None:
    return random.choice([None, b"", random_words(random), random_words(random)])


def stored_batches(kafka: Broker, topic: str) -> Iterator[Any]:
    """The batches of a topic's partition 0 as Kafka keeps them on disk: as they were sent to it."""
    path = kafka.data / "log" / f"{topic}-0" / "00000000000000000000.log"
    batches = MemoryRecords(path.read_bytes())
    while batches.has_next():
        yield batches.next_batch()


def decoded(batch: Any) -> Iterator[Record]:
    batch._maybe_uncompress()
    records = bytes(batch._buffer[batch._pos :])
    found = list(decode(records, batch.records_count, batch.base_offset, batch.first_timestamp))
    assert decode_pairs(records, batch.records_count) == columns_of(found)
    yield from found


def test_events_of_librdkafka_are_decoded(kafka: Broker, topic: str) -> None:
    random = Random(4)
    now = int(time.time() * 1000)
    expected: list[Record] = []
    for codec in CODECS:
        settings = {"bootstrap.servers": kafka.address, "compression.type": codec, "linger.ms": 50}
        client = confluent_kafka.Producer(settings)
        for _ in range(300):
            timestamp = now - random.randint(0, 100_000)
            key, value = words_or_less(random), words_or_less(random)
            headers = random_headers(random)
            client.produce(topic, value, key, timestamp=timestamp, headers=list(headers))
            raw = [(name.encode(), content) for name, content in headers]
            expected.append(Record(len(expected), timestamp, key, value, raw))
        assert client.flush(GUARD) == 0
    batches = list(stored_batches(kafka, topic))
    assert {CODECS[batch.compression_type] for batch in batches} == set(CODECS)
    assert [record for batch in batches for record in decoded(batch)] == expected


def read_with_librdkafka(address: str, topic: str, count: int) -> list[Any]:
    settings = {"bootstrap.servers": address, "group.id": topic, "enable.auto.commit": False}
    consumer = confluent_kafka.Consumer(settings)
    start = confluent_kafka.OFFSET_BEGINNING
    consumer.assign([confluent_kafka.TopicPartition(topic, 0, start)])
    found: list[Any] = []
    while len(found) < count:
        messages = consumer.consume(count - len(found), GUARD)
        assert messages
        assert not any(message.error() for message in messages)
        found += messages
    consumer.close()
    return found


def as_line(key: bytes | None, value: bytes | None) -> bytes:
    """A line for -K : -Z."""
    return (b"" if key is None else key + b":") + (value or b"") + b"\n"


@pytest.mark.parametrize("codec", CODECS)
def test_librdkafka_reads_what_is_encoded(
    scripts: Scripts, topic: str, kafka: Broker, codec: str
) -> None:
    random = Random(codec)
    keys = [words_or_less(random) for _ in range(10_000)]
    values = [words_or_less(random) for _ in keys]
    for number, key in enumerate(keys):
        # With -Z, an empty value is null after a key, but not without one
        values[number] = values[number] or (b"" if key is None else None)
    flags = ["-K", ":", "-Z", "-H", "größe=\udcff", "-H", "empty="]
    lines = b"".join(map(as_line, keys, values))
    env = {"KAFKA_COMPRESSION_TYPE": codec}
    done = scripts.run("producer", "-t", topic, *flags, input=lines, env=env)
    assert done.returncode == 0, done.stderr
    messages = read_with_librdkafka(kafka.address, topic, len(values))
    assert [message.key() for message in messages] == keys
    assert [message.value() for message in messages] == values
    headers = [("größe", b"\xff"), ("empty", b"")]
    assert all(message.headers() == headers for message in messages)
    assert [message.offset() for message in messages] == list(range(len(values)))


def test_encoding_does_not_take_longer_for_events_that_cannot_fit() -> None:
    """Only as many values are looked at as have room; the others may be of any kind."""
    values: Any = [b"x"] * 100 + [object()] * 100
    encoded = encode(None, values, b"\0", timestamp_delta=0, first_offset=1, room=8 * 50)
    assert encoded.event_count == 50
