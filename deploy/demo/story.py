"""What happened in the demo. `gather` reads it from the topics, Redis, the registry and vLLM; `tell` prints it."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from deploy.clients import serving_pool
from deploy.commands.common import buffer_of, one_line
from deploy.demo.follow import Seen
from deploy.demo.plan import Sample
from streams.buffer.base import BufferStats
from streams.buffer.minhash import conversation_text
from streams.records import Member
from streams.settings import Settings
from streams.snapshots import read_manifest
from trainers.promotion import served_name
from trainers.registry import Manifest, Registry

HARDEST = 5
EASIEST = 3
WIDTH = 96
"""Characters of a prompt that are shown."""
ANSWER_TOKENS = 64
MEANING = {
    "below_threshold": "softer than everything kept",
    "low_quality": "under the quality gate",
    "near_duplicate": "alike to a harder one",
    "category_full": "its category is full",
    "held_out": "set aside for evaluation",
    "exact_repeat": "seen before, word for word",
    "contaminated": "shares text with a benchmark",
    "too_short": "fewer tokens than ingest.min_tokens",
    "too_long": "more tokens than ingest.max_tokens",
    "wrong_language": "not in one of ingest.languages",
    "predicted_below": "surely softer than everything kept",
}


@dataclass(frozen=True)
class Story:
    """Everything that is told."""

    seen: Seen
    sample: Sample
    texts: dict[str, str]
    """Record id → its prompt."""
    stats: BufferStats
    held_out: int
    hardest: list[Member]
    easiest: list[Member]
    decision: dict[str, Any]
    """Of the policy, as the snapshot's manifest keeps it."""
    trained: Manifest | None
    """What the registry has of the run."""
    champion: str | None
    served: list[str]
    """Names that vLLM lists."""
    asked: str
    answered_by: str
    answer: str


async def gather(settings: Settings, seen: Seen, sample: Sample) -> Story:
    """Asks every place that knows. Raises `Transient` or `Fatal`."""
    async with buffer_of(settings) as main, buffer_of(settings, "eval") as held_out:
        stats, other = await main.stats(), await held_out.stats()
        hardest, easiest = await main.top(HARDEST), await main.top(EASIEST, lowest=True)
    registry = Registry(settings.training.registry)
    champion = registry.champion().version
    request = seen.request
    name = served_name(settings.serving, champion)
    asked = "Explain in two sentences why the sky is blue."
    async with serving_pool(settings) as pool:
        served = await pool.models(settings.serving.urls[0])
        [answer] = await pool.chat(
            [{"role": "user", "content": asked}], model=name, temperature=0.0, max_tokens=ANSWER_TOKENS
        )
    return Story(
        seen=seen,
        sample=sample,
        texts=_texts(sample),
        stats=stats,
        held_out=other.size,
        hardest=hardest,
        easiest=easiest,
        decision=read_manifest(request.snapshot).decision if request else {},
        trained=registry.of_run(request.run_id) if request else None,
        champion=champion,
        served=served,
        asked=asked,
        answered_by=name,
        answer=answer,
    )


def _texts(sample: Sample) -> dict[str, str]:
    found = {}
    for value in sample.values:
        try:
            record = json.loads(value)
            text = record.get("prompt") or "\n".join(message["content"] for message in record["messages"])
            found[str(record["id"])] = str(text)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def tell(story: Story) -> None:
    """Prints the story."""
    print()
    _came_in(story)
    _refused(story)
    _kept(story)
    _trained(story)
    _serves(story)
    print(flush=True)


def _came_in(story: Story) -> None:
    total, kept = len(story.sample.values), story.stats
    print(
        f"CAME IN   {total} records; {story.seen.settled} have an outcome, {len(story.seen.dead)} of them a dead letter"
    )
    print(
        f"          {kept.admitted_total} were admitted and {kept.evicted_total} evicted again by harder ones: "
        f"{kept.size} of {kept.capacity} places are taken, {story.held_out} prompts are held out for the gate"
    )


def _refused(story: Story) -> None:
    print("\nREFUSED   (one example of each)")
    by_outcome = defaultdict(list)
    for outcome in story.seen.outcomes.values():
        if outcome.outcome != "admitted":
            by_outcome[outcome.outcome].append(outcome)
    for name, outcomes in sorted(by_outcome.items(), key=lambda item: -len(item[1])):
        text = one_line(story.texts.get(outcomes[0].id, outcomes[0].id), WIDTH)
        print(f"  {len(outcomes):4d} {name:18s} {MEANING.get(name, '')}: {text}")
    by_reason = defaultdict(list)
    for letter in story.seen.dead.values():
        by_reason[letter.reason].append(letter)
    for reason, letters in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        text = one_line(letters[0].value.decode("utf-8", "backslashreplace"), WIDTH) or "(empty)"
        print(f"  {len(letters):4d} dead letters       {reason}: {text}")


def _kept(story: Story) -> None:
    print(f"\nKEPT      by judge {story.stats.judge}: the hardest")
    for member in story.hardest:
        print(_member(member))
    print("          and the easiest")
    for member in reversed(story.easiest):
        print(_member(member))


def _member(member: Member) -> str:
    prompt = member.prompt
    text = one_line(conversation_text(prompt.messages), WIDTH)
    return f"  difficulty {prompt.difficulty:.2f}, quality {prompt.quality:.2f}, {prompt.category:10s} {text}"


def _trained(story: Story) -> None:
    request = story.seen.request
    if request is None:
        return
    print(f"\nTRAINED   run {request.run_id}, because of {', '.join(request.reasons)}")
    for condition in story.decision.get("conditions", []):
        if condition["holds"]:
            print(f"  {condition['kind']:6s} {condition['name']}: {condition['says']}")
    metrics = story.seen.metrics()
    for phase, what in (("sft", "on the best of each prompt's answers"), ("dpo", "on the best against the worst")):
        before, after = metrics.get(f"{phase}_loss_before"), metrics.get(f"{phase}_loss_after")
        if before is not None and after is not None:
            steps = metrics.get(f"{phase}_steps", "?")
            print(f"  {phase.upper()} {what}: loss {_number(before)} before, {_number(after)} after {steps} steps")
        else:
            print(f"  {phase.upper()} {what}: no loss was reported")
    gate = story.trained.gate if story.trained else None
    if gate:
        print(
            f"  GATE {gate['challenger']} against {gate['champion']} on {gate['prompts']} held-out prompts: "
            f"{gate['wins']} won, {gate['losses']} lost, {gate['ties']} tied; win rate {gate['win_rate']:.2f} "
            f"[{gate['lower']:.2f}, {gate['upper']:.2f}]"
        )
        print(f"  {'PROMOTED' if gate['promote'] else 'REJECTED'}: {gate['reason']}")


def _number(value: Any) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _serves(story: Story) -> None:
    print(f"\nSERVES    {story.champion or 'the base model (no adapter is the champion)'}")
    print(f"  vLLM lists {', '.join(story.served)}")
    print(f"  {story.answered_by} was asked: {story.asked}")
    print(f"  {one_line(story.answer, 400)}")
