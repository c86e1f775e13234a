"""What may happen to Kafka, a topic or a group while the topic is read, and what is said about it.

A watch is asked after each poll; `has_events` says whether that poll has returned any.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from kafka import ConsumerRebalanceListener, KafkaAdminClient, TopicPartition, errors
from kafka.structs import MemberState

from streaming.console import say
from streaming.kafka_client import Kafka
from streaming.kafka_errors import CONNECTION_ERRORS, THROTTLED
from streaming.kafka_internals import describe_topic
from streaming.timing import PATIENCE

CHECK_SECONDS = 2.0  # between checks that Kafka is there
CHECK_TIMEOUT_MS = int(1000 * PATIENCE)
MAX_CHECKED_PARTITIONS = 100
AWAY_SECONDS = 5.0 * PATIENCE  # Kafka is considered away after this long without a response
REBALANCE_SECONDS = 10.0 * PATIENCE  # a rebalance that takes longer is considered stuck


class Watch(Protocol):
    def check(self, has_events: bool) -> None: ...


class KafkaWatch:
    """Says when Kafka, or the leader of a partition, has gone away, and when it is back.

    A poll just returns nothing then, so this sends Kafka a request now and then.
    """

    def __init__(self, kafka: Kafka, consumer: Any) -> None:
        self._kafka, self._consumer = kafka, consumer
        self._responded_at = time.monotonic()
        self._next_check = self._responded_at + CHECK_SECONDS
        self._has_events = False  # since the last check
        self._is_away = False
        self._was_throttled = False

    def check(self, has_events: bool) -> None:
        self._has_events = self._has_events or has_events
        now = time.monotonic()
        if now < self._next_check:
            return
        if now > self._next_check + CHECK_SECONDS:  # a slow reader or a suspended process
            self._responded_at = now
        problem = self._problem()
        self._has_events = False
        now = time.monotonic()
        self._next_check = now + CHECK_SECONDS
        if not problem:
            self._note_response(now)
        elif now > self._responded_at + AWAY_SECONDS:
            self._report(problem)

    def _problem(self) -> str:
        """Return why Kafka, or a partition's leader, is away; "" if neither is.

        If events arrive, Kafka is there, even if its response is slow to come on a slow network.
        """
        partitions = list(self._consumer.assignment())[:MAX_CHECKED_PARTITIONS]
        try:
            if partitions:
                self._consumer.end_offsets(partitions, CHECK_TIMEOUT_MS)
            is_there = bool(partitions) or not self._kafka.log.is_disconnected
        except errors.LeaderNotAvailableError as error:
            return self._kafka.explain(error).cause
        except (*CONNECTION_ERRORS, errors.RetriableError):
            is_there = self._has_events
        return "" if is_there else self._kafka.trouble().cause

    def _report(self, problem: str) -> None:
        """Report a problem once; a throttled client may be throttled again and again."""
        if problem == THROTTLED:
            has_been_said, self._was_throttled = self._was_throttled, True
        else:
            has_been_said, self._is_away = self._is_away, True
        if not has_been_said:
            say(f"waiting for Kafka: {problem}")

    def _note_response(self, now: float) -> None:
        self._responded_at = now
        self._kafka.log.clear_reason()
        if self._is_away:
            self._is_away = False
            say("Kafka is back")


class TopicWatch:
    """Explains why the topic is gone, if it is."""

    def __init__(self, kafka: Kafka, consumer: Any, topic: str, may_wait: bool) -> None:
        self._kafka, self._consumer = kafka, consumer
        self._topic, self._may_wait = topic, may_wait
        self._exists = not may_wait or bool(consumer.subscription())

    def check(self, has_events: bool) -> None:
        exists = bool(self._consumer.subscription())  # a pattern subscribes to what there is
        if self._exists and not exists:
            explain_missing_topic(self._kafka, self._topic, self._may_wait)
        self._exists = exists


def explain_missing_topic(kafka: Kafka, topic: str, may_wait: bool) -> None:
    """Say that the script is waiting for the topic.

    Raise KafkaError if the topic is unreadable, or the script must not wait, or Kafka is away.
    """
    with kafka.open(KafkaAdminClient) as admin:
        error = describe_topic(admin, topic).error
    if error is errors.NoError:
        return
    if not (may_wait and issubclass(error, errors.RetriableError)):
        raise error
    if error is errors.UnknownTopicOrPartitionError:
        say(f"topic {topic} does not exist yet; waiting for it")


def check_right_to_read(kafka: Kafka, topic: str) -> None:
    """Raise TopicAuthorizationFailedError if reading the topic is not allowed.

    Kafka itself refuses only requests for events; without events, the client sends none.
    """
    with kafka.open(KafkaAdminClient) as admin:
        may_read = describe_topic(admin, topic).may_read
    if not may_read:
        raise errors.TopicAuthorizationFailedError({topic})


class Membership(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Says when a member of a group is left with fewer partitions, or none, and when it gets more.

    Its first partitions are not worth a message.
    """

    def __init__(self, consumer: Any, topic: str, group: str) -> None:
        self._consumer, self._topic, self._group = consumer, topic, group
        self._topic_existed = False  # when the member last began to join the group
        self._assigned: int | None = None  # the number of partitions; None: not yet known
        self._known: int | None = None  # the number at the last check that found one

    @property
    def is_settled(self) -> bool:
        """Whether the member knows its partitions, if only that it has none."""
        return self._assigned is not None

    # The client calls these two, from a thread of its own

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Note that the members begin to share out the partitions, for the first time or again."""
        self._topic_existed = bool(self._consumer.subscription())
        self._assigned = None
        self._consumer.forget_positions()  # those that count are committed

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Note how many partitions the member has now.

        These are all it has, not only new ones, because the client's assignors are not cooperative.
        Before the topic exists, there is nothing to share out; the client soon rejoins.
        """
        if self._topic_existed:
            self._assigned = len(assigned)

    def check(self, has_events: bool) -> None:
        assigned = self._assigned
        if assigned is None or assigned == self._known:
            return
        is_first = self._known is None
        self._known = assigned
        if not (is_first and assigned):
            self._report(assigned)

    def _report(self, assigned: int) -> None:
        total = len(self._consumer.partitions_for_topic(self._topic))
        if assigned:
            say(f"this member of group {self._group} now reads {assigned} of {total} partitions")
        else:
            say(
                f"no partition for this member: the other members of group {self._group} have all "
                f"partitions of topic {self._topic} ({total}); waiting for one"
            )


class RebalanceWatch:
    """Says when a rebalance takes a long time, and has the member rejoin if it never finishes.

    A killed member holds it up until its session expires. Also, kafka-python 3.0.12 loses the last
    response of a rebalance (SyncGroup) if it arrives between two polls; the consumer then waits for
    it forever. It is safe to leave and rejoin: all printed events are committed, or cannot be.
    """

    def __init__(self, consumer: Any, group: str, rejoin: Callable[[], None]) -> None:
        self._consumer, self._group, self._rejoin = consumer, group, rejoin
        self._idle_at = time.monotonic()  # the last time there was no rebalance
        self._has_said = False

    def check(self, has_events: bool) -> None:
        now = time.monotonic()
        state = self._consumer.group_metadata().state
        if state == MemberState.STABLE:
            self._has_said = False
        if state != MemberState.REBALANCING:
            self._idle_at = now
        if now > self._idle_at + AWAY_SECONDS and not self._has_said:
            self._has_said = True
            say(f"group {self._group} is rebalancing; waiting for its other members")
        if now > self._idle_at + REBALANCE_SECONDS:
            self._rejoin()
            self._idle_at = now
