"""What the project relies on inside kafka-python: batches of the producer, without a broker.

These fail when another version of kafka-python does something else.
"""

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import kafka
import pytest
from kafka import TopicPartition, errors
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.producer.sender import Sender as KafkaSender

from streaming.in_flight import Events, FailedEvents, TrackedBatch
from streaming.kafka_internals import NAP_MS, Connections, Producer
from streaming.records import encode_headers

TOPIC = "topic"
PARTITION = TopicPartition(TOPIC, 0)
HEADERS = [("name", b"value")]
EVENTS: list[tuple[bytes | None, bytes | None]] = [(b"key", b"one"), (None, b""), (b"k", None)]


class Sender:
    """Counts how often the client's thread is woken up."""

    def __init__(self) -> None:
        self.wakeups = 0

    def wakeup(self) -> None:
        self.wakeups += 1


class OfflineProducer(Producer):
    """A producer with a real accumulator, but without the thread that empties it."""

    def __init__(self, batch_size: int = 1000, codec: int = 0) -> None:
        self._accumulator = RecordAccumulator(batch_size=batch_size, compression_attrs=codec)
        self._sender = Sender()

    def __del__(self) -> None:
        """There is nothing to close."""

    def add(self, values: Sequence[bytes], first_number: int = 1) -> list[TrackedBatch]:
        """Append events until none is left, as a Delivery does; return the batches."""
        numbers = range(first_number, first_number + len(values))
        rest = Events(numbers, [len(value) for value in values], None, values)
        sent: list[TrackedBatch] = []
        while rest.numbers:
            appended = self.append(TOPIC, 0, rest, encode_headers([]))
            rest = rest.part(appended.event_count)
            if appended.is_new:
                sent.append(appended.batch)
        return sent

    @property
    def queue(self) -> Any:
        return self._accumulator._batches[PARTITION]


def close(batch: Any) -> bytes:
    """Do what the client does before it sends a batch; return its bytes."""
    batch.records.set_producer_state(7, 0, 5, False)
    batch.records.close()
    return bytes(batch.records.buffer())


def expected(accumulator: RecordAccumulator, timestamp: int) -> Any:
    for key, value in EVENTS:
        accumulator.append(PARTITION, timestamp, key, value, HEADERS)
    [batch] = accumulator._batches[PARTITION]
    return batch


def test_events_appended_together_make_the_batch_that_send_makes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_800_000_000.123
    monkeypatch.setattr("time.time", lambda: now)
    producer = OfflineProducer()
    keys, values = zip(*EVENTS, strict=True)
    headers = encode_headers([(name.encode(), value) for name, value in HEADERS])
    events = Events(range(1, 4), [3, 0, 1], keys, values)
    first = producer.append(TOPIC, 0, events.part(0, 1), headers)
    second = producer.append(TOPIC, 0, events.part(1), headers)
    assert (first.is_new, first.event_count, second.is_new, second.event_count) == (
        True,
        1,
        False,
        2,
    )
    assert second.batch is first.batch
    assert producer._sender.wakeups == 1
    other = RecordAccumulator(batch_size=1000, compression_attrs=0)
    reference = expected(other, int(now * 1000))
    [batch] = producer.queue
    assert producer._accumulator._incomplete.all() == [batch]
    assert batch.record_count == reference.record_count == len(first.batch) == 3
    assert close(batch) == close(reference)


@pytest.mark.parametrize("codec", [0, 1, 4])
def test_a_full_batch_is_followed_by_a_new_one(codec: int) -> None:
    """Each has as many events as send() would have put there."""
    values = [b"x" * size for size in range(100)]
    producer = OfflineProducer(codec=codec)
    sent = producer.add(values)
    other = RecordAccumulator(batch_size=1000, compression_attrs=codec)
    for value in values:
        other.append(PARTITION, 1, None, value, [])
    reference = [batch.record_count for batch in other._batches[PARTITION]]
    assert [len(batch) for batch in sent] == reference
    assert [batch.record_count for batch in producer.queue] == reference
    assert [number for batch in sent for number in batch.all_failed(None).numbers] == list(
        range(1, 101)
    )
    assert producer._sender.wakeups == len(sent)


def test_a_batch_that_is_closed_takes_no_more_events() -> None:
    producer = OfflineProducer()
    [sent] = producer.add([b"first"])
    assert producer.is_filling(TOPIC, 0)
    close(producer.queue[0])
    assert not producer.is_filling(TOPIC, 0)
    [other] = producer.add([b"second"], 2)
    assert (len(sent), len(other), len(producer.queue)) == (1, 1, 2)


def test_an_event_larger_than_a_batch_gets_its_own() -> None:
    producer = OfflineProducer()
    assert [len(batch) for batch in producer.add([b"a", b"x" * 5000, b"b"])] == [1, 1, 1]


def test_smaller_batches_on_request() -> None:
    producer = OfflineProducer()
    producer.limit_batches(200)
    producer.limit_batches(300)
    assert [len(batch) for batch in producer.add([b"x" * 50] * 4)] == [2, 2]


def test_the_clients_thread_sleeps_while_a_broker_cannot_take_a_batch() -> None:
    """It does so until it may connect again, and while it is connecting."""
    producer = OfflineProducer()
    producer.add([b"value"])
    connections = Connections(bootstrap_servers="127.0.0.1:1")
    [broker] = connections.cluster.bootstrap_brokers()
    sender = KafkaSender(connections, None, producer._accumulator)
    sender._metadata = SimpleNamespace(leader_for_partition=lambda _: broker.node_id)
    connections._manager._backoff[broker.node_id] = (1, time.monotonic() + 3600, 1000)
    until_it_expires = sender._send_producer_data()
    assert until_it_expires > 60_000
    connections._manager._backoff.clear()
    assert sender._send_producer_data() == NAP_MS
    assert broker.node_id in connections._manager._conns


def test_what_does_not_fit_leaves_a_batch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    producer = OfflineProducer()
    monkeypatch.setattr("time.time", lambda: 1000.0)
    producer.add([b"x" * 900])
    [batch] = producer.queue
    before = bytes(batch.records._builder._buffer)
    monkeypatch.setattr("time.time", lambda: 2000.0)
    events = Events([2], [200], None, [b"x" * 200])
    appended = producer.append(TOPIC, 0, events, encode_headers([]))
    assert (appended.is_new, appended.event_count, appended.batch.is_full) == (False, 0, True)
    builder = batch.records._builder
    assert (bytes(builder._buffer), builder._max_timestamp) == (before, 1_000_000)


def test_kafka_before_record_batches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[float] = []

    def connect(self: Any, **_options: Any) -> None:
        self._accumulator = RecordAccumulator(message_version=1)

    monkeypatch.setattr(kafka.KafkaProducer, "__init__", connect)
    monkeypatch.setattr(kafka.KafkaProducer, "close", lambda self, timeout: closed.append(timeout))
    with pytest.raises(errors.UnsupportedVersionError, match=r"publishing needs Kafka 0\.11"):
        Producer()
    assert closed == [0]


def split(producer: OfflineProducer) -> None:
    """Do what the client does when Kafka says that the first batch is too large."""
    batch = producer.queue.popleft()
    producer._accumulator.split_and_reenqueue(batch)
    producer._accumulator.deallocate(batch)


def test_a_split_batch_is_replaced_by_its_parts() -> None:
    """One half is split again; a part is acknowledged, another one fails."""
    producer = OfflineProducer()
    values = [b"%d" % number for number in range(1, 8)]
    [sent] = producer.add(values)
    close(producer.queue[0])
    assert not sent.is_split
    split(producer)
    assert sent.is_split
    assert [len(part) for part in sent.parts] == [4, 3]
    assert [part.encoded_bytes for part in sent.parts] == [4 * 8, 3 * 8]
    assert not producer.is_filling(TOPIC, 0)  # it would change a batch of the client's own
    first, second = sent.parts
    close(producer.queue[0])
    split(producer)
    assert first.is_split
    assert [part.all_failed(None).numbers.tolist() for part in first.parts] == [[1, 2], [3, 4]]
    one, other, last = producer.queue
    one.complete(100, -1)
    error = errors.MessageSizeTooLargeError()
    other.complete_exceptionally(error, lambda _: error)
    assert [part.is_done for part in (*first.parts, second)] == [True, True, False]
    assert first.parts[0].failed() == []
    [failed] = first.parts[1].failed()
    assert (list(failed.numbers), failed.size, failed.error) == ([3, 4], 1, error)
    last.complete(200, -1)
    assert second.failed() == []


def test_what_became_of_a_batch() -> None:
    producer = OfflineProducer()
    outcomes: dict[str, Any] = {}
    for name in ("acknowledged", "failed", "rejected", "aborted", "expired"):
        [sent] = producer.add([b"a", b"bc", b"def"])
        outcomes[name] = sent
        close(producer.queue[-1])
    acknowledged, failed, rejected, aborted, expired = producer.queue
    assert not outcomes["acknowledged"].is_done
    acknowledged.complete(0, -1)
    error = errors.RequestTimedOutError()
    failed.complete_exceptionally(error, lambda _: error)
    reasons = [errors.KafkaError("bystander"), errors.InvalidRecordError("culprit")]
    reasons.append(errors.KafkaError("bystander"))
    rejected.complete_exceptionally(errors.InvalidRecordError(), reasons.__getitem__)
    aborted.abort(error)
    accumulator = producer._accumulator
    accumulator._batches[PARTITION].clear()
    accumulator._batches[PARTITION].append(expired)
    [gone] = accumulator.expired_batches(now=expired.created + 121)
    gone.complete_exceptionally(error, lambda _: error)
    assert outcomes["acknowledged"].failed() == []
    for name in ("failed", "aborted", "expired"):
        [all_failed] = outcomes[name].failed()
        assert (list(all_failed.numbers), all_failed.size) == ([1, 2, 3], 1)
        assert all_failed.error is error
    each = [FailedEvents([n], size, reasons[n - 1]) for n, size in ((1, 1), (2, 2), (3, 3))]
    assert outcomes["rejected"].failed() == each
