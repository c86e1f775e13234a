"""Kafka's record batches (message format v2), many events at a time. Pure: bytes in, bytes out.

A batch is a header and its records. encode() writes records, decode() and decode_pairs() read them
(decompressed). A record has these fields, in this order, named as in Kafka's protocol
(https://kafka.apache.org/documentation/#record):

    length          varint  the number of bytes that follow
    attributes      int8    unused: 0
    timestampDelta  varint  milliseconds since the batch's baseTimestamp
    offsetDelta     varint  since the batch's baseOffset
    keyLength       varint  -1: null
    key
    valueLength     varint  -1: null
    value
    headersCount    varint
    headers         each: the length of its name (varint), name, that of its value (varint), value

A varint is a number in zigzag encoding (0, -1, 1, -2 become 0, 1, 2, 3), in groups of seven bits, a
byte each, lowest first; a set top bit means that another byte follows. So an odd zigzag value
stands for a negative number; an even one is twice the number it stands for.
"""

import bisect
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import add
from typing import NamedTuple, cast

# The most bytes that a batch with one record takes besides key, value and headers: the batch's
# header, and length, attributes, timestampDelta (0), offsetDelta (0), keyLength and valueLength
MAX_OVERHEAD = 61 + 5 + 1 + 1 + 1 + 5 + 5
MIN_RECORD_BYTES = 6  # without the headers: all other fields take at least a byte
MAX_VARINT_BYTES = 10
MAX_LENGTH_BYTES = 5  # of a record's length field
ZIGZAG_NULL = 1  # -1 in zigzag encoding

Header = tuple[bytes, bytes | None]
Column = Sequence[bytes | None]


class Malformed(ValueError):
    """The bytes are not valid records."""


class Record(NamedTuple):
    """An event as Kafka stores it. A key or value of None is Kafka's null."""

    offset: int
    timestamp: int | None  # milliseconds since 1970, UTC; -1 or, before Kafka 0.10, None: unknown
    key: bytes | None
    value: bytes | None
    headers: list[Header]


# ---------------------------------------------------------------- writing


def varint(number: int) -> bytes:
    """Encode a number of at most 64 bits."""
    rest = (number << 1) ^ (number >> 63)
    groups = bytearray()
    while rest >= 0x80:
        groups.append(rest & 0x7F | 0x80)
        rest >>= 7
    groups.append(rest)
    return bytes(groups)


NULL = varint(-1)
# All of one or two bytes; varint() would add its time for 8,192 calls to every start
SMALL_VARINTS = [
    *(bytes((zigzag,)) for zigzag in range(0, 1 << 7, 2)),
    *(bytes((zigzag & 0x7F | 0x80, zigzag >> 7)) for zigzag in range(1 << 7, 1 << 14, 2)),
]
# Indexed by length: the bytes that a key or a value takes, including its length field
SMALL_SIZES = list(map(add, map(len, SMALL_VARINTS), range(len(SMALL_VARINTS))))


def varints(numbers: Sequence[int]) -> list[bytes]:
    """Encode numbers, none of them negative."""
    try:
        return list(map(SMALL_VARINTS.__getitem__, numbers))
    except IndexError:
        return list(map(varint, numbers))


def sizes_with_length(lengths: Sequence[int]) -> list[int]:
    """Return how many bytes keys or values take, including their length fields."""
    try:
        return list(map(SMALL_SIZES.__getitem__, lengths))
    except IndexError:
        return [len(varint(length)) + length for length in lengths]


def encode_headers(headers: Sequence[Header]) -> bytes:
    """Encode headersCount and headers."""
    parts = [varint(len(headers))]
    for name, value in headers:
        parts += [varint(len(name)), name]
        parts += [NULL] if value is None else [varint(len(value)), value]
    return b"".join(parts)


class Encoded(NamedTuple):
    """Encoded records, and how many there are."""

    records: bytes
    event_count: int


def encode(
    keys: Column | None,
    values: Column,
    headers: bytes,
    *,
    timestamp_delta: int,
    first_offset: int,
    room: int,
) -> Encoded:
    """Encode as many of these events as fit into `room` bytes, starting with the first.

    The first event of a batch (offsetDelta 0) is always encoded, whatever its size. Without `keys`,
    all keys are null. `headers`, already encoded, and timestampDelta are the same for all;
    offsetDelta counts up from `first_offset`. Working field by field, not event by event, is what
    makes it fast.
    """
    count = min(len(values), max(room // (MIN_RECORD_BYTES + len(headers)), 1))
    if count < len(values):  # no more than these can fit
        keys, values = keys and keys[:count], values[:count]
    prefix = b"\0" + varint(timestamp_delta)
    offsets = varints(range(first_offset, first_offset + count))
    key_columns, key_sizes = encode_column(keys, count)
    value_columns, value_sizes = encode_column(values, count)
    fixed = itertools.repeat(len(prefix) + len(headers), count)
    lengths = list(add_columns(fixed, map(len, offsets), key_sizes, value_sizes))
    encoded_lengths = varints(lengths)
    prefixes, tails = [prefix] * count, [headers] * count
    columns = [encoded_lengths, prefixes, offsets, *key_columns, *value_columns, tails]
    fitting = count_that_fit(lengths, encoded_lengths, room)
    if first_offset == 0 and values:
        fitting = max(fitting, 1)
    return Encoded(interleave([column[:fitting] for column in columns]), fitting)


def encode_column(parts: Column | None, count: int) -> tuple[list[list[bytes]], Iterable[int]]:
    """Encode the keys or the values of `count` events; None: all are null.

    Return the columns that make up this field (lengths, contents), and how many bytes they take in
    each record.
    """
    if parts is None:
        return [[NULL] * count], itertools.repeat(len(NULL), count)
    has_null = None in parts
    contents = [part or b"" for part in parts] if has_null else list(cast(Sequence[bytes], parts))
    lengths = list(map(len, contents))
    encoded_lengths = varints(lengths)
    if has_null:  # null takes as many bytes as b""
        encoded_lengths = [
            NULL if part is None else encoded
            for part, encoded in zip(parts, encoded_lengths, strict=True)
        ]
    return [encoded_lengths, contents], sizes_with_length(lengths)


def add_columns(*columns: Iterable[int]) -> Iterable[int]:
    """Return the sums of the columns' first items, of their second items, and so on."""
    return functools.reduce(functools.partial(map, add), columns)  # map(add, map(add, a, b), c)


def count_that_fit(lengths: list[int], encoded_lengths: list[bytes], room: int) -> int:
    """Return how many records fit into `room` bytes, starting with the first."""
    if sum(lengths) + MAX_LENGTH_BYTES * len(lengths) <= room:  # all, without the exact sums
        return len(lengths)
    ends = list(itertools.accumulate(map(add, lengths, map(len, encoded_lengths))))
    return bisect.bisect_right(ends, room)


def interleave(columns: list[list[bytes]]) -> bytes:
    """Join the first item of each column, then the second of each, and so on."""
    pieces = [b""] * (len(columns) * len(columns[0]))
    for index, column in enumerate(columns):
        pieces[index :: len(columns)] = column
    return b"".join(pieces)


# ---------------------------------------------------------------- reading


def decode(data: bytes, count: int, base_offset: int, base_timestamp: int) -> Iterator[Record]:
    """Yield the `count` records of a batch.

    Raise Malformed at one that is not valid, or if the data does not end after the last one.
    """
    position = 0
    try:
        for _ in range(count):
            length, start = read_varint(data, position)
            timestamp, position = read_varint(data, start + 1)  # after attributes
            offset, position = read_varint(data, position)
            key, position = read_bytes(data, position)
            value, position = read_bytes(data, position)
            headers, position = read_headers(data, position)
            check_end_of_record(start, length, position)
            yield Record(
                base_offset + ((offset >> 1) ^ -(offset & 1)),
                base_timestamp + ((timestamp >> 1) ^ -(timestamp & 1)),
                key,
                value,
                headers,
            )
    except IndexError:
        raise Malformed("the data ends within a record") from None
    check_end(data, position)


def decode_pairs(data: bytes, count: int) -> tuple[list[bytes | None], list[bytes | None]]:
    """Return the keys and the values of all `count` records; raise Malformed.

    Accepts what decode() accepts, but skips the fields it does not need, so it is faster.
    """
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    position = 0
    try:
        for _ in range(count):
            length, start = read_varint(data, position)
            position = start + 1  # after attributes
            while data[position] >= 0x80:  # timestampDelta
                position += 1
            position += 1
            while data[position] >= 0x80:  # offsetDelta
                position += 1
            if position - start > MAX_VARINT_BYTES:  # the length of both: is one of them too long?
                read_varint(data, read_varint(data, start + 1)[1])
            key, position = read_bytes(data, position + 1)
            value, position = read_bytes(data, position)
            position = position + 1 if data[position] == 0 else read_headers(data, position)[1]
            check_end_of_record(start, length, position)
            keys.append(key)
            values.append(value)
    except IndexError:
        raise Malformed("the data ends within a record") from None
    check_end(data, position)
    return keys, values


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the varint at `position`, still in zigzag encoding, and the position after it.

    Raise Malformed, or IndexError if the data ends within it.
    """
    number = data[position]
    if number < 0x80:
        return number, position + 1
    second = data[position + 1]
    if second < 0x80:
        return (number & 0x7F) | (second << 7), position + 2
    number = 0
    for index in range(MAX_VARINT_BYTES):
        group = data[position + index]
        number |= (group & 0x7F) << (7 * index)
        if group < 0x80:
            return number, position + index + 1
    raise Malformed(f"a number of more than {MAX_VARINT_BYTES} bytes")


def read_bytes(data: bytes, position: int) -> tuple[bytes | None, int]:
    """Return the bytes whose length is at `position`, and the position after them; raise Malformed.

    That position is past the end if the data is too short: whoever reads on notices it.
    """
    length, start = read_varint(data, position)
    if length == ZIGZAG_NULL:
        return None, start
    if length & 1:
        raise Malformed("a negative length")
    end = start + (length >> 1)
    return data[start:end], end


def read_headers(data: bytes, position: int) -> tuple[list[Header], int]:
    """Return the headers at `position`, and the position after them; raise Malformed."""
    count, position = read_varint(data, position)
    if count & 1:
        raise Malformed("a negative number of headers")
    headers: list[Header] = []
    for _ in range(count >> 1):
        name, position = read_bytes(data, position)
        value, position = read_bytes(data, position)
        if name is None:
            raise Malformed("a header without a name")
        headers.append((name, value))
    if position > len(data):  # noticed here, or decode() would yield a record that is cut off
        raise Malformed("the data ends within a header")
    return headers, position


def check_end_of_record(start: int, length: int, end: int) -> None:
    """Raise Malformed unless a record ends where its length, in zigzag encoding, says."""
    if length != 2 * (end - start):
        raise Malformed("a record does not end where its length says")


def check_end(data: bytes, end: int) -> None:
    if end != len(data):
        raise Malformed(f"the records end after {end} of {len(data)} bytes")
