"""partitioning.py against kafka-python's murmur2, and the hashes that Java's tests name."""

from collections import defaultdict
from random import Random

import pytest
from kafka.partitioner.default import murmur2 as murmur2_of_kafka_python

from streaming.partitioning import murmur2, partitions_of

# From UtilsTest of Java's client, as signed numbers
HASHES = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
BITS = 0xFFFFFFFF


def random_keys(count: int) -> list[bytes]:
    """Keys of 0 to 90 bytes; a quarter have only bytes that carry far, or not at all."""
    random = Random(1)

    def key() -> bytes:
        size = random.randint(0, 90)
        if random.random() < 0.75:
            return random.randbytes(size)
        return bytes(random.choices([0, 0x7F, 0x80, 0xFF], k=size))

    return [key() for _ in range(count)]


def test_hashes_are_those_of_kafka_python() -> None:
    by_size: dict[int, list[bytes]] = defaultdict(list)
    for key in random_keys(20_000):
        by_size[len(key)].append(key)
    assert by_size.keys() == set(range(91))
    for keys in by_size.values():
        assert murmur2(keys) == [murmur2_of_kafka_python(key) for key in keys]


@pytest.mark.parametrize("key", HASHES)
def test_hashes_are_those_of_java(key: bytes) -> None:
    """Alone, and beside others, whatever their lanes hold."""
    assert murmur2([key]) == [HASHES[key] & BITS]
    others = [b"\0" * len(key), b"\xff" * len(key)]
    for other in others:
        hashes = murmur2([other, key, other, key])
        assert [hashes[1], hashes[3]] == [HASHES[key] & BITS] * 2
        assert hashes[0] == hashes[2] == murmur2_of_kafka_python(other)


def test_long_keys() -> None:
    keys = [Random(number).randbytes(100_001) for number in range(3)]
    assert murmur2(keys) == [murmur2_of_kafka_python(key) for key in keys]


@pytest.mark.parametrize("count", [1, 2, 3, 6, 12, 1000])
def test_partitions_are_those_that_java_chooses(count: int) -> None:
    """Keys of all sizes, some of them twice, mixed with events without a key."""
    keys: list[bytes | None] = [*random_keys(500), *HASHES, b"", *random_keys(50), *[None] * 100]
    Random(2).shuffle(keys)
    expected = [
        None if key is None else (murmur2_of_kafka_python(key) & 0x7FFFFFFF) % count for key in keys
    ]
    assert partitions_of(keys, count) == expected


def test_partitions_without_keys() -> None:
    assert partitions_of([], 3) == []
    assert partitions_of([None, None], 3) == [None, None]
    assert partitions_of([None, b"21", None], 1) == [None, 0, None]
