"""Topics are made by whoever comes first, however many come at once."""

import asyncio
from uuid import uuid4

import pytest
from kafka.admin import KafkaAdminClient

from deploy.local.processes import free_port
from streams.errors import Transient
from streams.settings import KafkaSettings
from streams.topics import create_topics, ensure_topics, partitions_of, topic_names
from tests.support.stack import Topics


async def test_workers_that_start_at_once_make_what_is_missing(topics: Topics) -> None:
    kafka = topics.kafka.model_copy(update={"topic_prefix": f"{uuid4().hex}."})
    names = topic_names(kafka).all()
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    try:
        admin.create_topics({names[0]: {"num_partitions": partitions_of(kafka, names[0]), "replication_factor": 1}})
        await asyncio.gather(*(ensure_topics(kafka) for _ in range(4)))
        there = {topic["name"]: topic for topic in admin.describe_topics(list(names))}
        assert there.keys() == set(names)
        assert {name: len(there[name]["partitions"]) for name in names} == {n: partitions_of(kafka, n) for n in names}
        assert create_topics(kafka) == []
    finally:
        admin.delete_topics(list(names))
        admin.close()


async def test_without_kafka_it_is_said_where_it_was_looked_for() -> None:
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}")
    with pytest.raises(Transient, match=kafka.bootstrap):
        await ensure_topics(kafka)
