"""The story of one prompt, told from what is kept about it: a pure function of the evidence."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deploy.evidence import BUFFERS, Evidence
from streams.records import AcceptedPrompt, CuratedOutcome, ScoredPrompt
from streams.rubric import CATEGORIES, RATINGS, conversation_text, shorten

REASONS = {
    "admitted": "admitted to the buffer",
    "below_threshold": "refused: softer than everything kept",
    "low_quality": "refused: under the quality gate",
    "near_duplicate": "refused: alike to a harder one",
    "category_full": "refused: its category is full of harder ones",
    "evicted": "evicted from the buffer",
    "held_out": "set aside for evaluation",
    "exact_repeat": "refused: seen before, word for word",
    "contaminated": "refused: repeats a benchmark",
    "too_short": "refused: too short",
    "too_long": "refused: too long",
    "wrong_language": "refused: not in one of the languages of the settings",
    "unreadable_again": "left out: the judge that replaced the one before cannot read it",
    "predicted_below": "not shown to the judge: surely softer than everything kept",
}
VALUES = {
    "near_duplicate": "similarity",
    "contaminated": "share of n-grams",
    "low_quality": "quality",
    "category_full": "members",
    "wrong_language": "confidence",
    "too_short": "tokens",
    "too_long": "tokens",
    "predicted_below": "predicted difficulty",
}


@dataclass
class Story:
    """What became of a prompt. Each part is a mapping for scripts; `lines` tells it to people."""

    id: str
    known: bool
    """False: nothing was found anywhere."""
    now: str
    """Where it stands, in one sentence."""
    came: dict[str, Any] = field(default_factory=dict)
    text: list[dict[str, str]] = field(default_factory=list)
    """Its messages, redacted."""
    redacted: dict[str, int] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Outcomes and dead letters, in the order of time."""
    feedback: list[dict[str, Any]] = field(default_factory=list)
    """What its user thought of the answer, in the order of time: the last word counts."""
    near: list[dict[str, Any]] = field(default_factory=list)
    """Other prompts that it met: alike to it, repeats of it, evicted by it."""
    buffer: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    not_known: list[str] = field(default_factory=list)
    """What the log no longer holds, or what could not be looked at."""


def tell(evidence: Evidence) -> Story:
    """The story. Pure."""
    if evidence.forgotten is not None:
        return Story(
            evidence.id, True, f"forgotten, as was asked at {_time(evidence.forgotten.ts)}: nothing of it is told"
        )
    prompt = evidence.prompt()
    story = Story(evidence.id, known=True, now=_now(evidence))
    story.came = _came(evidence, prompt)
    if prompt is not None:
        story.text = [{"role": message.role, "content": message.content} for message in prompt.messages]
        story.redacted = dict(prompt.redacted)
    if isinstance(prompt, ScoredPrompt):
        story.judged = _judged(prompt)
    events = [(outcome.ts, _outcome(outcome)) for outcome in evidence.outcomes]
    for letter in evidence.letters:
        place = f"{letter.topic}:{letter.partition}:{letter.offset}"
        why = {"what": "dead letter", "reason": letter.reason, "error": letter.error, "of": place}
        events.append((letter.ts, {"at": _time(letter.ts), **why}))
    story.history = _once([event for _, event in sorted(events, key=lambda pair: pair[0])])
    story.feedback = _feedback(evidence, prompt)
    story.near = _once([{"id": outcome.id, **_outcome(outcome)} for outcome in evidence.others])
    for found in evidence.members:
        member = found.member
        story.buffer.append(
            {
                "buffer": found.buffer,
                "place": found.place,
                "of": found.size,
                "capacity": found.capacity,
                "rank_key": member.rank_key,
                "admitted_at": _time(member.admitted_at),
                "near_duplicates": member.near_duplicates,
                "rewards": [candidate.reward for candidate in member.candidates],
            }
        )
    story.snapshots = [
        {"path": s.path, "run_id": s.run_id, "created_at": s.created_at, "split": s.split, "row": s.row, "of": s.rows}
        for s in evidence.snapshots
    ]
    story.runs = _runs(evidence)
    story.not_known = _not_known(evidence)
    story.known = bool(
        evidence.raw
        or prompt
        or events
        or evidence.others
        or evidence.members
        or evidence.snapshots
        or evidence.feedback
    )
    return story


def _now(evidence: Evidence) -> str:
    for found in evidence.members:
        where = "of the buffer" if found.buffer == "main" else "of the held-out buffer"
        return f"a member {where}, place {found.place} of {found.size}"
    last = max(evidence.outcomes, key=lambda outcome: outcome.ts, default=None)
    letter = max(evidence.letters, key=lambda letter: letter.ts, default=None)
    if last is not None and (letter is None or last.ts >= letter.ts):
        if last.outcome in ("admitted", "held_out"):
            told = f"{REASONS[last.outcome]}, at {_time(last.ts)}"
            # What is evicted from the held-out buffer, or removed by hand, has no later outcome.
            return told if any(line.startswith(BUFFERS) for line in evidence.unread) else f"{told}; not there any more"
        return f"{REASONS[last.outcome]}, at {_time(last.ts)}"
    if letter is not None:
        return f"a dead letter since {_time(letter.ts)}: {letter.reason}"
    if evidence.scored:
        return "rated by the judge; no outcome of `curate` is in the log"
    if evidence.accepted is not None:
        return "accepted; no rating of the judge is in the log"
    if evidence.raw is not None:
        return "sent; no outcome of `ingest` is in the log"
    if evidence.snapshots:
        return "in a snapshot, and nowhere else any more"
    return "not known"


def _came(evidence: Evidence, prompt: AcceptedPrompt | None) -> dict[str, Any]:
    came: dict[str, Any] = {}
    if evidence.raw is not None:
        at, _ = evidence.raw
        came |= {"from": at.place, "sent_at": _time(at.ts), "in_the_log": True}
    elif prompt is not None and prompt.origin is not None:
        came |= {"from": prompt.origin, "in_the_log": False}
    elif origin := next((o.origin for o in evidence.outcomes if o.origin), None):
        came |= {"from": origin, "in_the_log": False}
    if prompt is not None:
        came |= {
            "ts": _time(prompt.ts),
            "user_id": prompt.user_id,
            "source": prompt.source,
            "prompt_id": prompt.prompt_id,
            "split": prompt.split,
            "language": prompt.language,
            "tokens": prompt.tokens,
        }
    elif evidence.raw is not None and evidence.raw[1] is not None:
        came |= {"user_id": evidence.raw[1].user_id, "source": evidence.raw[1].source}
    return came


def _feedback(evidence: Evidence, prompt: AcceptedPrompt | None) -> list[dict[str, Any]]:
    told = []
    if prompt is not None and prompt.feedback is not None:
        told.append({"at": _time(prompt.ts), "feedback": prompt.feedback, "source": prompt.source})
    for given in sorted(evidence.feedback, key=lambda given: given.ts):
        told.append({"at": _time(given.ts), "feedback": given.feedback, "source": given.source})
    return told


def _judged(prompt: ScoredPrompt) -> dict[str, Any]:
    """What the judge saw and said; distributions by label."""
    shown = conversation_text([{"role": message.role, "content": message.content} for message in prompt.messages])
    labels = {"difficulty": RATINGS, "quality": RATINGS, "category": CATEGORIES}
    return {
        "judge": prompt.judge,
        "difficulty": prompt.difficulty,
        "quality": prompt.quality,
        "category": prompt.category,
        "label_mass": prompt.label_mass,
        "distribution": {
            question: dict(zip(labels[question], probabilities, strict=False))
            for question, probabilities in prompt.distribution.items()
            if question in labels
        },
        "chars": len(shown),
        "seen_chars": prompt.seen_chars,
        "saw": None if prompt.seen_chars is None else shorten(shown, max(1, prompt.seen_chars)),
    }


def _outcome(outcome: CuratedOutcome) -> dict[str, Any]:
    told: dict[str, Any] = {"at": _time(outcome.ts), "what": outcome.outcome}
    for name in ("detail", "value", "bound", "by", "rank_key", "threshold"):
        value = getattr(outcome, name)
        if value is not None:
            told[name] = value
    return told


def _once(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without repeats: at least once on the wire is once in the story (a repeat has another time at most)."""
    kept: dict[str, dict[str, Any]] = {}
    for event in events:
        kept.setdefault(str({name: value for name, value in event.items() if name != "at"}), event)
    return list(kept.values())


def _runs(evidence: Evidence) -> list[dict[str, Any]]:
    ids = dict.fromkeys([s.run_id for s in evidence.snapshots] + evidence.replayed)
    told = []
    for run_id in ids:
        phases = [event for event in evidence.events if event.run_id == run_id]
        request = next((request for request in evidence.requests if request.run_id == run_id), None)
        told.append(
            {
                "run_id": run_id,
                "how": "replay of an earlier snapshot" if run_id in evidence.replayed else "its own snapshot",
                "reasons": request.reasons if request is not None else None,
                "phase": phases[-1].phase if phases else None,
                "at": _time(phases[-1].ts) if phases else None,
            }
        )
    return told


def _not_known(evidence: Evidence) -> list[str]:
    lines = list(evidence.unread)
    for searched in evidence.searched:
        if searched.not_read:
            lines.append(
                f"{searched.topic}: the time was too short for its oldest {searched.not_read} records "
                f"({searched.records} were read); give --seconds more"
            )
        if searched.deleted:
            lines.append(f"{searched.topic}: {searched.deleted} records are no longer in the log")
    if evidence.raw is None and not any(s.not_read for s in evidence.searched):
        lines.append("its raw record is not in the log (any more)")
    return lines


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def lines(story: Story, chars: int = 600) -> list[str]:
    """The story for people; `chars` bounds how much of its text is shown."""
    told = [f"{story.id}: {story.now}"]
    came = story.came
    if came:
        gone = "" if came.get("in_the_log", True) else " (no longer in the log)"
        told.append(f"CAME      from {came['from']}{gone}" if "from" in came else "CAME")
        for name in ("sent_at", "ts", "user_id", "source", "split", "language", "tokens", "prompt_id"):
            if came.get(name) is not None:
                told.append(f"          {name.replace('_', ' '):10s} {came[name]}")
    if story.text:
        told.append("TEXT")
        for message in story.text:
            text = message["content"] if len(message["content"]) <= chars else message["content"][:chars] + " …"
            told += [f"          {line}" for line in f"{message['role']}: {text}".splitlines()]
        redacted = ", ".join(f"{count} {kind}" for kind, count in sorted(story.redacted.items()))
        told.append(f"REDACTED  {redacted or 'nothing'}")
    if story.judged:
        told += _judged_lines(story.judged)
    if story.history:
        told.append("HISTORY")
        told += [f"          {event['at']}  {sentence(event)}" for event in story.history]
    if story.feedback:
        told.append("FEEDBACK")
        for given in story.feedback:
            source = f", from {given['source']}" if given["source"] else ""
            told.append(f"          {given['at']}  {given['feedback']:+.2f}{source}")
    if story.near:
        told.append("OTHERS    because of it")
        told += [f"          {event['at']}  {event['id']} {sentence(event)}" for event in story.near]
    for place in story.buffer:
        name = "BUFFER" if place["buffer"] == "main" else "HELD OUT"
        told.append(f"{name:9s} place {place['place']} of {place['of']} (capacity {place['capacity']})")
        told.append(f"          rank key {place['rank_key']:.4f}, admitted {place['admitted_at']}")
        told.append(f"          {place['near_duplicates']} alike were refused or replaced in its favour")
        rewards = ", ".join(f"{reward:.2f}" for reward in place["rewards"])
        told.append(f"          answers: {(rewards and 'rewards ' + rewards) or 'none yet'}")
    if story.snapshots:
        told.append("SNAPSHOTS")
        told += [
            f"          {s['run_id']}: row {s['row']} of {s['of']} ({s['split']}), {s['path']}" for s in story.snapshots
        ]
    if story.runs:
        told.append("RUNS")
        told += [f"          {r['run_id']}: {r['phase'] or 'no event in the log'}, by {r['how']}" for r in story.runs]
    if story.not_known:
        told.append("NOT KNOWN")
        told += [f"          {line}" for line in story.not_known]
    return told


def _judged_lines(judged: dict[str, Any]) -> list[str]:
    told = [
        f"JUDGED    by {judged['judge']}: difficulty {judged['difficulty']:.2f}, quality {judged['quality']:.2f}, "
        f"{judged['category']} (mass on the labels {judged['label_mass']:.2f})"
    ]
    for question, probabilities in judged["distribution"].items():
        shown = "  ".join(f"{label} {p:.2f}" for label, p in probabilities.items())
        told.append(f"          {question:10s} {shown}")
    if judged["seen_chars"] is not None:
        told.append(f"          it saw {judged['seen_chars']} of {judged['chars']} characters")
    return told


def sentence(event: dict[str, Any]) -> str:
    """An event of a story (of `history` or `near`) for people."""
    if event["what"] == "dead letter":
        return f"dead letter of {event['of']}: {event['reason']}: {event['error']}"
    said = REASONS[event["what"]]
    if "value" in event:
        bound = f" (bound {event['bound']:.4g})" if "bound" in event else ""
        said += f", {VALUES.get(event['what'], 'value')} {event['value']:.4g}{bound}"
    if "detail" in event:
        said += f": {event['detail']}"
    if "by" in event:
        said += f", for {event['by']}"
    if "rank_key" in event:
        beat = f" against {event['threshold']:.4f}" if "threshold" in event else ", there was room"
        said += f"; rank key {event['rank_key']:.4f}{beat}"
    return said
