"""Chooses an event's partition by its key, as Java's producer does."""

import sys
from array import array
from collections import defaultdict
from collections.abc import Sequence

# The constants of murmur2 as Java's producer uses it (org.apache.kafka.common.utils.Utils.murmur2)
SEED = 0x9747B28C
MULTIPLIER = 0x5BD1E995
WORD_BYTES = 4


def partitions_of(keys: Sequence[bytes | None], count: int) -> list[int | None]:
    """Return which of `count` partitions each key belongs to; None for an event without a key."""
    partitions: list[int | None] = [None] * len(keys)
    indices_by_size: dict[int, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            indices_by_size[len(key)].append(index)
    for indices in indices_by_size.values():
        hashes = murmur2([keys[index] or b"" for index in indices])  # none of them is None
        for index, number in zip(indices, hashes, strict=True):
            partitions[index] = (number & 0x7FFFFFFF) % count
    return partitions


def murmur2(keys: Sequence[bytes]) -> list[int]:
    """Return the hashes, 32 bits each, of keys that all have the same length.

    All are computed at once, which is much faster: each hash has its own 64-bit lane of one large
    integer. The product of a 32-bit hash and the 31-bit multiplier fits in its lane.
    Bits shifted out of a lane land in the unused upper half of the one below, where `low` masks
    them out.
    """
    length = len(keys[0])
    lanes = len(keys)
    ones = from_lanes([1] * lanes)
    low = ones * 0xFFFFFFFF
    words = columns_of_words(keys)
    tail = words.pop() if length % WORD_BYTES else None
    hashes = ones * (SEED ^ length)
    for word in words:
        word = word * MULTIPLIER & low
        word = (word ^ ((word >> 24) & low)) * MULTIPLIER & low
        hashes = (hashes * MULTIPLIER & low) ^ word
    if tail is not None:
        hashes = (hashes ^ tail) * MULTIPLIER & low
    hashes = (hashes ^ ((hashes >> 13) & low)) * MULTIPLIER & low
    hashes ^= (hashes >> 15) & low
    return array("Q", hashes.to_bytes(8 * lanes, sys.byteorder)).tolist()


def columns_of_words(keys: Sequence[bytes]) -> list[int]:
    """Return one large integer per word position, with that word of every key in the key's lane.

    A word is four bytes, little-endian; the last one may be padded with zeros.
    """
    count = -(-len(keys[0]) // WORD_BYTES)
    padding = bytes(count * WORD_BYTES - len(keys[0]))
    words = array("I", padding.join(keys) + padding)
    if sys.byteorder == "big":
        words.byteswap()
    return [from_lanes(words[index::count]) for index in range(count)]


def from_lanes(numbers: Sequence[int]) -> int:
    """Pack the numbers into one large integer, one per lane."""
    return int.from_bytes(array("Q", numbers).tobytes(), sys.byteorder)
