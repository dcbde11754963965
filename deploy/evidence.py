"""Everything that is kept about one prompt: topics, buffers, snapshots, runs. `deploy.explain` tells it."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from deploy.kafka import forgotten_of, read_topics
from deploy.letters import whose
from deploy.log_search import Found, LogSearch, Searched
from streams.errors import HaypileError
from streams.records import (
    AcceptedPrompt,
    CuratedOutcome,
    DeadLetter,
    Feedback,
    Forgotten,
    Member,
    RawPrompt,
    ScoredPrompt,
    TrainEvent,
    TrainRequest,
    decode,
)
from streams.settings import Settings
from streams.snapshots import SnapshotError, list_snapshots, read_manifest
from streams.topics import topic_names

T = TypeVar("T", bound=msgspec.Struct)

BUFFERS = "the buffers"
"""How a line of `Evidence.unread` about them begins."""


@dataclass(frozen=True)
class At:
    """Where a record of a topic stands and since when (epoch milliseconds)."""

    place: str
    ts: int


@dataclass(frozen=True)
class InBuffer:
    """A member and its place in the ranking of its buffer (`main` or `eval`)."""

    buffer: str
    member: Member
    place: int
    size: int
    capacity: int


@dataclass(frozen=True)
class InSnapshot:
    """A row of a snapshot."""

    path: str
    run_id: str
    created_at: str
    split: str
    row: int
    """1 is the hardest."""
    rows: int


@dataclass
class Evidence:
    """What was found of one id. Lists are in the order of time."""

    id: str
    raw: tuple[At, RawPrompt | None] | None = None
    """None of a record that is no valid prompt."""
    accepted: tuple[At, AcceptedPrompt] | None = None
    scored: list[tuple[At, ScoredPrompt]] = field(default_factory=list)
    outcomes: list[CuratedOutcome] = field(default_factory=list)
    """Its own."""
    others: list[CuratedOutcome] = field(default_factory=list)
    """Of other prompts, because of this one: alike to it, a repeat of it, evicted by it."""
    letters: list[DeadLetter] = field(default_factory=list)
    feedback: list[Feedback] = field(default_factory=list)
    members: list[InBuffer] = field(default_factory=list)
    snapshots: list[InSnapshot] = field(default_factory=list)
    requests: list[TrainRequest] = field(default_factory=list)
    """Of runs on these snapshots."""
    replayed: list[str] = field(default_factory=list)
    """Ids of runs that mixed rows of these snapshots in again."""
    events: list[TrainEvent] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)
    forgotten: Forgotten | None = None
    """Why nothing of it may be told."""
    unread: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""

    def prompt(self) -> AcceptedPrompt | None:
        """The prompt as it was stored last."""
        if self.members:
            return self.members[0].member.prompt
        if self.scored:
            return self.scored[-1][1]
        return self.accepted[1] if self.accepted is not None else None

    def origin(self, raw_topic: str) -> tuple[str, int, int] | None:
        """Where its raw record stands or stood, as far as any record tells."""
        prompt = self.prompt()
        told = [prompt.origin if prompt is not None else None, *(outcome.origin for outcome in self.outcomes), self.id]
        places = map(position_of, filter(None, told))
        return next((place for place in places if place is not None and place[0] == raw_topic), None)


def needles_of(id: str) -> list[bytes]:
    """The id as it may stand in JSON: as UTF-8, or escaped to ASCII."""
    plain = json.dumps(id, ensure_ascii=False)[1:-1].encode()
    return list(dict.fromkeys((plain, json.dumps(id)[1:-1].encode())))


def position_of(place: str) -> tuple[str, int, int] | None:
    """Topic, partition and offset of a place `topic:partition:offset`; None if it is none."""
    topic, _, rest = place.partition(":")
    partition, _, offset = rest.partition(":")
    return (topic, int(partition), int(offset)) if partition.isdigit() and offset.isdigit() else None


async def gather(settings: Settings, id: str, seconds: float) -> Evidence:
    """Looks everywhere; what is not reachable is in `unread`. `seconds` bounds the time spent on Kafka."""
    evidence = Evidence(id)
    await _try(evidence, BUFFERS, _buffers(settings, evidence))
    await _try(evidence, "the topics", asyncio.to_thread(_topics, settings, evidence, seconds))
    await _try(evidence, "the snapshots", asyncio.to_thread(_snapshots, settings, evidence))
    if evidence.snapshots:
        await _try(evidence, "the runs", asyncio.to_thread(_runs, settings, evidence))
    await _try(evidence, "what is forgotten", asyncio.to_thread(_forgotten, settings, evidence))
    return evidence


def _forgotten(settings: Settings, evidence: Evidence) -> None:
    known = forgotten_of(settings.kafka)
    prompt, outcome = evidence.prompt(), next((o for o in evidence.outcomes if o.origin), None)
    if prompt is not None:
        evidence.forgotten = known.prompt(prompt)
    elif evidence.raw is not None and (raw := evidence.raw[1]) is not None:
        at = evidence.raw[0]
        evidence.forgotten = known.find(raw.id or at.place, None, raw.user_id, None, at.place)
    elif letters := [found for letter in evidence.letters if (found := whose(letter, known)) is not None]:
        evidence.forgotten = letters[0]
    else:
        evidence.forgotten = known.find(evidence.id, None, None, None, outcome.origin if outcome is not None else None)


async def _try(evidence: Evidence, what: str, task: Coroutine[Any, Any, None]) -> None:
    try:
        await task
    except HaypileError as error:
        evidence.unread.append(f"{what}: {error}")


async def _buffers(settings: Settings, evidence: Evidence) -> None:
    from deploy.commands.common import buffer_of

    for name in ("main", "eval"):
        async with buffer_of(settings, name) as buffer:
            member, place = await buffer.get(evidence.id), await buffer.place(evidence.id)
            if member is not None and place is not None:
                stats = await buffer.stats()
                evidence.members.append(InBuffer(name, member, place, stats.size, stats.capacity))


def _topics(settings: Settings, evidence: Evidence, seconds: float) -> None:
    names, id = topic_names(settings.kafka), evidence.id
    needles = needles_of(id)
    until = time.monotonic() + seconds
    left = [names.curated, names.scored, names.dead, names.feedback, names.accepted, names.raw]
    log = LogSearch(settings.kafka)

    def mentions(value: bytes) -> bool:
        return any(needle in value for needle in needles)

    def is_its_letter(value: bytes) -> bool:
        letter = _decoded(DeadLetter, value)
        return letter is not None and (position_of(id) == _position(letter) or mentions(letter.value))

    def search(topic: str, wanted: Callable[[bytes], bool], key: str | None = None) -> list[Found]:
        share = max(0.0, until - time.monotonic()) / len(left[left.index(topic) :])
        searched = log.search(topic, wanted, share, key)
        evidence.searched.append(searched)
        return searched.found

    try:
        for found in search(names.curated, mentions, id):
            outcome = _decoded(CuratedOutcome, found.value)
            if outcome is not None and outcome.id == id:
                evidence.outcomes.append(outcome)
            elif outcome is not None and id in (outcome.detail, outcome.by):
                evidence.others.append(outcome)
        for found in search(names.scored, mentions, id):
            scored = _decoded(ScoredPrompt, found.value)
            if scored is not None and scored.id == id:
                evidence.scored.append((At(found.place, found.ts), scored))
        for found in search(names.dead, is_its_letter):
            letter = _decoded(DeadLetter, found.value)
            if letter is not None:
                evidence.letters.append(letter)
        for found in search(names.feedback, mentions, id):
            feedback = _decoded(Feedback, found.value)
            if feedback is not None and feedback.id == id:
                evidence.feedback.append(feedback)
        if not evidence.scored and not evidence.members:
            for found in search(names.accepted, mentions, id):
                accepted = _decoded(AcceptedPrompt, found.value)
                if accepted is not None and accepted.id == id:
                    evidence.accepted = (At(found.place, found.ts), accepted)
        origin = evidence.origin(names.raw)
        if origin is not None:
            raw = log.at(*origin)
            if raw is not None:
                evidence.raw = At(raw.place, raw.ts), _decoded(RawPrompt, raw.value)
        else:
            for found in search(names.raw, mentions):
                given = _decoded(RawPrompt, found.value)
                if given is not None and given.id == id:
                    evidence.raw = At(found.place, found.ts), given
    finally:
        log.close()


def _decoded(kind: type[T], value: bytes) -> T | None:
    try:
        return decode(kind, value)
    except msgspec.MsgspecError:
        return None


def _position(letter: DeadLetter) -> tuple[str, int, int]:
    return letter.topic, letter.partition, letter.offset


def _snapshots(settings: Settings, evidence: Evidence) -> None:
    for path in list_snapshots(settings.training.snapshots):
        try:
            manifest = read_manifest(path)
        except SnapshotError as error:
            evidence.unread.append(str(error))
            continue
        for name, file in manifest.files.items():
            if evidence.id in file.ids:
                split, row = name.removesuffix(".parquet"), file.ids.index(evidence.id) + 1
                found = InSnapshot(path, manifest.run_id, manifest.created_at, split, row, file.rows)
                evidence.snapshots.append(found)
    evidence.snapshots.sort(key=lambda found: found.created_at)


def _runs(settings: Settings, evidence: Evidence) -> None:
    from trainers.rundir import Plan, RunFolder

    paths = {found.path for found in evidence.snapshots}
    names = topic_names(settings.kafka)
    if settings.training.work_dir.is_dir():
        for folder in sorted(settings.training.work_dir.iterdir()):
            plan = RunFolder(folder).read(Plan, "plan.json") if folder.is_dir() else None
            if plan is not None and paths & set(plan.earlier_snapshots):
                evidence.replayed.append(folder.name)
    requests = (_decoded(TrainRequest, message.value) for message in read_topics(settings.kafka, names.requests))
    evidence.requests = [request for request in requests if request is not None and request.snapshot in paths]
    runs = {found.run_id for found in evidence.snapshots} | set(evidence.replayed)
    for message in read_topics(settings.kafka, names.events):
        event = _decoded(TrainEvent, message.value)
        if event is not None and event.run_id in runs:
            evidence.events.append(event)
