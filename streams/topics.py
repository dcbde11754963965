"""Names of the topics, and creating them (idempotently, with kafka-python: keep it out of event loops)."""

import asyncio
from dataclasses import dataclass

from streams.errors import Fatal, Transient
from streams.settings import KafkaSettings
from streams.tls import kafka_connection

BOOTSTRAP_MS = 5_000
"""kafka-python's 30 s are too long for a person at a terminal; the worker asks again anyway."""
LOOK_MS = 10_000


@dataclass(frozen=True)
class Topics:
    """Names in flow order, with the prefix of the settings."""

    raw: str
    accepted: str
    scored: str
    curated: str
    dead: str
    requests: str
    events: str
    feedback: str
    forgotten: str

    def all(self) -> tuple[str, ...]:
        """Every topic that haypile needs."""
        return (
            self.raw,
            self.accepted,
            self.scored,
            self.curated,
            self.dead,
            self.requests,
            self.events,
            self.feedback,
            self.forgotten,
        )


def topic_names(kafka: KafkaSettings) -> Topics:
    """The names under `kafka.topic_prefix`."""
    p = kafka.topic_prefix
    return Topics(
        raw=f"{p}prompts.raw",
        accepted=f"{p}prompts.accepted",
        scored=f"{p}prompts.scored",
        curated=f"{p}prompts.curated",
        dead=f"{p}prompts.dead",
        requests=f"{p}train.requests",
        events=f"{p}train.events",
        feedback=f"{p}prompts.feedback",
        forgotten=f"{p}prompts.forgotten",
    )


def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic should have: prompts are spread, requests for training are a queue of one."""
    names = topic_names(kafka)
    return 1 if topic in (names.requests, names.events, names.forgotten) else kafka.partitions


def configs_of(kafka: KafkaSettings, topic: str) -> dict[str, str]:
    """Kafka's own settings of a topic that haypile creates.

    Its default for the largest record (1 MB) is under what we produce: a dead letter is 4/3 of its record. With three
    replicas two must have a record before it counts as written; of two, waiting for both would stop on the loss of
    one. Requests and events of runs are few and kept for ever: after Kafka's week a trainer that was away would not
    find its request, and the trigger would wait for the end of that run. Of feedback the last word on each
    prompt stays, however old it is; what was forgotten stays so.
    """
    names = topic_names(kafka)
    configs = {"max.message.bytes": str(kafka.max_message_bytes)}
    if kafka.replication >= 3:
        configs["min.insync.replicas"] = "2"
    if topic in (names.requests, names.events, names.forgotten):
        configs["retention.ms"] = "-1"
    if topic in (names.feedback, names.forgotten):
        configs["cleanup.policy"] = "compact"
    return configs


def create_topics(kafka: KafkaSettings) -> list[str]:
    """Create the topics that are missing; returns their names. Safe to call from several processes at once.

    Raises `Transient` (not reachable), `Fatal` (not allowed).
    """
    from kafka.admin import KafkaAdminClient
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    try:
        admin = KafkaAdminClient(
            **kafka_connection(kafka), client_id=f"{kafka.group}-admin", bootstrap_timeout_ms=BOOTSTRAP_MS
        )
    except (KafkaError, OSError, ValueError) as error:
        raise Transient(f"Kafka at {kafka.bootstrap} is not reachable ({error})") from None
    try:
        there = set(admin.list_topics())
        created = []
        for topic in topic_names(kafka).all():
            if topic in there:
                continue
            spec = {
                "num_partitions": partitions_of(kafka, topic),
                "replication_factor": kafka.replication,
                "configs": configs_of(kafka, topic),
            }
            try:
                admin.create_topics({topic: spec})
                created.append(topic)
            except TopicAlreadyExistsError:
                pass  # another process was faster
        return created
    except (KafkaError, OSError) as error:
        raise Fatal(f"Kafka at {kafka.bootstrap} did not create the topics: {error!r}") from None
    finally:
        admin.close()


async def ensure_topics(kafka: KafkaSettings) -> None:
    """The same in an event loop. It looks with the client that a worker has loaded anyway: kafka-python, 0.4 s of a
    worker's start, is only loaded where a topic is missing."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    # A broker that takes the connection and says nothing is asked again, instead of waited for 40 s.
    admin = AIOKafkaAdminClient(**kafka_connection(kafka), request_timeout_ms=LOOK_MS)
    try:
        await admin.start()
        there = await admin.list_topics()
    except (KafkaError, OSError) as error:
        raise Transient(f"Kafka at {kafka.bootstrap} is not reachable ({error})") from None
    finally:
        await admin.close()
    if not set(there).issuperset(topic_names(kafka).all()):
        await asyncio.to_thread(create_topics, kafka)
