"""The topic to publish to: created if it does not exist, and how large its events may be."""

from collections.abc import Mapping
from typing import NamedTuple

from kafka import KafkaAdminClient, KafkaProducer, errors
from kafka.admin import ConfigResource, ConfigResourceType

from streaming.console import fail, say
from streaming.kafka_client import Kafka
from streaming.kafka_internals import CreatedTopic, create_topic, describe_topic, topic_setting

SIZE_LIMIT = "max.message.bytes"
DEFAULT_SIZE_LIMIT = 1 << 20  # kafka-python's own


class Topic(NamedTuple):
    """A topic that exists."""

    name: str
    max_bytes: int  # of a batch: its max.message.bytes or KAFKA_MAX_REQUEST_SIZE, if smaller


def ensure_topic(
    kafka: Kafka, name: str, partitions: int | None, settings: Mapping[str, str]
) -> Topic:
    """Create the topic unless it exists; exit if it does not exist and cannot be created.

    A new topic gets this number of partitions, or else the broker's default, and these settings.
    """
    with kafka.connect(KafkaAdminClient) as admin:
        try:
            created = create_topic(admin, name, partitions, settings)
            check_existence(admin, name, created)
            if created.error is not errors.NoError and (partitions or settings):
                say(f"topic {name} already exists; ignoring --partitions and --topic-config")
            limit = size_limit(admin, name, created)
        except errors.KafkaError as error:
            fail(f"cannot create topic {name}: {kafka.explain(error)}")
    options = kafka.options(KafkaProducer, max_request_size=DEFAULT_SIZE_LIMIT)
    return Topic(name, min(limit, options["max_request_size"]))


def check_existence(admin: KafkaAdminClient, topic: str, created: CreatedTopic) -> None:
    """Raise the broker's error if its response means that the topic does not exist."""
    if created.error in (errors.NoError, errors.TopicAlreadyExistsError):
        return
    # Not allowed to create topics, but it may already exist
    is_refused = issubclass(created.error, errors.AuthorizationError)
    if is_refused and describe_topic(admin, topic).error is not errors.UnknownTopicOrPartitionError:
        return
    raise created.error(created.message)


def size_limit(admin: KafkaAdminClient, topic: str, created: CreatedTopic) -> int:
    """Return the topic's max.message.bytes, or the client's own limit if access is denied."""
    limit = created.settings.get(SIZE_LIMIT)
    if not created.settings:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, [SIZE_LIMIT])
        limit = topic_setting(admin, resource, SIZE_LIMIT)
    return int(limit) if limit else DEFAULT_SIZE_LIMIT
