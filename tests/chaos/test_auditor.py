"""The auditor can fail: each test shows it a log that is whole but for one lie."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from streams.buffer.base import BufferRules
from streams.records import Candidate, Member, Message, Phase, ScoredPrompt, TrainEvent, TrainRequest
from tests.chaos.auditor import Evidence, Training, audit
from tests.chaos.run import prompts
from trainers.history import Champion, Change
from trainers.registry import Manifest

RAW = "t.prompts.raw"
PHASES: tuple[Phase, ...] = ("queued", "sft", "dpo", "gate", "promote", "done")


def member(id: str, text: str = "", category: str = "math", answers: int = 2) -> Member:
    prompt = ScoredPrompt(
        id=id,
        prompt_id=f"sha-{id}",
        messages=[Message("user", text or f"a question of its own about {id} and about nothing else")],
        ts=1,
        difficulty=5.0,
        quality=8.0,
        category=category,
        label_mass=0.9,
        judge="j",
    )
    candidates = [Candidate(text=f"answer {i}", reward=1.0, origin="teacher") for i in range(answers)]
    return Member(prompt=prompt, rank_key=1.0, admitted_at=1, candidates=candidates)


def letter(offset: int, value: bytes, reason: str = "not_json") -> dict[str, Any]:
    return {
        "reason": reason,
        "topic": RAW,
        "partition": 0,
        "offset": offset,
        "value": base64.b64encode(value).decode(),
    }


def outcome(id: str, kind: str) -> dict[str, Any]:
    return {"id": id, "outcome": kind}


def whole() -> Evidence:
    """Six records: two members, one evicted, one refused, one without an id that is held out, one malformed."""
    values = [json.dumps({"id": id, "prompt": id}).encode() for id in "abcd"]
    values += [b'{"prompt": "no id"}', b"not json"]
    place = f"{RAW}:0:4"
    return Evidence(
        raw_topic=RAW,
        sent=values,
        raw=[(0, offset, value) for offset, value in enumerate(values)],
        accepted=[{"id": id} for id in ("a", "b", "c", "d", place)],
        scored=[{"id": id} for id in ("a", "b", "c", "d", place)],
        curated=[
            outcome("a", "admitted"),
            outcome("b", "admitted"),
            outcome("c", "admitted"),
            outcome("c", "evicted"),
            outcome("d", "below_threshold"),
            outcome(place, "held_out"),
        ],
        dead=[letter(5, b"not json")],
        members=[member("a"), member("b")],
        rules=BufferRules(2),
        reference=frozenset("ab"),
        training=two_runs(),
    )


def events(run: str, *phases: Phase) -> list[TrainEvent]:
    return [TrainEvent(run_id=run, phase=phase, ts=1) for phase in phases]


def manifest(version: str, run: str, promote: bool) -> Manifest:
    return Manifest(
        version=version,
        run_id=run,
        snapshot="s",
        base_model="m",
        parent=None,
        recipe={},
        judge=None,
        metrics={},
        created_at=1,
        sha256={},
        gate={"promote": promote},
    )


def two_runs() -> Training:
    """One that is the champion, one that was rejected."""
    change = Change(version="v0001-r1", kind="promote", reason="", by="trainer", at=1)
    requests = [
        TrainRequest(run_id=run, snapshot="s", reasons=["age"], base_model="m", requested_at=1) for run in ("r1", "r2")
    ]
    return Training(
        requests=requests,
        events=events("r1", *PHASES) + events("r2", "queued", "sft", "dpo", "gate", "rejected"),
        champion=Champion(version="v0001-r1", history=[change]),
        manifests=[manifest("v0001-r1", "r1", True), manifest("v0002-r2", "r2", False)],
        served={"vllm-1": ["base", "haypile-v0001-r1"], "vllm-2": ["base", "haypile-v0001-r1"]},
        holders={"trigger": 1},
    )


def test_a_whole_log_is_clean_and_each_record_has_one_end() -> None:
    result = audit(whole())
    assert result.clean, result.findings()
    assert result.records == 6
    assert result.account == {
        "in the buffer": 2,
        "evicted": 1,
        "refused: below_threshold": 1,
        "held out": 1,
        "dead letter: not_json": 1,
    }
    assert result.runs == {"done": 1, "rejected": 1}
    assert not any(result.repeated_on_wire.values())


def test_repeats_on_the_wire_are_counted_and_change_nothing() -> None:
    evidence = whole()
    training = evidence.training
    assert training is not None
    training = replace(training, events=[*training.events, *events("r1", "done")])
    result = audit(replace(evidence, scored=[*evidence.scored, {"id": "a"}], training=training))
    assert result.clean, result.findings()
    assert (result.repeated_on_wire["prompts.scored"], result.repeated_on_wire["train.events"]) == (1, 1)


def without(rows: Any, **values: Any) -> list[Any]:
    return [row for row in rows if any(row[key] != value for key, value in values.items())]


Lie = Callable[[Evidence], Evidence]

LIES: dict[str, tuple[Lie, str]] = {
    "a record without an end": (lambda e: replace(e, curated=without(e.curated, id="d")), "missing: d"),
    "a record that never came to the topic": (
        lambda e: replace(e, raw=[r for r in e.raw if r[1] != 3]),
        "missing: sent",
    ),
    "a record without an id, lost": (
        lambda e: replace(e, curated=without(e.curated, outcome="held_out")),
        "missing: t.p",
    ),
    "a malformed record without a dead letter": (lambda e: replace(e, dead=[]), "missing: t.prompts.raw:0:5"),
    "an outcome and a dead letter": (
        lambda e: replace(e, dead=[*e.dead, letter(3, e.raw[3][2], "poison")]),
        "contradictory: d",
    ),
    "a dead letter and a place in the buffer": (
        lambda e: replace(e, dead=[*e.dead, letter(0, e.raw[0][2])], curated=without(e.curated, id="a")),
        "contradictory: a",
    ),
    "a member that was only refused": (
        lambda e: replace(e, curated=[*without(e.curated, id="b"), outcome("b", "below_threshold")]),
        "contradictory: b",
    ),
    "a member that nobody sent": (lambda e: replace(e, members=[member("a"), member("x")]), "contradictory: x"),
    "a member too many": (lambda e: replace(e, members=[*e.members, member("c")]), "in the buffer, not in"),
    "a member that is gone": (lambda e: replace(e, members=e.members[:1]), "in the reference, not in the buffer: b"),
    "another member than the reference's": (lambda e: replace(e, members=[member("a"), member("c")]), "reference: c"),
    "a member twice": (lambda e: replace(e, members=[*e.members, member("a")]), "rule: a is a member 2 times"),
    "over capacity": (lambda e: replace(e, rules=BufferRules(1)), "rule: 2 members, capacity 1"),
    "over a category's cap": (lambda e: replace(e, rules=BufferRules(2, 0.5)), "rule: 2 members of category math"),
    "two members alike": (
        lambda e: replace(
            e,
            rules=BufferRules(2, 1.0, 0.8),
            members=[member("a", "the very same question"), member("b", "the very same question")],
        ),
        "rule: b and a are alike",
    ),
    "a member that was never rated": (
        lambda e: replace(e, scored=without(e.scored, id="a")),
        "rule: a was never rated",
    ),
    "answers twice": (lambda e: replace(e, members=[member("a", answers=4), member("b")]), "rule: a has 4 answers"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_records_is_found(lie: str) -> None:
    tell, finding = LIES[lie]
    result = audit(tell(whole()))
    assert not result.clean
    assert any(finding in found for found in result.findings()), result.findings()


def swapped(old: list[TrainEvent], new: list[TrainEvent]) -> Callable[[Training], Training]:
    return lambda t: replace(t, events=[*(e for e in t.events if e not in old), *new])


TRAINING_LIES: dict[str, tuple[Callable[[Training], Training], str]] = {
    "no final event": (swapped(events("r2", "rejected"), []), "run without an end: r2"),
    "two final events that differ": (swapped([], events("r1", "failed")), "run: r1: ended as done and as failed"),
    "an end of a run that nobody requested": (swapped([], events("r3", "failed")), "run: r3: was never requested"),
    "one run id for two decisions": (
        lambda t: replace(t, requests=[*t.requests, replace_request(t.requests[0])]),
        "run: r1: requested twice",
    ),
    "two runs at once": (
        lambda t: replace(t, events=[*events("r2", "queued"), *t.events]),
        "run: r1: queued while r2 had not ended",
    ),
    "a phase after the end": (swapped(events("r1", "gate"), events("r1", "gate")), "run: r1: gate after its end"),
    "done, and not promoted": (
        lambda t: replace(t, champion=Champion(), served={}),
        "run: r1: ended as done, but was not promoted",
    ),
    "rejected, and promoted": (
        lambda t: replace(t, champion=promoted("v0001-r1", "v0002-r2")),
        "run: r2: ended as rejected, but was promoted",
    ),
    "promoted twice": (
        lambda t: replace(t, champion=promoted("v0001-r1", "v0001-r1")),
        "run: v0001-r1 was promoted 2 times",
    ),
    "a pointer that its history belies": (
        lambda t: replace(t, champion=Champion(version="v0002-r2", history=t.champion.history)),
        "run: the champion is v0002-r2",
    ),
    "a champion that is not in the registry": (
        lambda t: replace(t, manifests=t.manifests[1:]),
        "run: the champion's history names v0001-r1, which is not there",
    ),
    "a run that published twice": (
        lambda t: replace(t, manifests=[*t.manifests, manifest("v0003-r1", "r1", True)]),
        "run: r1: published as v0001-r1 and v0003-r1",
    ),
    "a server without the champion": (
        lambda t: replace(t, served={**t.served, "vllm-2": ["base"]}),
        "run: vllm-2 does not serve the champion",
    ),
    "a server with a rejected adapter": (
        lambda t: replace(t, served={**t.served, "vllm-2": ["haypile-v0001-r1", "haypile-v0002-r2"]}),
        "run: vllm-2 still serves haypile-v0002-r2",
    ),
    "something half written that was read": (lambda t: replace(t, damaged=["v0001-r1"]), "run: v0001-r1"),
    "two holders of a lease": (
        lambda t: replace(t, holders={"trigger": 2}),
        "run: 2 processes hold the lease of trigger",
    ),
    "no holder of a lease": (lambda t: replace(t, holders={"trigger": 0}), "run: 0 processes hold the lease"),
}


def replace_request(request: TrainRequest) -> TrainRequest:
    return TrainRequest(
        run_id=request.run_id, snapshot="another", reasons=[], base_model="m", requested_at=request.requested_at
    )


def promoted(*versions: str) -> Champion:
    history = [Change(version=version, kind="promote", reason="", by="trainer", at=1) for version in versions]
    return Champion(version=versions[-1], history=history)


@pytest.mark.parametrize("lie", TRAINING_LIES)
def test_a_lie_about_training_is_found(lie: str) -> None:
    tell, finding = TRAINING_LIES[lie]
    result = audit(replace(whole(), training=tell(two_runs())))
    assert not result.clean
    assert any(finding in found for found in result.findings()), result.findings()


def test_a_made_up_refusal_may_have_an_outcome_too() -> None:
    evidence = whole()
    refusal = letter(3, evidence.raw[3][2], "judge_refused")
    assert audit(replace(evidence, dead=[*evidence.dead, refusal])).clean


def test_the_sender_has_all_sorts_of_records_and_no_two_alike() -> None:
    values = prompts(2000, 1)
    assert values == prompts(2000, 1) != prompts(2000, 2)
    good = [json.loads(value) for i, value in enumerate(values) if i % 200 != 100]
    assert len({record["prompt"] for record in good}) == len(good) == 1990
    assert sum("id" not in record for record in good) > 50
