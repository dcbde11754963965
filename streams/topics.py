"""Names of the topics, and creating them (idempotently, with kafka-python: keep it out of event loops)."""

from dataclasses import dataclass

from streams.errors import Fatal, Transient
from streams.settings import KafkaSettings


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

    def all(self) -> tuple[str, ...]:
        """Every topic that haypile needs."""
        return (self.raw, self.accepted, self.scored, self.curated, self.dead, self.requests, self.events)


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
    )


def partitions_of(kafka: KafkaSettings, topic: str) -> int:
    """How many partitions a topic should have: prompts are spread, requests for training are a queue of one."""
    names = topic_names(kafka)
    return 1 if topic in (names.requests, names.events) else kafka.partitions
