"""What the topics still hold of what was forgotten, and until when: Kafka deletes by age, not by record."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from deploy.kafka import BOOTSTRAP_MS, Follower, Message, translated
from deploy.letters import letter_of, whose
from streams.forgotten import ForgottenList
from streams.records import AcceptedPrompt, CuratedOutcome, Feedback, RawPrompt, ScoredPrompt, decode
from streams.settings import KafkaSettings
from streams.tls import kafka_connection
from streams.topics import Topics, topic_names

SAY_S = 5.0
"""Between two lines about the progress of a scan."""

T = TypeVar("T", bound=msgspec.Struct)


class Remains(msgspec.Struct, kw_only=True):
    """Records of one topic that are forgotten and still there."""

    topic: str
    places: list[str]
    """`topic:partition:offset`, in the order of the log."""
    oldest: int
    newest: int
    """Epoch milliseconds, the broker's."""
    until: int | None
    """By when the broker has deleted the last of them (epoch milliseconds), by the topic's settings: its age, and that
    of the segment that it is in; null: the broker does not tell, or (of feedback) deletes them when it compacts."""


class Sightings(msgspec.Struct):
    """What the topics tell of forgotten records, besides their places."""

    ids: set[str]
    prompts: set[tuple[str, str]]
    """(prompt_id, id)."""
    feedback: set[str]
    """Ids with feedback that has no tombstone yet."""


def scan(
    kafka: KafkaSettings, forgotten: ForgottenList, say: Callable[[str], None] = lambda line: None
) -> tuple[list[Remains], Sightings]:
    """All that is in the topics of prompts now. Reads them whole: minutes for millions of records. Raises `Transient`.

    What an app wrote that is no JSON object names nobody, and is not found.
    """
    names = topic_names(kafka)
    seen = Sightings(set(), set(), set())
    found: dict[str, list[tuple[str, int]]] = {}
    # Outcomes and feedback name ids only: they come last.
    for topics in ((names.raw, names.accepted, names.scored, names.dead), (names.curated, names.feedback)):
        for message in _all(kafka, topics, say):
            if not message.value and message.topic == names.feedback:
                seen.feedback.discard((message.key or b"").decode("utf-8", "replace"))  # it has its tombstone
            elif message.value and _is_forgotten(message, names, forgotten, seen):
                place = f"{message.topic}:{message.partition}:{message.offset}"
                found.setdefault(message.topic, []).append((place, message.ts))
    keeps = retention(kafka, list(found))
    remains = []
    for topic, places in found.items():
        times = [ts for _, ts in places]
        kept = keeps[topic]
        remains.append(
            Remains(
                topic=topic,
                places=[place for place, _ in places],
                oldest=min(times),
                newest=max(times),
                until=None if kept is None else max(times) + kept,
            )
        )
    return remains, seen


def _all(kafka: KafkaSettings, topics: Sequence[str], say: Callable[[str], None]) -> Iterator[Message]:
    follower = Follower(kafka, topics)
    said, count = time.monotonic(), 0
    try:
        for message in follower.until_end():
            count += 1
            yield message
            if time.monotonic() - said > SAY_S:
                said = time.monotonic()
                say(f"{', '.join(topics)}: {count} records looked at")
    finally:
        follower.close()


def _is_forgotten(message: Message, names: Topics, forgotten: ForgottenList, seen: Sightings) -> bool:
    if message.topic == names.raw:
        id = _raw(message, forgotten)
        if id is not None:
            seen.ids.add(id)
        return id is not None
    if message.topic in (names.accepted, names.scored):
        kind = AcceptedPrompt if message.topic == names.accepted else ScoredPrompt
        prompt = _decoded(kind, message.value)
        if prompt is None or forgotten.prompt(prompt) is None:
            return False
        seen.ids.add(prompt.id)
        seen.prompts.add((prompt.prompt_id, prompt.id))
        return True
    if message.topic == names.dead:
        letter = letter_of(message)
        return whose(letter, forgotten) is not None
    if message.topic == names.feedback:
        feedback = _decoded(Feedback, message.value)
        if feedback is None or feedback.id not in seen.ids:
            return False
        seen.feedback.add(feedback.id)
        return True
    outcome = _decoded(CuratedOutcome, message.value)
    return outcome is not None and bool({outcome.id, outcome.detail, outcome.by} & seen.ids)


def _raw(message: Message, forgotten: ForgottenList) -> str | None:
    """The id of a raw record that is forgotten."""
    place = f"{message.topic}:{message.partition}:{message.offset}"
    raw = _decoded(RawPrompt, message.value)
    if raw is not None:
        id, user_id = raw.id or place, raw.user_id
    else:
        try:
            told: Any = json.loads(message.value)
        except (ValueError, RecursionError):
            return None
        if not isinstance(told, dict):
            return None
        id, user_id = str(told.get("id") or place), None if told.get("user_id") is None else str(told["user_id"])
    return id if forgotten.find(id, None, user_id, None, place) is not None else None


def _decoded(kind: type[T], value: bytes) -> T | None:
    try:
        return decode(kind, value)
    except msgspec.MsgspecError:
        return None


def retention(kafka: KafkaSettings, topics: list[str]) -> dict[str, int | None]:
    """How long (ms) each topic keeps a record at most: Kafka deletes whole segments, so until the segment is closed
    (`segment.ms`) and its newest record is as old as `retention.ms`. None: not told, or no bound."""
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

    if not topics:
        return {}
    with translated(kafka):
        admin = KafkaAdminClient(**kafka_connection(kafka), bootstrap_timeout_ms=BOOTSTRAP_MS)
        try:
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
            told = admin.describe_configs(resources, config_filter="all").get("topic", {})
        finally:
            admin.close()
    return {topic: kept_for(told.get(topic, {})) for topic in topics}


def kept_for(configs: dict[str, dict[str, Any]]) -> int | None:
    """The same from a topic's settings as the admin client gives them."""

    def number(name: str) -> int | None:
        value = str(configs.get(name, {}).get("value", ""))
        return int(value) if value.isdigit() else None  # -1 is no bound

    keep, segment = number("retention.ms"), number("segment.ms")
    if keep is None or segment is None or "delete" not in str(configs.get("cleanup.policy", {}).get("value", "")):
        return None
    return keep + segment
