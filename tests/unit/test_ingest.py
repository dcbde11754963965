"""The hop `ingest`: what is let in, what is refused and with which value, and that it is stored redacted."""

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agents.ingest import Ingest
from deploy import intake
from streams.app import Inbound
from streams.metrics import Metrics
from streams.records import AcceptedPrompt, CuratedOutcome
from streams.settings import IngestSettings, KafkaSettings
from streams.topics import topic_names

TOPICS = topic_names(KafkaSettings())
QUESTION = "A train leaves the station at noon and travels west at sixty miles an hour for three hours"


class Sent:
    """Stands for the producer: keeps what was sent."""

    def __init__(self) -> None:
        self.records: list[tuple[str, Any, str]] = []

    async def send(self, topic: str, record: Any, key: str, headers: object = None) -> None:
        self.records.append((topic, record, key))


class SeenOnce:
    """Stands for the look-up of repeats in Redis."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}

    async def first(self, prompt_id: str, id: str) -> str:
        return self.ids.setdefault(prompt_id, id)


class Hop:
    """`Ingest` with the parts that the settings make, and what it sends."""

    def __init__(self, **settings: Any) -> None:
        chosen = IngestSettings(**settings)
        self.metrics = Metrics(CollectorRegistry())
        self.sent = Sent()
        self.seen = SeenOnce()
        self.offset = -1
        self.ingest = Ingest(
            chosen,
            TOPICS,
            seen=self.seen,  # type: ignore[arg-type]
            contamination=intake.contamination(chosen),
            languages=intake.language_detector(chosen),
            count_tokens=intake.token_counter(chosen.tokenizer),
            redactor=intake.redactor(chosen),
            producer=self.sent,  # type: ignore[arg-type]
            metrics=self.metrics,
            now_ms=lambda: 5,
        )

    async def take(self, **record: Any) -> Any:
        """What became of a raw record: the last record that was sent."""
        self.offset += 1
        inbound = Inbound(TOPICS.raw, 3, self.offset, json.dumps(record).encode(), 1_790_000_000_000, ())
        outcome = await self.ingest(inbound)
        topic, sent, key = self.sent.records[-1]
        assert key == sent.id
        assert (topic, outcome) == (
            (TOPICS.accepted, "accepted") if isinstance(sent, AcceptedPrompt) else (TOPICS.curated, sent.outcome)
        )
        return sent


async def test_an_accepted_prompt_says_where_it_came_from_its_language_and_its_length() -> None:
    hop = Hop()
    taken = await hop.take(prompt="Please explain to me how the tides of the sea depend on the moon and the sun.")
    assert (taken.id, taken.origin) == ("prompts.raw:3:0", "prompts.raw:3:0")
    assert taken.language == "en"
    assert 15 <= taken.tokens <= 20
    unsure = await hop.take(id="short", prompt="x = y * 2")
    assert (unsure.language, unsure.origin) == (None, "prompts.raw:3:1")
    told = {
        s.labels["language"]: s.value
        for m in hop.metrics.languages.collect()
        for s in m.samples
        if s.name.endswith("_total")
    }
    assert told == {"en": 1, "unknown": 1}


async def test_nothing_personal_is_stored_and_the_kinds_are_counted() -> None:
    hop = Hop()
    taken = await hop.take(
        prompt="Write to anna@example.com or call +49 170 1234567 about card 4111 1111 1111 1111.",
        response="I wrote to anna@example.com.",
        metadata={"page": "account", "contact": "bob@example.com"},
    )
    assert taken.messages[0].content == "Write to [EMAIL] or call [PHONE] about card [CARD]."
    assert (taken.response, taken.metadata) == ("I wrote to [EMAIL].", {"page": "account", "contact": "[EMAIL]"})
    assert taken.redacted == {"email": 3, "phone": 1, "card": 1}
    count = hop.metrics.registry.get_sample_value
    assert count("haypile_redactions_total", {"kind": "email"}) == 3
    assert count("haypile_redactions_total", {"kind": "card"}) == 1


async def test_redaction_does_not_touch_the_id_of_the_prompt() -> None:
    prompts = ["call  +49 170 1234567\nnow", "call +49 170 1234567 now", "call +49 170 7654321 now"]
    ids = [[(await Hop(redact=redact).take(prompt=prompt)).prompt_id for prompt in prompts] for redact in (True, False)]
    assert ids[0] == ids[1]
    assert ids[0][0] == ids[0][1] != ids[0][2]


async def test_an_exact_repeat_names_who_was_first_and_a_redelivery_is_none() -> None:
    hop = Hop()
    await hop.take(id="a", prompt="What is the answer?")
    again = await hop.take(id="b", prompt="  What is\nthe answer? ")
    assert (again.outcome, again.detail, again.origin) == ("exact_repeat", "a", "prompts.raw:3:1")
    assert isinstance(await hop.take(id="a", prompt="What is the answer?"), AcceptedPrompt)


@pytest.mark.parametrize(
    ("settings", "prompt", "expected"),
    [
        ({"min_tokens": 3}, "hi", ("too_short", None, 1, 3)),
        ({"max_tokens": 10}, "one two three four five six seven eight nine ten eleven", ("too_long", None, 11, 10)),
        ({}, "hi", None),
        ({"max_tokens": None}, "word " * 9000, None),
        ({"languages": ["en", "fr"]}, "x = y * 2", None),
        ({"languages": ["de"]}, "Wie hängen Ebbe und Flut vom Mond und von der Sonne ab?", None),
    ],
)
async def test_bounds(settings: dict[str, Any], prompt: str, expected: object) -> None:
    taken = await Hop(**settings).take(prompt=prompt)
    if expected is None:
        assert isinstance(taken, AcceptedPrompt)
    else:
        assert (taken.outcome, taken.detail, taken.value, taken.bound) == expected


async def test_another_language_is_refused_with_its_code_and_how_sure_that_is() -> None:
    hop = Hop(languages=["en"])
    taken = await hop.take(prompt="Wie hängen Ebbe und Flut vom Mond und von der Sonne ab? Bitte erkläre es mir.")
    assert isinstance(taken, CuratedOutcome)
    assert (taken.outcome, taken.detail, taken.bound) == ("wrong_language", "de", 0.5)
    assert taken.value is not None and 0.5 < taken.value <= 1


async def test_a_benchmark_prompt_is_refused_with_its_name_and_is_not_a_first_sighting(tmp_path: Any) -> None:
    file = tmp_path / "arena-hard-v0.1" / "question.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps({"question_id": "1", "turns": [{"content": QUESTION}]}) + "\n")
    hop = Hop(decontaminate=[tmp_path])
    taken = await hop.take(prompt=f"Hello! {QUESTION.upper()}. How far is it?")
    assert (taken.outcome, taken.detail, taken.value, taken.bound) == ("contaminated", "arena-hard-v0.1", 1.0, 0.5)
    assert hop.seen.ids == {}
    half = await hop.take(prompt="A train leaves the station at noon. How many people are in it, and who are they?")
    assert isinstance(half, AcceptedPrompt)
