"""Reads `prompts.dead`."""

import msgspec

from deploy.kafka import read_topics
from streams.records import DeadLetter, decode
from streams.settings import KafkaSettings
from streams.topics import topic_names


def dead_letters_by_reason(kafka: KafkaSettings) -> dict[str, list[DeadLetter]]:
    """All dead letters, the most frequent reason first, the oldest letter first. Raises `Transient`."""
    found: dict[str, list[DeadLetter]] = {}
    for message in read_topics(kafka, topic_names(kafka).dead):
        try:
            letter = decode(DeadLetter, message.value)
        except msgspec.MsgspecError as error:
            letter = DeadLetter(
                reason="not_a_dead_letter",
                error=str(error),
                topic=message.topic,
                partition=message.partition,
                offset=message.offset,
                value=message.value,
                ts=0,
            )
        found.setdefault(letter.reason, []).append(letter)
    for letters in found.values():
        letters.sort(key=lambda letter: letter.ts)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
