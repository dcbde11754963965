"""Decoding: the declared errors and no others."""

import msgspec
import pytest

from streams.records import AcceptedPrompt, DeadLetter, RawPrompt, ScoredPrompt, TrainRequest, decode
from streams.settings import KafkaSettings
from streams.topics import configs_of, topic_names


@pytest.mark.parametrize("kind", [RawPrompt, AcceptedPrompt, ScoredPrompt, DeadLetter, TrainRequest])
@pytest.mark.parametrize(
    "value", [b'{"id": "\xff"}', b'{"later": ' + b"[" * 5000, b'{"later": ' + b'{"a":' * 5000, b"\xff", b"", b"\x00"]
)
def test_whatever_the_bytes_only_the_declared_error_is_raised(kind: type, value: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(kind, value)


def test_a_time_is_a_number_that_can_be_ranked() -> None:
    fields = b'"id": "a", "prompt_id": "b", "messages": [], "ts": '
    assert decode(AcceptedPrompt, b"{" + fields + b"9223372036854775807}").ts == 2**63 - 1
    with pytest.raises(msgspec.MsgspecError):
        decode(AcceptedPrompt, b"{" + fields + b"1" + b"0" * 400 + b"}")


def test_topics_take_the_largest_dead_letter_and_two_of_three_replicas_must_have_a_record() -> None:
    assert configs_of(KafkaSettings(), "prompts.raw") == {"max.message.bytes": "2000000"}
    three = KafkaSettings(replication=3, max_message_bytes=5_000_000)
    assert configs_of(three, "prompts.dead") == {"max.message.bytes": "5000000", "min.insync.replicas": "2"}


def test_requests_and_events_of_runs_and_what_was_forgotten_are_kept_for_ever() -> None:
    kafka = KafkaSettings(topic_prefix="x.")
    kept = {topic for topic in topic_names(kafka).all() if configs_of(kafka, topic).get("retention.ms") == "-1"}
    assert kept == {"x.train.requests", "x.train.events", "x.prompts.forgotten"}


def test_the_last_word_of_feedback_and_of_what_is_forgotten_stays() -> None:
    kafka = KafkaSettings(topic_prefix="x.")
    for topic in ("x.prompts.feedback", "x.prompts.forgotten"):
        assert configs_of(kafka, topic)["cleanup.policy"] == "compact"
